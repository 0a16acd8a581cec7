"""One job from its plan to its files, gone on with where an earlier run of it was stopped."""

import hashlib
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from goan_cli.batch.latents import JobLatents, job_latents
from goan_cli.batch.leftovers import clear_earlier, ensure_writable, remove_state, remove_strays
from goan_cli.batch.outcome import RenderResult
from goan_cli.batch.standing import own_checkpoints, with_seed
from goan_cli.batch.stop import Stop
from goan_cli.errors import Interrupted, QualityFailed
from goan_cli.files import replaced_when_complete, sha256_of
from goan_cli.output.pictures import Frame, keeping, sheet_frames, write_contact_sheet, write_latents, write_preview
from goan_cli.output.quality import Finding, FrameMeter, Quality, findings
from goan_cli.output.sidecar import PackRecord, RejectedSeed, RenderRecord, sidecar, write_sidecar
from goan_cli.output.video import VideoInfo, ffmpeg_version, write_video
from goan_cli.render.engine import Engine
from goan_cli.render.events import Event, Listener, Note, SectionFinished, Stage, ignore
from goan_cli.render.execution import COMPILED
from goan_cli.render.identity import job_identity
from goan_cli.render.plan import RenderPlan

if TYPE_CHECKING:
    from torch import Tensor

_RECORDED = ("goan-cli", "torch", "diffusers", "transformers", "safetensors")


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A video under its temporary name, and what was seen of its frames as they passed."""

    video: VideoInfo
    sha256: str
    frames_sha256: str
    quality: Quality
    shown: dict[int, Frame]


def render_job(
    engine: Engine,
    plan: RenderPlan,
    *,
    stop: Stop | None = None,
    spent: Mapping[Stage, float] | None = None,
    listener: Listener = ignore,
) -> RenderResult:
    """Render one job: video, what else it keeps, and the sidecar last, each renamed into place when complete.

    A checkpoint is written after every section and when `stop` is due, and is gone on with when there is one;
    `spent` are seconds that were spent on the job before. Events go to `listener`, and to the engine's own.
    Raises Interrupted when `stop` is due, and QualityFailed when a gate refuses every seed that may be tried.
    """
    with _telling(engine, plan, listener) as notes:
        ensure_writable(plan.job.output.dir)
        remove_strays(plan.job)
        for note in plan.notes:
            engine.listener(Note(text=note))
        asked = _Asked(plan=plan, identity=job_identity(plan), stop=stop or Stop(), notes=notes, spent=spent or {})
        rejected: list[RejectedSeed] = []
        while True:
            attempt = with_seed(plan, plan.job.sampling.seed + len(rejected))
            seed = attempt.job.sampling.seed
            try:
                return _render(engine, attempt, asked, rejected)
            except QualityFailed as error:
                rejected.append(RejectedSeed(seed=seed, reason=error.message))
                if len(rejected) > plan.job.retry_seeds:
                    before = f"seeds {plan.job.sampling.seed} to {seed}: " if len(rejected) > 1 else ""
                    raise QualityFailed(before + error.message, hint=error.hint) from error
                engine.listener(Note(text=f"seed {seed} is rejected: {error.message}; the next one is tried"))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What stays the same for all seeds that are tried for a job."""

    plan: RenderPlan
    identity: str
    stop: Stop
    notes: list[str]
    spent: Mapping[Stage, float]


@contextmanager
def _telling(engine: Engine, plan: RenderPlan, listener: Listener) -> Iterator[list[str]]:
    """Let `listener` hear of the engine too, write previews, and gather the notes for the sidecar."""
    own = engine.listener
    notes = list(plan.notes)

    def tell(event: Event) -> None:
        if isinstance(event, Note) and event.text not in notes:
            notes.append(event.text)
        if isinstance(event, SectionFinished) and event.preview is not None:
            write_preview(plan.job.preview(event.section), event.preview)
        own(event)
        listener(event)

    engine.listener = tell
    try:
        yield notes
    finally:
        engine.listener = own


