"""The section plan: which latent frames are sampled when, and with which frame indices. Pure integers.

Source: FramePack (arXiv 2504.12626) and its public implementation.
"""

from dataclasses import dataclass
from enum import StrEnum

LATENT_FRAME = 4  # video frames a latent frame stands for, after the first, which stands for one
CLEAN_2X = 2  # latent frames of history at half resolution
CLEAN_4X = 16  # latent frames of history at a quarter
HISTORY = 1 + CLEAN_2X + CLEAN_4X


class Family(StrEnum):
    """In which direction a transformer was trained to render: from the end, or in viewing order."""

    INVERTED = "inverted"
    F1 = "f1"


@dataclass(frozen=True, kw_only=True)
class Section:
    """One sampled section, in sampling order.

    Indices are latent-frame positions for the rotary embedding; `clean` is the pair (start, nearest).
    `frames` are the video frames that it makes, half open, in viewing order.
    """

    number: int
    padding: int | None
    latent_indices: tuple[int, ...]
    clean_indices: tuple[int, ...]
    clean_2x_indices: tuple[int, ...]
    clean_4x_indices: tuple[int, ...]
    frames: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SectionPlan:
    """All sections of a video, in sampling order."""

    family: Family
    window: int
    sections: tuple[Section, ...]
    still: bool = False  # one picture instead of a video: the start latent is no part of it

    @property
    def latent_frames(self) -> int:
        """Latent frames of the finished video, the start latent included."""
        return 1 if self.still else len(self.sections) * self.window + 1

    def place_of(self, section: Section) -> int:
        """A section's place in viewing order, from 0."""
        return section.number if self.family is Family.F1 else len(self.sections) - 1 - section.number

    @property
    def frames(self) -> int:
        """Video frames of the finished video."""
        return self.latent_frames * LATENT_FRAME - (LATENT_FRAME - 1)


def section_count(seconds: float, fps: float, window: int) -> int:
    """FramePack's formula: the number of sections nearest to a length in seconds, at least one."""
    return max(1, round(seconds * fps / (LATENT_FRAME * window)))


def plan_sections(family: Family, count: int, window: int, paddings: tuple[int, ...] | None = None) -> SectionPlan:
    """The plan of `count` sections of `window` latent frames; `paddings` in place of upstream's, of the inverted."""
    if family is Family.INVERTED:
        sections = _inverted(paddings or default_paddings(count), window)
    else:
        sections = _forward(count, window)
    return SectionPlan(family=family, window=window, sections=sections)


def plan_still(
    family: Family, target: int, controls: tuple[int, ...], *, no_2x: bool, no_4x: bool, no_post: bool
) -> SectionPlan:
    """The plan of one picture at the frame index `target`, seen from the start image (0) and further `controls`.

    Behind it lies an empty history, as behind the last section of a video; each part of it can be left out. Source:
    one-frame inference of musubi-tuner and FramePack-eichi.
    """
    after = max(target, *controls, 0) + 1
    section = Section(
        number=0,
        padding=None,
        latent_indices=(target,),
        clean_indices=(0, *controls, *(() if no_post else (after,))),
        clean_2x_indices=() if no_2x else tuple(range(after + 1, after + 1 + CLEAN_2X)),
        clean_4x_indices=() if no_4x else tuple(range(after + 1 + CLEAN_2X, after + HISTORY)),
        frames=(0, 1),
    )
    return SectionPlan(family=family, window=1, sections=(section,), still=True)


def default_paddings(count: int) -> tuple[int, ...]:
    """How far each section lies from the start, in sections: the long tail is shortened, as upstream does."""
    if count > 4:
        return (3, *([2] * (count - 3)), 1, 0)
    return tuple(reversed(range(count)))


def _frames(position: int, window: int) -> tuple[int, int]:
    # Frame 0 is the start latent's own; section `position` (viewing order) follows it.
    first = LATENT_FRAME * window * position + 1
    return (0 if position == 0 else first, first + LATENT_FRAME * window)


def _inverted(paddings: tuple[int, ...], window: int) -> tuple[Section, ...]:
    sections, count = [], len(paddings)
    for number, padding in enumerate(paddings):
        noisy = 1 + padding * window
        after = noisy + window
        sections.append(
            Section(
                number=number,
                padding=padding,
                latent_indices=tuple(range(noisy, after)),
                clean_indices=(0, after),
                clean_2x_indices=tuple(range(after + 1, after + 1 + CLEAN_2X)),
                clean_4x_indices=tuple(range(after + 1 + CLEAN_2X, after + HISTORY)),
                frames=_frames(count - 1 - number, window),
            )
        )
    return tuple(sections)


def _forward(count: int, window: int) -> tuple[Section, ...]:
    # The indices are the same in every section: the history is always the last 19 latent frames.
    return tuple(
        Section(
            number=number,
            padding=None,
            latent_indices=tuple(range(1 + HISTORY, 1 + HISTORY + window)),
            clean_indices=(0, HISTORY),
            clean_2x_indices=tuple(range(1 + CLEAN_4X, HISTORY)),
            clean_4x_indices=tuple(range(1, 1 + CLEAN_4X)),
            frames=_frames(number, window),
        )
        for number in range(count)
    )
