"""Frames to a video file of any format, streamed to ffmpeg as they come, and back from one."""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from goan_cli.errors import InvalidInput, RenderFailed
from goan_cli.jobs.formats import Coding, Format
from goan_cli.media.ffmpeg import ffmpeg_running, last_words, raw_input
from goan_cli.media.videos import look_at_video, video_frames
from goan_cli.output.comments import metadata_text
from goan_cli.output.encoders import COMMENTED, MUXERS, encoder_for
from goan_cli.output.pictures import Frame

Write = Callable[[Frame], None]

# The same frames make the same file: no dates, and x264 notes its threads, so their number is fixed.
_REPRODUCIBLE = ("-fflags", "+bitexact", "-flags:v", "+bitexact", "-threads", "4")
_QUIET = ("-y", "-loglevel", "error")
_PICTURE, _FIRST_PICTURE = "frame-%06d.png", "frame-000000.png"  # of a PNG sequence
_PALETTE = "[0:v]split[frames][seen];[seen]palettegen[palette]"
# An ordered pattern stands still from frame to frame; error diffusion shimmers, and makes files half as large again.
_DITHERED = "paletteuse=dither=bayer:bayer_scale=3"
_LOSSLESS = ("-c:v", "ffv1", "-pix_fmt", "bgr0", "-f", "nut")


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What was written: frames, (width, height), frames per second."""

    frames: int
    size: tuple[int, int]
    fps: float


def write_video(
    path: Path,
    chunks: Iterable[Frame],
    *,
    size: tuple[int, int],
    fps: float,
    coding: Coding | None = None,
    recipe: str | None = None,
) -> VideoInfo:
    """Encode chunks of frames `(n, h, w, 3)` to `path`, H.264 in MP4 unless told; at most one chunk is held at a time.

    A PNG sequence goes into the folder `path`, which must be there and empty. A `recipe` is put into formats that have
    a place for one. Raises RenderFailed with ffmpeg's own last words when encoding fails, and when there are no frames;
    EnvironmentFault where ffmpeg lacks the encoder.
    """
    frames = 0
    with writing_video(path, size=size, fps=fps, coding=coding, recipe=recipe) as write:
        for chunk in chunks:
            write(chunk)
            frames += len(chunk)
    return VideoInfo(frames=frames, size=size, fps=fps)


@contextmanager
def writing_video(
    path: Path, *, size: tuple[int, int], fps: float, coding: Coding | None = None, recipe: str | None = None
) -> Iterator[Write]:
    """Yield what writes a chunk of frames to `path`: `write_video` for those who do not have the chunks in a row."""
    coding = coding or Coding()
    raw = raw_input(size, fps)
    if coding.format is Format.GIF:
        with _writing_gif(path, raw, coding) as write:
            yield write
        return
    with _comment(recipe if coding.format in COMMENTED else None) as comment:
        arguments = [*raw, *comment, "-an", *_coded(coding)]
        target, written = str(path), path
        if coding.format is Format.PNG:
            target, written = f"{_escaped(path)}/{_PICTURE}", path / _FIRST_PICTURE
        with _running([*arguments, target], written) as write:
            yield write


def _coded(coding: Coding) -> list[str]:
    encoder = encoder_for(coding)
    quality = [] if coding.crf is None else ["-crf", str(coding.crf)]
    # Every frame is written as it comes: formats without a fixed rate would leave out or repeat some.
    passed = [] if coding.format in COMMENTED else ["-fps_mode", "passthrough"]
    return ["-c:v", encoder.name, *encoder.arguments, *quality, *passed, *MUXERS[coding.format], *_REPRODUCIBLE]


@contextmanager
def _comment(recipe: str | None) -> Iterator[list[str]]:
    """ffmpeg's arguments for a comment, which come after the first input. In a file, since it may be of any length."""
    if recipe is None:
        yield ["-map_metadata", "-1"]
        return
    with tempfile.TemporaryDirectory(prefix="goan-") as folder:
        file = Path(folder) / "recipe.txt"
        file.write_text(metadata_text(recipe), encoding="utf-8")
        yield ["-f", "ffmetadata", "-i", str(file), "-map", "0:v", "-map_metadata", "1"]


