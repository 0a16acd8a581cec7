"""Interpolated frames: a moving shape is between its neighbours, the length stays, and nothing else changes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from goan_cli.errors import RenderFailed
from goan_cli.output.pictures import Frame
from goan_cli.output.post import interpolated

SIZE = (96, 64)
STEP = 4


def moving(count: int, size: tuple[int, int] = SIZE) -> Frame:
    """A red square of 16 pixels that goes to the right before a gradient."""
    width, height = size
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    frames[:] = np.linspace(30, 90, width)[None, None, :, None].astype(np.uint8)
    for number, frame in enumerate(frames):
        left = 8 + number * STEP
        frame[24:40, left : left + 16] = (230, 60, 40)
    return frames


def centre(frame: Frame) -> float:
    """Where the red square is, from the left."""
    red = frame[..., 0].astype(int) - frame[..., 2] > 80
    return float(np.nonzero(red)[1].mean())


def made(frames: Frame, fps: float, target: float, cuts: tuple[int, ...] = ()) -> Frame:
    """Interpolated, the frames given in chunks cut at these places."""
    size = (frames.shape[2], frames.shape[1])
    return np.concatenate(list(interpolated(iter(np.split(frames, cuts)), size=size, fps=fps, target=target)))


def test_a_moving_shape_is_between_its_neighbours() -> None:
    """Of twice as many frames every second one is as it was, and in those between the shape is half-way along."""
    frames = moving(8)
    twice = made(frames, 30, 60)
    assert len(twice) == 16
    for number, frame in enumerate(frames):
        assert np.abs(twice[2 * number].astype(int) - frame).max() <= 2
    for number in range(1, 7):  # the first one cannot know yet where things go
        between = centre(twice[2 * number + 1])
        assert centre(frames[number]) + 1 <= between <= centre(frames[number + 1]) - 1
        assert between == pytest.approx(centre(frames[number]) + STEP / 2, abs=0.5)


def test_the_shape_is_moved_and_not_faded() -> None:
    """In a frame between others the square is as large and as red as it was, not two pale ones."""
    frames = moving(8)
    between = made(frames, 30, 60)[7]
    red = between[..., 0].astype(int) - between[..., 2] > 150
    assert red.sum() == pytest.approx(16 * 16, rel=0.05)


@pytest.mark.parametrize(
    ("count", "fps", "target", "expected"),
    [(9, 30, 60, 18), (9, 24, 60, 22), (8, 16, 24, 12), (9, 29.97, 60, 18), (7, 30, 45.5, 11), (1, 30, 60, 2)],
)
def test_duration_stays(count: int, fps: float, target: float, expected: int) -> None:
    """The number of frames is that of the same length in time, to the nearest one, whatever the rates."""
    assert len(made(moving(count), fps, target)) == expected == round(count / fps * target)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 1, 5), tuple(range(1, 8))])
def test_chunks_make_no_difference(cuts: tuple[int, ...]) -> None:
    """The same frames come out however they were cut, and each time."""
    frames = moving(8)
    assert np.array_equal(made(frames, 30, 60, cuts), made(frames, 30, 60, (4,)))


def test_a_cut_is_no_motion() -> None:
    """Between two scenes nothing is made up: the frame between is like one of its neighbours."""
    first, second = moving(6), 255 - moving(6)[:, ::-1]
    frames = np.concatenate([first, second])
    between = made(frames, 30, 60)[11].astype(int)
    assert min(np.abs(between - first[-1]).mean(), np.abs(between - second[0]).mean()) < 8


def test_frames_are_passed_on_as_they_come() -> None:
    """Frames leave while others are still to come: a long video is never held whole."""
    fed = 0

    def feeding() -> Iterator[Frame]:
        nonlocal fed
        for frame in moving(120, (640, 64)):
            fed += 1
            yield frame[None]

    stream = interpolated(feeding(), size=(640, 64), fps=30, target=60)
    next(stream)
    assert fed < 120
    assert sum(1 for _ in stream) == 239


def test_failing_frames_come_through() -> None:
    """What fails while frames are made is what the caller sees, and ffmpeg is gone."""

    def failing() -> Iterator[Frame]:
        yield moving(3)
        raise RenderFailed("decoding failed")

    with pytest.raises(RenderFailed, match="decoding failed"):
        list(interpolated(failing(), size=SIZE, fps=30, target=60))


def test_no_frames() -> None:
    """Of nothing comes nothing, for the encoder to complain about."""
    assert not list(interpolated(iter(()), size=SIZE, fps=30, target=60))


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for ffmpeg")
def test_failing_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When ffmpeg dies, its last words are told."""
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho 'no such filter' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(RenderFailed, match="no such filter"):
        list(interpolated(iter([moving(40)]), size=SIZE, fps=30, target=60))
