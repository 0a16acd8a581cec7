"""The contact sheet and the table of a matrix: every variant beside its neighbours."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from goan_cli.errors import InvalidInput
from goan_cli.files import replaced_when_complete
from goan_cli.jobs.job import Variant
from goan_cli.output.pictures import Frame

_CELL_WIDEST = 540  # pixels of three frames side by side
_CELL_NARROWEST = 192
_SHEET_WIDEST = 8192
_SHEET_TALLEST = 60_000
_FRAMES = 3
_LINE = 14
_GAP = 6
_LABEL_LETTERS = 28
_LETTER = 6  # pixels that a letter of Pillow's own font takes


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant: where it stands, its frames (first, middle, last), and what is said where it has none."""

    variant: Variant
    frames: Sequence[Frame]
    caption: str


def write_matrix_sheet(path: Path, cells: Sequence[Cell]) -> None:
    """A PNG with a row for each combination of all axes but the last, and a column for each value of that.

    Raises InvalidInput for more rows than a picture can have.
    """
    axes = cells[0].variant.axes
    last_key, columns = axes[-1] if len(axes) > 1 else ("", ("",))
    row_axes = axes[:-1] if len(axes) > 1 else axes
    rows = math.prod(len(labels) for _, labels in row_axes)
    shape = next((cell.frames[0].shape for cell in cells if cell.frames), (9, 16, 3))
    widest = min(_CELL_WIDEST, max(_CELL_NARROWEST, _SHEET_WIDEST // len(columns)))
    thumb = (widest // _FRAMES, max(1, round(widest // _FRAMES * shape[0] / shape[1])))
    left, top = _LABEL_LETTERS * _LETTER, 2 * _LINE
    across, down = _FRAMES * thumb[0] + _GAP, thumb[1] + _LINE + _GAP
    if top + rows * down > _SHEET_TALLEST:
        raise InvalidInput(f"{path}: {rows} rows are too many for one picture", hint="the table has them all")
    sheet = Image.new("RGB", (left + len(columns) * across, top + rows * down), "white")
    draw = ImageDraw.Draw(sheet)
    letters = across // _LETTER
    for number, value in enumerate(columns if last_key else ()):
        draw.text((left + number * across, _GAP), _label(last_key, value, letters), fill="black")
    for cell in cells:
        row, column = _spot(cell.variant)
        x, y = left + column * across, top + row * down
        for line, (key, _) in enumerate(row_axes):
            label = _label(key, cell.variant.values[key], _LABEL_LETTERS)
            draw.text((_GAP, y + line * _LINE), label, fill="black")
        for number, frame in enumerate(cell.frames):
            way = Image.Resampling.NEAREST if thumb[0] >= frame.shape[1] else Image.Resampling.LANCZOS
            sheet.paste(Image.fromarray(frame).resize(thumb, way), (x + number * thumb[0], y))
        draw.text((x, y + thumb[1]), _short(cell.caption, letters), fill="black")
    with replaced_when_complete(path) as temporary:
        sheet.save(temporary)


def _spot(variant: Variant) -> tuple[int, int]:
    """Row and column of a variant."""
    if len(variant.axes) == 1:
        return variant.place[0], 0
    row = 0
    for (_, labels), at in zip(variant.axes[:-1], variant.place, strict=False):
        row = row * len(labels) + at
    return row, variant.place[-1]


def _label(key: str, value: str, letters: int) -> str:
    # Of a path the file's name says the most.
    return _short(f"{key}={Path(value).name if '/' in value and ' ' not in value else value}", letters)


def _short(text: str, letters: int) -> str:
    plain = text.encode("latin-1", "replace").decode("latin-1")  # all that Pillow's own font has
    return plain if len(plain) <= letters else f"{plain[: letters - 3]}..."


def table_text(rows: Sequence[Mapping[str, object]]) -> str:
    """A CSV with a line for each variant; the columns are the first row's keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def reduced(frame: Frame) -> Frame:
    """A frame made small enough for a sheet, so that hundreds of them can be held."""
    widest = _CELL_WIDEST // _FRAMES
    if frame.shape[1] <= widest:
        return frame
    size = (widest, max(1, round(widest * frame.shape[0] / frame.shape[1])))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
