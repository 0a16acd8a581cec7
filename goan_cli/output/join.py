"""Videos one after another in one file, cut or cross-faded, frame by frame."""

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from goan_cli.errors import InvalidInput, RenderFailed
from goan_cli.files import replaced_when_complete
from goan_cli.jobs.formats import Coding
from goan_cli.media.ffmpeg import input_file, last_words, run_ffmpeg
from goan_cli.media.videos import look_at_video, video_frames
from goan_cli.output.pictures import Frame
from goan_cli.output.video import VideoInfo, write_video

_FPS_EQUAL = 0.005  # ffmpeg says rates with two digits
# Every input's sound in one form, and as long as its frames, so that no later one comes too early or too late.
_SOUND = "[{number}:a:0]aformat=sample_rates=48000:channel_layouts=stereo,apad,atrim=end={seconds:.6f}[s{number}]"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video file, by what ffmpeg says of it: (width, height), frames per second, and whether it has sound."""

    path: Path
    size: tuple[int, int]
    fps: float
    has_audio: bool


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What was written; `silent` are the inputs without sound, for whose sake the video has none."""

    video: VideoInfo
    silent: tuple[Path, ...]


def read_source(path: Path) -> Source:
    """What a video file is. Raises InvalidInput for what is none."""
    video = look_at_video(path)
    if not video.fps:
        raise InvalidInput(f"{path}: has no rate of frames")
    return Source(path=path, size=video.size, fps=video.fps, has_audio=video.has_audio)


def join_videos(paths: Sequence[Path], out: Path, *, cross_fade: float = 0.0, crf: int = 16) -> Joined:
    """Join videos into an MP4 at `out`, each going over into the next one within `cross_fade` seconds.

    At most the frames of one cross-fade are held. Their sound is joined likewise where all have some. Raises
    InvalidInput for files that are no videos, of different sizes or rates, or shorter than their cross-fades, and
    RenderFailed when ffmpeg fails.
    """
    sources = [read_source(path) for path in paths]
    for before, after in pairwise(sources):
        _refuse_different(before, after)
    first = sources[0]
    fade = round(cross_fade * first.fps)
    silent = tuple(source.path for source in sources if not source.has_audio)
    counts: list[int] = []
    with replaced_when_complete(out) as temporary:
        # Beside the result, under a name that is cleared away whatever happens.
        picture = temporary if silent else temporary.with_name(f"{temporary.stem}-silent{temporary.suffix}")
        try:
            with closing(_joined(sources, fade, counts)) as frames:
                video = write_video(picture, frames, size=first.size, fps=first.fps, coding=Coding(crf=crf))
            if not silent:
                _add_sound(picture, sources, counts, fade, temporary)
        finally:
            if picture != temporary:
                picture.unlink(missing_ok=True)
    return Joined(video=video, silent=silent)


def _refuse_different(before: Source, after: Source) -> None:
    if before.size != after.size:
        sizes = f"{before.size[0]}x{before.size[1]} and {after.size[0]}x{after.size[1]}"
        raise InvalidInput(f"{before.path} and {after.path}: of different sizes, {sizes}")
    if abs(before.fps - after.fps) > _FPS_EQUAL:
        rates = f"{before.fps:g} and {after.fps:g} frames a second"
        raise InvalidInput(f"{before.path} and {after.path}: of different rates, {rates}")


def _joined(sources: Sequence[Source], fade: int, counts: list[int]) -> Generator[Frame]:
    """Frames `(1, h, w, 3)` of all, one at a time; puts the number of each source's frames into `counts`."""
    leaving: deque[Frame] = deque()
    for number, source in enumerate(sources):
        is_last = number == len(sources) - 1
        count, coming = 0, len(leaving)
        held: deque[Frame] = deque()
        with closing(video_frames(source.path, source.size)) as frames:
            for frame in frames:
                count += 1
                if leaving:
                    share = (coming - len(leaving) + 1) / (coming + 1)
                    yield _mixed(leaving.popleft(), frame, share)[None]
                    continue
                held.append(frame)
                if is_last or len(held) > fade:
                    yield held.popleft()[None]
        if leaving or (not is_last and len(held) < fade):
            raise InvalidInput(f"{source.path}: has {count} frames, which are too few to cross-fade {fade}")
        counts.append(count)
        leaving = held


def _mixed(leaving: Frame, coming: Frame, share: float) -> Frame:
    mixed: Frame = np.rint(leaving * (1 - share) + coming * share).astype(np.uint8)
    return mixed


def _add_sound(picture: Path, sources: Sequence[Source], counts: Sequence[int], fade: int, out: Path) -> None:
    """The video of `picture` as it is, with the sound of all, each as long as its frames."""
    fps = sources[0].fps
    inputs = [argument for source in sources for argument in input_file(source.path)]
    steps = [_SOUND.format(number=number, seconds=count / fps) for number, count in enumerate(counts)]
    if fade:
        joined = "s0"
        for number in range(1, len(sources)):
            steps.append(f"[{joined}][s{number}]acrossfade=d={fade / fps:.6f}:c1=tri:c2=tri[j{number}]")
            joined = f"j{number}"
    else:
        joined = "joined"
        streams = "".join(f"[s{number}]" for number in range(len(sources)))
        steps.append(f"{streams}concat=n={len(sources)}:v=0:a=1[{joined}]")
    taken = ["-map", f"{len(sources)}:v:0", "-map", f"[{joined}]", "-c:v", "copy", "-c:a", "aac", "-b:a", "192k"]
    written = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact", "-movflags", "+faststart"]
    mixed = ["-filter_complex", ";".join(steps), *taken, *written, "-f", "mp4", f"file:{out}"]
    done = run_ffmpeg(["-y", "-loglevel", "error", *inputs, *input_file(picture), *mixed])
    if done.returncode:
        said = last_words(done.stderr, f"exit {done.returncode}")
        raise RenderFailed(f"ffmpeg cannot join the sound: {said}")
