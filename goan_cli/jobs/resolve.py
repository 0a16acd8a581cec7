"""A job request and a model's defaults become a `Job` with nothing left to default."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.clips import Clip
from goan_cli.jobs.continued import extension_of, video_of
from goan_cli.jobs.directing import Direction, EndImage, Moment, OneFrame
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.fields import MULTIPLE, memory_bytes
from goan_cli.jobs.images import image_size
from goan_cli.jobs.job import (
    AttentionBackend,
    Compile,
    DecodeMode,
    Execution,
    Gate,
    Gates,
    Job,
    ModelDefaults,
    Output,
    Post,
    Sampling,
    StepCache,
    StepCacheKind,
    WantedPrecision,
)
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.outputs import name_of, output_of
from goan_cli.jobs.pictures import fitted, picture_of
from goan_cli.jobs.post import post_of
from goan_cli.jobs.schema import JobSpec
from goan_cli.jobs.sections import Family, SectionPlan, plan_sections, section_count
from goan_cli.jobs.sizes import Fit, fit, nearest_bucket
from goan_cli.jobs.still import one_frame_of, still_sections
from goan_cli.jobs.timeline import directions_of, lora_use, moments_of, schedule_of

DEFAULT_MODEL = "tiny"
DEFAULT_SECONDS = 5.0
DEFAULT_FPS = 30.0
DEFAULT_THRESHOLDS = {StepCacheKind.TEACACHE: 0.15, StepCacheKind.MAGCACHE: 0.1}


@dataclass(frozen=True, kw_only=True)
class _Settled:
    """What of a request takes looking up and checking; `image_fit` is None where there is nothing to begin from."""

    name: str
    fps: float
    image_fit: Fit | None
    sampling: Sampling
    sections: SectionPlan
    timeline: tuple[Moment, ...]
    end: EndImage | None
    one_frame: OneFrame | None
    extension: Extension | None
    post: Post | None
    output: Output


def resolve_job(
    request: JobRequest, defaults: ModelDefaults, *, out: Path | None = None
) -> tuple[Job | None, list[Problem]]:
    """Fill in what the request leaves open and check the files it names.

    `out` overrides the output folder. A seed that is absent is drawn here. The job is None when a problem
    stands in its way.
    """
    problems = [*request.problems, *_missing(request)]
    settled, wrong = _settled(request, defaults, out)
    problems += wrong
    prompt = _prompt(request.spec)
    if problems or request.flawed or settled.image_fit is None or prompt is None:
        return None, problems
    return _job(request, settled, prompt, settled.image_fit), []


def _settled(request: JobRequest, defaults: ModelDefaults, out: Path | None) -> tuple[_Settled, list[Problem]]:
    spec = request.spec
    fps = float(spec.fps or DEFAULT_FPS)
    clip, problems = video_of(request, fps)
    image_fit, video_fit, wrong = _start(request, defaults, clip)
    problems += wrong
    for index, lora in enumerate(spec.loras or ()):
        if not Path(lora.path).is_file():
            problems.append(request.problem(("loras", index, "path"), f"{lora.path}: no such file"))
    sampling = _sampling(spec, defaults)
    sections, wrong = _sections(request, defaults)
    problems += wrong
    size = image_fit.size if image_fit else (MULTIPLE, MULTIPLE)
    name, wrong = name_of(request, sampling, size, spec.model or DEFAULT_MODEL)
    problems += wrong
    one_frame, wrong = one_frame_of(request, defaults, size)
    problems += wrong
    if one_frame is not None:
        sections = still_sections(one_frame, defaults)
    extension, wrong = extension_of(request, clip, video_fit, family=defaults.family, window=sections.window)
    problems += wrong
    moments, wrong = moments_of(request, sections, fps, size)
    problems += wrong
    end, wrong = _end(request, defaults, size)
    problems += wrong
    post, wrong = post_of(request, fps, image_fit.size if image_fit else None)
    problems += wrong
    folder = out or (Path(spec.output.dir) if spec.output and spec.output.dir else request.default_dir)
    output, wrong = output_of(request, folder, post.interpolate if post and post.interpolate else fps)
    problems += wrong
    settled = _Settled(
        name=name,
        fps=fps,
        image_fit=image_fit,
        sampling=sampling,
        sections=sections,
        timeline=moments,
        end=end,
        one_frame=one_frame,
        extension=extension,
        post=post,
        output=output,
    )
    return settled, problems


def _job(request: JobRequest, settled: _Settled, prompt: str, image_fit: Fit) -> Job:
    """The job of a request that nothing is wrong with."""
    spec, sampling = request.spec, settled.sampling
    own = Direction(
        prompt=prompt,
        negative_prompt=spec.negative_prompt or "",
        guidance_scale=sampling.guidance_scale,
        true_cfg_scale=sampling.true_cfg_scale,
        loras=tuple(lora_use(lora) for lora in spec.loras or ()),
    )
    schedule = schedule_of(spec)
    in_sections = spec.sections is not None or settled.one_frame is not None
    return Job(
        name=settled.name,
        model=spec.model or DEFAULT_MODEL,
        image=None if spec.image is None else Path(spec.image),
        image_fit=image_fit,
        start=spec.start,
        end=settled.end,
        loop=bool(spec.loop),
        prompt=own.prompt,
        negative_prompt=own.negative_prompt,
        seconds=None if in_sections else float(spec.seconds or DEFAULT_SECONDS),
        fps=settled.fps,
        sections=settled.sections,
        sampling=sampling,
        seed_drawn=spec.seed is None,
        loras=own.loras,
        timeline=settled.timeline,
        guidance_schedule=schedule,
        paddings=None if spec.paddings is None else tuple(spec.paddings),
        directions=directions_of(own, settled.sections, settled.timeline, schedule),
        output=settled.output,
        execution=_execution(spec),
        decode=DecodeMode(spec.decode or DecodeMode.OVERLAP),
        gates=_gates(spec),
        retry_seeds=spec.retry_seeds or 0,
        variant=request.variant,
        post=settled.post,
        extension=settled.extension,
        one_frame=settled.one_frame,
    )


def _prompt(spec: JobSpec) -> str | None:
    """The prompt that the video begins with: the job's, or that of a timeline's moment at 0 s."""
    if spec.prompt is not None:
        return spec.prompt
    return next((moment.prompt for moment in spec.timeline or () if moment.at == 0), None)


def _missing(request: JobRequest) -> list[Problem]:
    """What a job cannot do without, and keys that stand against each other."""
    spec = request.spec
    problems = []
    begins = (spec.image, spec.start, spec.video)
    if all(key is None for key in begins) and not {"image", "start", "video"} & request.flawed:
        hint = "or start: grey, to begin from a colour, or video: to go on with one"
        problems.append(request.problem(("image",), "missing: the start image", hint=hint))
    if _prompt(spec) is None and not {"prompt", "timeline"} & request.flawed:
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


def _start(
    request: JobRequest, defaults: ModelDefaults, clip: Clip | None
) -> tuple[Fit | None, Fit | None, list[Problem]]:
    """How what a video begins from fills the render size, and how the video that it goes on with does.

    That one decides the size; it is also what is begun from, without an image or what takes its place.
    """
    spec, resolution = request.spec, request.spec.resolution or defaults.resolution
    of_video = None
    if spec.video is not None:
        if clip is None:  # what is wrong with it has been said
            return None, None, []
        size = _asked_size(spec) or _bucket(clip.size, resolution)
        try:
            of_video = fitted(clip.size, size, pad=spec.fit == "pad")
        except InvalidInput as error:
            return None, None, [request.problem(("video", "path"), f"{spec.video.path}: {error.message}")]
    if spec.image is None:
        if spec.start is None:
            return of_video, of_video, []
        size = of_video.size if of_video else _asked_size(spec) or _bucket((resolution, resolution), resolution)
        return fit(size, size), of_video, []
    try:
        source = image_size(Path(spec.image))
        size = of_video.size if of_video else _asked_size(spec) or _bucket(source, resolution)
        return fitted(source, size, pad=spec.fit == "pad"), of_video, []
    except InvalidInput as error:
        return None, of_video, [request.problem(("image",), f"{spec.image}: {error.message}")]


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
    elif spec.loop and path is None and "image" in request.flawed:
        pass  # what is wrong with it has been said
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
    if {"sections", "seconds", "fps", "window", "paddings"} & request.flawed:
        return plan, []  # what is wrong with them has been said
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
