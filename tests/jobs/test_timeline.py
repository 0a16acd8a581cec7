"""Timelines and guidance schedules: what each section is told, and every way to ask for it wrongly."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.jobs.directing import Direction, GuidanceSchedule, Moment
from goan_cli.jobs.job import Job
from goan_cli.jobs.json_schema import json_schema
from goan_cli.jobs.schema import JobSpec
from goan_cli.jobs.sections import Family, plan_sections
from goan_cli.jobs.timeline import directions_of, scheduled_scales, section_seconds
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs
from tests.jobs.test_schema import accepts

OWN = Direction(prompt="a", negative_prompt="", guidance_scale=10.0, true_cfg_scale=1.0, loras=())


def _job(folder: Path, **keys: Any) -> Job:
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**MINIMAL, **keys}))
    return plan.job


def _moment(section: int, **changes: Any) -> Moment:
    return Moment(**{"at": float(section), "section": section, "blend": 0, **changes})


def _told(count: int, *moments: Moment, family: Family = Family.F1, own: Direction = OWN) -> list[Direction]:
    """What sections are told, in viewing order."""
    plan = plan_sections(family, count, 2)
    told = directions_of(own, plan, moments, None)
    return [told[section.number] for section in sorted(plan.sections, key=lambda section: section.frames)]


# Seconds to sections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "fps", "at", "begins"),
    [
        # A section is 4 * window / fps seconds.
        pytest.param(9, 30, 2.4, 2, id="on a section: 1.2 s each"),
        pytest.param(9, 30, "2.4s", 2, id="with its unit"),
        pytest.param(9, 30, " 2.4 s ", 2, id="with spaces"),
        pytest.param(9, 30, 0, 0, id="zero"),
        pytest.param(9, 30, 0.59, 0, id="nearer to the start"),
        pytest.param(9, 30, 0.61, 1, id="nearer to the first cut"),
        pytest.param(9, 30, 4.19, 3, id="in the last section"),
        pytest.param(9, 24, 2.4, 2, id="1.5 s each"),
        pytest.param(3, 30, 1.0, 2, id="0.4 s each"),
        pytest.param(3, 60, 0.6, 3, id="0.2 s each"),
        pytest.param(2, 12.5, 1.92, 3, id="0.64 s each"),
    ],
)
@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_snapped_to_the_nearest_section(
    folder: Path, model: str, window: int, fps: float, at: object, begins: int
) -> None:
    """A moment acts from the section that begins nearest to it, at any window and rate, in either family."""
    job = _job(folder, model=model, sections=4, window=window, fps=fps, timeline=[{"at": at, "prompt": "b"}])
    assert job.timeline[0].section == begins
    first = [section.number for section in job.sections.sections if job.sections.place_of(section) >= begins]
    assert [number for number, told in enumerate(job.directions) if told.prompt == "b"] == first
    assert section_seconds(window, fps) == pytest.approx(4 * window / fps)
    earliest = min(job.sections.sections[number].frames[0] for number in first)
    assert abs(earliest / fps - job.timeline[0].at) <= section_seconds(window, fps) / 2 + 1 / fps


@pytest.mark.parametrize(("model", "order"), [("tiny", "ccbbaa"), ("tiny-f1", "aabbcc")])
def test_directions_are_in_sampling_order(folder: Path, model: str, order: str) -> None:
    """The inverted family samples the end first, so it is told of the end first; F1 in viewing order."""
    timeline = [{"at": 0.8, "prompt": "b"}, {"at": "1.6s", "prompt": "c"}]
    job = _job(folder, model=model, sections=6, prompt="a", timeline=timeline)
    assert "".join(told.prompt for told in job.directions) == order


def test_what_is_not_given_stays(folder: Path) -> None:
    """Each moment changes what it names; all else is as it was told before, from whichever moment."""
    timeline = [
        {"at": 0.4, "prompt": "b", "loras": ["style.safetensors"]},
        {"at": 0.8, "true_cfg_scale": 2, "negative_prompt": "dark"},
        {"at": 1.2, "guidance_scale": 6, "image": "start.png", "loras": []},
    ]
    job = _job(folder, model="tiny-f1", sections=4, prompt="a", timeline=timeline)
    seen = [
        (told.prompt, told.negative_prompt, told.guidance_scale, told.true_cfg_scale, len(told.loras), told.image)
        for told in job.directions
    ]
    picture = job.timeline[2].image
    assert picture is not None
    assert seen == [
        ("a", "", 10.0, 1.0, 0, None),
        ("b", "", 10.0, 1.0, 1, None),
        ("b", "dark", 10.0, 2.0, 1, None),
        ("b", "dark", 6.0, 2.0, 0, picture),
    ]
    assert (job.is_directed, job.is_guided) == (True, True)
    assert job.pictures == (folder / "start.png",)


def test_a_timeline_that_begins_at_zero_has_the_prompt(folder: Path) -> None:
    """Where the timeline says what happens from 0 s on, the job itself need not."""
    keys: dict[str, Any] = {"image": "start.png", "sections": 2, "timeline": [{"at": 0, "prompt": "b"}]}
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", keys))
    assert (plan.job.prompt, plan.job.is_directed) == ("b", False)
    keys["timeline"] = [{"at": 0.4, "prompt": "b"}]
    (problem,) = problems_in(write_jobs(folder / "shot.yaml", keys))
    assert "prompt: missing: what should happen" in problem


@pytest.mark.parametrize(
    "timeline",
    [
        [],
        [{"at": 0}],
        [{"at": 0.4, "prompt": "a"}, {"at": 0.8, "prompt": "a", "blend": 2}],
        [{"at": 0.4, "guidance_scale": 10, "true_cfg_scale": 1, "negative_prompt": "", "loras": []}],
    ],
)
def test_moments_that_change_nothing(folder: Path, timeline: list[object]) -> None:
    """A timeline that says what is so anyway leaves the job undirected."""
    assert not _job(folder, sections=4, prompt="a", timeline=timeline).is_directed


# Blends ----------------------------------------------------------------------------------------------------


def _shares(told: Sequence[Direction]) -> list[tuple[str, str, float]]:
    return [(each.earlier, each.prompt, round(each.share, 3)) for each in told]


@pytest.mark.parametrize("family", list(Family))
def test_blend_goes_over_in_even_steps(family: Family) -> None:
    """A blend of n sections has n mixtures between the earlier prompt and the later one alone."""
    told = _told(6, _moment(1, prompt="b", blend=3), family=family)
    assert _shares(told) == [
        ("", "a", 1.0),
        ("a", "b", 0.25),
        ("a", "b", 0.5),
        ("a", "b", 0.75),
        ("", "b", 1.0),
        ("", "b", 1.0),
    ]


def test_no_blend_is_a_cut() -> None:
    """Without a blend the prompt changes from one section to the next."""
    assert _shares(_told(3, _moment(1, prompt="b"))) == [("", "a", 1.0), ("", "b", 1.0), ("", "b", 1.0)]


def test_blend_longer_than_the_video() -> None:
    """A blend that the video ends in is not hurried."""
    assert [each.share for each in _told(3, _moment(1, prompt="b", blend=9))] == [1.0, 0.1, 0.2]


def test_blend_goes_on_through_other_moments() -> None:
    """A moment without a prompt does not cut short the blend that it falls into; one with a prompt ends it."""
    told = _told(5, _moment(1, prompt="b", blend=3), _moment(2, guidance_scale=5.0))
    assert [each.share for each in told] == [1.0, 0.25, 0.5, 0.75, 1.0]
    assert [each.guidance_scale for each in told] == [10.0, 10.0, 5.0, 5.0, 5.0]
    told = _told(4, _moment(1, prompt="b", blend=3), _moment(2, prompt="c"))
    assert _shares(told)[2:] == [("", "c", 1.0), ("", "c", 1.0)]


# Guidance schedules -----------------------------------------------------------------------------------------


def _schedule(**changes: Any) -> GuidanceSchedule:
    return GuidanceSchedule(**{"shape": "linear", "end": 2.0, "start_at": 0.75, "curve": 1.0, "trim": 1.0, **changes})


@pytest.mark.parametrize(
    ("schedule", "scales"),
    [
        (_schedule(), [10, 8, 6, 4, 2]),
        (_schedule(end=10), [10, 10, 10, 10, 10]),
        (_schedule(end=14), [10, 11, 12, 13, 14]),
        (_schedule(trim=0.5), [5, 8, 6, 4, 2]),
        (_schedule(trim=0), [0, 8, 6, 4, 2]),
        (_schedule(shape="roll-off"), [10, 10, 10, 10, 2]),
        (_schedule(shape="roll-off", start_at=0.5), [10, 10, 10, 6, 2]),
        (_schedule(shape="roll-off", start_at=0), [10, 8, 6, 4, 2]),
        (_schedule(shape="roll-off", start_at=0, curve=2), [10, 9.5, 8, 5.5, 2]),
        (_schedule(shape="roll-off", start_at=0.5, trim=2), [20, 10, 10, 6, 2]),
        # Of linear these say nothing.
        (_schedule(start_at=0.5, curve=3), [10, 8, 6, 4, 2]),
    ],
)
def test_scheduled_scales(schedule: GuidanceSchedule, scales: list[float]) -> None:
    """Scales of five sections from 10 on, by the schedule's formula worked out by hand."""
    assert scheduled_scales(schedule, 10.0, 5) == pytest.approx(scales)


