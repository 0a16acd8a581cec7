"""A job request and a model's defaults become a `Job` with nothing left to default."""

import secrets
from pathlib import Path

from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.images import image_size
from goan_cli.jobs.job import (
    AttentionBackend,
    Compile,
    DecodeMode,
    Execution,
    Gate,
    Gates,
    Job,
    LoraUse,
    ModelDefaults,
    Output,
    Sampling,
    StepCache,
    StepCacheKind,
    WantedPrecision,
)
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.schema import NAME_RULE, JobSpec, LoraSpec, is_name, memory_bytes
from goan_cli.jobs.sections import SectionPlan, plan_sections, section_count
from goan_cli.jobs.sizes import Fit, fit, nearest_bucket

DEFAULT_MODEL = "tiny"
DEFAULT_SECONDS = 5.0
DEFAULT_FPS = 30.0
DEFAULT_CRF = 16
DEFAULT_THRESHOLDS = {StepCacheKind.TEACACHE: 0.15, StepCacheKind.MAGCACHE: 0.1}
_MOST_LOST = 0.95  # of an image; beyond, enlarging it to cover the render size would only fill the memory


def resolve_job(
    request: JobRequest, defaults: ModelDefaults, *, out: Path | None = None
) -> tuple[Job | None, list[Problem]]:
    """Fill in what the request leaves open and check the files it names.

    `out` overrides the output folder. A seed that is absent is drawn here. The job is None when a problem
    stands in its way.
    """
    spec = request.spec
    problems: list[Problem] = [
        request.problem((key,), f"missing: {what}")
        for key, what in (("image", "the start image"), ("prompt", "what should happen"))
        if getattr(spec, key) is None and key not in request.flawed
    ]
    image_fit = None
    if spec.image is not None:
        try:
            image_fit = _image_fit(spec, Path(spec.image), defaults)
        except InvalidInput as error:
            problems.append(request.problem(("image",), f"{spec.image}: {error.message}"))
    for index, lora in enumerate(spec.loras or ()):
        if not Path(lora.path).is_file():
            problems.append(request.problem(("loras", index, "path"), f"{lora.path}: no such file"))
    sampling = _sampling(spec, defaults)
    name = spec.name or request.default_name.replace("{seed}", str(sampling.seed))
    if not is_name(name):
        problems.append(
            request.problem(("name",), f"{name[:60]!r}, from the file's name, cannot name a result: {NAME_RULE}")
        )
    if problems or request.flawed or image_fit is None or spec.image is None or spec.prompt is None:
        return None, problems

    output = spec.output
    job = Job(
        name=name,
        model=spec.model or DEFAULT_MODEL,
        image=Path(spec.image),
        image_fit=image_fit,
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt or "",
        seconds=None if spec.sections is not None else float(spec.seconds or DEFAULT_SECONDS),
        fps=float(spec.fps or DEFAULT_FPS),
        sections=_sections(spec, defaults),
        sampling=sampling,
        seed_drawn=spec.seed is None,
        loras=tuple(lora_use(lora) for lora in spec.loras or ()),
        output=Output(
            dir=out or (Path(output.dir) if output and output.dir else request.default_dir),
            keep_latents=bool(output and output.keep_latents),
            contact_sheet=bool(output and output.contact_sheet),
            crf=(output.crf if output else None) or DEFAULT_CRF,
        ),
        execution=_execution(spec),
        decode=DecodeMode(spec.decode or DecodeMode.OVERLAP),
        gates=_gates(spec),
        retry_seeds=spec.retry_seeds or 0,
        variant=request.variant,
    )
    return job, []


def lora_use(spec: LoraSpec) -> LoraUse:
    """A LoRA as a job has it."""
    return LoraUse(
        path=Path(spec.path),
        weight=float(spec.weight),
        include=tuple(spec.include),
        exclude=tuple(spec.exclude),
        trusted=spec.trusted,
    )


def _image_fit(spec: JobSpec, image: Path, defaults: ModelDefaults) -> Fit:
    source = image_size(image)
    if isinstance(spec.size, list):
        size = (spec.size[0], spec.size[1])
    else:
        height, width = nearest_bucket(source[1], source[0], defaults.resolution)
        size = (width, height)
    found = fit(source, size)
    if found.lost > _MOST_LOST:
        raise InvalidInput(
            f"{source[0]}x{source[1]} is too far from {size[0]}x{size[1]}: {found.lost:.1%} would be cut off"
        )
    return found


def _sections(spec: JobSpec, defaults: ModelDefaults) -> SectionPlan:
    window = spec.window or defaults.window
    seconds = float(spec.seconds or DEFAULT_SECONDS)
    count = spec.sections or section_count(seconds, float(spec.fps or DEFAULT_FPS), window)
    return plan_sections(defaults.family, count, window)


def _sampling(spec: JobSpec, defaults: ModelDefaults) -> Sampling:
    return Sampling(
        steps=spec.steps or defaults.steps,
        # 32 bits: easy to read out, and the same in every tool.
        seed=spec.seed if spec.seed is not None else secrets.randbelow(2**32),
        guidance_scale=_given(spec.guidance_scale, 10.0),
        true_cfg_scale=_given(spec.true_cfg_scale, 1.0),
        guidance_rescale=_given(spec.guidance_rescale, 0.0),
        shift=None if spec.shift is None else float(spec.shift),
        step_cache=_step_cache(spec),
    )


def _step_cache(spec: JobSpec) -> StepCache | None:
    asked = spec.step_cache
    if asked is None or asked.kind == "off":
        return None
    kind = StepCacheKind(asked.kind)
    return StepCache(kind=kind, threshold=_given(asked.threshold, DEFAULT_THRESHOLDS[kind]))


def _execution(spec: JobSpec) -> Execution:
    return Execution(
        precision=WantedPrecision(spec.precision or WantedPrecision.AUTO),
        compile=Compile(spec.compile or Compile.AUTO),
        attention=AttentionBackend(spec.attention or AttentionBackend.AUTO),
        memory=memory_bytes(spec.memory),
    )


def _gates(spec: JobSpec) -> Gates:
    asked = spec.gates.model_dump(exclude_none=True) if spec.gates else {}
    return Gates(**{defect: Gate(word) for defect, word in asked.items()})


def _given(value: float | None, default: float) -> float:
    return default if value is None else float(value)
