"""A job's final latents: sampled with a checkpoint after every section, or the rest of them, or none that is left."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from goan_cli.batch.stop import Stop
from goan_cli.errors import Interrupted, InvalidInput
from goan_cli.files import digest_of, remove_stray
from goan_cli.lora.report import BakeReport
from goan_cli.render.checkpoint import CheckpointRecord
from goan_cli.render.engine import Engine, Sampled
from goan_cli.render.events import CheckpointWritten, Note, Stage
from goan_cli.render.execution import COMPILED
from goan_cli.render.identity import latents_identity
from goan_cli.render.plan import RenderPlan
from goan_cli.render.progress import read_progress, write_checkpoint
from goan_cli.render.sampling import Progress


@dataclass(frozen=True, kw_only=True)
class JobLatents:
    """Sampled latents with what the sidecar says of their making; `report` is the bake's, as plain data."""

    sampled: Sampled
    report: Mapping[str, Any] | None
    machines: tuple[str, ...]


def job_latents(engine: Engine, plan: RenderPlan, *, asked_seed: int, stop: Stop) -> JobLatents:
    """The final latents: sampled, or the rest of them, or all of them from the checkpoint."""
    job, total = plan.job, len(plan.job.sections.sections)
    identity = latents_identity(plan)
    path = job.checkpoint(identity)
    remove_stray(path)
    record, after = _begun(engine, path, identity)
    # A job goes on as it was begun, whatever this run would have chosen for it.
    compiled = None if record is None else any(COMPILED in machine for machine in record.machines)
    here = f"{engine.device_name}, {engine.execution_of(plan, compiled=compiled)}, torch {version('torch')}"
    machines = tuple(dict.fromkeys([*(record.machines if record else ()), here]))
    if record is not None and after is not None:
        earlier = {Stage(stage): seconds for stage, seconds in record.timings.items()}
        engine.begin({stage: engine.timings.get(stage, 0.0) + earlier.get(stage, 0.0) for stage in Stage})
        what = f"{record.share:.0%} sampled" if not record.complete else "only to be decoded"
        engine.listener(Note(text=f"goes on from a checkpoint, {what}"))
        if len(machines) > 1 and not record.complete:
            engine.listener(Note(text=f"sampled on {' and '.join(machines)}: the bits are those of neither alone"))
        if record.complete:
            sampled = Sampled(latents=after.history, computed_steps=after.computed_steps, bake=None)
            return JobLatents(sampled=sampled, report=record.bake, machines=record.machines)
    blank = CheckpointRecord(
        name=job.name,
        identity=identity,
        seed=job.sampling.seed,
        asked_seed=asked_seed,
        seed_drawn=job.seed_drawn,
        sections=0,
        total=total,
        steps=job.sampling.steps,
        computed_steps=(),
        machines=machines,
    )
    sampled_before = engine.elapsed.get(Stage.SAMPLE, 0.0)
    bakes = _Bakes(plan, record.bake if record is not None and after is not None else None)

    def keep(progress: Progress, report: BakeReport | None) -> None:
        nonlocal sampled_before
        timings = {str(stage): seconds for stage, seconds in engine.elapsed.items()}
        bakes.add(progress, report)
        write_checkpoint(path, replace(blank, timings=timings, bake=bakes.plain), progress)
        steps = progress.within.sampler.done if progress.within else 0
        engine.listener(CheckpointWritten(sections=progress.sections, total=total, steps=steps, path=path))
        took, sampled_before = timings[Stage.SAMPLE] - sampled_before, timings[Stage.SAMPLE]
        if progress.sections < total and progress.within is None and (stop.due or not stop.fits(took)):
            raise Interrupted(f"after section {progress.sections} of {total}: {stop.reason}")

    sampled = engine.sample(
        plan, engine.conditioning_for(plan), after=after, compiled=compiled, keep=keep, stop=lambda: stop.due
    )
    return JobLatents(sampled=sampled, report=bakes.plain, machines=machines)


class _Bakes:
    """The bake reports of a job as plain data: the one there is, or of a timeline's LoRAs one for each set."""

    def __init__(self, plan: RenderPlan, before: Mapping[str, Any] | None) -> None:
        self._changing = bool(plan.section_loras)
        self.plain = before

    def add(self, progress: Progress, report: BakeReport | None) -> None:
        """Take in the report of the section that was just sampled, or is being sampled."""
        if not self._changing:
            self.plain = _plain(report)
            return
        section = progress.sections + (1 if progress.within else 0)
        plain = self.plain or {"sets": []}
        if "sets" not in plain:  # begun as a job that names the same LoRA for all sections
            plain = {"sets": [{"recipe": plain["recipe"], "sections": list(range(1, section)), "report": plain}]}
        sets = [dict(each) for each in plain["sets"]]
        recipe = report.recipe if report else None
        for each in sets:
            if each["recipe"] == recipe:
                each["sections"] = sorted({*each["sections"], section})
                break
        else:
            sets.append({"recipe": recipe, "sections": [section], "report": _plain(report)})
        self.plain = {"recipe": digest_of(sets=[each["recipe"] for each in sets]), "sets": sets}


def _begun(engine: Engine, path: Path, identity: str) -> tuple[CheckpointRecord | None, Progress | None]:
    """The checkpoint at `path`, if it is whole and of this identity."""
    if not path.exists():
        return None, None
    try:
        record, progress = read_progress(path)
    except InvalidInput as error:
        engine.listener(Note(text=f"starts anew: {error}"))
        return None, None
    return (record, progress) if record.identity == identity else (None, None)


def _plain(report: BakeReport | None) -> Mapping[str, Any] | None:
    return asdict(report) if report else None
