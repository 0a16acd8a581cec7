"""Frames to an MP4 that every player takes: H.264, yuv420p, BT.709, streamed to ffmpeg as they come."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from goan_cli.errors import EnvironmentFault, RenderFailed

# The colours are converted by the matrix that the file then names; untagged files are guessed at by players.
_TAGS = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_COLOUR = ["-vf", f"scale=out_color_matrix=bt709:out_range=tv,{_TAGS}"]
# No encoder version and no dates: the same frames make the same file.
_REPRODUCIBLE = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What was written: frames, (width, height), frames per second."""

    frames: int
    size: tuple[int, int]
    fps: float


def ffmpeg_path() -> str:
    """The ffmpeg that writes videos. Raises EnvironmentFault when there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EnvironmentFault("no ffmpeg found", hint="reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE") from error


def write_video(
    path: Path, chunks: Iterable[NDArray[np.uint8]], *, size: tuple[int, int], fps: float, crf: int
) -> VideoInfo:
    """Encode chunks of frames `(n, h, w, 3)` to `path`; at most one chunk is held at a time.

    Raises RenderFailed with ffmpeg's own last words when encoding fails.
    """
    ffmpeg_path()
    writer = imageio_ffmpeg.write_frames(
        str(path),
        size,
        fps=fps,
        codec="libx264",
        pix_fmt_in="rgb24",
        pix_fmt_out="yuv420p",
        quality=None,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", str(crf), *_COLOUR, "-movflags", "+faststart", *_REPRODUCIBLE],
    )
    frames = 0
    try:
        writer.send(None)
        for chunk in chunks:
            for frame in chunk:
                writer.send(np.ascontiguousarray(frame))
                frames += 1
    except OSError as error:
        raise RenderFailed(f"{path.parent}: ffmpeg could not write the video: {_last_words(error)}") from error
    finally:
        writer.close()
    if not path.is_file() or path.stat().st_size == 0:
        raise RenderFailed(f"{path.parent}: ffmpeg wrote no video", hint="is the disk full?")
    return VideoInfo(frames=frames, size=size, fps=fps)


def _last_words(error: OSError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else str(error)


def ffmpeg_version() -> str:
    """The first line that ffmpeg says of itself."""
    result = subprocess.run([ffmpeg_path(), "-version"], capture_output=True, text=True, check=False)
    return result.stdout.split("\n", maxsplit=1)[0]
