"""From requests to render plans: packs found, jobs resolved, LoRA files matched. No torch, nothing loaded."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from goan_cli.documents import KeyPath
from goan_cli.errors import GoanError, InvalidInput, InvalidJobs, MissingModel, Problem
from goan_cli.jobs.directing import LoraUse
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.formats import is_sequence
from goan_cli.jobs.job import Job, ModelDefaults, StepCacheKind
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.resolve import DEFAULT_MODEL, resolve_job
from goan_cli.jobs.schema import LoraSpec
from goan_cli.jobs.sections import Family
from goan_cli.jobs.timeline import lora_use
from goan_cli.lora.adapter import Adapter, Selection, Shapes, read_adapter
from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.packs.find import find_pack
from goan_cli.packs.magnitudes import ratios_for, steps_to_compute
from goan_cli.packs.manifest import read_manifest
from goan_cli.packs.pack import Pack


@dataclass(frozen=True, kw_only=True)
class PlannedLora:
    """A LoRA of the job, and its file matched with the job's model."""

    use: LoraUse
    adapter: Adapter


@dataclass(frozen=True, kw_only=True)
class RenderPlan:
    """One job with all that it needs found and checked. LoRAs of weight 0 are left out, with a note.

    `section_loras` are those of each section in sampling order, where a timeline changes them; else empty. `computes`
    are the 0-based steps that MagCache computes, by the pack's calibration; None without it.
    """

    job: Job
    pack: Pack
    loras: tuple[PlannedLora, ...]
    section_loras: tuple[tuple[PlannedLora, ...], ...] = ()
    computes: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()

    def loras_of(self, section: int) -> tuple[PlannedLora, ...]:
        """The LoRAs that are baked for a section, counted from 0 in sampling order."""
        return self.section_loras[section] if self.section_loras else self.loras

    @property
    def every_lora(self) -> tuple[PlannedLora, ...]:
        """The LoRAs of all sections."""
        return tuple(lora for loras in (self.section_loras or (self.loras,)) for lora in loras)


class _Packs:
    """Packs and their transformer's shapes, each read once however many jobs name them."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Pack, Shapes] | GoanError] = {}

    def __call__(self, model: str) -> tuple[Pack, Shapes]:
        if model not in self._found:
            try:
                pack = find_pack(model)
                self._found[model] = pack, read_checkpoint(pack.transformer).shapes
            except GoanError as error:
                self._found[model] = error
        found = self._found[model]
        if isinstance(found, GoanError):
            raise found
        return found


class _Adapters:
    """LoRA files matched with packs, each read once however many jobs use it in the same way."""

    def __init__(self) -> None:
        self._read: dict[tuple[Path, LoraUse], Adapter | InvalidInput] = {}

    def __call__(self, pack: Pack, shapes: Shapes, use: LoraUse) -> Adapter:
        key = (pack.manifest, replace(use, weight=1.0))
        if key not in self._read:
            try:
                self._read[key] = _read_adapter(use, shapes)
            except InvalidInput as error:
                self._read[key] = error
        read = self._read[key]
        if isinstance(read, InvalidInput):
            raise read
        return read


def _read_adapter(use: LoraUse, shapes: Shapes) -> Adapter:
    selection = Selection(include=use.include, exclude=use.exclude)
    return read_adapter(use.path, shapes, selection=selection, trusted=use.trusted)


def plan_renders(
    requests: Sequence[JobRequest], problems: Sequence[Problem] = (), *, out: Path | None = None
) -> list[RenderPlan]:
    """Plans for all requests, or InvalidJobs with every problem of every job, `problems` among them."""
    packs, adapters = _Packs(), _Adapters()
    found = list(problems)
    plans = []
    for request in requests:
        plan, wrong = _plan(request, packs, adapters, out)
        found += wrong
        if plan is not None:
            plans.append((request, plan))
    found += _output_problems(plans)
    if found:
        raise InvalidJobs(found)
    return [plan for _, plan in plans]


def _output_problems(plans: Sequence[tuple[JobRequest, RenderPlan]]) -> list[Problem]:
    """Results that would overwrite each other, or a file that a job is made from, or that cannot be there."""
    found: list[Problem] = []
    inputs: dict[str, Path] = {}
    for request, plan in plans:
        loras = (lora.path for direction in plan.job.directions for lora in direction.loras)
        upscale = plan.job.post.upscale if plan.job.post else None
        for path in (request.origin.document.file, *plan.job.inputs, *loras, upscale):
            if path is not None:
                inputs[_place(path)] = path
    owners: dict[str, object] = {}
    for request, plan in plans:
        job, variant = plan.job, plan.job.variant
        # A name is one job's, in whatever format: its sidecar and its state go by it.
        if _place(job.sidecar) in owners:
            found.append(request.problem(("name",), f"two jobs would write {job.video}", hint="give them other names"))
        owners[_place(job.sidecar)] = job
        if variant is not None:
            sheet = job.output.dir / f"{variant.matrix}.matrix.png"
            if owners.setdefault(_place(sheet), variant.axes) != variant.axes:
                found.append(request.problem(("matrix",), f"two matrices would write {sheet}", hint="name the jobs"))
        for path in job.results:
            if _place(path) in inputs:
                found.append(
                    request.problem(("name",), f"the result {path} would replace a file that a job is made from")
                )
            if path.is_dir() and not is_sequence(path):
                found.append(request.problem(("name",), f"the result {path} is a folder already"))
            if path.is_file() and is_sequence(path):
                found.append(request.problem(("name",), f"the result {path} is to be a folder, and is a file already"))
        folder = next(place for place in (job.output.dir, *job.output.dir.parents) if place.exists())
        if not folder.is_dir():
            found.append(request.problem(("output", "dir"), f"{folder}: is a file, not a folder"))
    return found


def _place(path: Path) -> str:
    """Equal for all spellings of one place, also where letters' case makes no difference."""
    return os.path.realpath(path).casefold()


