"""Video files as a job uses them: decoded once to see that they can be, and read frame by frame. No torch."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.jobs.sizes import Fit

LONGEST_SECONDS = 600
_LARGEST_SIDE = 8192
# A playlist may name other files; those of the network are not fetched.
_LOCAL = ["-nostdin", "-hide_banner", "-protocol_whitelist", "file"]
# Not the picture that a song carries along.
_VIDEO = "0:V:0"
_SQUARE = "scale='round(iw*sar)':ih,setsar=1"
_DIMENSIONS = re.compile(r"^#dimensions 0: (\d+)x(\d+)$", re.MULTILINE)
_RATE = re.compile(r", (\d+(?:\.\d+)?)(k?) fps")
_STREAM = re.compile(r"^\s*Stream #0:\d+.*?: (Video|Audio): (.*)$", re.MULTILINE)
# Names of matrices by which ffmpeg says that it knows a video's colours.
_TAGGED = re.compile(r"bt709|bt470bg|smpte170m|bt2020|fcc|smpte240m|gbr")
# Untagged videos of this height or more are taken for BT.709, as players do.
_HIGH_DEFINITION = 720


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video file: its (width, height) upright and in square pixels, and the `frames` that it has at `fps`.

    `own_fps` is the file's rate as ffmpeg rounds it, None where it has none.
    """

    path: Path
    size: tuple[int, int]
    frames: int
    fps: float
    own_fps: float | None
    has_audio: bool
    matrix: str | None

    @property
    def is_resampled(self) -> bool:
        """Whether frames are doubled or left out to come to `fps`."""
        return self.own_fps is None or abs(self.own_fps - self.fps) > 0.005


def clip_of(path: Path, fps: float) -> Clip:
    """The video at `path` read at `fps`, all of it decoded once.

    Raises InvalidInput for what is missing, no video, damaged, or larger or longer than a job can use.
    """
    try:
        stat = path.stat()
    except (OSError, ValueError) as error:
        raise InvalidInput("no such file") from error
    if not path.is_file():
        raise InvalidInput("is a folder, not a video" if path.is_dir() else "is not a file")
    return _decoded_clip(path, fps, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1024)
def _decoded_clip(path: Path, fps: float, modified: int, size: int) -> Clip:  # noqa: ARG001 - part of the key
    most = round(LONGEST_SECONDS * fps)
    counted = ["-map", _VIDEO, "-vf", f"fps={fps:g},{_SQUARE}", "-frames:v", str(most + 1), "-f", "framecrc", "-"]
    done = _run([_ffmpeg(), *_LOCAL, "-nostats", "-i", str(path), *counted])
    # Of the input alone: below it ffmpeg tells of what it writes.
    told = done.stderr.split("\nOutput #0", maxsplit=1)[0]
    streams = _STREAM.findall(told)
    video = next((words for kind, words in streams if kind == "Video"), None)
    found = _DIMENSIONS.search(done.stdout)
    frames = sum(1 for line in done.stdout.splitlines() if line.startswith("0,"))
    if video is None or "matches no streams" in done.stderr:
        raise InvalidInput("has no video in it" if streams else "not a video that ffmpeg can read")
    if found is None or not frames:
        raise InvalidInput("ffmpeg cannot decode a single frame of it")
    width, height = int(found[1]), int(found[2])
    if max(width, height) > _LARGEST_SIDE:
        raise InvalidInput(f"{width}x{height} is too large: at most {_LARGEST_SIDE} pixels a side")
    if frames > most:
        raise InvalidInput(f"longer than {LONGEST_SECONDS // 60} minutes", hint="cut out the part that goes on")
    rate = _RATE.search(video)
    untagged = height >= _HIGH_DEFINITION and "yuv" in video and not _TAGGED.search(video)
    return Clip(
        path=path,
        size=(width, height),
        frames=frames,
        fps=fps,
        own_fps=float(rate[1]) * (1000 if rate[2] else 1) if rate else None,
        has_audio=any(kind == "Audio" for kind, _ in streams),
        matrix="bt709" if untagged else None,
    )


def clip_frames(clip: Clip, fit: Fit, first: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Frames `(h, w, 3)` of these numbers, fitted into the render size, one held at a time.

    Raises InvalidInput when the file has come to be another since it was looked at.
    """
    stop = clip.frames if stop is None else stop
    width, height = fit.size
    filters = [f"fps={clip.fps:g}", f"trim=start_frame={first}:end_frame={stop}", *_fitting(clip, fit)]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-fps_mode", "passthrough", "-"]
    command = [_ffmpeg(), *_LOCAL, "-loglevel", "error", "-i", str(clip.path)]
    command += ["-map", _VIDEO, "-vf", ",".join(filters), *raw]
    with tempfile.TemporaryFile() as words:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words, start_new_session=True
            )
        except OSError as error:
            raise EnvironmentFault(f"{command[0]}: cannot be run: {error}") from error
        read = 0
        try:
            with process:
                for frame in _frames_in(process.stdout, width, height):
                    read += 1
                    yield frame
        except BaseException:
            process.kill()
            process.wait()
            raise
        if read != stop - first:
            words.seek(0)
            said = _last_words(words.read().decode(errors="replace"))
            raise InvalidInput(f"{clip.path}: {read} frames could be read, not {stop - first}{said}")


def _frames_in(stream: IO[bytes] | None, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    size = width * height * 3
    while stream is not None and len(content := stream.read(size)) == size:
        yield np.frombuffer(content, np.uint8).reshape(height, width, 3)


def _fitting(clip: Clip, fit: Fit) -> list[str]:
    """ffmpeg's filters that do to a frame what `Fit` says, in RGB, so that a cut may lie at any pixel."""
    matrix = f":in_color_matrix={clip.matrix}" if clip.matrix else ""
    scaled = f"scale={fit.resized[0]}:{fit.resized[1]}:flags=lanczos+accurate_rnd+full_chroma_int{matrix}"
    left, top, _, _ = fit.box
    filters = [scaled, "setsar=1", "format=rgb24"]
    if fit.beside:
        filters.append(f"pad={fit.size[0]}:{fit.size[1]}:{-left}:{-top}:black")
    elif fit.resized != fit.size:
        filters.append(f"crop={fit.size[0]}:{fit.size[1]}:{left}:{top}:exact=1")
    return filters


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise EnvironmentFault(f"{command[0]}: cannot be run: {error}") from error


def _ffmpeg() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EnvironmentFault("no ffmpeg found", hint="reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE") from error
