"""A video and its new part in one: which frame is where, and what is between."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goan_cli.jobs.clips import clip_of
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.sections import Family
from goan_cli.jobs.sizes import fit
from goan_cli.output.joining import joined
from tests.clips import Frames, levels_of, numbered_frames, write_clip

SHAPE = (16, 16, 3)
NEW = 8  # new frames, of two sections of one latent


def _extension(folder: Path, family: Family, frames: int, *, fade: int, join: bool = True) -> Extension:
    path = write_clip(folder / "clip.mkv", numbered_frames(frames, height=16, width=16))
    return Extension(
        clip=clip_of(path, 30.0),
        fit=fit((16, 16), (16, 16)),
        family=family,
        window=3,
        audio=False,
        cross_fade=fade / 30,
        join=join,
    )


def _decoded(extension: Extension) -> tuple[Frames, Frames]:
    """What a decode would yield: new frames of 200 and more, and the video's own, brighter by 100 than they are."""
    new = np.stack([np.full(SHAPE, 200 + number, np.uint8) for number in range(NEW)])
    own = numbered_frames(extension.clip.frames, height=16, width=16) + np.uint8(100)
    return new, own[-extension.overlap :] if extension.family is Family.F1 else own[: extension.overlap]


def _levels(extension: Extension, *, chunk: int = 5) -> list[int]:
    new, own = _decoded(extension)
    whole = np.concatenate((own, new) if extension.family is Family.F1 else (new, own))
    chunks = [whole[at : at + chunk] for at in range(0, len(whole), chunk)]
    return levels_of(np.concatenate(list(joined(chunks, extension, NEW))))


@pytest.mark.parametrize("frames", [5, 13, 40])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_without_a_fade(tmp_path: Path, frames: int, chunk: int) -> None:
    """The video's frames as they are, and the new ones on their side of it."""
    own, new = [20 + 2 * number for number in range(frames)], [200 + number for number in range(NEW)]
    assert _levels(_extension(tmp_path, Family.F1, frames, fade=0), chunk=chunk) == own + new
    assert _levels(_extension(tmp_path, Family.INVERTED, frames, fade=0), chunk=chunk) == new + own


def test_fade_into_the_new_part(tmp_path: Path) -> None:
    """The video's last frames go over, in even steps, into the same frames as they were decoded."""
    levels = _levels(_extension(tmp_path, Family.F1, 13, fade=4))
    own = [20 + 2 * number for number in range(13)]
    assert levels[:9] == own[:9]
    assert levels[9:13] == [level + share for level, share in zip(own[9:], (20, 40, 60, 80), strict=True)]
    assert levels[13:] == [200 + number for number in range(NEW)]


def test_fade_into_the_video(tmp_path: Path) -> None:
    """The video's first frames come, in even steps, out of the same frames as they were decoded."""
    levels = _levels(_extension(tmp_path, Family.INVERTED, 13, fade=4))
    own = [20 + 2 * number for number in range(13)]
    assert levels[:NEW] == [200 + number for number in range(NEW)]
    assert levels[NEW : NEW + 4] == [level + share for level, share in zip(own[:4], (80, 60, 40, 20), strict=True)]
    assert levels[NEW + 4 :] == own[4:]


@pytest.mark.parametrize("family", list(Family))
def test_fade_over_the_whole_video(tmp_path: Path, family: Family) -> None:
    """A fade as long as the video leaves none of its frames as it was, and loses none."""
    extension = _extension(tmp_path, family, 5, fade=300)
    assert extension.faded == 5
    assert len(_levels(extension)) == 5 + NEW


@pytest.mark.parametrize("family", list(Family))
def test_the_new_part_alone(tmp_path: Path, family: Family) -> None:
    """Without a join there are the new frames only: beside the video they make what a join makes."""
    extension = _extension(tmp_path, family, 13, fade=0, join=False)
    assert _levels(extension) == [200 + number for number in range(NEW)]
    own = [20 + 2 * number for number in range(13)]
    beside = (own, _levels(extension)) if family is Family.F1 else (_levels(extension), own)
    assert _levels(replace(extension, join=True)) == [*beside[0], *beside[1]]


def test_all_that_is_decoded_is_looked_at(tmp_path: Path) -> None:
    """What is decoded behind the new part passes by whoever checks it, faded or not."""
    extension = _extension(tmp_path, Family.INVERTED, 13, fade=2)
    seen: list[Frames] = []
    new, own = _decoded(extension)

    def decoded() -> Iterator[Frames]:
        for frame in np.concatenate((new, own)):
            seen.append(frame)
            yield frame[None]

    for _ in joined(decoded(), extension, NEW):
        pass
    assert len(seen) == NEW + extension.overlap
