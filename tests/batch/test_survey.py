"""How the jobs of a run stand before it, and runs that find nothing to do."""

from pathlib import Path
from typing import Any

import pytest

from goan_cli.batch.outcome import End, Outcome, RunEvent, RunFinished, RunStarted, exit_code, ignore_run
from goan_cli.batch.standing import OnExists, State
from goan_cli.batch.survey import RunSettings, finished_already, survey
from goan_cli.errors import InvalidInput
from goan_cli.files import sha256_of
from goan_cli.output.sidecar import SIDECAR_VERSION, settings_of, write_sidecar
from goan_cli.render.identity import job_identity
from goan_cli.render.plan import RenderPlan
from tests.helpers import tiny_plan

SETTINGS = RunSettings(device="cpu")


def _plan(folder: Path, name: str, **settings: Any) -> RenderPlan:
    return tiny_plan(folder, name, output={"dir": str(folder / "out")}, **settings)


def _finish(plan: RenderPlan) -> None:
    """The files that a finished job leaves."""
    job = plan.job
    job.output.dir.mkdir(parents=True, exist_ok=True)
    job.video.write_text(job.name)
    content = {
        "version": SIDECAR_VERSION,
        "identity": job_identity(plan),
        "settings": settings_of(job),
        "video": {"file": job.video.name, "sha256": sha256_of(job.video), "frames": 25, "seconds": 1.0},
        "pack": {},
    }
    write_sidecar(job.sidecar, content)


def _foreign(plan: RenderPlan) -> None:
    plan.job.output.dir.mkdir(parents=True, exist_ok=True)
    plan.job.video.write_bytes(b"holidays")


def test_what_is_to_be_done(tmp_path: Path) -> None:
    """Every job is in one of two places: what is to be rendered, and what is finished with, by its place."""
    plans = [_plan(tmp_path, name) for name in ("new", "done", "taken", "also-new")]
    _finish(plans[1])
    _foreign(plans[2])
    found = survey(plans, SETTINGS)
    assert {place: standing.state for place, standing in found.todo.items()} == dict.fromkeys((0, 2, 3), State.NEW)
    assert [standing.plan.job.name for standing in found.todo.values()] == ["new", "taken-2", "also-new"]
    assert {place: outcome.end for place, outcome in found.finished.items()} == {1: End.UP_TO_DATE}
    assert found.finished[1].reason == str(plans[1].job.video)


def test_names_are_skipped_where_asked_for(tmp_path: Path) -> None:
    """Where names that are taken are to be skipped, such jobs are finished with, and it is said why."""
    plans = [_plan(tmp_path, "new"), _plan(tmp_path, "taken")]
    _foreign(plans[1])
    found = survey(plans, RunSettings(device="cpu", on_exists=OnExists.SKIP))
    assert list(found.todo) == [0]
    assert found.finished[1].end is End.SKIPPED
    assert "taken.mp4 has no sidecar" in found.finished[1].reason


def test_a_number_is_no_other_job_s_name(tmp_path: Path) -> None:
    """A job whose name is taken goes past the names of the other jobs, whatever their order."""
    plans = [_plan(tmp_path, name) for name in ("shot-3", "shot", "shot-2")]
    _foreign(plans[1])
    for order in (plans, plans[::-1]):
        names = sorted(standing.plan.job.name for standing in survey(order, SETTINGS).todo.values())
        assert names == ["shot-2", "shot-3", "shot-4"]


def test_one_vanished_picture_fails_one_job(tmp_path: Path) -> None:
    """A finished job whose picture has vanished has failed, by itself."""
    other = tmp_path / "other.png"
    other.write_bytes(_plan(tmp_path, "x").job.pictures[0].read_bytes())
    plans = [_plan(tmp_path, "gone", image=str(other)), _plan(tmp_path, "new")]
    _finish(plans[0])
    other.unlink()
    found = survey(plans, SETTINGS)
    assert list(found.todo) == [1]
    assert found.finished[0].end is End.FAILED
    assert isinstance(found.finished[0].error, InvalidInput)


def test_force_leaves_nothing_out(tmp_path: Path) -> None:
    """With force, what is up to date is to be rendered."""
    plan = _plan(tmp_path, "done")
    _finish(plan)
    assert list(survey([plan], SETTINGS).finished) == [0]
    found = survey([plan], RunSettings(device="cpu", force=True))
    assert found.todo[0].reason == "asked for again"
    assert found.finished == {}


# Runs that find nothing to do -----------------------------------------------------------------------------


def test_everything_is_there(tmp_path: Path) -> None:
    """A run with nothing to render tells its listener the same story as any other, and is a success."""
    plans = [_plan(tmp_path, "one"), _plan(tmp_path, "two", seed=8), _plan(tmp_path, "taken")]
    for plan in plans[:2]:
        _finish(plan)
    _foreign(plans[2])
    heard: list[RunEvent] = []
    settings = RunSettings(device="cpu", on_exists=OnExists.SKIP)
    outcomes = finished_already(plans, settings, heard.append)
    assert outcomes is not None
    assert [outcome.end for outcome in outcomes] == [End.UP_TO_DATE, End.UP_TO_DATE, End.SKIPPED]
    assert [outcome.plan for outcome in outcomes] == plans
    assert heard[0] == RunStarted(standings=())
    assert heard[1:-1] == outcomes
    assert isinstance(heard[-1], RunFinished)
    assert heard[-1].outcomes == tuple(outcomes)
    assert exit_code(outcomes) == 0


def test_something_is_to_be_done(tmp_path: Path) -> None:
    """Where a job is to be rendered, or has failed already, nothing is told yet: that is for the run itself."""
    done, new = _plan(tmp_path, "done"), _plan(tmp_path, "new")
    _finish(done)
    heard: list[RunEvent] = []
    assert finished_already([done, new], SETTINGS, heard.append) is None
    assert finished_already([done], RunSettings(device="cpu", force=True), heard.append) is None
    done.job.pictures[0].unlink()
    assert finished_already([done], SETTINGS, heard.append) is None
    assert heard == []


def test_nothing_was_asked_for() -> None:
    """A run of no jobs has nothing to do."""
    assert finished_already([], SETTINGS, ignore_run) == []


def test_looking_writes_nothing(tmp_path: Path) -> None:
    """Looking at what is there changes no file."""
    done, taken, new = (_plan(tmp_path, name) for name in ("done", "taken", "new"))
    _finish(done)
    _foreign(taken)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    survey([done, taken, new], SETTINGS)
    finished_already([done], SETTINGS, ignore_run)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# Exit codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([], 0),
        ([End.DONE, End.UP_TO_DATE, End.SKIPPED], 0),
        ([End.DONE, End.FAILED], 1),
        ([End.FAILED, End.UP_TO_DATE], 1),
        ([End.DONE, End.STOPPED], 75),
        ([End.DONE, End.BUSY], 75),
        ([End.FAILED, End.STOPPED], 75),
    ],
)
def test_exit_code(tmp_path: Path, ends: list[End], code: int) -> None:
    """0 where all is there, 75 where running again will do more, else 1 where jobs failed."""
    plan = _plan(tmp_path, "job")
    assert exit_code([Outcome(plan=plan, end=end) for end in ends]) == code
