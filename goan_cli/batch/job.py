"""One job from its plan to its files, gone on with where an earlier run of it was stopped."""

import hashlib
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from goan_cli.batch.latents import JobLatents, job_latents
from goan_cli.batch.leftovers import clear_earlier, ensure_writable, remove_state, remove_strays
from goan_cli.batch.outcome import RenderResult
from goan_cli.batch.post import finishing
from goan_cli.batch.standing import own_checkpoints, with_seed
from goan_cli.batch.stop import Stop
from goan_cli.errors import Interrupted, QualityFailed
from goan_cli.files import remove, replaced_when_complete, sha256_of
from goan_cli.jobs.formats import is_sequence
from goan_cli.jobs.job import Job
from goan_cli.media.ffmpeg import ffmpeg_version
from goan_cli.output.joining import joined
from goan_cli.output.latents import record_of, write_latents
from goan_cli.output.pictures import Frame, keeping, sheet_frames, write_contact_sheet, write_poster, write_preview
from goan_cli.output.quality import Finding, FrameMeter, Quality, findings
from goan_cli.output.recipe import recipe_of
from goan_cli.output.sidecar import PackRecord, RejectedSeed, RenderRecord, sidecar, write_sidecar
from goan_cli.output.sound import add_sound
from goan_cli.output.stretches import Stretch, with_stretches
from goan_cli.output.video import VideoInfo, write_video, writing_video
from goan_cli.render.decode import own_latents
from goan_cli.render.engine import Engine
from goan_cli.render.events import Event, Listener, Note, SectionFinished, Stage, ignore
from goan_cli.render.execution import COMPILED
from goan_cli.render.identity import job_identity
from goan_cli.render.plan import RenderPlan
from goan_cli.render.preview import filmstrip

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
    first: Frame | None
    post: dict[str, Any] | None


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
    pictures = {str(path): sha256_of(path) for path in job.inputs}  # before they are read: afterwards may be others
    latents = job_latents(engine, plan, asked_seed=asked.plan.job.sampling.seed, stop=asked.stop)
    if asked.stop.due:
        raise Interrupted(f"before the decode: {asked.stop.reason}")
    compiled = any(COMPILED in machine for machine in latents.machines)
    recipe = recipe_of(job, compiled=compiled) if job.output.metadata else None
    with _replaced_when_complete(job) as (temporary, stretches):
        if job.one_frame is not None:
            written = _still(engine, plan, latents.sampled.latents, temporary, recipe)
        else:
            written = _video(engine, plan, latents.sampled.latents, temporary, stretches, recipe, asked.stop)
        found = findings(written.quality, job.gates)
        if any(finding.fails for finding in found):
            remove(job.rejected)
            temporary.replace(job.rejected)
            reasons = "; ".join(finding.seen for finding in found if finding.fails)
            raise QualityFailed(reasons, hint=f"look at {job.rejected}")
        # From here to the end the job is not complete, and nothing may say so.
        clear_earlier(job, asked.identity)
        if job.output.keep_latents:
            kept = record_of(job, plan.pack.identity_of("vae"), recipe)
            write_latents(job.latents, own_latents(latents.sampled.latents, job.sections).numpy(), kept)
    if written.shown:
        labels = [f"{number / job.fps:.1f} s" for number in written.shown]
        write_contact_sheet(job.contact_sheet, list(written.shown.values()), labels, recipe)
    if written.first is not None:
        write_poster(job.poster, written.first, recipe)
    if job.output.keep_previews:
        _write_previews(job, latents.sampled.latents)
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


