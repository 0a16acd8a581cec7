"""From requests to render plans: packs found, jobs resolved, LoRA files matched. No torch, nothing loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from goan_cli.errors import GoanError, InvalidInput, InvalidJobs, Problem
from goan_cli.jobs.job import Job, ModelDefaults
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.resolve import DEFAULT_MODEL, resolve_job
from goan_cli.jobs.sections import Family
from goan_cli.lora.adapter import Adapter, Shapes, read_adapter
from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.model.pack import Pack, find_pack


@dataclass(frozen=True, kw_only=True)
class PlannedLora:
    """A LoRA file matched with the job's model, and its weight."""

    adapter: Adapter
    weight: float


@dataclass(frozen=True, kw_only=True)
class RenderPlan:
    """One job with all that it needs found and checked. LoRAs of weight 0 are left out, with a note."""

    job: Job
    pack: Pack
    loras: tuple[PlannedLora, ...]
    notes: tuple[str, ...] = ()


class _Packs:
    """Packs and their transformer's shapes, each read once however many jobs name them."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Pack, Shapes] | GoanError] = {}

    def __call__(self, model: str) -> tuple[Pack, Shapes]:
        if model not in self._found:
            try:
                pack = find_pack(model)
                entries = read_checkpoint(pack.transformer).entries
                self._found[model] = pack, {name: entry.shape for name, entry in entries.items()}
            except GoanError as error:
                self._found[model] = error
        found = self._found[model]
        if isinstance(found, GoanError):
            raise found
        return found


def plan_renders(
    requests: Sequence[JobRequest], problems: Sequence[Problem] = (), *, out: Path | None = None
) -> list[RenderPlan]:
    """Plans for all requests, or InvalidJobs with every problem of every job, `problems` among them."""
    packs = _Packs()
    found = list(problems)
    plans = []
    for request in requests:
        plan, wrong = _plan(request, packs, out)
        found += wrong
        if plan is not None:
            plans.append((request, plan))
    owners: dict[str, JobRequest] = {}
    for request, plan in plans:
        video = str(plan.job.video)
        if video.casefold() in owners:
            found.append(request.problem(("name",), f"two jobs would write {video}", hint="give them other names"))
        owners.setdefault(video.casefold(), request)
    if found:
        raise InvalidJobs(found)
    return [plan for _, plan in plans]


def _plan(request: JobRequest, packs: _Packs, out: Path | None) -> tuple[RenderPlan | None, list[Problem]]:
    try:
        pack, shapes = packs(request.spec.model or DEFAULT_MODEL)
    except InvalidJobs as error:
        return None, list(error.problems)
    except GoanError as error:
        return None, [request.problem(("model",), error.message, hint=error.hint)]
    defaults = ModelDefaults(
        family=Family(pack.family), window=pack.window, steps=pack.steps, resolution=pack.resolution
    )
    job, problems = resolve_job(request, defaults, out=out)
    loras: list[PlannedLora] = []
    notes: list[str] = []
    for index, use in enumerate(request.spec.loras or ()):
        path = Path(use.path)
        if not path.is_file():
            continue  # resolve_job has said so
        try:
            adapter = read_adapter(path, shapes)
        except InvalidInput as error:
            problems.append(request.problem(("loras", index, "path"), error.message, hint=error.hint))
            continue
        if use.weight == 0:
            notes.append(f"{path.name} has weight 0 and is left out")
        else:
            loras.append(PlannedLora(adapter=adapter, weight=float(use.weight)))
        notes += [f"{path.name}: {count} {rule} skipped" for rule, count in adapter.skipped.items()]
    if job is None or problems:
        return None, problems
    return RenderPlan(job=job, pack=pack, loras=tuple(loras), notes=tuple(notes)), []


def with_seed(plan: RenderPlan, seed: int) -> RenderPlan:
    """The same plan under another seed."""
    return replace(plan, job=replace(plan.job, sampling=replace(plan.job.sampling, seed=seed)))
