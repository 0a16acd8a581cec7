"""Start images: opened upright and in RGB, or refused with the reason."""

from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from goan_cli.errors import InvalidInput


def open_image(path: Path) -> Image.Image:
    """The image in RGB, turned upright by its EXIF orientation; transparent parts become black.

    Raises InvalidInput when the file is missing, damaged, or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise InvalidInput("no such file") from error
    except IsADirectoryError as error:
        raise InvalidInput("is a folder, not an image") from error
    except UnidentifiedImageError as error:
        raise InvalidInput("not an image that can be read (PNG, JPEG, WebP and many others can)") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"damaged or unreadable image: {error}") from error


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright image, after decoding all of it once. Raises InvalidInput."""
    try:
        stat = path.stat()
    except OSError as error:
        raise InvalidInput("no such file") from error
    return _decoded_size(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _decoded_size(path: Path, modified: int, size: int) -> tuple[int, int]:  # noqa: ARG001 - part of the key
    return open_image(path).size
