"""One-frame inference as a job: a picture and its sidecar, up to date, replayed, and a job again."""

import json
from pathlib import Path

import pytest
from PIL import Image

from goan_cli.batch.outcome import End
from goan_cli.batch.replay import replay
from goan_cli.batch.run import render_jobs
from goan_cli.batch.survey import RunSettings
from goan_cli.output.recipe import embedded_recipe
from goan_cli.render.identity import job_identity
from tests.conftest import plan_files, write_jobs

ONE = {"target": 2, "controls": [{"image": "start.png", "index": 4}], "no_4x": True}


@pytest.fixture
def still(folder: Path) -> Path:
    """A job file of one picture."""
    job = {"image": "start.png", "prompt": "a red circle moves right", "seed": 1, "steps": 2, "one_frame": ONE}
    return write_jobs(folder / "still.yaml", job)


def test_a_picture(still: Path, folder: Path) -> None:
    """The result is one PNG of the job's size with the job in it; it is up to date, and a replay makes it again."""
    plans = plan_files(still)
    (outcome,) = render_jobs(plans, RunSettings(device="cpu"))
    assert outcome.end is End.DONE
    job = plans[0].job
    assert job.video == folder / "renders" / "still.png"
    with Image.open(job.video) as picture:
        assert (picture.format, picture.size) == ("PNG", job.size)
    content = json.loads(job.sidecar.read_text(encoding="utf-8"))
    assert (content["video"]["format"], content["video"]["frames"]) == ("png", 1)
    recipe = embedded_recipe(job.video)
    assert recipe is not None
    assert recipe["one_frame"] == content["settings"]["one_frame"]
    (again,) = render_jobs(plan_files(still), RunSettings(device="cpu"))
    assert again.end is End.UP_TO_DATE
    assert replay(job.sidecar, folder / "again", device="cpu").same


@pytest.mark.parametrize(
    "change",
    [{"target": 3}, {"no_4x": False}, {"no_2x": True}, {"no_post": True}, {"controls": []}],
    ids=["target", "4x", "2x", "post", "controls"],
)
def test_identity(still: Path, folder: Path, change: dict[str, object]) -> None:
    """Whatever of it changes makes another picture."""
    (plan,) = plan_files(still)
    job = {"image": "start.png", "prompt": "a red circle moves right", "seed": 1, "steps": 2}
    (other,) = plan_files(write_jobs(folder / "other.yaml", {**job, "one_frame": {**ONE, **change}}))
    assert job_identity(plan) != job_identity(other)
