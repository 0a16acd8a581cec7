"""Memory budgets that no plan fits: an error where a GPU would render, and else a row of the plan."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from goan_cli.batch.standing import Standing, State
from goan_cli.cli.refusals import refuse_budgets
from goan_cli.errors import InvalidJobs
from tests.cli.conftest import Goan
from tests.conftest import MINIMAL, plan_files, write_jobs

SMALL = {**MINIMAL, "size": [32, 32], "memory": "100MB", "seed": 1}
Machine = Callable[[str], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes `auto` choose a kind of device."""

    def make(kind: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")

    return make


@pytest.mark.parametrize("command", [("plan",), ("render", "--dry-run")])
def test_on_a_gpu(folder: Path, goan: Goan, machine: Machine, command: tuple[str, ...]) -> None:
    """The plan is shown, and every job that a render would refuse is an error, with the environment's code."""
    machine("cuda")
    jobs = [{**SMALL, "name": "a"}, {**SMALL, "name": "b", "memory": "12GB"}, {**SMALL, "name": "c", "memory": "1MB"}]
    run = goan(*command, write_jobs(folder / "shot.yaml", {"jobs": jobs}))
    assert run.code == 3
    assert run.out.count("too few") == 2
    first, second = run.err.splitlines()
    assert first.startswith("error: a: memory: 0.1 GB are too few: with every block streamed the job needs ")
    assert "c: memory: " in second


@pytest.mark.parametrize("options", [("plan",), ("render", "--dry-run", "--device", "cpu")])
def test_on_a_cpu(folder: Path, goan: Goan, machine: Machine, options: tuple[str, ...]) -> None:
    """Where a CPU would render, which budgets say nothing to, the plan's row is all that tells of it."""
    machine("cuda" if "cpu" in options else "cpu")
    run = goan(*options, write_jobs(folder / "shot.yaml", SMALL))
    assert (run.code, run.err) == (0, "")
    assert "too few" in run.out


def test_budgets_that_fit_ask_for_no_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a budget, with one that fits, or with nothing left to sample, nobody asks what device there is."""
    path = write_jobs(folder / "shot.yaml", {"jobs": [{**SMALL, "memory": size} for size in ("auto", "12GB", "1MB")]})
    fine, large, small = plan_files(path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("was asked"))
    standings = [Standing(plan=plan, state=State.NEW) for plan in (fine, large)]
    done = Standing(plan=small, state=State.UP_TO_DATE)
    refuse_budgets([*standings, done, replace(done, state=State.PARTIAL, share=1.0)], "auto")


def test_names_with_drawn_seeds(folder: Path, machine: Machine) -> None:
    """A job whose seed is yet to be drawn is not told by a name that may hold it."""
    machine("cuda")
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**SMALL, "seed": None}))
    with pytest.raises(InvalidJobs) as caught:
        refuse_budgets([Standing(plan=plan, state=State.PARTIAL, share=0.5)], "auto")
    assert str(caught.value).startswith("memory: 0.1 GB are too few")