def _plan(
    request: JobRequest, packs: _Packs, adapters: _Adapters, out: Path | None
) -> tuple[RenderPlan | None, list[Problem]]:
    try:
        pack, shapes = packs(request.spec.model or DEFAULT_MODEL)
    except InvalidJobs as error:
        return None, list(error.problems)
    except MissingModel as error:
        problem = replace(request.problem(("model",), error.message, hint=error.hint), environment=True)
        _, problems = resolve_job(request, _defaults_of_missing(request), out=out)
        return None, [problem, *problems]
    except GoanError as error:
        return None, [request.problem(("model",), error.message, hint=error.hint)]
    defaults = ModelDefaults(
        family=Family(pack.family), window=pack.window, steps=pack.steps, resolution=pack.resolution
    )
    job, problems = resolve_job(request, defaults, out=out)
    notes: list[str] = []
    matched, wrong = _matched(request, pack, shapes, adapters, notes)
    problems += wrong
    if job is None or problems:
        return None, problems
    notes += _notes_of(job.extension)
    try:
        computes = _computed_steps(job, pack, notes)
    except InvalidInput as error:
        return None, [request.problem(("step_cache",), error.message, hint=error.hint)]
    loras = tuple(matched[use] for use in job.loras if use in matched)
    changing = any(direction.loras != job.loras for direction in job.directions)
    section_loras = tuple(tuple(matched[use] for use in each.loras if use in matched) for each in job.directions)
    return (
        RenderPlan(
            job=job,
            pack=pack,
            loras=loras,
            section_loras=section_loras if changing else (),
            computes=computes,
            notes=tuple(notes),
        ),
        [],
    )


def _notes_of(extension: Extension | None) -> list[str]:
    """What of the video that is gone on with is not as it was, or as was asked."""
    if extension is None:
        return []
    clip, notes = extension.clip, []
    if clip.is_resampled:
        own = "no rate of its own" if clip.own_fps is None else f"{clip.own_fps:g} fps"
        notes.append(f"{clip.path.name}: {own}, taken at {clip.fps:g}: frames are doubled or left out")
    if extension.audio and not clip.has_audio:
        notes.append(f"{clip.path.name}: has no sound to keep")
    return notes


def _matched(
    request: JobRequest, pack: Pack, shapes: Shapes, adapters: _Adapters, notes: list[str]
) -> tuple[dict[LoraUse, PlannedLora], list[Problem]]:
    """Every LoRA of the job and its timeline matched with the model, those of weight 0 left out."""
    spec, problems = request.spec, []
    asked: list[tuple[KeyPath, LoraSpec]] = [(("loras", index), lora) for index, lora in enumerate(spec.loras or ())]
    for number, moment in enumerate(spec.timeline or ()):
        asked += [(("timeline", number, "loras", index), lora) for index, lora in enumerate(moment.loras or ())]
    matched: dict[LoraUse, PlannedLora] = {}
    told: set[Path] = set()
    for path, lora in asked:
        use = lora_use(lora)
        if not use.path.is_file() or use in matched:
            continue  # of a missing one, resolve_job has said so
        try:
            adapter = adapters(pack, shapes, use)
        except InvalidInput as error:
            problems.append(request.problem((*path, "path"), error.message, hint=error.hint))
            continue
        if use.weight == 0:
            notes.append(f"{use.path.name} has weight 0 and is left out")
        else:
            matched[use] = PlannedLora(use=use, adapter=adapter)
        if use.path not in told:
            notes += [f"{use.path.name}: skipped {count} {rule}" for rule, count in adapter.skipped.items()]
            notes += [f"{use.path.name}: {warning}" for warning in adapter.warnings]
        told.add(use.path)
    return matched, problems


def _defaults_of_missing(request: JobRequest) -> ModelDefaults:
    """The defaults of a model whose manifest is right and whose parts are not on this machine."""
    manifest = read_manifest(request.spec.model or DEFAULT_MODEL)
    defaults = manifest.defaults
    return ModelDefaults(
        family=Family(manifest.family), window=defaults.window, steps=defaults.steps, resolution=defaults.resolution
    )


def _computed_steps(job: Job, pack: Pack, notes: list[str]) -> tuple[int, ...] | None:
    """MagCache's steps by the pack's calibration, None without it; notes where that was made under other settings."""
    cache, steps = job.sampling.step_cache, job.sampling.steps
    if cache is None or cache.kind is not StepCacheKind.MAGCACHE:
        return None
    magnitudes = ratios_for(pack, steps)
    if magnitudes.window != job.sections.window:
        notes.append(f"MagCache was calibrated with a window of {magnitudes.window}, not {job.sections.window}")
    return steps_to_compute(magnitudes.ratios, threshold=cache.threshold)


def match_loras(transformer: Path, loras: Sequence[Mapping[str, Any]]) -> list[PlannedLora]:
    """LoRAs given by the keys of a job, outside of one, matched with a transformer; paths from the current folder.

    Raises InvalidInput for a missing or refused file, or a weight out of range.
    """
    shapes = read_checkpoint(transformer).shapes
    matched = []
    for keys in loras:
        try:
            use = lora_use(LoraSpec.model_validate(keys))
        except ValidationError as error:
            raise InvalidInput(f"{keys['path']}: {error.errors()[0]['msg']}") from error
        adapter = _read_adapter(use, shapes)
        matched.append(PlannedLora(use=use, adapter=adapter))
    return matched
