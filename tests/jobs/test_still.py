"""One-frame inference in a job: where its pictures are, and what it goes with."""

from pathlib import Path

import pytest

from goan_cli.jobs.sections import Family, plan_still
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs

STILL = {key: value for key, value in MINIMAL.items() if key != "sections"}


@pytest.mark.parametrize("family", list(Family))
def test_indices_of_musubi(family: Family) -> None:
    """By default a still has the places that musubi-tuner gives it: the empty frame and history behind the target."""
    plan = plan_still(family, 9, (), no_2x=False, no_4x=False, no_post=False)
    (section,) = plan.sections
    assert (section.latent_indices, section.clean_indices) == ((9,), (0, 10))
    assert section.clean_2x_indices == (11, 12)
    assert section.clean_4x_indices == tuple(range(13, 29))
    assert (plan.latent_frames, plan.frames, section.frames) == (1, 1, (0, 1))


def test_what_is_left_out() -> None:
    """Each part of the empty history can be left out; controls stand between the start and what is behind."""
    plan = plan_still(Family.INVERTED, 1, (4, 7), no_2x=True, no_4x=True, no_post=True)
    (section,) = plan.sections
    assert (section.clean_indices, section.clean_2x_indices, section.clean_4x_indices) == ((0, 4, 7), (), ())
    (section,) = plan_still(Family.INVERTED, 1, (4, 7), no_2x=False, no_4x=True, no_post=False).sections
    assert (section.clean_indices, section.clean_2x_indices) == ((0, 4, 7, 8), (9, 10))


def test_defaults(folder: Path) -> None:
    """Without more, the target is the pack's window, and nothing is left out."""
    (plan,) = plan_files(write_jobs(folder / "a.yaml", {**STILL, "one_frame": {}}))
    one = plan.job.one_frame
    assert one is not None
    assert (one.target, one.controls, one.no_2x, one.no_4x, one.no_post) == (3, (), False, False, False)
    assert len(plan.job.directions) == 1
    assert plan.job.seconds is None


def test_controls(folder: Path) -> None:
    """Control images are found from the file's folder, and are among the job's pictures."""
    one = {"target": 1, "controls": [{"image": "start.png", "index": 5}]}
    (plan,) = plan_files(write_jobs(folder / "a.yaml", {**STILL, "one_frame": one}))
    assert plan.job.one_frame is not None
    assert [each.picture.path for each in plan.job.one_frame.controls] == [folder / "start.png"]
    (section,) = plan.job.sections.sections
    assert section.clean_indices == (0, 5, 6)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"one_frame": {"target": -1}}, "one_frame.target: must be greater than or equal to 0"),
        ({"one_frame": {"controls": [{"image": "gone.png", "index": 1}]}}, "one_frame.controls[0].image: "),
        ({"one_frame": {"controls": [{"image": "start.png"}]}}, "one_frame.controls[0].index: missing"),
        ({"one_frame": {"targt": 1}}, "one_frame.targt: unknown key (did you mean target?)"),
        ({"one_frame": {}, "sections": 2}, "sections: given beside one_frame"),
        ({"one_frame": {}, "seconds": 2}, "seconds: given beside one_frame"),
        ({"one_frame": {}, "timeline": [{"at": 0, "prompt": "x"}]}, "timeline: given beside one_frame"),
        ({"one_frame": {}, "end_image": "start.png"}, "end_image: given beside one_frame"),
        ({"one_frame": {}, "loop": True}, "loop: given beside one_frame"),
        ({"one_frame": {}, "guidance_schedule": {"end": 5}}, "guidance_schedule: given beside one_frame"),
    ],
)
def test_problems(folder: Path, keys: dict[str, object], said: str) -> None:
    """What a picture cannot have is told at its key."""
    lines = problems_in(write_jobs(folder / "a.yaml", {**STILL, **keys}))
    assert any(said in line for line in lines), lines
