"""Video files: looked at, and read frame by frame. Messages name the file."""

import re
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import numpy as np
from numpy.typing import NDArray

from goan_cli.errors import InvalidInput
from goan_cli.media.ffmpeg import RAW, ffmpeg_running, input_file, last_words, run_ffmpeg

# Not the picture that a song carries along.
_VIDEO = ("-map", "0:V:0")
# All frames as they are: by ffmpeg's own choice some would be repeated or left out to keep a rate.
_EACH = ("-fps_mode", "passthrough")
_STREAM = re.compile(r"^\s*Stream #0:\d+.*?: (Video|Audio): (.*)$", re.MULTILINE)
_DIMENSIONS = re.compile(r"^#dimensions 0: (\d+)x(\d+)$", re.MULTILINE)
_RATE = re.compile(r", (\d+(?:\.\d+)?)(k?) fps")


@dataclass(frozen=True, kw_only=True)
class VideoFile:
    """A video file: (width, height) and number of the frames that were decoded of it, and what ffmpeg says of it.

    `fps` is its rate as ffmpeg rounds it, None where it has none; `stream` are ffmpeg's words about its pictures.
    """

    path: Path
    size: tuple[int, int]
    frames: int
    fps: float | None
    has_audio: bool
    stream: str


def file_state(path: Path) -> tuple[int, int]:
    """A file's time of change in nanoseconds, and its size. Raises InvalidInput for what is no file."""
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: no such file") from error
    if not S_ISREG(stat.st_mode):
        raise InvalidInput(f"{path}: is {'a folder, not a video' if S_ISDIR(stat.st_mode) else 'not a file'}")
    return stat.st_mtime_ns, stat.st_size


def look_at_video(path: Path, *, filters: Sequence[str] = (), most: int = 1) -> VideoFile:
    """A video file, of which up to `most` frames are decoded as they come out of ffmpeg's `filters`, and counted.

    Raises InvalidInput for what is missing, no video, or damaged.
    """
    file_state(path)
    counted = [*_VIDEO, *_filtering(filters), *_EACH, "-frames:v", str(most), "-f", "framecrc", "-"]
    done = run_ffmpeg(["-nostats", *input_file(path), *counted])
    said, listed = done.stderr.decode(errors="replace"), done.stdout.decode(errors="replace")
    # Of the input alone: below it ffmpeg tells of what it writes.
    streams = _STREAM.findall(said.split("\nOutput #0", maxsplit=1)[0])
    stream = next((words for kind, words in streams if kind == "Video"), None)
    found = _DIMENSIONS.search(listed)
    frames = sum(1 for line in listed.splitlines() if line.startswith("0,"))
    if stream is None or "matches no streams" in said:
        raise InvalidInput(f"{path}: {'has no video in it' if streams else 'not a video that ffmpeg can read'}")
    if found is None or not frames:
        raise InvalidInput(f"{path}: ffmpeg cannot decode a single frame of it")
    rate = _RATE.search(stream)
    return VideoFile(
        path=path,
        size=(int(found[1]), int(found[2])),
        frames=frames,
        fps=float(rate[1]) * (1000 if rate[2] else 1) if rate else None,
        has_audio=any(kind == "Audio" for kind, _ in streams),
        stream=stream,
    )


def video_frames(
    path: Path, size: tuple[int, int], *, filters: Sequence[str] = (), expected: int | None = None
) -> Generator[NDArray[np.uint8]]:
    """The frames `(h, w, 3)` of a video as they come out of ffmpeg's `filters`, of `size` (width, height).

    One is held at a time. Raises InvalidInput when they are not as many as `expected`, or without it when ffmpeg fails.
    """
    width, height = size
    length, read = width * height * 3, 0
    arguments = ["-loglevel", "error", *input_file(path), *_VIDEO, *_filtering(filters), *_EACH, *RAW, "-"]
    with tempfile.TemporaryFile() as words:
        with ffmpeg_running(arguments, words, read=True) as process:
            content = b""
            while process.stdout is not None and len(content := process.stdout.read(length)) == length:
                read += 1
                yield np.frombuffer(content, np.uint8).reshape(height, width, 3)
        if expected is None and (process.returncode or content):
            raise InvalidInput(f"{path}: ffmpeg cannot decode it: {last_words(words, f'exit {process.returncode}')}")
        if expected is not None and read != expected:
            said = last_words(words, "")
            raise InvalidInput(f"{path}: {read} frames could be read, not {expected}{said and f': {said}'}")


def _filtering(filters: Sequence[str]) -> list[str]:
    return ["-vf", ",".join(filters)] if filters else []
