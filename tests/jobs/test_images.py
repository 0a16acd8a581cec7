"""Start images: what is opened, and what is refused."""

import io
import struct
from pathlib import Path

import pytest
from PIL import Image

from goan_cli.errors import InvalidInput
from goan_cli.jobs.images import image_size, open_image

_ORIENTATION, _DESCRIPTION = 0x112, 0x10E
_SHORT, _RATIONAL = 3, 5


def picture(size: tuple[int, int] = (32, 24)) -> Image.Image:
    """A gradient in colour."""
    return Image.linear_gradient("L").resize(size).convert("RGB")


def encoded(kind: str, *, exif: bytes = b"") -> bytes:
    """A picture as the bytes of a file of some format."""
    buffer = io.BytesIO()
    picture().save(buffer, kind, **({"exif": exif} if exif else {}))
    return buffer.getvalue()


def exif_entries(*entries: tuple[int, int, int]) -> bytes:
    """An EXIF block of (tag, type, value) entries."""
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + b"\0\0\0\0"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats(tmp_path: Path, kind: str) -> None:
    """The usual formats open as RGB, whatever the file is called."""
    path = tmp_path / "start.image"
    path.write_bytes(encoded(kind))
    image = open_image(path)
    assert (image.mode, image.size) == ("RGB", (32, 24))
    assert image_size(path) == (32, 24)


@pytest.mark.parametrize(
    ("orientation", "size"), [(1, (32, 24)), (3, (32, 24)), (6, (24, 32)), (8, (24, 32)), (99, (32, 24))]
)
def test_turned_upright(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    """A photograph is turned upright by its EXIF orientation; an orientation that does not exist turns nothing."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded("JPEG", exif=exif_entries((_ORIENTATION, _SHORT, orientation))))
    assert open_image(path).size == size
    assert image_size(path) == size


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (0, 0, 0)),
        ("LA", (200, 0), (0, 0, 0)),
    ],
)
def test_colour_modes(tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, int, int]) -> None:
    """Every colour mode becomes RGB, and transparent parts become black."""
    path = tmp_path / "start.tiff"
    Image.new(mode, (4, 4), colour).save(path)
    assert open_image(path).getpixel((0, 0)) == expected


def test_16_bit_grey(tmp_path: Path) -> None:
    """A grey picture of 16 bits a pixel keeps its brightness: half of 65535 is half of 255."""
    path = tmp_path / "scan.png"
    Image.new("I;16", (4, 4), 32768).save(path)
    assert open_image(path).getpixel((0, 0)) in ((127, 127, 127), (128, 128, 128))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"a text that somebody named .png\n", "not an image"),
        (b"<!DOCTYPE html><html></html>", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image"),
        (encoded("PNG")[:20], "damaged"),
        (encoded("PNG")[: len(encoded("PNG")) // 2], "damaged"),
        (encoded("JPEG")[: len(encoded("JPEG")) // 2], "damaged"),
        (encoded("WEBP")[: len(encoded("WEBP")) // 2], "damaged"),
        (encoded("TIFF")[:-50], "damaged"),
    ],
    ids=["empty", "text", "html", "signature", "png-head", "png-half", "jpeg-half", "webp-half", "tiff-end"],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    """Text, web pages, empty and truncated files are refused, each for what it is."""
    path = tmp_path / "start.png"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=reason):
        open_image(path)
    with pytest.raises(InvalidInput, match=reason):
        image_size(path)


def test_unreadable_exif(tmp_path: Path) -> None:
    """EXIF data that Pillow cannot write back never ends in an exception of Pillow's own."""
    path = tmp_path / "photo.jpg"
    exif = exif_entries((_DESCRIPTION, _RATIONAL, 9), (_ORIENTATION, _SHORT, 6))
    path.write_bytes(encoded("JPEG", exif=exif))
    try:
        image = open_image(path)
    except InvalidInput:
        return
    assert image.size == (24, 32)


def test_damaged_avif(tmp_path: Path) -> None:
    """An AVIF whose data is overwritten in the middle is refused as damaged."""
    path = tmp_path / "start.avif"
    try:
        content = bytearray(encoded("AVIF"))
    except (OSError, KeyError):
        pytest.skip("this Pillow has no AVIF")
    start = content.index(b"mdat") + 4
    content[start:] = b"\x55" * (len(content) - start)
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidInput, match="damaged"):
        open_image(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(InvalidInput, match="no such file"):
        image_size(tmp_path / "start.png")
    with pytest.raises(InvalidInput, match="folder"):
        image_size(tmp_path)


def test_size_after_a_change(tmp_path: Path) -> None:
    """The size of a file that was replaced is the new file's."""
    path = tmp_path / "start.png"
    picture((32, 24)).save(path)
    assert image_size(path) == (32, 24)
    picture((48, 16)).save(path)
    assert image_size(path) == (48, 16)
