"""Render planned jobs one after another; one job's failure never stops the others."""

import logging
import os
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from goan_cli.errors import EnvironmentFault, GoanError
from goan_cli.files import replaced_when_complete, sha256_of
from goan_cli.jobs.job import Job
from goan_cli.lora.report import BakeReport
from goan_cli.output.pictures import Frame, keeping, sheet_frames, write_contact_sheet, write_latents, write_preview
from goan_cli.output.sidecar import PackRecord, RenderRecord, sidecar, write_sidecar
from goan_cli.output.video import ffmpeg_version, write_video
from goan_cli.render.engine import Engine, Sampled
from goan_cli.render.events import Event, Listener, Note, SectionFinished, Stage, ignore
from goan_cli.render.lora_files import refuse_broken_values, refuse_misfits
from goan_cli.render.plan import RenderPlan

log = logging.getLogger(__name__)

_RECORDED = ("goan-cli", "torch", "diffusers", "transformers", "safetensors")


@dataclass(frozen=True, kw_only=True)
class RenderResult:
    """A finished job: its files, length, and seconds per sampler step."""

    job: Job
    video: Path
    sidecar: Path
    frames: int
    seconds: float
    seconds_per_step: float
    bake: BakeReport | None


@dataclass(frozen=True, kw_only=True)
class JobStarted:
    """A job of a run begins; numbers from 1."""

    plan: RenderPlan
    number: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job of a run ended: with a result, or with an error."""

    plan: RenderPlan
    result: RenderResult | None
    error: Exception | None


RunEvent = Event | JobStarted | Outcome
RunListener = Callable[[RunEvent], None]


def ignore_run(_: RunEvent) -> None:
    """The listener for those who do not care."""


def render_jobs(
    plans: Sequence[RenderPlan],
    *,
    device: str = "auto",
    listener: RunListener = ignore_run,
    previews: bool = False,
) -> list[Outcome]:
    """Render all plans with one engine, telling `listener`; every job has an outcome.

    Raises EnvironmentFault where the device or ffmpeg is missing, and InvalidInput or
    InvalidJobs for a transformer that does not fit its configuration and for LoRA files with NaN in them.
    """
    ffmpeg_version()  # found missing now, or after hours of rendering
    engine = Engine(device=device, previews=previews)
    refuse_misfits(plans)
    refuse_broken_values(plans)
    outcomes = []
    for number, plan in enumerate(plans, start=1):
        listener(JobStarted(plan=plan, number=number, total=len(plans)))
        try:
            outcome = Outcome(plan=plan, result=render_job(engine, plan, listener=listener), error=None)
        except GoanError as error:
            outcome = Outcome(plan=plan, result=None, error=error)
        except Exception as error:  # the next job may well succeed, so even our own mistakes stay in their job
            log.exception("%s: unexpected failure", plan.job.name)
            outcome = Outcome(plan=plan, result=None, error=error)
        if outcome.error is not None:
            # Its traceback holds the tensors of the failed job; the next one needs their memory.
            _forget_frames(outcome.error)
            engine.free_memory()
        listener(outcome)
        outcomes.append(outcome)
    return outcomes


def _forget_frames(error: BaseException) -> None:
    """Let go of the local variables of an exception and of what it came from."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def render_job(engine: Engine, plan: RenderPlan, *, listener: Listener = ignore) -> RenderResult:
    """Render one job: video, kept latents, and the sidecar last, each renamed into place when complete.

    Events go to `listener`, and to the engine's own.
    """
    own = engine.listener
    notes = list(plan.notes)

    def tell(event: Event) -> None:
        if isinstance(event, Note) and event.text not in plan.notes:
            notes.append(event.text)
        if isinstance(event, SectionFinished) and event.preview is not None:
            write_preview(plan.job.output.dir / f"{plan.job.name}.section-{event.section}.png", event.preview)
        own(event)
        listener(event)

    engine.listener = tell
    try:
        return _render(engine, plan, notes)
    finally:
        engine.listener = own


def _render(engine: Engine, plan: RenderPlan, notes: list[str]) -> RenderResult:
    job = plan.job
    started = time.perf_counter()
    _ensure_writable(job.output.dir)
    for note in plan.notes:
        engine.listener(Note(text=note))
    engine.begin()
    image_sha256 = sha256_of(job.image)  # before it is read: afterwards it may be another
    sampled = engine.sample(plan, engine.conditioning_for(plan))
    # Before the decode, which may fail, so that hours of sampling are not lost; but never over an earlier result's.
    early = job.output.keep_latents and not job.sidecar.exists()
    if early:
        write_latents(job.latents, sampled.latents.numpy())
    shown: dict[int, Frame] = {}
    with replaced_when_complete(job.video) as temporary:
        wanted = sheet_frames(job.sections.frames) if job.output.contact_sheet else ()
        frames = keeping(engine.frames(plan, sampled.latents), wanted, shown)
        video = write_video(temporary, frames, size=job.size, fps=job.fps, crf=job.output.crf)
        video_sha256 = sha256_of(temporary)
        if job.output.keep_latents and not early:
            write_latents(job.latents, sampled.latents.numpy())
        # From here to the end the job is not complete, and nothing may say so.
        job.sidecar.unlink(missing_ok=True)
    if shown:
        write_contact_sheet(job.contact_sheet, list(shown.values()), [f"{n / job.fps:.1f} s" for n in shown])
    record = _record(engine, plan, sampled, image_sha256, notes)
    write_sidecar(job.sidecar, sidecar(job, record, video, video_sha256))
    return RenderResult(
        job=job,
        video=job.video,
        sidecar=job.sidecar,
        frames=video.frames,
        seconds=time.perf_counter() - started,
        seconds_per_step=record.seconds_per_step,
        bake=sampled.bake,
    )


def _record(
    engine: Engine, plan: RenderPlan, sampled: Sampled, image_sha256: str, notes: Sequence[str]
) -> RenderRecord:
    job, pack = plan.job, plan.pack
    steps = job.sampling.steps * len(job.sections.sections)
    return RenderRecord(
        pack=PackRecord(name=pack.name, family=pack.family, manifest=pack.manifest, identity=pack.identity()),
        image_sha256=image_sha256,
        bake=asdict(sampled.bake) if sampled.bake else None,
        computed_steps=[computed for computed in sampled.computed_steps if computed],
        timings={str(stage): seconds for stage, seconds in engine.timings.items()},
        seconds_per_step=engine.timings.get(Stage.SAMPLE, 0.0) / steps,
        device=engine.device_name,
        dtype=str(engine.precision.transformer).removeprefix("torch."),
        versions=versions(),
        notes=notes,
    )


def versions() -> dict[str, str]:
    """Versions of what makes a render what it is."""
    found = {"python": platform.python_version(), "ffmpeg": ffmpeg_version()}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _ensure_writable(folder: Path) -> None:
    """Fail before hours of rendering, not after. Raises EnvironmentFault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"{folder}: cannot be written to")
