"""The sound of a video that a job goes on with, put into the finished file at its place."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from goan_cli.errors import EnvironmentFault, RenderFailed
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.formats import Format
from goan_cli.jobs.sections import Family
from goan_cli.media.ffmpeg import input_file, last_words, run_ffmpeg
from goan_cli.output.encoders import MUXERS
from goan_cli.output.video import VideoInfo

# Format -> arguments of the encoder of its sound.
ENCODERS: Mapping[Format, tuple[str, ...]] = MappingProxyType(
    {
        Format.MP4: ("-c:a", "aac", "-b:a", "192k"),
        Format.WEBM: ("-c:a", "libopus", "-b:a", "128k", "-ar", "48000"),
        Format.MOV: ("-c:a", "pcm_s16le"),
    }
)
_REPRODUCIBLE = ("-fflags", "+bitexact", "-flags:a", "+bitexact")
_SEAM = 0.05  # seconds over which the sound comes or goes: cut off at once it would click


def add_sound(path: Path, extension: Extension, video: VideoInfo, container: Format) -> None:
    """Put the sound of the extension's video into the finished video at `path`, silence beside it.

    Raises RenderFailed with ffmpeg's own last words.
    """
    waiting = path.with_name(f".goan-sound-{path.name}")
    whole, own = video.frames / video.fps, extension.clip.frames / extension.clip.fps
    inputs = [*input_file(path), *input_file(extension.clip.path)]
    kept = ["-map", "0:v", "-map", "1:a:0", "-map_metadata", "0", "-c:v", "copy"]
    coded = ["-af", _placed(extension.family, own, whole), *ENCODERS[container], *MUXERS[container], *_REPRODUCIBLE]
    try:
        done = run_ffmpeg(["-y", "-loglevel", "error", *inputs, *kept, *coded, str(waiting)])
        if done.returncode or not waiting.is_file():
            said = last_words(done.stderr, f"exit {done.returncode}")
            raise RenderFailed(f"{extension.clip.path}: its sound could not be kept: {said}", hint="audio: false")
        waiting.replace(path)
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        waiting.unlink(missing_ok=True)


def _placed(family: Family, own: float, whole: float) -> str:
    """ffmpeg's filters that put `own` seconds of sound at the begin or the end of `whole` seconds."""
    # A sound that begins later than its picture is filled up with silence.
    sound = f"aresample=async=1:first_pts=0,apad,atrim=end={own:.6f}"
    if family is Family.F1:
        return f"{sound},afade=t=out:st={max(own - _SEAM, 0):.6f}:d={_SEAM},apad,atrim=end={whole:.6f}"
    late = round((whole - own) * 1_000_000)
    return f"{sound},afade=t=in:d={_SEAM},adelay={late / 1000:.3f}:all=1,apad,atrim=end={whole:.6f}"
