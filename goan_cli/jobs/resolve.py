"""A job request and a model's defaults become a `Job` with nothing left to default."""

import secrets
from pathlib import Path

from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.fields import MULTIPLE, NAME_RULE, is_name, memory_bytes
from goan_cli.jobs.images import image_size
from goan_cli.jobs.job import (
    AttentionBackend,
    Compile,
    DecodeMode,
    Direction,
    EndImage,
    Execution,
    Gate,
    Gates,
    Job,
    ModelDefaults,
    Output,
    Sampling,
    StepCache,
    StepCacheKind,
    WantedPrecision,
)
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.pictures import fitted, picture_of
from goan_cli.jobs.schema import JobSpec
from goan_cli.jobs.sections import Family, SectionPlan, plan_sections, section_count
from goan_cli.jobs.sizes import Fit, fit, nearest_bucket
from goan_cli.jobs.timeline import directions_of, lora_use, moments_of, schedule_of

DEFAULT_MODEL = "tiny"
DEFAULT_SECONDS = 5.0
DEFAULT_FPS = 30.0
DEFAULT_CRF = 16
DEFAULT_THRESHOLDS = {StepCacheKind.TEACACHE: 0.15, StepCacheKind.MAGCACHE: 0.1}


def resolve_job(
    request: JobRequest, defaults: ModelDefaults, *, out: Path | None = None
) -> tuple[Job | None, list[Problem]]:
    """Fill in what the request leaves open and check the files it names.

    `out` overrides the output folder. A seed that is absent is drawn here. The job is None when a problem
    stands in its way.
    """
    spec = request.spec
    problems = _missing(request)
    image_fit, wrong = _start(request, defaults)
    problems += wrong
    for index, lora in enumerate(spec.loras or ()):
        if not Path(lora.path).is_file():
            problems.append(request.problem(("loras", index, "path"), f"{lora.path}: no such file"))
    sampling = _sampling(spec, defaults)
    name = spec.name or request.default_name.replace("{seed}", str(sampling.seed))
    if not is_name(name):
        problems.append(
            request.problem(("name",), f"{name[:60]!r}, from the file's name, cannot name a result: {NAME_RULE}")
        )
    sections, wrong = _sections(request, defaults)
    problems += wrong
    fps = float(spec.fps or DEFAULT_FPS)
    size = image_fit.size if image_fit else (MULTIPLE, MULTIPLE)
    moments, wrong = moments_of(request, sections, fps, size)
    problems += wrong
    end, wrong = _end(request, defaults, size)
    problems += wrong
    if problems or request.flawed or image_fit is None or spec.prompt is None:
        return None, problems

    output = spec.output
    own = Direction(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt or "",
        guidance_scale=sampling.guidance_scale,
        true_cfg_scale=sampling.true_cfg_scale,
        loras=tuple(lora_use(lora) for lora in spec.loras or ()),
    )
    schedule = schedule_of(spec)
    job = Job(
        name=name,
        model=spec.model or DEFAULT_MODEL,
        image=None if spec.image is None else Path(spec.image),
        image_fit=image_fit,
        start=spec.start,
        end=end,
        loop=bool(spec.loop),
        prompt=own.prompt,
        negative_prompt=own.negative_prompt,
        seconds=None if spec.sections is not None else float(spec.seconds or DEFAULT_SECONDS),
        fps=fps,
        sections=sections,
        sampling=sampling,
        seed_drawn=spec.seed is None,
        loras=own.loras,
        timeline=moments,
        guidance_schedule=schedule,
        paddings=None if spec.paddings is None else tuple(spec.paddings),
        directions=directions_of(own, sections, moments, schedule),
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


def _missing(request: JobRequest) -> list[Problem]:
    """What a job cannot do without, and keys that stand against each other."""
    spec = request.spec
    problems = []
    if spec.image is None and spec.start is None and not {"image", "start"} & request.flawed:
        hint = "or start: grey, to begin from a colour"
        problems.append(request.problem(("image",), "missing: the start image", hint=hint))
    if spec.prompt is None and "prompt" not in request.flawed:
        problems.append(request.problem(("prompt",), "missing: what should happen"))
    if spec.resolution is not None and isinstance(spec.size, list):
        problems.append(request.problem(("resolution",), "given beside a size; it belongs to size: auto"))
    if spec.guidance_schedule is not None:
        problems += [
            request.problem(("timeline", index, "guidance_scale"), "given beside guidance_schedule")
            for index, moment in enumerate(spec.timeline or ())
            if moment.guidance_scale is not None
        ]
    return problems


def _start(request: JobRequest, defaults: ModelDefaults) -> tuple[Fit | None, list[Problem]]:
    """How the start image, or what takes its place, fills the render size."""
    spec = request.spec
    if spec.image is None:
        if spec.start is None:
            return None, []
        resolution = spec.resolution or defaults.resolution
        size = _asked_size(spec) or _bucket((resolution, resolution), resolution)
        return fit(size, size), []
    try:
        source = image_size(Path(spec.image))
        size = _asked_size(spec) or _bucket(source, spec.resolution or defaults.resolution)
        return fitted(source, size, pad=spec.fit == "pad"), []
    except InvalidInput as error:
        return None, [request.problem(("image",), f"{spec.image}: {error.message}")]


def _asked_size(spec: JobSpec) -> tuple[int, int] | None:
    return (spec.size[0], spec.size[1]) if isinstance(spec.size, list) else None


def _bucket(source: tuple[int, int], resolution: int) -> tuple[int, int]:
    height, width = nearest_bucket(source[1], source[0], resolution)
    return width, height


def _end(request: JobRequest, defaults: ModelDefaults, size: tuple[int, int]) -> tuple[EndImage | None, list[Problem]]:
    """The image that the video ends on."""
    spec = request.spec
    asked = "loop" if spec.loop else "end_image"
    path = spec.image if spec.loop else spec.end_image
    wrong = None
    if spec.loop and spec.end_image is not None:
        wrong = request.problem(("loop",), "given beside end_image; a loop ends on its start image")
    elif spec.loop and path is None:
        wrong = request.problem(("loop",), "needs a start image to end on")
    elif path is None and spec.end_strength is not None:
        wrong = request.problem(("end_strength",), "given without end_image or loop")
    elif path is not None and defaults.family is not Family.INVERTED:
        hint = "take framepack-i2v, or tiny"
        wrong = request.problem((asked,), "only inverted models can be told how a video ends", hint=hint)
    if wrong is not None or path is None:
        return None, [wrong] if wrong else []
    try:
        picture = picture_of(Path(path), size, pad=spec.fit == "pad")
    except InvalidInput as error:
        # Of a loop's start image, that has been said.
        return None, [] if spec.loop else [request.problem((asked,), f"{path}: {error.message}")]
    return EndImage(picture=picture, strength=_given(spec.end_strength, 1.0)), []


def _sections(request: JobRequest, defaults: ModelDefaults) -> tuple[SectionPlan, list[Problem]]:
    spec = request.spec
    window = spec.window or defaults.window
    seconds = float(spec.seconds or DEFAULT_SECONDS)
    count = spec.sections or section_count(seconds, float(spec.fps or DEFAULT_FPS), window)
    plan = plan_sections(defaults.family, count, window)
    if spec.paddings is None:
        return plan, []
    if defaults.family is not Family.INVERTED:
        return plan, [request.problem(("paddings",), "only inverted models have paddings")]
    if len(spec.paddings) != count:
        return plan, [request.problem(("paddings",), f"{len(spec.paddings)} paddings for {count} sections")]
    if spec.paddings[-1] != 0:
        return plan, [request.problem(("paddings",), "the last one must be 0: that section follows the start image")]
    return plan_sections(defaults.family, count, window, tuple(spec.paddings)), []


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