def _render(engine: Engine, plan: RenderPlan, asked: _Asked, rejected: Sequence[RejectedSeed]) -> RenderResult:
    """One seed of a job. The sidecar comes last: its presence means that the job is complete."""
    job, started = plan.job, time.perf_counter()
    engine.begin(asked.spent)
    pictures = {str(path): sha256_of(path) for path in job.pictures}  # before they are read: afterwards may be others
    latents = job_latents(engine, plan, asked_seed=asked.plan.job.sampling.seed, stop=asked.stop)
    if asked.stop.due:
        raise Interrupted(f"before the decode: {asked.stop.reason}")
    with replaced_when_complete(job.video) as temporary:
        written = _video(engine, plan, latents.sampled.latents, temporary, asked.stop)
        found = findings(written.quality, job.gates)
        if any(finding.fails for finding in found):
            temporary.replace(job.rejected)
            reasons = "; ".join(finding.seen for finding in found if finding.fails)
            raise QualityFailed(reasons, hint=f"look at {job.rejected}")
        # From here to the end the job is not complete, and nothing may say so.
        clear_earlier(job, asked.identity)
        if job.output.keep_latents:
            write_latents(job.latents, latents.sampled.latents.numpy())
    if written.shown:
        labels = [f"{number / job.fps:.1f} s" for number in written.shown]
        write_contact_sheet(job.contact_sheet, list(written.shown.values()), labels)
    for finding in found:
        engine.listener(Note(text=f"{finding.defect}: {finding.seen}"))
    record = _record(engine, plan, asked, rejected, latents, written, found, pictures)
    write_sidecar(job.sidecar, sidecar(job, record, written.video, written.sha256))
    remove_state(job, own_checkpoints(asked.plan))
    return RenderResult(
        job=job,
        video=job.video,
        sidecar=job.sidecar,
        frames=written.video.frames,
        seconds=time.perf_counter() - started,
        seconds_per_step=record.seconds_per_step,
        findings=tuple(found),
    )


def _video(engine: Engine, plan: RenderPlan, latents: "Tensor", path: Path, stop: Stop) -> _Written:
    """Decode and encode, while every frame is measured, hashed, and kept where the contact sheet shows it."""
    job, meter, digest = plan.job, FrameMeter(), hashlib.sha256()
    shown: dict[int, Frame] = {}
    finite = bool(latents.isfinite().all())

    def hashed(chunks: Iterable[Frame]) -> Iterator[Frame]:
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk).data)
            yield chunk

    wanted = sheet_frames(job.sections.frames) if job.output.contact_sheet else ()
    with closing(engine.frames(plan, latents, stop=lambda: stop.asked)) as decoded:
        frames = keeping(hashed(meter.watching(decoded)), wanted, shown)
        video = write_video(path, frames, size=job.size, fps=job.fps, crf=job.output.crf)
    return _Written(
        video=video,
        sha256=sha256_of(path),
        frames_sha256=digest.hexdigest(),
        quality=meter.quality(job.sections, job.fps, finite=finite),
        shown=shown,
    )


def _record(
    engine: Engine,
    plan: RenderPlan,
    asked: _Asked,
    rejected: Sequence[RejectedSeed],
    latents: JobLatents,
    written: _Written,
    found: Sequence[Finding],
    pictures: Mapping[str, str],
) -> RenderRecord:
    job, pack = plan.job, plan.pack
    steps = job.sampling.steps * len(job.sections.sections)
    return RenderRecord(
        identity=asked.identity,
        asked_seed=asked.plan.job.sampling.seed,
        rejected=rejected,
        latents_sha256=hashlib.sha256(latents.sampled.latents.contiguous().numpy().tobytes()).hexdigest(),
        frames_sha256=written.frames_sha256,
        quality=written.quality,
        findings=found,
        machines=latents.machines,
        pack=PackRecord(name=pack.name, family=pack.family, manifest=pack.manifest, identity=pack.identity()),
        pictures=pictures,
        bake=latents.report,
        computed_steps=[computed for computed in latents.sampled.computed_steps if computed],
        timings={str(stage): seconds for stage, seconds in engine.timings.items()},
        seconds_per_step=engine.timings.get(Stage.SAMPLE, 0.0) / steps,
        device=engine.device_name,
        dtype=engine.execution_of(plan).precision,
        compiled=any(COMPILED in machine for machine in latents.machines),
        memory=latents.sampled.memory,
        versions=versions(),
        notes=asked.notes,
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
