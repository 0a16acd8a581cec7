"""Stretches of a video: each written once, whole, one at a time, while all frames pass on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.errors import RenderFailed
from goan_cli.output.pictures import Frame
from goan_cli.output.stretches import Stretch, with_stretches


class _Written:
    """What was written to each file, and that no two were open at once."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[int]] = {}
        self.open: set[str] = set()
        self.failed: list[str] = []

    @contextmanager
    def __call__(self, path: Path) -> Iterator[Callable[[Frame], None]]:
        assert not self.open
        self.open.add(path.name)
        numbers = self.numbers.setdefault(path.name, [])
        try:
            yield lambda chunk: numbers.extend(int(frame[0, 0, 0]) for frame in chunk)
        except BaseException:
            self.failed.append(path.name)
            raise
        finally:
            self.open.remove(path.name)


def _chunks(counts: Sequence[int]) -> Iterator[Frame]:
    first = 0
    for count in counts:
        yield np.arange(first, first + count, dtype=np.uint8).reshape(count, 1, 1, 1).repeat(3, axis=3)
        first += count


@given(
    counts=st.lists(st.integers(0, 9), max_size=9),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    gap=st.integers(0, 3),
    backwards=st.booleans(),
)
def test_every_stretch(counts: list[int], lengths: list[int], gap: int, *, backwards: bool) -> None:
    """However frames are cut into chunks, each stretch has its own, and all frames pass on as they came."""
    stretches, place = [], gap
    for number, length in enumerate(lengths):
        stretches.append(Stretch(start=place, stop=place + length, path=Path(f"{number}")))
        place += length + gap
    written, total = _Written(), sum(counts)
    given_order = stretches[::-1] if backwards else stretches
    passed = [int(frame[0, 0, 0]) for chunk in with_stretches(_chunks(counts), given_order, written) for frame in chunk]
    assert passed == list(range(total))
    wanted = {each.path.name: list(range(each.start, min(each.stop, total))) for each in stretches}
    assert written.numbers == {name: numbers for name, numbers in wanted.items() if numbers}
    assert not written.open


def test_failing_frames() -> None:
    """When the frames fail, or nobody wants more, the stretch that is being written fails with them."""

    def failing() -> Iterator[Frame]:
        yield from _chunks([3])
        raise RenderFailed("decoding failed")

    written, stretches = _Written(), [Stretch(start=0, stop=9, path=Path("a"))]
    with pytest.raises(RenderFailed, match="decoding failed"):
        list(with_stretches(failing(), stretches, written))
    assert written.failed == ["a"]
    passing = with_stretches(_chunks([3, 3, 3]), stretches, written)
    next(passing)
    passing.close()
    assert written.failed == ["a", "a"]
