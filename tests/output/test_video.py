"""Videos: the right codec, size, rate and frames, the same bytes each time, and failures that are told."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from goan_cli.errors import RenderFailed
from goan_cli.files import replaced_when_complete
from goan_cli.jobs.formats import Coding
from goan_cli.media.ffmpeg import ffmpeg_path
from goan_cli.output.video import VideoInfo, read_video, write_video

SIZE = (64, 48)
Frames = NDArray[np.uint8]


def chunks(*counts: int, size: tuple[int, int] = SIZE, colour: tuple[int, int, int] | None = None) -> Iterator[Frames]:
    """Chunks of moving gradients, or of one colour."""
    width, height = size
    number = 0
    for count in counts:
        frames = np.zeros((count, height, width, 3), dtype=np.uint8)
        for frame in frames:
            ramp = np.arange(width) * 3 + number * 5
            frame[:] = (ramp % 256)[None, :, None] if colour is None else colour
            number += 1
        yield frames


def write(path: Path, *counts: int, fps: float = 30.0, crf: int = 16) -> VideoInfo:
    """Write moving gradients."""
    return write_video(path, chunks(*counts), size=SIZE, fps=fps, coding=Coding(crf=crf))


def streams(path: Path) -> str:
    """What ffmpeg says of a file's video stream."""
    said = subprocess.run([ffmpeg_path(), "-i", str(path)], capture_output=True, text=True, check=False).stderr
    return next(line for line in said.splitlines() if "Video:" in line)


def decoded(path: Path) -> list[Frames]:
    """All frames of a file, decoded."""
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3) for frame in reader]


def boxes(path: Path) -> list[str]:
    """Names of the top-level boxes of an MP4, in order."""
    content, place, names = path.read_bytes(), 0, []
    while place < len(content):
        names.append(content[place + 4 : place + 8].decode("ascii"))
        place += int.from_bytes(content[place : place + 4], "big") or len(content)
    return names


@pytest.mark.parametrize(("fps", "rate"), [(30.0, "30 fps"), (24.0, "24 fps"), (29.97, "29.97 fps"), (1.0, "1 fps")])
def test_stream(tmp_path: Path, fps: float, rate: str) -> None:
    """A video is H.264 in yuv420p and BT.709, of the size and rate asked for."""
    path = tmp_path / "a.mp4"
    assert write(path, 5, fps=fps) == VideoInfo(frames=5, size=SIZE, fps=fps)
    stream = streams(path)
    assert re.search(r"h264 \((High|Main|Baseline)\)", stream), stream
    assert re.search(r"yuv420p\(tv, bt709", stream), stream
    assert f" {SIZE[0]}x{SIZE[1]}" in stream
    assert f" {rate}" in stream


@pytest.mark.parametrize("counts", [(1,), (5,), (1, 4, 0, 8), (37, 36)])
def test_frame_count(tmp_path: Path, counts: tuple[int, ...]) -> None:
    """Every frame given is in the file, once, however the frames were cut into chunks."""
    path = tmp_path / "a.mp4"
    assert write(path, *counts).frames == sum(counts)
    assert len(decoded(path)) == sum(counts)


@pytest.mark.parametrize("crf", [1, 16, 51])
def test_players_can_decode_every_quality(tmp_path: Path, crf: int) -> None:
    """No quality falls into a profile that players refuse, and lower numbers make larger files."""
    path = tmp_path / "a.mp4"
    write(path, 10, crf=crf)
    assert "4:4:4" not in streams(path)
    coarse = tmp_path / "b.mp4"
    write(coarse, 10, crf=51)
    assert path.stat().st_size >= coarse.stat().st_size


def test_sizes_that_are_no_multiple_of_macroblocks(tmp_path: Path) -> None:
    """Any even size stays as it is."""
    path = tmp_path / "a.mp4"
    write_video(path, chunks(3, size=(50, 30)), size=(50, 30), fps=30, coding=Coding())
    assert decoded(path)[0].shape == (30, 50, 3)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (0, 0, 0), (255, 255, 255)])
