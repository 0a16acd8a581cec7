"""What of a job is already there: its result, another's result under its name, or a beginning. No torch.

A result is the job's own when its sidecar has the job's identity; names and paths play no part in it.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from goan_cli.errors import InvalidInput
from goan_cli.files import known_sha256_of
from goan_cli.jobs.formats import is_sequence
from goan_cli.jobs.job import Job
from goan_cli.output.quality import findings, quality_of
from goan_cli.output.sidecar import read_sidecar, recorded_video
from goan_cli.render.checkpoint import CheckpointRecord, checkpoint_files, read_record
from goan_cli.render.identity import job_identity, latents_identity, refuse_vanished
from goan_cli.render.plan import RenderPlan

_HIGHEST_NUMBER = 10_000
_SEEDS = 2**63


class OnExists(StrEnum):
    """What is done where another recipe's result has a job's name."""

    SKIP = "skip"
    REPLACE = "replace"
    NUMBER = "number"


class State(StrEnum):
    """How far a job is before it is begun."""

    NEW = "new"
    PARTIAL = "partial"
    UP_TO_DATE = "up to date"
    TAKEN = "taken"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A job's plan with the name and seed that it settles on, and how far it is (`share`, 0 to 1)."""

    plan: RenderPlan
    state: State
    share: float = 0.0
    reason: str = ""


def standing_of(
    plan: RenderPlan, on_exists: OnExists, *, force: bool = False, names: Collection[Path] = ()
) -> Standing:
    """How a job stands; `force` renders anew what is up to date.

    `names` are the sidecars that the run's jobs were to write, which no number may lead to. A job without a seed
    takes the one that it drew the last time. Raises InvalidInput when its image or a LoRA has vanished.
    """
    refuse_vanished(plan)  # now, so that it fails this job alone
    standing = _found(plan, force=force)
    if standing.state is not State.TAKEN or on_exists is OnExists.SKIP:
        return standing
    if on_exists is OnExists.REPLACE:
        return replace(standing, state=State.NEW, reason=f"replaces it: {standing.reason}")
    reason = standing.reason
    for numbered in _numbered(plan):
        if numbered.job.sidecar not in names:
            standing = _found(numbered, force=force)
            if standing.state is not State.TAKEN:
                return standing if standing.reason else replace(standing, reason=reason)
    return standing


def _numbered(plan: RenderPlan) -> Iterator[RenderPlan]:
    for number in range(2, _HIGHEST_NUMBER):
        yield replace(plan, job=replace(plan.job, name=f"{plan.job.name}-{number}"))


def _found(plan: RenderPlan, *, force: bool) -> Standing:
    """What lies under exactly this name."""
    job = plan.job
    try:
        content = read_sidecar(job.sidecar) if job.sidecar.exists() else None
    except InvalidInput as error:
        return Standing(plan=plan, state=State.TAKEN, reason=str(error))
    if content is not None and (own := _own_result(plan, content, force=force)) is not None:
        return own
    videos = (job.video, *((recorded_video(job.sidecar, content),) if content is not None else ()))
    there = next((path for path in videos if path.exists()), None)
    if (begun := _begun(plan)) is not None:
        # Where all is sampled and only a video lies, this job put it there, or was about to.
        if there is None or (content is None and begun.share >= 1):
            return begun
        plan = begun.plan
    if content is not None and there is not None:
        return Standing(plan=plan, state=State.TAKEN, reason=f"{there} is another recipe's result")
    foreign = next((path for path in job.results if content is None and os.path.lexists(path)), None)
    if foreign is not None:
        return Standing(plan=plan, state=State.TAKEN, reason=f"{foreign} has no sidecar")
    return Standing(plan=plan, state=State.NEW)


def _own_result(plan: RenderPlan, content: Mapping[str, Any], *, force: bool) -> Standing | None:
    """The job's standing where a sidecar is its own, None where it is another recipe's."""
    asked = _with_drawn_seed(plan, content.get("asked_seed"), drawn=content.get("seed_drawn"))
    if content.get("identity") != job_identity(asked) or not _would_take_its_seed(asked.job, content):
        return None
    reason = "asked for again" if force else _missing(asked.job, content)
    if not reason:
        return Standing(plan=asked, state=State.UP_TO_DATE)
    return _begun(plan) or Standing(plan=asked, state=State.NEW, reason=reason)


def _would_take_its_seed(job: Job, content: Mapping[str, Any]) -> bool:
    """Whether the job's own gates would have led to the seed that a result was made from in the end."""
    rejected, settings = content.get("rejected_seeds"), content["settings"]
    if not rejected:
        return True
    gates = {defect: str(gate) for defect, gate in asdict(job.gates).items()}
    return isinstance(rejected, list) and len(rejected) <= job.retry_seeds and settings.get("gates") == gates


def _missing(job: Job, content: Mapping[str, Any]) -> str:
    """What a finished result lacks to be what the job asks for; empty when it is all there."""
    if not _is_there(job.video):
        return f"{job.video.name} is gone"
    try:
        if known_sha256_of(job.video) != content["video"]["sha256"]:
            return f"{job.video.name} was changed"
    except OSError as error:
        return f"{job.video.name} cannot be read: {error.strerror or error}"
    for path in job.results:
        if not _is_there(path):
            return f"{path.name} is wanted too"
    quality = quality_of(content.get("quality"))
    if quality and (failing := [each for each in findings(quality, job.gates) if each.fails]):
        return f"{failing[0].defect}: {failing[0].seen}"
    return ""


def _is_there(path: Path) -> bool:
    return path.is_dir() if is_sequence(path) else path.is_file()


def own_checkpoints(plan: RenderPlan) -> list[Path]:
    """The checkpoint files of a plan, of all seeds that may be tried for it."""
    job, seed = plan.job, plan.job.sampling.seed
    own = {job.checkpoint(latents_identity(with_seed(plan, seed + retry))) for retry in range(job.retry_seeds + 1)}
    return [path for path in checkpoint_files(job.state_dir, job.name) if path in own]


def _begun(plan: RenderPlan) -> Standing | None:
    """The checkpoint of this job under this name, where there is one that can be gone on with."""
    if not plan.job.state_dir.is_dir():
        return None
    for record in _records(plan):
        asked = _with_drawn_seed(plan, record.asked_seed, drawn=record.seed_drawn)
        using = with_seed(asked, record.seed)
        if record.asked_seed == asked.job.sampling.seed and record.identity == latents_identity(using):
            return Standing(plan=asked, state=State.PARTIAL, share=record.share)
    return None


def _records(plan: RenderPlan) -> list[CheckpointRecord]:
    """Readable checkpoints under the plan's name, the furthest first."""
    records = []
    for file in checkpoint_files(plan.job.state_dir, plan.job.name):
        try:
            records.append(read_record(file))
        except InvalidInput:
            continue  # damaged: the job starts anew, and writes over it
    return sorted(records, key=lambda record: -record.share)


def with_seed(plan: RenderPlan, seed: int) -> RenderPlan:
    """The same plan with another seed; beyond the largest one they begin again."""
    return replace(plan, job=replace(plan.job, sampling=replace(plan.job.sampling, seed=seed % _SEEDS)))


def _with_drawn_seed(plan: RenderPlan, seed: Any, *, drawn: Any) -> RenderPlan:  # noqa: ANN401 - JSON
    """The plan with the seed that was drawn for it before, where it leaves the seed open."""
    if not (plan.job.seed_drawn and drawn) or not isinstance(seed, int):
        return plan
    return with_seed(plan, seed)
