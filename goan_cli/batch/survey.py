"""Before a run: its settings, how every job stands, and which are finished with. No torch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from goan_cli.batch.leftovers import tidy_up
from goan_cli.batch.matrix import complete_matrix, matrices
from goan_cli.batch.outcome import End, Outcome, RunFinished, RunListener, RunStarted
from goan_cli.batch.schedule import Order
from goan_cli.batch.standing import OnExists, Standing, State, standing_of
from goan_cli.batch.stop import Stop
from goan_cli.errors import GoanError
from goan_cli.render.plan import RenderPlan


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a run goes about its jobs.

    `force` renders again what is up to date; `wait` waits for jobs that another run is rendering, instead of
    leaving them to it; `cache` is the folder of embeddings, None for none.
    """

    device: str = "auto"
    order: Order = Order.RECIPE
    on_exists: OnExists = OnExists.NUMBER
    force: bool = False
    wait: bool = False
    previews: bool = False
    cache: Path | None = None
    stop: Stop = field(default_factory=Stop)


@dataclass(frozen=True, kw_only=True)
class Survey:
    """How jobs stand, by place: those that are to be rendered, and outcomes of those that are not."""

    todo: dict[int, Standing]
    finished: dict[int, Outcome]


def survey(plans: Sequence[RenderPlan], settings: RunSettings) -> Survey:
    """Look at what is there of every job; a job whose image or LoRA has vanished has failed."""
    todo: dict[int, Standing] = {}
    finished: dict[int, Outcome] = {}
    names = {plan.job.sidecar for plan in plans}
    for place, plan in enumerate(plans):
        try:
            standing = standing_of(plan, settings.on_exists, force=settings.force, names=names)
        except (GoanError, OSError) as error:
            finished[place] = Outcome(plan=plan, end=End.FAILED, error=error)
            continue
        if (outcome := nothing_to_do(standing)) is not None:
            finished[place] = outcome
        else:
            todo[place] = standing
    return Survey(todo=todo, finished=finished)


def finished_already(plans: Sequence[RenderPlan], settings: RunSettings, listener: RunListener) -> list[Outcome] | None:
    """The outcomes of a run that finds nothing to render, told to `listener`; None where something is to be done."""
    started = time.perf_counter()
    surveyed = survey(plans, settings)
    outcomes = [surveyed.finished[place] for place in sorted(surveyed.finished)]
    if surveyed.todo or any(outcome.end is End.FAILED for outcome in outcomes):
        return None
    listener(RunStarted(standings=()))
    for outcome in outcomes:
        if outcome.end is End.UP_TO_DATE:
            tidy_up(outcome.plan)
        listener(outcome)
    for places in matrices(plans).values():
        for note in complete_matrix([surveyed.finished[place] for place in places]):
            listener(note)
    listener(RunFinished(outcomes=tuple(outcomes), seconds=time.perf_counter() - started))
    return outcomes


def nothing_to_do(standing: Standing) -> Outcome | None:
    """The outcome of a job that is up to date or skipped, None for one that is to be rendered."""
    if standing.state is State.UP_TO_DATE:
        return Outcome(plan=standing.plan, end=End.UP_TO_DATE, reason=str(standing.plan.job.video))
    if standing.state is State.TAKEN:
        return Outcome(plan=standing.plan, end=End.SKIPPED, reason=standing.reason)
    return None