@pytest.mark.parametrize("shape", ["linear", "roll-off"])
def test_schedule_of_one_section(shape: str) -> None:
    """A video of one section begins and ends with it: the start counts, trimmed."""
    assert scheduled_scales(_schedule(shape=shape, trim=0.5), 10.0, 1) == [5.0]


@given(
    start=st.floats(0, 100),
    end=st.floats(0, 100),
    count=st.integers(2, 50),
    start_at=st.floats(0, 0.99),
    curve=st.floats(0.1, 10),
    shape=st.sampled_from(["linear", "roll-off"]),
)
def test_schedule_goes_one_way(start: float, end: float, count: int, start_at: float, curve: float, shape: str) -> None:
    """Every schedule begins at the job's scale, ends at its own end, and never turns back on the way."""
    scales = scheduled_scales(_schedule(shape=shape, end=end, start_at=start_at, curve=curve), start, count)
    assert (scales[0], scales[-1]) == pytest.approx((start, end))
    steps = [(after - before) * (1 if end >= start else -1) for before, after in itertools.pairwise(scales)]
    assert all(step >= -1e-9 for step in steps)


@pytest.mark.parametrize(("model", "scales"), [("tiny", [2, 6, 10]), ("tiny-f1", [10, 6, 2])])
def test_schedule_is_in_viewing_order(folder: Path, model: str, scales: list[float]) -> None:
    """A schedule runs from the video's start to its end, whichever is sampled first."""
    job = _job(folder, model=model, sections=3, guidance_schedule={"end": 2})
    assert [told.guidance_scale for told in job.directions] == scales