def test_colours(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    """Colours come back as they were, to the rounding of 8-bit video: the tags say the matrix that was used."""
    path = tmp_path / "a.mp4"
    write_video(path, chunks(3, colour=colour), size=SIZE, fps=30, coding=Coding(crf=1))
    back = decoded(path)[1][20:28, 28:36].reshape(-1, 3).mean(axis=0)
    assert np.abs(back - np.array(colour)).max() < 6, back


def test_starts_before_it_is_loaded(tmp_path: Path) -> None:
    """The index stands before the frames, so that a video plays while it loads."""
    path = tmp_path / "a.mp4"
    write(path, 5)
    names = boxes(path)
    assert names.index("moov") < names.index("mdat")


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    """The same frames make the same file, whatever its name; other frames make another."""
    first, second, third = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    write(first, 5, 5)
    write(second, 10)
    write(third, 9)
    assert first.read_bytes() == second.read_bytes() != third.read_bytes()


def test_same_bytes_on_any_number_of_cores(tmp_path: Path) -> None:
    """The same frames make the same file on one core and on several."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores, and a system that can withhold one")
    cores = os.sched_getaffinity(0)
    files = []
    try:
        for count in (1, 2):
            os.sched_setaffinity(0, sorted(cores)[:count])  # ffmpeg inherits it
            files.append(tmp_path / f"{count}.mp4")
            write_video(files[-1], chunks(4, size=(320, 256)), size=(320, 256), fps=30, coding=Coding())
    finally:
        os.sched_setaffinity(0, cores)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_no_dates(tmp_path: Path) -> None:
    """The file does not say when it was made."""
    path = tmp_path / "a.mp4"
    write(path, 3)
    content = path.read_bytes()
    header = content.index(b"mvhd") + 4
    assert content[header + 4 : header + 12] == b"\0" * 8  # creation and modification time


def test_failing_frames_leave_nothing(tmp_path: Path) -> None:
    """When the frames fail in the middle, the old video stays, nothing else is left, and the error comes through."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def failing() -> Iterator[Frames]:
        yield from chunks(20)
        raise RenderFailed("decoding failed")

    with pytest.raises(RenderFailed, match="decoding failed"), replaced_when_complete(path) as temporary:
        write_video(temporary, failing(), size=SIZE, fps=30, coding=Coding())
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"old"


def test_missing_folder(tmp_path: Path) -> None:
    """Where ffmpeg cannot write, the folder is named, and no heading of an empty log."""
    with pytest.raises(RenderFailed, match=re.escape(str(tmp_path / "gone"))) as caught:
        write(tmp_path / "gone" / "a.mp4", 400)
    assert not caught.value.message.rstrip().endswith("FFMPEG STDERR OUTPUT:")


def _ffmpeg(folder: Path, script: str) -> Path:
    path = folder / "ffmpeg"
    encoders = 'case "$*" in *-encoders) echo " V....D libx264"; exit;; esac'
    path.write_text(f"#!/bin/sh\n{encoders}\nfor last; do :; done\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "script",
    ['cat > /dev/null; echo half > "$last"; exit 1', "cat > /dev/null; exit 0", "exit 1"],
    ids=["half", "none", "dies"],
)
def test_failing_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """When ffmpeg fails, at once, at the end (as on a full disk) or silently, the render has failed."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(_ffmpeg(tmp_path, script)))
    with pytest.raises(RenderFailed):
        write(tmp_path / "a.mp4", 20)


def test_no_frames(tmp_path: Path) -> None:
    """A video without frames is a failure, not an empty file."""
    with pytest.raises(RenderFailed):
        write(tmp_path / "a.mp4")


def test_read_video(tmp_path: Path) -> None:
    """A video comes back whole: its frames in order, about as they were written."""
    path = tmp_path / "a.mp4"
    grey = np.linspace(40, 200, 7).astype(np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (7, SIZE[1], SIZE[0], 3))
    write_video(path, [np.ascontiguousarray(frames)], size=SIZE, fps=30.0, coding=Coding(crf=1))
    back = read_video(path)
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).max() <= 3


@pytest.mark.parametrize("content", [b"", b"not a video", None])
def test_read_video_of_something_else(tmp_path: Path, content: bytes | None) -> None:
    """What is no video, or not there, is a failure that names the file."""
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RenderFailed, match=r"a\.mp4"):
        read_video(path)


def test_read_video_of_a_cut_file(tmp_path: Path) -> None:
    """A file cut off before its first frame, its header whole, is a failure too."""
    path = tmp_path / "a.mp4"
    write(path, 5)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 8])
    with pytest.raises(RenderFailed, match=r"a\.mp4"):
        read_video(path)
