"""What is read from frames."""

import numpy as np
import pytest

from goan_cli.tiny.measures import Frames, colour_name, direction, psnr_between, sway_of, track
from goan_cli.tiny.palette import COLOURS


def video(centres: list[tuple[int, int]], colour: tuple[int, int, int] = (200, 40, 30)) -> Frames:
    """Grey frames with a square of 12 pixels around each centre (x, y)."""
    frames = np.full((len(centres), 64, 64, 3), 120, np.uint8)
    for frame, (x, y) in zip(frames, centres, strict=True):
        frame[y - 6 : y + 6, x - 6 : x + 6] = colour
    return frames


def test_track_finds_the_square() -> None:
    """Centre, area, colour and background are those of the square that was drawn."""
    found = track(video([(20, 30), (21, 30)]))
    assert found.x == pytest.approx([19.5, 20.5])
    assert found.y == pytest.approx([29.5, 29.5])
    assert found.area == pytest.approx([144, 144])
    assert found.colour[0] * 255 == pytest.approx([200, 40, 30])
    assert found.background[0] * 255 == pytest.approx([120, 120, 120])


@pytest.mark.parametrize(
    ("step", "seen"), [((1, 0), "right"), ((-1, 0), "left"), ((0, 1), "down"), ((0, -1), "up"), ((0, 0), "still")]
)
def test_direction(step: tuple[int, int], seen: str) -> None:
    """The direction is the larger way from the first frames to the last."""
    assert direction(track(video([(32 + step[0] * n, 32 + step[1] * n) for n in range(10)]))) == seen


def test_a_vanished_shape_is_lost() -> None:
    """A clip whose shape is missing from one frame has no direction."""
    frames = video([(20 + n, 30) for n in range(10)])
    frames[5] = 120
    found = track(frames)
    assert direction(found) == "lost"
    assert found.area[5] == 0


@pytest.mark.parametrize("name", COLOURS)
def test_colour_names(name: str) -> None:
    """A colour of the palette, a little off, is called by its name."""
    assert colour_name(np.array(COLOURS[name]) + 0.05) == name


def test_sway_ignores_drift() -> None:
    """A steady way is no sway; a swing around it is."""
    assert sway_of(track(video([(20 + n, 30) for n in range(10)]))) < 1e-6
    assert sway_of(track(video([(30 + 4 * (n % 2), 30) for n in range(10)]))) == pytest.approx(2, rel=0.1)


def test_psnr() -> None:
    """Frames that differ by 1/255 everywhere are 48.1 dB apart; equal ones are as near as it is counted."""
    frames = video([(30, 30)])
    assert psnr_between(frames, frames) == 100
    assert psnr_between(frames + 1, frames) == pytest.approx(48.13, abs=0.01)