# What is wrong, and where ----------------------------------------------------------------------------------


def _wrong(folder: Path, lines: str, **keys: Any) -> list[str]:
    """Problems of a job of 4 sections (0.4 s each) whose timeline is `lines`, from line 5 on; the file's name off."""
    image = "" if keys.pop("no_image", False) else "image: start.png\n"
    file = write_jobs(folder / "shot.yaml", f"{image or '# none'}prompt: a\nsections: 4\ntimeline:\n{lines}")
    return [problem.removeprefix(f"{file}:") for problem in problems_in(file, **keys)]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        pytest.param("- {at: 0.4, promt: b}", "5: timeline[0].promt: unknown key (did you mean prompt?)", id="typo"),
        pytest.param(
            "- at: 0.4\n  loras:\n  - path: style.safetensors\n    wieght: 1",
            "8: timeline[0].loras[0].wieght: unknown key (did you mean weight?)",
            id="typo in a LoRA",
        ),
        pytest.param("- {prompt: b}", "5: timeline[0].at: missing", id="no time"),
        pytest.param(
            "- {at: soon}", "5: timeline[0].at: must be a time in seconds such as 2.4s, not 'soon'", id="word"
        ),
        pytest.param("- {at: true}", "5: timeline[0].at: must be a time in seconds such as 2.4s, not true", id="true"),
        pytest.param(
            "- {at: 0:02}", "5: timeline[0].at: must be a time in seconds such as 2.4s, not '0:02'", id="clock"
        ),
        pytest.param("- {at: -1}", "5: timeline[0].at: must be greater than or equal to 0, not -1", id="negative"),
        pytest.param("- {at: .inf}", "5: timeline[0].at: must be", id="infinite"),
        pytest.param(
            "- {at: 9}", "5: timeline[0].at: 9 s is too late: the last of 4 sections begins at 1.2 s", id="beyond"
        ),
        pytest.param(
            "- {at: 1.5}",
            "5: timeline[0].at: 1.5 s is nearer to the video's end than to its last section: "
            "the last of 4 sections begins at 1.2 s",
            id="in the last half section",
        ),
        pytest.param(
            "- {at: 0.8}\n- {at: 0.4}",
            "6: timeline[1].at: 0.4 s is in no later section than 0.8 s, which begins at 0.8 s "
            "(moments come in order, at least 0.4 s apart)",
            id="order",
        ),
        pytest.param(
            "- {at: 0.8}\n- {at: 0.9}", "6: timeline[1].at: 0.9 s is in no later section than", id="one section"
        ),
        pytest.param("- {at: 0.4, blend: 1}", "5: timeline[0].blend: given without a prompt", id="blend of nothing"),
        pytest.param("- {at: 0.4, prompt: b, blend: -1}", "5: timeline[0].blend: must be", id="negative blend"),
        pytest.param("- {at: 0.4, prompt: b, blend: 1.5}", "5: timeline[0].blend: must be a whole number", id="blend"),
        pytest.param("- {at: 0.4, prompt: 5}", "5: timeline[0].prompt: must be text", id="prompt"),
        pytest.param("- {at: 0.4, true_cfg_scale: 0}", "5: timeline[0].true_cfg_scale: must be", id="true CFG"),
        pytest.param("- {at: 0.4, image: gone.png}", "5: timeline[0].image: ", id="no picture"),
        pytest.param("- {at: 0.4, image: style.safetensors}", "5: timeline[0].image: ", id="not a picture"),
        pytest.param("- at: 0.4\n  loras: [gone.safetensors]", "6: timeline[0].loras[0].path: ", id="no LoRA"),
        pytest.param("- at: 0.4\n  loras: [start.png]", "6: timeline[0].loras[0].path: ", id="not a LoRA"),
        pytest.param(
            "- at: 0.4\n  loras: [{path: style.safetensors, weight: 9}]", "6: timeline[0].loras[0]", id="weight"
        ),
        pytest.param("- b", "5: timeline[0]: must be keys and values", id="text"),
    ],
)
def test_problems_of_a_moment(folder: Path, lines: str, problem: str) -> None:
    """Each mistake in a timeline is told once, at its line and key."""
    (found,) = _wrong(folder, lines)
    assert found.startswith(problem), found


