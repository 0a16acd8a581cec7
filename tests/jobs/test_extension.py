"""Which frames of a video new sections see, and over how many both parts meet."""

from dataclasses import replace
from pathlib import Path

import pytest

from goan_cli.jobs.clips import Clip
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.sections import Family
from goan_cli.jobs.sizes import fit


def _extension(family: Family, frames: int, *, window: int = 9, cross_fade: float = 0.5) -> Extension:
    clip = Clip(path=Path("a.mp4"), size=(64, 64), frames=frames, fps=30.0, own_fps=30.0, has_audio=True, matrix=None)
    return Extension(
        clip=clip,
        fit=fit((64, 64), (64, 64)),
        family=family,
        window=window,
        audio=False,
        cross_fade=cross_fade,
        join=True,
    )


@pytest.mark.parametrize(
    ("family", "frames", "seen"),
    [
        (Family.F1, 5, (0, 5)),
        (Family.F1, 8, (3, 8)),
        (Family.F1, 73, (0, 73)),
        (Family.F1, 500, (427, 500)),
        (Family.INVERTED, 5, (0, 5)),
        (Family.INVERTED, 8, (0, 5)),
        (Family.INVERTED, 77, (0, 77)),
        (Family.INVERTED, 500, (0, 77)),
    ],
)
def test_frames_that_are_seen(family: Family, frames: int, seen: tuple[int, int]) -> None:
    """1 + 4 n frames at the end that is gone on with: at most the 19 latents that sections look at."""
    assert _extension(family, frames).seen == seen


@pytest.mark.parametrize(
    ("family", "frames", "window", "overlap"),
    [
        (Family.F1, 73, 9, 33),
        (Family.F1, 9, 9, 9),
        (Family.F1, 73, 1, 1),
        (Family.INVERTED, 77, 9, 37),
        (Family.INVERTED, 9, 9, 9),
        (Family.INVERTED, 77, 1, 5),
    ],
)
def test_frames_that_are_decoded_again(family: Family, frames: int, window: int, overlap: int) -> None:
    """As FramePack decodes a section: with a window of latents beside it, as far as there are any."""
    assert _extension(family, frames, window=window).overlap == overlap


@pytest.mark.parametrize(("cross_fade", "faded"), [(0.0, 0), (0.1, 3), (0.5, 15), (10.0, 33)])
def test_cross_fade(cross_fade: float, faded: int) -> None:
    """It is as long as asked for, and within what is decoded again."""
    assert _extension(Family.F1, 100, cross_fade=cross_fade).faded == faded


def test_nothing_fades_without_a_join() -> None:
    """The new part alone meets nothing, and sounds of nothing."""
    alone = replace(_extension(Family.F1, 100), join=False, audio=True)
    assert alone.faded == 0
    assert not alone.sounds
    assert replace(alone, join=True).sounds