@contextmanager
def _replaced_when_complete(job: Job) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Temporary paths of the video and of its sections' stretches, in the plan's order, where these are kept."""
    with ExitStack() as stack:

        def begun(path: Path) -> Path:
            return stack.enter_context(replaced_when_complete(path, folder=is_sequence(path)))

        numbers = range(1, len(job.sections.sections) + 1) if job.output.keep_sections else ()
        yield begun(job.video), tuple(begun(job.section_video(number)) for number in numbers)


def _write_previews(job: Job, latents: "Tensor") -> None:
    """A rough picture of each section's latents, without those that stand beside them in the video."""
    own, window = own_latents(latents, job.sections), job.sections.window
    for section in job.sections.sections:
        first = 1 + window * job.sections.place_of(section)
        write_preview(job.preview(section.number + 1), filmstrip(own[:, :, first : first + window]).numpy())


def _stretches(job: Job, paths: Sequence[Path], fps: float) -> list[Stretch]:
    """Which frames of the finished video, at `fps`, each section's stretch has."""

    def place(frame: int) -> int:
        return round(frame * fps / job.fps)

    own = [job.frames_of(section) for section in job.sections.sections]
    return [
        Stretch(start=place(first), stop=place(stop), path=path)
        for (first, stop), path in zip(own, paths, strict=bool(paths))
    ]


def _video(
    engine: Engine,
    plan: RenderPlan,
    latents: "Tensor",
    path: Path,
    sections: Sequence[Path],
    recipe: str | None,
    stop: Stop,
) -> _Written:
    """Decode and encode, while every frame is measured, hashed, and kept where a picture shows it.

    The sections' stretches go to the paths `sections`, if any.
    """
    job, meter, digest = plan.job, FrameMeter(), hashlib.sha256()
    shown: dict[int, Frame] = {}
    first: dict[int, Frame] = {}
    finite = bool(latents.isfinite().all())

    def hashed(chunks: Iterable[Frame]) -> Iterator[Frame]:
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk).data)
            yield chunk

    wanted = sheet_frames(job.frames) if job.output.contact_sheet else ()
    finish = finishing(job.post, engine.device, size=job.size, fps=job.fps)
    with closing(engine.frames(plan, latents, stop=lambda: stop.asked)) as decoded:
        made = meter.watching(decoded)
        if job.extension is not None:
            made = joined(made, job.extension, job.sections.frames - 1)
        frames = keeping(hashed(made), wanted, shown)
        writing = partial(writing_video, size=finish.size, fps=finish.fps, coding=job.output.coding, recipe=recipe)
        finished = keeping(finish.frames(frames, fps=job.fps), (0,) if job.output.poster else (), first)
        with closing(with_stretches(finished, _stretches(job, sections, finish.fps), writing)) as passing:
            video = write_video(
                path, passing, size=finish.size, fps=finish.fps, coding=job.output.coding, recipe=recipe
            )
    if job.extension is not None and job.extension.sounds:
        add_sound(path, job.extension, video, job.output.format)
    return _Written(
        video=video,
        sha256=sha256_of(path),
        frames_sha256=digest.hexdigest(),
        quality=meter.quality(job.sections, job.fps, finite=finite, before=job.decoded_before),
        shown=shown,
        first=first.get(0),
        post=finish.record,
    )


def _still(engine: Engine, plan: RenderPlan, latents: "Tensor", path: Path, recipe: str | None) -> _Written:
    """Decode and write the one picture."""
    job, meter = plan.job, FrameMeter()
    finite = bool(latents.isfinite().all())
    frames = np.concatenate(list(meter.watching(engine.frames(plan, latents))))
    write_poster(path, frames[0], recipe)
    return _Written(
        video=VideoInfo(frames=1, size=job.size, fps=job.fps),
        sha256=sha256_of(path),
        frames_sha256=hashlib.sha256(np.ascontiguousarray(frames).data).hexdigest(),
        quality=meter.quality(job.sections, job.fps, finite=finite),
        shown={},
        first=None,
        post=None,
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
    own = own_latents(latents.sampled.latents, job.sections)
    return RenderRecord(
        identity=asked.identity,
        asked_seed=asked.plan.job.sampling.seed,
        rejected=rejected,
        latents_sha256=hashlib.sha256(own.contiguous().numpy().tobytes()).hexdigest(),
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
        post=written.post,
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
