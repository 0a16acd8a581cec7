"""What is measured on a video's frames, and which defects the gates see in it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from goan_cli.jobs.job import Gate, Gates
from goan_cli.jobs.sections import Family, plan_sections
from goan_cli.output.pictures import Frame
from goan_cli.output.quality import Finding, FrameMeter, Quality, SectionQuality, findings, quality_of

STRICT = Gates(nan=Gate.FAIL, black=Gate.FAIL, frozen=Gate.FAIL, drift=Gate.FAIL)
SIDE = 32


def lively(count: int, *, level: int = 120, saturated: int = 0) -> Frame:
    """Frames of a bar that moves over a grey gradient, `level` bright and so much redder than grey."""
    columns = np.arange(SIDE)
    frames = np.zeros((count, SIDE, SIDE, 3), dtype=np.uint8)
    for number in range(count):
        bar = (columns - 8 * number) % SIDE < 8
        frames[number] = (level + np.where(bar, 12, -4))[None, :, None]
    frames[..., 0] += np.uint8(saturated)
    return frames


def frames_of(sections: int, window: int = 2) -> int:
    """Frames of a video of so many sections."""
    return plan_sections(Family.INVERTED, sections, window).frames


def measured(
    frames: Frame, *, sections: int = 1, window: int = 2, fps: float = 30.0, chunk: int = 7, finite: bool = True
) -> Quality:
    """What the meter says of these frames, as they come in chunks."""
    meter = FrameMeter()
    passed = list(meter.watching(frames[at : at + chunk] for at in range(0, len(frames), chunk)))
    assert np.array_equal(np.concatenate(passed), frames)
    return meter.quality(plan_sections(Family.INVERTED, sections, window), fps, finite=finite)


def defects(quality: Quality, gates: Gates = STRICT) -> list[str]:
    """The defects that were found."""
    return [finding.defect for finding in findings(quality, gates)]


def still(count: int) -> Frame:
    """One lively frame again and again."""
    return np.repeat(lively(1), count, axis=0)


# -- what is measured


def test_a_good_video_has_no_defects() -> None:
    """A video that moves and stays as bright and colourful as it began passes every gate."""
    quality = measured(lively(frames_of(3)), sections=3)
    assert defects(quality) == []
    assert (quality.finite, quality.black, quality.black_frames) == (True, 0, ())
    assert quality.seconds == pytest.approx(25 / 30, abs=1e-3)


@pytest.mark.parametrize(
    ("colour", "luma", "saturation"),
    [
        ((255, 255, 255), 255.0, 0.0),
        ((100, 100, 100), 100.0, 0.0),
        ((255, 0, 0), 54.2, 255.0),
        ((0, 255, 0), 182.4, 255.0),
        ((0, 0, 255), 18.4, 255.0),
        ((10, 110, 60), 85.1, 100.0),
    ],
)
def test_levels_of_a_colour(colour: tuple[int, int, int], luma: float, saturation: float) -> None:
    """Brightness is BT.709's, and saturation what lies between the strongest and the weakest channel."""
    frames = np.full((frames_of(1), SIDE, SIDE, 3), colour, dtype=np.uint8)
    (section,) = measured(frames).sections
    assert section.luma == pytest.approx(luma, abs=0.1)
    assert section.saturation == pytest.approx(saturation, abs=0.1)
    assert section.motion == 0.0


def test_sections_in_viewing_order() -> None:
    """Each section has the means of its own frames, the first in view first, whatever was sampled first."""
    counts = [9, 8, 8]
    frames = np.concatenate([lively(count, level=level) for count, level in zip(counts, (40, 100, 200), strict=True)])
    for family in Family:
        meter = FrameMeter()
        list(meter.watching([frames]))
        quality = meter.quality(plan_sections(family, 3, 2), 30.0, finite=True)
        assert [section.luma for section in quality.sections] == pytest.approx([40, 100, 200])


def test_motion_of_a_section() -> None:
    """A section's motion is the mean change into its frames; a section that stands still has none."""
    frames = np.concatenate([lively(9), np.repeat(lively(9)[-1:], 8, axis=0)])
    moving, standing = measured(frames, sections=2).sections
    # Two of four columns of blocks change by 16 with every step of the bar.
    assert moving.motion == pytest.approx(8.0)
    assert standing.motion == 0.0


@pytest.mark.parametrize("chunk", [1, 2, 8, 100])
def test_chunks_do_not_matter(chunk: int) -> None:
    """However frames are handed over, the same is measured."""
    frames = np.concatenate([lively(12), still(5)])
    assert measured(frames, sections=2, chunk=chunk) == measured(frames, sections=2)


# -- values that are no numbers


def test_values_that_are_not_finite() -> None:
    """Values that are no finite numbers fail a job unless it says otherwise."""
    quality = measured(lively(9), finite=False)
    (finding,) = findings(quality, Gates())
    assert (finding.defect, finding.fails) == ("nan", True)
    assert defects(quality, Gates(nan=Gate.OFF)) == []


# -- black frames, and frames of one colour