def test_a_timeline_that_is_no_list(folder: Path) -> None:
    """Keys where a list of moments belongs are told apart."""
    (found,) = problems_in(write_jobs(folder / "a.yaml", {**MINIMAL, "timeline": {"at": 1, "prompt": "b"}}))
    assert "timeline: must be a list" in found


def test_all_moments_are_looked_at(folder: Path) -> None:
    """One pass finds what is wrong with every moment, each at its own place though others were left out."""
    found = _wrong(folder, "- b\n- {at: 0.8, image: gone.png}\n- {at: 1.2, blend: 1}\n- {at: 7}\n")
    assert [problem.partition(": ")[0] for problem in found] == ["5", "6", "7", "8"]
    assert [problem.split(": ")[1].split(".")[0] for problem in found] == [f"timeline[{at}]" for at in range(4)]


@pytest.mark.parametrize("at", ["at: soon", "at: -1", "at: {a: 1}", "at: ", "blend: 0"])
def test_a_wrong_time_hides_nothing(folder: Path, at: str) -> None:
    """Beside a moment's wrong or missing time, its other mistakes and those of later moments are told, each once."""
    found = _wrong(
        folder,
        f"- {{{at}, image: gone.png, loras: [gone.safetensors]}}\n"
        "- {at: 0.8, image: gone.png}\n- {at: 0.4}\n- {at: 9, loras: [style.safetensors, {path: gone.safetensors}]}\n",
    )
    assert sorted(problem.split(": ")[1] for problem in found) == [
        *("timeline[0].at", "timeline[0].image", "timeline[0].loras[0].path", "timeline[1].image"),
        *("timeline[2].at", "timeline[3].at", "timeline[3].loras[1].path"),
    ]
    assert [problem.partition(": ")[0] for problem in found] == ["5", "5", "5", "6", "7", "8", "8"]


