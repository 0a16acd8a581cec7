"""What can be read from the frames of the tiny world: where the shape is, its colour, the background. No torch.

Frames are `(n, h, w, 3)` uint8, as an engine decodes them; lengths are in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goan_cli.tiny.palette import COLOURS, DIRECTIONS, DUSK

Frames = NDArray[np.uint8]
Values = NDArray[np.float64]

# A pixel belongs to the shape where it differs from its row's background by more than this.
_DIFFERENT = 0.16
# Its middle, without the soft edge: pixels that differ by this share of the most that any does.
_CORE = 0.8
# Fewer pixels are noise, not a shape.
_SMALLEST = 12.0
# A shorter way from the first frames to the last is standing still.
_STILL = 2.5
_ENDS = 3
# Half the side of the square that a shape lies in, soft edges and corners too, by the root of its area.
_REACH = 1.0


@dataclass(frozen=True, kw_only=True)
class Track:
    """The shape in each frame: its centre, its area in pixels (0 where there is none), its mean colour `(n, 3)`.

    `background` `(n, 3)` is the mean colour of everything else; centres are NaN where there is no shape.
    """

    x: Values
    y: Values
    area: Values
    colour: Values
    background: Values


def track(frames: Frames) -> Track:
    """Find the one shape of the world in each frame."""
    pixels = frames.astype(np.float64) / 255
    # Backgrounds change from row to row only, and hardly a shape ever covers half of a row.
    ground = np.median(pixels, axis=2, keepdims=True)
    distance = np.abs(pixels - ground).max(axis=3)
    inside = np.clip((distance - _DIFFERENT) / _DIFFERENT, 0, 1)
    area = inside.sum(axis=(1, 2))
    present = area >= _SMALLEST
    safe = np.where(present, area, np.nan)
    rows, columns = np.arange(frames.shape[1]), np.arange(frames.shape[2])
    # The middle of the shape: its soft edge is a mixture.
    core = (distance >= _CORE * distance.max(axis=(1, 2), keepdims=True))[..., None]
    outside = (distance < _DIFFERENT / 2)[..., None]
    return Track(
        x=(inside * columns).sum(axis=(1, 2)) / safe,
        y=(inside * rows[:, None]).sum(axis=(1, 2)) / safe,
        area=np.where(present, area, 0.0),
        colour=(pixels * core).sum(axis=(1, 2)) / core.sum(axis=(1, 2)),
        background=(pixels * outside).sum(axis=(1, 2)) / np.maximum(outside.sum(axis=(1, 2)), 1),
    )


def direction(found: Track) -> str:
    """Where the shape went from the first frames to the last: a direction's name, or "still", or "lost"."""
    if not found.area.all():
        return "lost"
    across = float(found.x[-_ENDS:].mean() - found.x[:_ENDS].mean())
    down = float(found.y[-_ENDS:].mean() - found.y[:_ENDS].mean())
    if max(abs(across), abs(down)) < _STILL:
        return "still"
    step = (int(np.sign(across)), 0) if abs(across) > abs(down) else (0, int(np.sign(down)))
    return next(name for name, along in DIRECTIONS.items() if along == step)


def colour_name(rgb: Values) -> str:
    """The world's colour nearest to a mean colour `(3,)`."""
    return min(COLOURS, key=lambda name: float(np.square(rgb - np.array(COLOURS[name])).sum()))


def colour_kept(found: Track, colour: str) -> bool:
    """Whether the shape is there in every frame, and of that colour."""
    return bool(found.area.all()) and all(colour_name(rgb) == colour for rgb in found.colour)


def drift_of(frames: Frames, found: Track) -> float:
    """How far the background strays from the first frame's, in 256ths: the worst frame's mean over its pixels.

    Looked at is every pixel outside a square around the shape, in the frame and in the first one; nothing that
    appears there is left out.
    """
    rows, columns = np.arange(frames.shape[1])[:, None], np.arange(frames.shape[2])
    reach = _REACH * np.sqrt(np.maximum(found.area, _SMALLEST))
    near = [
        (np.abs(rows - y) < side) & (np.abs(columns - x) < side) if area else np.zeros(frames.shape[1:3], bool)
        for x, y, side, area in zip(found.x, found.y, reach, found.area, strict=True)
    ]
    first = frames[0].astype(np.float64)
    strays = [
        np.abs(frame - first).mean(axis=2)[~(mask | near[0])].mean() for frame, mask in zip(frames, near, strict=True)
    ]
    return float(max(strays))


def fallen_share(plain: Track, dusk: Track) -> float:
    """How far the last background went from the plain render's to dusk: 0 not at all, 1 wholly."""
    way = np.array(DUSK) - plain.background[-1]
    moved = dusk.background[-1] - plain.background[-1]
    return float(moved @ way / (way @ way))


def sway_of(found: Track) -> float:
    """How far the shape swings from side to side: the spread of its centre along x, its drift taken out.

    0 where the shape is lost.
    """
    if not found.area.all():
        return 0.0
    time = np.arange(len(found.x))
    drift = np.polyval(np.polyfit(time, found.x, 1), time)
    return float((found.x - drift).std())


def psnr_between(made: Frames, wanted: Frames) -> float:
    """Peak signal to noise ratio in dB of frames against frames of the same shape."""
    error = np.square((made.astype(np.float64) - wanted) / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))


def psnr_of_all(made: Sequence[Frames], wanted: Sequence[Frames]) -> float:
    """The PSNR in dB of several clips as of one long one: equal ones among them do not hide the others."""
    return psnr_between(np.concatenate(list(made)), np.concatenate(list(wanted)))
