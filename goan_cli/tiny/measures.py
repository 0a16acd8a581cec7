"""What can be read from the frames of the tiny world: where the shape is, its colour, the background. No torch.

Frames are `(n, h, w, 3)` uint8, as an engine decodes them; lengths are in pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goan_cli.tiny.palette import COLOURS, DIRECTIONS

Frames = NDArray[np.uint8]
Values = NDArray[np.float64]

# A pixel belongs to the shape where it differs from its row's background by more than this.
_DIFFERENT = 0.16
_CORE = 0.8
# Fewer pixels are noise, not a shape.
_SMALLEST = 12.0
# A shorter way from the first frames to the last is standing still.
_STILL = 2.5
_ENDS = 3


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
    # A shape never covers half of a row, and backgrounds change from row to row only.
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


def sway_of(found: Track) -> float:
    """How far the shape swings from side to side: the spread of its centre along x, its drift taken out."""
    time = np.arange(len(found.x))
    drift = np.polyval(np.polyfit(time, found.x, 1), time)
    return float((found.x - drift).std())


def psnr_between(made: Frames, wanted: Frames) -> float:
    """Peak signal to noise ratio in dB of frames against frames of the same shape."""
    error = np.square((made.astype(np.float64) - wanted) / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))
