"""Section plans against the published formulas, as pure integers."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.jobs.sections import Family, default_paddings, plan_sections, section_count
from tests.conftest import GOLDEN

FAMILIES = st.sampled_from(Family)
COUNTS = st.integers(1, 60)
WINDOWS = st.integers(1, 20)


@pytest.mark.parametrize(
    ("count", "paddings"),
    [
        (1, (0,)),
        (2, (1, 0)),
        (3, (2, 1, 0)),
        (4, (3, 2, 1, 0)),
        (5, (3, 2, 2, 1, 0)),
        (6, (3, 2, 2, 2, 1, 0)),
        (9, (3, 2, 2, 2, 2, 2, 2, 1, 0)),
    ],
)
def test_paddings(count: int, paddings: tuple[int, ...]) -> None:
    """Paddings count down to zero; beyond four sections the tail is 3, then twos, then 1 and 0."""
    assert default_paddings(count) == paddings


@given(count=COUNTS)
def test_paddings_of_any_count(count: int) -> None:
    """There is one padding a section, never rising, and the last section touches the start."""
    paddings = default_paddings(count)
    assert len(paddings) == count
    assert paddings[-1] == 0
    assert list(paddings) == sorted(paddings, reverse=True)


@pytest.mark.parametrize(
    ("seconds", "fps", "window", "count"),
    [
        (5, 30, 9, 4),  # 4.17: FramePack divides by 36 frames a section; the original goan's 33 gives 5
        (6, 30, 9, 5),
        (1.2, 30, 9, 1),
        (0.01, 30, 9, 1),  # never none
        (1.8, 30, 9, 2),  # exactly 1.5
        (3, 30, 9, 2),  # exactly 2.5: Python rounds halves to even, and so does FramePack
        (4.2, 30, 9, 4),  # exactly 3.5
        (3.01, 30, 9, 3),
        (60, 30, 9, 50),
        (600, 30, 9, 500),
        (5, 24, 9, 3),
        (2, 30, 3, 5),
        (1, 4, 1, 1),
    ],
)
def test_section_count(seconds: float, fps: float, window: int, count: int) -> None:
    """A length in seconds is snapped to the nearest number of sections, at least one."""
    assert section_count(seconds, fps, window) == count


@given(seconds=st.floats(0.01, 600), fps=st.floats(1, 120), window=WINDOWS)
def test_section_count_is_nearest(seconds: float, fps: float, window: int) -> None:
    """No other number of sections, from one up, comes closer to the length asked for."""
    count, exact = section_count(seconds, fps, window), seconds * fps / (4 * window)
    assert count >= 1
    assert abs(count - max(1.0, exact)) <= 0.5


@given(family=FAMILIES, count=COUNTS, window=WINDOWS)
def test_frame_count(family: Family, count: int, window: int) -> None:
    """A finished video has (sections x window + 1) x 4 - 3 frames."""
    plan = plan_sections(family, count, window)
    assert len(plan.sections) == count
    assert plan.latent_frames == count * window + 1
    assert plan.frames == (count * window + 1) * 4 - 3


@given(family=FAMILIES, count=COUNTS, window=WINDOWS)
def test_frames_cover_the_video_once(family: Family, count: int, window: int) -> None:
    """The sections' frames, put in viewing order, are the video from its first to its last frame without overlap."""
    plan = plan_sections(family, count, window)
    spans = sorted(section.frames for section in plan.sections)
    assert spans[0][0] == 0
    assert spans[-1][1] == plan.frames
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert all(stop - start in (4 * window, 4 * window + 1) for start, stop in spans)


@given(family=FAMILIES, count=COUNTS, window=WINDOWS)
def test_sampling_order(family: Family, count: int, window: int) -> None:
    """The inverted family samples from the end of the video to its start, the forward family in viewing order."""
    sections = plan_sections(family, count, window).sections
    starts = [section.frames[0] for section in sections]
    assert starts == sorted(starts, reverse=family is Family.INVERTED)
    assert [section.number for section in sections] == list(range(count))


@given(count=COUNTS, window=WINDOWS)
def test_inverted_indices(count: int, window: int) -> None:
    """Indices split arange into [pre 1 | blank | noisy window | post 1 | 2x 2 | 4x 16] by each section's padding."""
    for section, padding in zip(
        plan_sections(Family.INVERTED, count, window).sections, default_paddings(count), strict=True
    ):
        blank = padding * window
        everything = list(range(1 + blank + window + 1 + 2 + 16))
        first = 1 + blank
        assert section.padding == padding
        assert section.latent_indices == tuple(everything[first : first + window])
        assert section.clean_indices == (everything[0], everything[first + window])
        assert section.clean_2x_indices == tuple(everything[first + window + 1 : first + window + 3])
        assert section.clean_4x_indices == tuple(everything[first + window + 3 :])
        assert len(section.clean_4x_indices) == 16


@given(count=COUNTS, window=WINDOWS)
def test_forward_indices(count: int, window: int) -> None:
    """Indices split arange into [start 1 | 4x 16 | 2x 2 | 1x 1 | noisy window], alike in every section."""
    everything = list(range(1 + 16 + 2 + 1 + window))
    for section in plan_sections(Family.F1, count, window).sections:
        assert section.padding is None
        assert section.clean_indices == (0, everything[19])
        assert section.clean_4x_indices == tuple(everything[1:17])
        assert section.clean_2x_indices == tuple(everything[17:19])
        assert section.latent_indices == tuple(everything[20:])


def test_full_size_example() -> None:
    """At FramePack's own window, 5 seconds are 4 sections and 145 frames, the first sampled 27 latents away."""
    plan = plan_sections(Family.INVERTED, 4, 9)
    first, last = plan.sections[0], plan.sections[-1]
    assert (plan.latent_frames, plan.frames) == (37, 145)
    assert (first.latent_indices[0], first.latent_indices[-1], first.clean_indices) == (28, 36, (0, 37))
    assert (first.frames, last.frames) == ((109, 145), (0, 37))
    assert last.latent_indices == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert (last.clean_indices, last.clean_2x_indices) == ((0, 10), (11, 12))


RUNS = json.loads((GOLDEN / "packed" / "manifest.json").read_text())["runs"]


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["pixels_shape"]])
def test_recorded_frames(name: str) -> None:
    """Frame counts are those of the recorded runs of the public implementation."""
    run = RUNS[name]
    plan = plan_sections(Family(run["mode"]), run["sections"], run["window"])
    assert plan.frames == run["pixels_shape"][2]
