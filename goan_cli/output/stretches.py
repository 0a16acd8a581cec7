"""Stretches of a video as files of their own, written while its frames pass."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from goan_cli.output.pictures import Frame
from goan_cli.output.video import Write


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The frames from `start` until before `stop` of a video, and the file that they go to."""

    start: int
    stop: int
    path: Path


def with_stretches(
    chunks: Iterable[Frame], stretches: Sequence[Stretch], writing: Callable[[Path], AbstractContextManager[Write]]
) -> Generator[Frame]:
    """Pass chunks of frames `(n, h, w, 3)` on, and write each stretch by what `writing` makes of its file.

    Stretches must not overlap: one is written at a time, and nothing is held. Raises what `writing` raises.
    """
    coming = sorted(stretches, key=lambda stretch: stretch.start)
    first = 0
    with ExitStack() as opened:
        write: Write | None = None
        for chunk in chunks:
            end = first + len(chunk)
            while coming and coming[0].start < end:
                stretch = coming[0]
                if write is None:
                    write = opened.enter_context(writing(stretch.path))
                write(chunk[max(stretch.start - first, 0) : stretch.stop - first])
                if stretch.stop > end:
                    break
                opened.close()
                write = None
                coming.pop(0)
            first = end
            yield chunk