def test_a_wrong_entry_of_a_moment_hides_nothing(folder: Path) -> None:
    """Beside a moment's LoRA that is wrong the others are looked at, told by their own numbers."""
    found = _wrong(
        folder,
        "- at: 0.4\n  loras:\n  - {weight: 1}\n  - {path: 5}\n  - gone.safetensors\n- {at: 0.8, image: gone.png}\n",
    )
    assert [problem.split(": ")[:2] for problem in found] == [
        ["7", "timeline[0].loras[0].path"],
        ["8", "timeline[0].loras[1].path"],
        ["9", "timeline[0].loras[2].path"],
        ["10", "timeline[1].image"],
    ]


def test_times_in_order_around_a_wrong_one(folder: Path) -> None:
    """Moments around one whose time is wrong are compared with each other, not with what stands in its place."""
    assert len(_wrong(folder, "- {at: 0.4}\n- {at: soon}\n- {at: 0.8}\n")) == 1
    found = _wrong(folder, "- {at: 0.8}\n- {at: soon}\n- {at: 0.4}\n")
    assert found[1].startswith("7: timeline[2].at: 0.4 s is in no later section than 0.8 s")


@pytest.mark.parametrize("key", ["seconds", "fps", "window"])
def test_a_wrong_length_is_told_once(folder: Path, key: str) -> None:
    """Where the video's length is wrong itself, moments are not measured against a default in its place."""
    keys = {"image": "start.png", "prompt": "a", key: "much", "timeline": [{"at": 60}], "paddings": [0]}
    (found,) = problems_in(write_jobs(folder / "a.yaml", keys))
    assert f": {key}: " in found


def test_schedule_and_moments_both_set_guidance(folder: Path) -> None:
    """Two ways to set the guidance of a section are one too many, told at the moment, also across layers."""
    keys = {**MINIMAL, "sections": 4, "timeline": [{"at": 0.4}, {"at": 0.8, "guidance_scale": 4}]}
    file = write_jobs(folder / "a.yaml", {**keys, "guidance_schedule": {"end": 2}})
    (found,) = problems_in(file)
    assert "timeline[1].guidance_scale: given beside guidance_schedule" in found
    (found,) = problems_in(write_jobs(folder / "b.yaml", keys), settings=["guidance_schedule={end: 2}"])
    assert "timeline[1].guidance_scale: given beside guidance_schedule" in found


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ({}, "guidance_schedule.end: missing"),
        ({"end": 101}, "guidance_schedule.end: must be"),
        ({"end": 2, "shape": "cosine"}, "guidance_schedule.shape: must be 'linear' or 'roll-off'"),
        ({"end": 2, "start_at": 1}, "guidance_schedule.start_at: must be"),
        ({"end": 2, "curve": 0}, "guidance_schedule.curve: must be"),
        ({"end": 2, "trim": -1}, "guidance_schedule.trim: must be"),
        ({"end": 2, "strat_at": 1}, "guidance_schedule.strat_at: unknown key (did you mean start_at?)"),
        (4, "guidance_schedule: must be keys and values"),
    ],
)
def test_problems_of_a_schedule(folder: Path, schedule: object, problem: str) -> None:
    """A wrong schedule is refused at its key."""
    (found,) = problems_in(write_jobs(folder / "a.yaml", {**MINIMAL, "guidance_schedule": schedule}))
    assert problem in found


