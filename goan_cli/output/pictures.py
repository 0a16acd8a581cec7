"""Still pictures and tensors beside a video: section previews, contact sheets."""

import math
from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

from goan_cli.files import replaced_when_complete

Frame = NDArray[np.uint8]
RECIPE_KEY = "goan"  # of the text chunk that holds the job

_SHEET_FRAMES = 12
_SHEET_COLUMNS = 6
_SHEET_SMALLEST = 128  # pixels that a sheet's picture is wide at the least
_SHEET_LARGEST = 320
_LABEL_HEIGHT = 14
_PREVIEW_SCALE = 8  # a latent pixel stands for 8 x 8 pixels


def write_preview(path: Path, strip: NDArray[np.uint8]) -> None:
    """A PNG of rough frames side by side `(h, w, 3)`, enlarged to the video's height."""
    image = Image.fromarray(strip)
    enlarged = image.resize((image.width * _PREVIEW_SCALE, image.height * _PREVIEW_SCALE), Image.Resampling.BICUBIC)
    with replaced_when_complete(path) as temporary:
        enlarged.save(temporary)


def sheet_frames(frames: int) -> list[int]:
    """The numbers of the frames that a contact sheet of a video shows: the first, the last, and evenly between."""
    shown = min(_SHEET_FRAMES, frames)
    return [round(place * (frames - 1) / max(shown - 1, 1)) for place in range(shown)]


def keeping(chunks: Iterable[Frame], wanted: Collection[int], kept: MutableMapping[int, Frame]) -> Iterator[Frame]:
    """Pass chunks of frames `(n, h, w, 3)` on, and put the frames of the wanted numbers into `kept`."""
    first = 0
    for chunk in chunks:
        for number in range(first, first + len(chunk)):
            if number in wanted:
                kept[number] = chunk[number - first].copy()
        first += len(chunk)
        yield chunk


def write_poster(path: Path, frame: Frame, recipe: str | None = None) -> None:
    """A PNG of a frame `(h, w, 3)`, with the recipe in it."""
    with replaced_when_complete(path) as temporary:
        Image.fromarray(frame).save(temporary, pnginfo=_info(recipe))


def write_contact_sheet(path: Path, frames: Sequence[Frame], labels: Sequence[str], recipe: str | None = None) -> None:
    """A PNG of frames `(h, w, 3)` of one size in rows of six, each over its label, with the recipe in it."""
    height, width = frames[0].shape[:2]
    scale = _SHEET_LARGEST / width if width > _SHEET_LARGEST else math.ceil(_SHEET_SMALLEST / width)
    shown_width, shown_height = round(width * scale), round(height * scale)
    columns, rows = min(_SHEET_COLUMNS, len(frames)), math.ceil(len(frames) / _SHEET_COLUMNS)
    sheet = Image.new("RGB", (columns * (shown_width + 4) + 4, rows * (shown_height + _LABEL_HEIGHT + 4) + 4), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        left = 4 + number % _SHEET_COLUMNS * (shown_width + 4)
        top = 4 + number // _SHEET_COLUMNS * (shown_height + _LABEL_HEIGHT + 4)
        # Whole steps up keep small frames' pixels as they are; large ones are made smaller smoothly.
        way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        sheet.paste(Image.fromarray(frame).resize((shown_width, shown_height), way), (left, top))
        draw.text((left, top + shown_height + 1), label, fill="black")
    with replaced_when_complete(path) as temporary:
        sheet.save(temporary, pnginfo=_info(recipe))


def _info(recipe: str | None) -> PngImagePlugin.PngInfo:
    """What a PNG is saved with to hold a recipe."""
    info = PngImagePlugin.PngInfo()
    if recipe is not None:
        info.add_text(RECIPE_KEY, recipe)
    return info


def write_bars(path: Path, title: str, bars: Sequence[tuple[str, float, float]]) -> None:
    """A chart as PNG: for each (label, value, share) a bar as long as the value, and both numbers."""
    row, left, bar = 18, 260, 480
    image = Image.new("RGB", (left + bar + 160, row * (len(bars) + 2)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((8, 4), title, fill="black")
    most = max((value for _, value, _ in bars), default=0.0) or 1.0
    for number, (label, value, share) in enumerate(bars, start=1):
        top = row * number + 8
        draw.text((8, top), label, fill="black")
        draw.rectangle([left, top, left + bar * value / most, top + row - 6], fill=(48, 120, 190))
        draw.text((left + bar * value / most + 6, top), f"{value:.3%}  ({share:.1%} moved)", fill="black")
    with replaced_when_complete(path) as temporary:
        image.save(temporary)
