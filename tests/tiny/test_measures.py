"""What is read from frames."""

import numpy as np
import pytest

from goan_cli.tiny.measures import (
    Frames,
    colour_kept,
    colour_name,
    direction,
    drift_of,
    psnr_between,
    psnr_of_all,
    sway_of,
    track,
)
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


def test_colour_is_kept_only_by_a_shape_that_is_there() -> None:
    """One frame in another colour, or without the shape, and the colour is not kept."""
    frames = video([(20 + n, 30) for n in range(6)])
    assert colour_kept(track(frames), "red")
    other, gone = frames.copy(), frames.copy()
    other[3] = video([(23, 30)], colour=(40, 200, 60))[0]
    gone[3] = 120
    assert not colour_kept(track(other), "red")
    assert not colour_kept(track(gone), "red")


def test_drift_sees_everything_away_from_the_shape() -> None:
    """A moving shape is no drift; a shift of the light is, and so is a ghost in one corner of one frame."""
    frames = video([(20 + n, 30) for n in range(6)])
    assert drift_of(frames, track(frames)) == 0
    lighter = frames.copy()
    lighter[4][lighter[4] == 120] = 130
    assert drift_of(lighter, track(lighter)) == pytest.approx(10, rel=0.05)
    ghost = frames.copy()
    ghost[2, 50:60, 50:60] = (120, 120, 180)
    assert drift_of(ghost, track(ghost)) > 0.3


def test_a_lost_shape_sways_nowhere() -> None:
    """Without a shape in every frame there is no swing to measure."""
    frames = video([(30 + 4 * (n % 2), 30) for n in range(6)])
    frames[2] = 120
    assert sway_of(track(frames)) == 0


def test_equal_clips_do_not_hide_another() -> None:
    """One clip that is off counts as much among equal ones as its error does."""
    frames = video([(30, 30)] * 4)
    alone = psnr_between(frames + 4, frames)
    assert psnr_of_all([frames, frames + 4], [frames, frames]) == pytest.approx(alone + 3.01, abs=0.01)
