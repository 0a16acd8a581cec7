"""Video files as a job uses them: decoded once to see that they can be, and read frame by frame. No torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goan_cli.errors import InvalidInput
from goan_cli.jobs.sizes import Fit
from goan_cli.media.videos import file_state, look_at_video, video_frames

LONGEST_SECONDS = 600
_LARGEST_SIDE = 8192
_SQUARE = "scale='round(iw*sar)':ih,setsar=1"
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
    """The video at `path` read at `fps`, all of it decoded once for as long as the file stays as it is.

    Raises InvalidInput for what is missing, no video, damaged, or larger or longer than a job can use.
    """
    found = _looked_at(path, fps, *file_state(path))
    if isinstance(found, InvalidInput):
        raise InvalidInput(found.message, hint=found.hint)
    return found


@lru_cache(maxsize=1024)
def _looked_at(path: Path, fps: float, modified: int, size: int) -> Clip | InvalidInput:  # noqa: ARG001 - of the key
    """What is refused is remembered as well: each job of a matrix may name it."""
    try:
        return _decoded_clip(path, fps)
    except InvalidInput as error:
        return error


def _decoded_clip(path: Path, fps: float) -> Clip:
    most = round(LONGEST_SECONDS * fps)
    video = look_at_video(path, filters=(f"fps={fps:g}", _SQUARE), most=most + 1)
    width, height = video.size
    if max(width, height) > _LARGEST_SIDE:
        raise InvalidInput(f"{path}: {width}x{height} is too large: at most {_LARGEST_SIDE} pixels a side")
    if video.frames > most:
        raise InvalidInput(f"{path}: longer than {LONGEST_SECONDS // 60} minutes", hint="cut out the part that goes on")
    untagged = height >= _HIGH_DEFINITION and "yuv" in video.stream and not _TAGGED.search(video.stream)
    return Clip(
        path=path,
        size=video.size,
        frames=video.frames,
        fps=fps,
        own_fps=video.fps,
        has_audio=video.has_audio,
        matrix="bt709" if untagged else None,
    )


def clip_frames(clip: Clip, fit: Fit, first: int = 0, stop: int | None = None) -> Iterator[NDArray[np.uint8]]:
    """Frames `(h, w, 3)` of these numbers, fitted into the render size, one held at a time.

    Raises InvalidInput when the file has come to be another since it was looked at.
    """
    stop = clip.frames if stop is None else stop
    filters = frame_filters(clip, fit, first, stop)
    return video_frames(clip.path, fit.size, filters=filters, expected=stop - first)


def frame_filters(clip: Clip, fit: Fit, first: int, stop: int) -> list[str]:
    """ffmpeg's filters by which `clip_frames` reads: with the file and ffmpeg, all that decides what it yields."""
    return [f"fps={clip.fps:g}", f"trim=start_frame={first}:end_frame={stop}", *_fitting(clip, fit)]


def _fitting(clip: Clip, fit: Fit) -> list[str]:
    """What does to a frame what `Fit` says, in RGB, so that a cut may lie at any pixel."""
    matrix = f":in_color_matrix={clip.matrix}" if clip.matrix else ""
    scaled = f"scale={fit.resized[0]}:{fit.resized[1]}:flags=lanczos+accurate_rnd+full_chroma_int{matrix}"
    left, top, _, _ = fit.box
    filters = [scaled, "setsar=1", "format=rgb24"]
    if fit.beside:
        filters.append(f"pad={fit.size[0]}:{fit.size[1]}:{-left}:{-top}:black")
    elif fit.resized != fit.size:
        filters.append(f"crop={fit.size[0]}:{fit.size[1]}:{left}:{top}:exact=1")
    return filters
