"""What a plan shows that a render on this machine would refuse: memory budgets that no memory plan fits."""

from collections.abc import Sequence

from goan_cli.batch.standing import Standing, State
from goan_cli.errors import EnvironmentFault, InvalidJobs, Problem
from goan_cli.render.budget import foreseen_memory


def refuse_budgets(standings: Sequence[Standing], device: str) -> None:
    """Raise InvalidJobs, with the environment's code, for jobs whose budget the GPU's render would refuse.

    On a CPU budgets say nothing. torch, which knows what there is, is imported only where a budget fits no plan.
    """
    problems = [problem for standing in standings if (problem := _refused(standing)) is not None]
    if not problems:
        return

    from goan_cli.render.device import choose_device

    if choose_device(device).type == "cuda":
        raise InvalidJobs(problems)


def _refused(standing: Standing) -> Problem | None:
    """The engine's own check, of a job that is still to be sampled."""
    job = standing.plan.job
    to_sample = standing.state in (State.NEW, State.PARTIAL) and standing.share < 1
    if job.execution.memory is None or not to_sample:
        return None
    try:
        foreseen_memory(standing.plan)
    except EnvironmentFault as error:
        # A drawn seed, which may be in its name, is not the one that it will have.
        name = None if job.seed_drawn else job.name
        return Problem(message=error.message, hint=error.hint, key=name, environment=True)
    return None