# Layers, settings, matrices --------------------------------------------------------------------------------


def test_a_stronger_layer_s_timeline_takes_the_place(folder: Path) -> None:
    """A job's timeline replaces the defaults' as a whole, null takes it away, and paths are of their own file."""
    (folder / "presets").mkdir()
    preset = write_jobs(folder / "presets" / "slow.yaml", {"timeline": [{"at": 0.4, "image": "../start.png"}]})
    defaults = {**MINIMAL, "sections": 4, "timeline": [{"at": 0.8, "prompt": "d"}]}
    jobs: list[dict[str, Any]] = [{}, {"timeline": [{"at": 1.2, "prompt": "j"}]}, {"timeline": None}]
    jobs.append({"timeline": None, "preset": str(preset)})
    file = write_jobs(folder / "a.yaml", {"defaults": defaults, "jobs": jobs})
    ats = [[moment.at for moment in plan.job.timeline] for plan in plan_files(file)]
    assert ats == [[0.8], [1.2], [], []]
    alone = write_jobs(folder / "b.yaml", {**MINIMAL, "sections": 4, "preset": str(preset)})
    (plan,) = plan_files(alone)
    assert plan.job.timeline[0].image is not None
    assert plan.job.timeline[0].image.path.resolve() == folder / "start.png"
    (plan,) = plan_files(alone, settings=["timeline=[{at: 0.8s, prompt: c}]"])
    assert [(moment.at, moment.prompt) for moment in plan.job.timeline] == [(0.8, "c")]


def test_settings_inside_of_a_timeline(folder: Path) -> None:
    """`--set timeline.-1.at=1.2s` moves the last moment and leaves the others; a moment's LoRAs are reached, too."""
    moments = [{"at": 0.4, "prompt": "b"}, {"at": 0.8, "loras": ["style.safetensors"]}]
    file = write_jobs(folder / "a.yaml", {**MINIMAL, "sections": 4, "timeline": moments})
    settings = ["timeline.0.prompt=c", "timeline.-1.at=1.2s", "timeline.1.loras.-1.weight=0.5"]
    (plan,) = plan_files(file, settings=settings)
    first, second = plan.job.timeline
    assert (first.at, first.prompt, second.at, second.prompt) == (0.4, "c", 1.2, None)
    assert [lora.weight for lora in second.loras or ()] == [0.5]


def test_problems_of_settings_inside_of_a_timeline(folder: Path) -> None:
    """A moment that is not there, and a time that cannot be, are told at the command line, the former with a count."""
    moments = [{"at": 0.4, "prompt": "b"}, {"at": 0.8, "prompt": "c"}]
    file = write_jobs(folder / "a.yaml", {**MINIMAL, "sections": 4, "timeline": moments})
    (found,) = problems_in(file, settings=["timeline.2.prompt=d"])
    assert found.startswith("command line: timeline[2].prompt: timeline has 2 entries, 0 to 1 ")
    (found,) = problems_in(file, settings=["timeline.0.at=soon"])
    assert found == "command line: timeline[0].at: must be a time in seconds such as 2.4s, not 'soon'"
    (found,) = problems_in(file, settings=["timeline.-1.at=9"])
    assert found.startswith("command line: timeline[1].at: 9 s is too late")


def test_axes_inside_a_timeline_and_a_schedule(folder: Path) -> None:
    """A matrix reaches a moment's prompt, its LoRA's weight and a schedule's end, in the job's or the defaults'."""
    moments = [{"at": 0.4, "prompt": "b"}, {"at": 0.8, "loras": ["style.safetensors"]}]
    matrix = {"timeline.0.prompt": ["b", "c"], "timeline.1.loras.0.weight": [0.5, 1], "guidance_schedule.end": [2, 4]}
    job: dict[str, Any] = {"matrix": matrix, "guidance_schedule": {"shape": "roll-off"}}
    file = {"defaults": {**MINIMAL, "sections": 4, "timeline": moments}, "jobs": [job]}
    jobs = [plan.job for plan in plan_files(write_jobs(folder / "a.yaml", file))]
    seen = {
        (job.timeline[0].prompt, job.timeline[1].loras[0].weight, job.guidance_schedule.end)
        for job in jobs
        if job.timeline[1].loras and job.guidance_schedule
    }
    assert seen == {(prompt, weight, end) for prompt in "bc" for weight in (0.5, 1.0) for end in (2.0, 4.0)}
    assert len({job.name for job in jobs}) == len(jobs) == 8