def textured(level: float, deviation: float) -> NDArray[np.uint8]:
    """A frame of this mean and deviation, of two levels."""
    half = np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 2 - 1
    return np.repeat((level + half * deviation)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("level", "deviation", "black"),
    [
        (0, 0, True),
        (7, 7, True),
        (9, 9, False),
        (9, 3, False),
        (120, 0, True),
        (120, 1, True),
        (120, 3, False),
        (255, 0, True),
    ],
)
def test_black_and_flat_frames(level: float, deviation: float, black: bool) -> None:
    """A frame is a defect when it is darker than 8 of 255, or varies by less than 2.5 over the picture."""
    frames = lively(9)
    frames[4] = textured(level, deviation)
    quality = measured(frames)
    assert quality.black_frames == ((4,) if black else ())
    assert ("black" in defects(quality)) == black


def test_colours_of_one_luma_are_a_picture() -> None:
    """A red shape on a dark blue that is as bright is neither black nor of one colour."""
    frames = lively(9)
    frames[4] = (40, 55, 91)
    frames[4, 2:6, 2:6] = (226, 0, 0)
    luma = frames[4] @ np.array([0.2126, 0.7152, 0.0722])
    assert luma.std() < 2
    assert measured(frames).black == 0


def test_black_frames_are_counted_and_the_first_named() -> None:
    """All black frames are counted; the first 20 are named, wherever they lie."""
    frames = lively(frames_of(5))
    dark = [3, *range(10, 40)]
    frames[dark] = 0
    quality = measured(frames, sections=5)
    assert (quality.black, quality.black_frames) == (31, tuple(dark[:20]))
    (finding,) = (finding for finding in findings(quality, STRICT) if finding.defect == "black")
    assert finding.seen.startswith("31 frames ")


@pytest.mark.parametrize("start", [textured(3, 3), textured(0, 0), textured(200, 0)], ids=["dark", "black", "flat"])
def test_a_start_image_that_is_dark_itself(start: NDArray[np.uint8]) -> None:
    """A video that begins black or of one colour was given such an image, and is not blamed for it."""
    frames = lively(frames_of(2))
    frames[:5] = start
    frames[12] = 0
    quality = measured(frames, sections=2)
    assert (quality.black, "black" in defects(quality)) == (0, False)


def test_a_bright_start_that_goes_dark() -> None:
    """A video that begins bright and goes black has the defect."""
    frames = lively(9)
    frames[1:] = 0
    assert measured(frames).black == 8


# -- stretches without motion


@pytest.mark.parametrize(
    ("changes", "fps", "frozen"), [(29, 30.0, False), (30, 30.0, True), (24, 24.0, True), (30, 60.0, False)]
)
def test_a_stretch_without_motion(changes: int, fps: float, frozen: bool) -> None:
    """A second in which nothing moves is a defect, less is none."""
    frames = lively(frames_of(16))
    frames[20 : 21 + changes] = frames[20]
    quality = measured(frames, sections=16, fps=fps)
    assert quality.still_seconds == pytest.approx(changes / fps, abs=1e-3)
    assert ("frozen" in defects(quality)) == frozen


def test_short_videos_may_stand_still_half_their_time() -> None:
    """Of a video of less than two seconds, half of it without motion is a defect, and less is none."""
    frames = lively(17)
    frames[4:13] = frames[4]
    assert measured(frames, sections=2).still_seconds == pytest.approx(8 / 30, abs=1e-3)
    assert defects(measured(frames, sections=2)) == []
    frames[4:14] = frames[4]
    assert defects(measured(frames, sections=2)) == ["frozen"]


def test_the_longest_stretch_counts() -> None:
    """Many short pauses are no long one."""
    frames = np.repeat(lively(9), 15, axis=0)[: frames_of(16)]
    quality = measured(frames, sections=16)
    assert quality.still_seconds == pytest.approx(14 / 30, abs=1e-3)
    assert defects(quality) == []


@pytest.mark.parametrize(("rows", "frozen"), [(8, False), (5, False), (3, True), (0, True)])
def test_something_small_that_moves_is_motion(rows: int, frozen: bool) -> None:
    """A corner that goes on changing by half a level is motion, though the picture's mean hardly changes."""
    frames = still(frames_of(8))
    frames[::2, :rows, :8] += 1
    quality = measured(frames, sections=8)
    assert quality.sections[0].motion < 0.1
    assert ("frozen" in defects(quality)) == frozen


def test_noise_is_no_motion() -> None:
    """Grain that flickers from pixel to pixel over a still picture is no motion."""
    grain = np.indices((SIDE, SIDE)).sum(axis=0)[..., None] % 2
    frames = still(frames_of(8))
    frames[::2] += grain.astype(np.uint8)
    frames[1::2] += (1 - grain).astype(np.uint8)
    assert measured(frames, sections=8).sections[0].motion == 0.0
    assert defects(measured(frames, sections=8)) == ["frozen"]


# -- drift


