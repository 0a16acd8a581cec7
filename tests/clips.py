"""Video files for tests, written by ffmpeg itself."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

# x264 without loss in RGB: what is read is what was written.
LOSSLESS = ("-c:v", "libx264rgb", "-crf", "0", "-preset", "ultrafast")


def write_clip(
    path: Path,
    frames: Frames,
    *,
    fps: float = 30,
    hertz: float | None = None,
    coded: Sequence[str] = LOSSLESS,
    before: Sequence[str] = (),
) -> Path:
    """Frames `(n, h, w, 3)` as a video, with a tone as long as it is; `before` are arguments ahead of the input."""
    height, width = frames.shape[1:3]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *before]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    if hertz is not None:
        tone = f"sine=frequency={hertz:g}:sample_rate=48000:duration={len(frames) / fps:.6f}"
        command += ["-f", "lavfi", "-i", tone, "-c:a", "aac"]
    subprocess.run([*command, *coded, str(path)], input=frames.tobytes(), check=True)
    return path


def numbered_frames(count: int, *, height: int = 32, width: int = 48) -> Frames:
    """Grey frames of rising brightness, each of which tells its number: 20, 22, 24 ..."""
    levels = (20 + 2 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def levels_of(frames: Frames) -> list[int]:
    """The brightness of each frame."""
    return [round(float(frame.mean())) for frame in frames]


def sound_of(path: Path, rate: int = 8000) -> NDArray[np.float32]:
    """The first sound of a file, mixed to one channel; empty where it has none."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "quiet", "-i", str(path), "-map", "0:a:0?"]
    done = subprocess.run(
        [*command, "-ac", "1", "-ar", str(rate), "-f", "f32le", "-"], stdout=subprocess.PIPE, check=False
    )
    return np.frombuffer(done.stdout, np.float32)