def test_axes_that_reach_no_moment(folder: Path) -> None:
    """An axis of a moment that is not there is refused, and a wrong value is told at its place in the matrix."""
    job = {**MINIMAL, "sections": 4, "timeline": [{"at": 0.4}], "matrix": {"timeline.1.prompt": ["b", "c"]}}
    (found,) = problems_in(write_jobs(folder / "a.yaml", job))
    assert "this job has no timeline.1.prompt that could be set" in found
    file = write_jobs(
        folder / "b.yaml",
        "image: start.png\nprompt: a\nsections: 4\ntimeline: [{at: 0.4}]\nmatrix:\n  timeline.0.at:\n  - 0.8\n  - 9\n",
    )
    (found,) = problems_in(file)
    assert found.startswith(f"{file}:8: ")
    assert "9 s is too late" in found


# The JSON schema --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "valid"),
    [
        ({"timeline": []}, True),
        ({"timeline": None}, True),
        ({"timeline": [{"at": 0}]}, True),
        ({"timeline": [{"at": 2.4, "prompt": "b", "blend": 3, "image": "a.png"}]}, True),
        ({"timeline": [{"at": "2.4s", "negative_prompt": "b", "guidance_scale": 3, "true_cfg_scale": 2}]}, True),
        ({"timeline": [{"at": 1, "loras": ["a.safetensors", {"path": "b", "weight": 0.5}]}]}, True),
        ({"timeline": [{"at": 1, "loras": []}]}, True),
        ({"timeline": [{"prompt": "b"}]}, False),
        ({"timeline": [{"at": -1}]}, False),
        ({"timeline": [{"at": 601}]}, False),
        ({"timeline": [{"at": 1, "blend": -1}]}, False),
        ({"timeline": [{"at": 1, "propmt": "b"}]}, False),
        ({"timeline": [{"at": 1, "loras": [{"path": "b", "weight": 5}]}]}, False),
        ({"timeline": {"at": 1}}, False),
        ({"guidance_schedule": {"end": 2}}, True),
        ({"guidance_schedule": {"end": 2, "shape": "roll-off", "start_at": 0.5, "curve": 2, "trim": 0.9}}, True),
        ({"guidance_schedule": {}}, False),
        ({"guidance_schedule": {"end": 2, "start_at": 1}}, False),
        ({"guidance_schedule": {"end": 2, "shape": "cosine"}}, False),
        ({"start": "grey"}, True),
        ({"start": "#3a6ea5"}, True),
        ({"end_image": "a.png", "end_strength": 0.5}, True),
        ({"end_strength": 0}, False),
        ({"loop": True}, True),
        ({"loop": "yes"}, False),
        ({"fit": "pad"}, True),
        ({"fit": "squeeze"}, False),
        ({"resolution": 512}, True),
        ({"resolution": 63}, False),
        ({"paddings": [2, 1, 0]}, True),
        ({"paddings": []}, False),
        ({"paddings": [-1]}, False),
        ({"paddings": [1.5]}, False),
    ],
)
def test_editors_and_the_loader_agree(keys: dict[str, Any], valid: bool) -> None:
    """What the loader takes the JSON schema takes too, in a job and in the defaults, and what it refuses not."""
    schema = json_schema()
    try:
        JobSpec.model_validate(keys)
        loads = True
    except ValueError:
        loads = False
    assert loads == valid
    assert accepts(schema, keys) == valid
    assert accepts(schema, {"defaults": keys, "jobs": [keys]}) == valid
