"""Frames to an MP4 that every player takes: H.264, yuv420p, BT.709, streamed to ffmpeg as they come."""

import subprocess
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from goan_cli.errors import EnvironmentFault, RenderFailed

# The colours are converted by the matrix that the file then names; untagged files are guessed at by players.
_TAGS = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_COLOUR = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv,{_TAGS}"]
# The same frames make the same file: no dates, and x264 notes its threads, so their number is fixed.
_REPRODUCIBLE = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-threads", "4"]


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What was written: frames, (width, height), frames per second."""

    frames: int
    size: tuple[int, int]
    fps: float


def ffmpeg_version() -> str:
    """The first line that ffmpeg says of itself. Raises EnvironmentFault when it cannot be run."""
    return _version_of(ffmpeg_path())


@lru_cache  # every sidecar names it
def _version_of(path: str) -> str:
    return _run([path, "-version"]).stdout.split("\n", maxsplit=1)[0]


def ffmpeg_path() -> str:
    """The ffmpeg that writes videos. Raises EnvironmentFault when there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EnvironmentFault("no ffmpeg found", hint="reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE") from error


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EnvironmentFault(
            f"{command[0]}: cannot be run: {error}", hint="reinstall imageio-ffmpeg, or mend IMAGEIO_FFMPEG_EXE"
        ) from error


def write_video(
    path: Path, chunks: Iterable[NDArray[np.uint8]], *, size: tuple[int, int], fps: float, crf: int
) -> VideoInfo:
    """Encode chunks of frames `(n, h, w, 3)` to `path`; at most one chunk is held at a time.

    Raises RenderFailed with ffmpeg's own last words when encoding fails, and when there are no frames.
    """
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:g}", "-i", "-"]
    encode = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(crf), "-movflags", "+faststart"]
    command = [ffmpeg_path(), "-y", "-loglevel", "error", *raw, "-an", *encode, *_COLOUR, *_REPRODUCIBLE, str(path)]
    frames = 0
    with tempfile.TemporaryFile() as words:
        try:
            # In a session of its own: Ctrl-C in a terminal is for goan, which stops when it has saved its work.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=words, start_new_session=True
            )
        except OSError as error:
            raise EnvironmentFault(f"{command[0]}: cannot be run: {error}") from error
        try:
            with process:
                frames = _feed(process, chunks)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.returncode or not frames or not path.is_file():
            words.seek(0)
            lines = [line.strip() for line in words.read().decode(errors="replace").splitlines() if line.strip()]
            said = "there were no frames" if not frames else (lines[-1] if lines else f"exit {process.returncode}")
            raise RenderFailed(f"{path.parent}: ffmpeg could not write the video: {said}")
    return VideoInfo(frames=frames, size=size, fps=fps)


def read_video(path: Path) -> NDArray[np.uint8]:
    """The frames `(n, h, w, 3)` of a video file, as far as it can be decoded, all at once: for short ones.

    Raises RenderFailed when ffmpeg cannot decode it.
    """
    frames = list(_decoded(path))
    if not frames:
        raise RenderFailed(f"{path}: ffmpeg cannot decode a single frame of it")
    return np.stack(frames)


def read_frames(path: Path, wanted: Collection[int]) -> dict[int, NDArray[np.uint8]]:
    """The frames `(h, w, 3)` of these numbers, one held at a time; those beyond the end are left out.

    Raises RenderFailed when ffmpeg cannot decode the file.
    """
    return {number: frame.copy() for number, frame in enumerate(_decoded(path)) if number in wanted}


def _decoded(path: Path) -> Iterator[NDArray[np.uint8]]:
    ffmpeg_path()
    try:
        reader = imageio_ffmpeg.read_frames(str(path))
        width, height = next(reader)["size"]
        for frame in reader:
            yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
    except (OSError, RuntimeError, StopIteration) as error:
        raise RenderFailed(f"{path}: ffmpeg cannot decode it: {error}") from error


def _feed(process: "subprocess.Popen[bytes]", chunks: Iterable[NDArray[np.uint8]]) -> int:
    """Write all frames to ffmpeg; returns their number. Stops early when ffmpeg does, who then says why."""
    frames = 0
    if process.stdin is None:
        raise RenderFailed("ffmpeg takes no frames")
    for chunk in chunks:
        try:
            process.stdin.write(np.ascontiguousarray(chunk).data)
        except BrokenPipeError:
            break
        frames += len(chunk)
    with suppress(BrokenPipeError):
        process.stdin.close()
    return frames
