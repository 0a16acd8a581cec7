"""More frames a second: ffmpeg's motion interpolation on frames as they pass, before they are encoded."""

import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import IO

import numpy as np

from goan_cli.errors import RenderFailed
from goan_cli.media.ffmpeg import RAW, ffmpeg_running, last_words, raw_input
from goan_cli.output.pictures import Frame

# Blocks of a frame follow the motion that is found both ways; where a scene changes, nothing is made between.
_MOTION = "mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"
# Chroma as fine as luma, and full range: the frames that were there stay, to a level or two.
_COLOUR = "scale=out_range=pc:out_color_matrix=bt709,format=yuv444p"
_AFTER = 4  # the filter makes a frame only when it has seen some of the next ones


@dataclass(kw_only=True)
class _Fed:
    """Frames that were given to ffmpeg, repeated ones not counted."""

    frames: int = 0
    complete: bool = False


def interpolated(chunks: Iterable[Frame], *, size: tuple[int, int], fps: float, target: float) -> Iterator[Frame]:
    """Chunks of frames `(n, h, w, 3)` at `fps` as such at `target`, which last as long.

    No more is held than what comes of one chunk. Raises RenderFailed with ffmpeg's last words when it fails.
    """
    ratio, fed, made = target / fps, _Fed(), 0
    motion = ["-vf", f"{_COLOUR},minterpolate=fps={target:g}:{_MOTION}"]
    arguments = ["-loglevel", "error", *raw_input(size, fps), *motion, *RAW, "-"]
    with tempfile.TemporaryFile() as words:
        for frame in _through(arguments, _lengthened(chunks, fed), size, words):
            # Beyond the end are only frames of the last one's repetitions, which come when all are counted.
            if not fed.complete or made < round(fed.frames * ratio):
                made += 1
                yield frame
        if not fed.complete or made < round(fed.frames * ratio):
            raise RenderFailed(f"ffmpeg cannot interpolate: {last_words(words, 'it ended too early')}")


def _lengthened(chunks: Iterable[Frame], fed: _Fed) -> Iterator[Frame]:
    """The chunks, and the last frame a few times more."""
    last: Frame | None = None
    for chunk in chunks:
        if not len(chunk):
            continue
        fed.frames += len(chunk)
        yield chunk
        last = chunk[-1:].copy()
    fed.complete = True
    if last is not None:
        yield np.repeat(last, _AFTER, axis=0)


def _through(arguments: list[str], chunks: Iterable[Frame], size: tuple[int, int], words: IO[bytes]) -> Iterator[Frame]:
    """What ffmpeg makes of frames, one at a time: fed here, where frames are made, and taken by a thread."""
    with ffmpeg_running(arguments, words, fed=True, read=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RenderFailed("ffmpeg takes no frames")
        made: SimpleQueue[bytes] = SimpleQueue()
        taking = threading.Thread(target=_take, args=(process.stdout, size[0] * size[1] * 3, made), daemon=True)
        taking.start()
        try:
            with suppress(BrokenPipeError):  # it has ended early, and then says why
                for chunk in chunks:
                    process.stdin.write(np.ascontiguousarray(chunk).data)
                    yield from _ready(made, size)
            with suppress(BrokenPipeError):
                process.stdin.close()
            taking.join()
            yield from _ready(made, size)
        except BaseException:
            process.kill()
            taking.join()  # else the pipe that it waits at could not be closed
            raise


def _take(pipe: IO[bytes], length: int, made: "SimpleQueue[bytes]") -> None:
    while len(data := pipe.read(length)) == length:
        made.put(data)


def _ready(made: "SimpleQueue[bytes]", size: tuple[int, int]) -> Iterator[Frame]:
    with suppress(Empty):
        while True:
            yield np.frombuffer(made.get_nowait(), np.uint8).reshape(1, size[1], size[0], 3)