@pytest.mark.parametrize(("end", "drifts"), [(115, False), (117, True), (85, False), (83, True)])
def test_brightness_that_wanders(end: int, drifts: bool) -> None:
    """A section whose brightness is more than 16 of 255 from the first one's is a defect, either way."""
    frames = np.concatenate([lively(17, level=100), lively(8, level=end), lively(8, level=100)])
    quality = measured(frames, sections=4)
    assert defects(quality) == (["drift"] if drifts else [])
    if drifts:
        (finding,) = findings(quality, STRICT)
        assert f"luma wanders by {end - 100:+d} of 255" in finding.seen


@pytest.mark.parametrize(("saturated", "drifts"), [(15, False), (17, True)])
def test_saturation_that_wanders(saturated: int, drifts: bool) -> None:
    """A section whose saturation is more than 16 of 255 from the first one's is a defect."""
    quality = measured(np.concatenate([lively(9), lively(8, saturated=saturated)]), sections=2)
    assert defects(quality) == (["drift"] if drifts else [])


def test_one_section_cannot_drift() -> None:
    """What changes within the first section is no drift."""
    assert defects(measured(np.concatenate([lively(4, level=60), lively(5, level=200)]))) == []


# -- gates

BROKEN = Quality(
    finite=False,
    black=2,
    black_frames=(3, 4),
    still_seconds=2.5,
    seconds=5.0,
    sections=(
        SectionQuality(luma=100.0, saturation=20.0, motion=1.0),
        SectionQuality(luma=50.0, saturation=20.0, motion=0.0),
        SectionQuality(luma=120.0, saturation=60.0, motion=0.0),
    ),
)


@pytest.mark.parametrize("defect", ["nan", "black", "frozen", "drift"])
@pytest.mark.parametrize(("gate", "fails"), [(Gate.FAIL, [True]), (Gate.WARN, [False]), (Gate.OFF, [])])
def test_gates(defect: str, gate: Gate, fails: list[bool]) -> None:
    """Each gate decides on its own defect alone: to refuse it, to note it, or not to look."""
    off: Mapping[str, Gate] = dict.fromkeys(("nan", "black", "frozen", "drift"), Gate.OFF)
    found = findings(BROKEN, Gates(**{**off, defect: gate}))
    assert [(finding.defect, finding.fails) for finding in found] == [(defect, each) for each in fails]


def test_findings_say_what_was_seen() -> None:
    """Every finding says what was seen, with its figures; gates that are not set refuse only values that are none."""
    assert findings(BROKEN, Gates()) == [
        Finding(defect="nan", seen="values that are no finite numbers", fails=True),
        Finding(defect="black", seen="2 frames are nearly black or of one colour", fails=False),
        Finding(defect="frozen", seen="nothing moves for 2.50 s", fails=False),
    ]
    (drift,) = findings(BROKEN, Gates(nan=Gate.OFF, black=Gate.OFF, frozen=Gate.OFF, drift=Gate.WARN))
    # The furthest of each: luma in the second section, saturation in the third.
    assert drift.seen == "luma wanders by -50 of 255, saturation by +40"


# -- in a sidecar


def test_quality_in_a_sidecar() -> None:
    """What a sidecar has of the quality is read back as it was, and judged alike."""
    for quality in (BROKEN, measured(lively(9)), measured(np.zeros_like(lively(9)))):
        content = json.loads(json.dumps({**asdict(quality), "findings": []}))
        assert quality_of(content) == quality


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        "quality",
        {},
        {**asdict(BROKEN), "sections": None},
        {**asdict(BROKEN), "sections": [5]},
        {**asdict(BROKEN), "sections": [{"luma": 1.0}]},
        {**asdict(BROKEN), "sections": []},
        {**asdict(BROKEN), "sections": [{"luma": None, "saturation": 1, "motion": 1}]},
        {**asdict(BROKEN), "still_seconds": None},
        {**asdict(BROKEN), "seconds": "5"},
        {**asdict(BROKEN), "black": None},
        {**asdict(BROKEN), "black_frames": None},
        *({key: value for key, value in asdict(BROKEN).items() if key != gone} for gone in asdict(BROKEN)),
    ],
)
def test_quality_that_cannot_be_used(content: Any) -> None:
    """Where a sidecar has no quality of this shape there is none, and nothing is judged by it."""
    assert quality_of(content) is None


def test_quality_of_a_newer_goan() -> None:
    """Further keys beside those that are known are passed over."""
    assert quality_of({**asdict(BROKEN), "sharpness": 3}) == replace(BROKEN)


def test_frames_before_the_sections() -> None:
    """Where frames of another video were decoded first, a section's means are those of its own."""
    meter, plan = FrameMeter(), plan_sections(Family.F1, 2, 2)
    dark, bright = lively(5, level=60), lively(plan.frames, level=150)
    for _ in meter.watching([dark, bright]):
        pass
    alone = measured(bright, sections=2)
    made = meter.quality(plan, 30.0, finite=True, before=5)
    assert [each.luma for each in made.sections] == [each.luma for each in alone.sections]
    assert made.seconds == round((5 + plan.frames) / 30, 4)
