"""What a run tells of itself and its jobs, and how they end. No torch: whoever shows or logs it needs none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from goan_cli.batch.standing import Standing
from goan_cli.errors import Interrupted
from goan_cli.jobs.job import Job
from goan_cli.output.quality import Finding
from goan_cli.render.events import Event
from goan_cli.render.plan import RenderPlan


@dataclass(frozen=True, kw_only=True)
class RenderResult:
    """A finished job: its files, length, seconds per sampler step, and the defects that its gates let pass."""

    job: Job
    video: Path
    sidecar: Path
    frames: int
    seconds: float
    seconds_per_step: float
    findings: tuple[Finding, ...]


class End(StrEnum):
    """How a job of a run ended."""

    DONE = "done"
    UP_TO_DATE = "up to date"
    SKIPPED = "skipped"
    FAILED = "failed"
    STOPPED = "stopped"
    BUSY = "busy"


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """What a run is about to do, in the order of rendering."""

    standings: tuple[Standing, ...]


@dataclass(frozen=True, kw_only=True)
class JobStarted:
    """A job of a run begins; numbers from 1."""

    plan: RenderPlan
    number: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job of a run ended: with a result, an error, or a reason why nothing was done."""

    plan: RenderPlan
    end: End
    result: RenderResult | None = None
    error: Exception | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """Every job of the run has its outcome, in the order that they were given in."""

    outcomes: tuple[Outcome, ...]
    seconds: float


RunEvent = Event | RunStarted | JobStarted | Outcome | RunFinished
RunListener = Callable[[RunEvent], None]


def ignore_run(_: RunEvent) -> None:
    """The listener for those who do not care."""


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 all done or up to date, 75 something is left that running again will do, else 1: some jobs failed."""
    ends = {outcome.end for outcome in outcomes}
    if ends & {End.STOPPED, End.BUSY}:
        return Interrupted.exit_code
    return 1 if End.FAILED in ends else 0