@contextmanager
def _writing_gif(path: Path, raw: Iterable[str], coding: Coding) -> Iterator[Write]:
    """In two passes, since the one palette is that of all frames, which wait in a lossless file."""
    # Beside the video, where there is space for it, and under names that are cleared away when goan is killed.
    waiting, palette = (path.with_name(f".goan-{what}-{path.name}") for what in ("frames", "palette"))
    try:
        seen = ["-map", "[palette]", "-c:v", "png", "-f", "image2", "-update", "1", _escaped(palette)]
        kept = ["-map", "[frames]", *_LOSSLESS, str(waiting)]
        with _running([*raw, "-filter_complex", _PALETTE, *seen, *kept], waiting) as write:
            yield write
        inputs = ["-f", "nut", "-i", str(waiting), "-f", "png_pipe", "-i", str(palette)]
        coded = ["-lavfi", _DITHERED, "-map_metadata", "-1", *_coded(coding), str(path)]
        with _running([*inputs, *coded], path, fed=False):
            pass
    finally:
        for file in (waiting, palette):
            file.unlink(missing_ok=True)


def _escaped(path: Path) -> str:
    """A path for ffmpeg's writer of pictures, to which a percent sign means a number."""
    return str(path).replace("%", "%%")


class _EndedEarly(Exception):
    """ffmpeg takes no more frames, and says why."""


@contextmanager
def _running(arguments: Iterable[str], written: Path, *, fed: bool = True) -> Iterator[Write]:
    """Run ffmpeg, which must leave the file `written`; yield what gives it frames, where it is `fed` any."""
    frames, ended = 0, False
    with tempfile.TemporaryFile() as words:
        with ffmpeg_running([*_QUIET, *arguments], words, fed=fed) as process:
            stdin = process.stdin

            def write(chunk: Frame) -> None:
                nonlocal frames
                if stdin is None:
                    raise RenderFailed("ffmpeg takes no frames")
                try:
                    stdin.write(np.ascontiguousarray(chunk).data)
                except BrokenPipeError:
                    raise _EndedEarly from None
                frames += len(chunk)

            try:
                yield write
            except _EndedEarly:
                ended = True
        if ended or process.returncode or (fed and not frames) or not written.is_file():
            why = last_words(words, f"exit {process.returncode}")
            if fed and not frames and not ended:
                why = "there were no frames"
            raise RenderFailed(f"{written.parent}: ffmpeg could not write the video: {why}")


def read_video(path: Path) -> Frame:
    """The frames `(n, h, w, 3)` of a video, as far as it can be decoded, all at once: for short ones.

    Raises RenderFailed when it cannot be decoded.
    """
    frames = list(_decoded(path))
    if not frames:
        raise RenderFailed(f"{path}: ffmpeg cannot decode a single frame of it")
    return np.stack(frames)


def read_frames(path: Path, wanted: Collection[int]) -> dict[int, Frame]:
    """The frames `(h, w, 3)` of these numbers, one held at a time; those beyond the end are left out.

    Raises RenderFailed when the video cannot be decoded.
    """
    return {number: frame.copy() for number, frame in enumerate(_decoded(path)) if number in wanted}


def _decoded(path: Path) -> Iterator[Frame]:
    if path.is_dir() or path.suffix in (".gif", ".webp"):
        yield from _pictures(path)
        return
    try:
        yield from video_frames(path, look_at_video(path).size)
    except InvalidInput as error:
        raise RenderFailed(error.message) from error


def _pictures(path: Path) -> Iterator[Frame]:
    """The frames of a PNG sequence, or of an animation: each as often as it stood for one that was written."""
    try:
        for file in sorted(path.glob("*.png")) if path.is_dir() else (path,):
            with Image.open(file) as image:
                times = _times(image)
                for frame, repeated in zip(ImageSequence.Iterator(image), times, strict=True):
                    yield from [np.asarray(frame.convert("RGB"))] * repeated
    except (OSError, ValueError, SyntaxError) as error:
        raise RenderFailed(f"{path}: cannot be decoded: {error}") from error


def _times(image: Image.Image) -> list[int]:
    """How many frames each one of a file stands for: a WebP shows one for longer in place of the same one again."""
    if image.format != "WEBP":
        return [1] * getattr(image, "n_frames", 1)
    durations = []
    for frame in ImageSequence.Iterator(image):
        frame.load()
        durations.append(frame.info.get("duration") or 1)
    return [round(duration / min(durations)) for duration in durations]
