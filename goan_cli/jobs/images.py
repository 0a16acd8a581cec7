"""Start images: opened upright and in RGB, or refused with the reason."""

import warnings
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from goan_cli.errors import InvalidInput


def open_image(path: Path) -> Image.Image:
    """The image in 8-bit RGB, turned upright by its EXIF orientation; transparent parts become black.

    Raises InvalidInput when the file is missing, damaged, no image, or holds floating-point values.
    """
    try:
        with warnings.catch_warnings():
            # Large photographs are welcome; true bombs raise an error of their own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return _in_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise InvalidInput("no such file") from error
    except IsADirectoryError as error:
        raise InvalidInput("is a folder, not an image") from error
    except UnidentifiedImageError as error:
        raise InvalidInput("not an image that can be read (PNG, JPEG, WebP and many others can)") from error
    except InvalidInput:
        raise
    except Exception as error:  # Pillow's many decoders raise whatever their formats make them stumble over
        raise InvalidInput(f"damaged or unreadable image: {error or type(error).__name__}") from error


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InvalidInput("holds floating-point values; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips to white
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, after decoding all of it once. Raises InvalidInput."""
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise InvalidInput("no such file") from error
    return _decoded_size(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _decoded_size(path: Path, modified: int, size: int) -> tuple[int, int]:  # noqa: ARG001 - part of the key
    return open_image(path).size
