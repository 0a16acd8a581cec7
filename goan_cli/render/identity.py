"""What a plan will make, as a digest of everything that decides it. No torch: nothing is loaded for it.

Two plans with one identity make the same latents, whatever their names, folders, or paths of equal files.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from goan_cli.errors import InvalidInput
from goan_cli.files import digest_of, known_sha256_of
from goan_cli.jobs.directing import Direction
from goan_cli.jobs.formats import Codec, Format
from goan_cli.jobs.job import AttentionBackend, DecodeMode, Execution, Job, Output, WantedPrecision
from goan_cli.jobs.sections import default_paddings
from goan_cli.lora.report import BakeRecipe, LoraSource
from goan_cli.lora.scale import sidecar_config
from goan_cli.render.plan import PlannedLora, RenderPlan

# Counts up when the same settings and files come to make other latents or frames.
RENDER_VERSION = 2


def lora_source(lora: PlannedLora) -> LoraSource:
    """A LoRA of a plan by its content. Raises InvalidInput when the file has vanished since it was planned."""
    use, config = lora.use, sidecar_config(lora.use.path)
    return LoraSource(
        path=use.path,
        sha256=content_of(use.path),
        weight=use.weight,
        include=use.include,
        exclude=use.exclude,
        config_sha256=content_of(config) if config else None,
    )


def refuse_vanished(plan: RenderPlan) -> None:
    """Raise InvalidInput when the image or a LoRA file is gone; nothing is read, however many jobs there are."""
    upscale = (plan.job.post.upscale,) if plan.job.post and plan.job.post.upscale else ()
    for path in (*plan.job.inputs, *(lora.use.path for lora in plan.every_lora), *upscale):
        if not path.is_file():
            raise InvalidInput(f"{path}: cannot be read any more: no such file")


def bake_recipe(plan: RenderPlan, section: int = 0) -> BakeRecipe:
    """The weights that a section (from 0, in sampling order) is sampled with.

    Raises InvalidInput when a LoRA file has vanished.
    """
    return _recipe(plan, plan.loras_of(section))


def _recipe(plan: RenderPlan, loras: Sequence[PlannedLora]) -> BakeRecipe:
    return BakeRecipe(base=plan.pack.identity_of("transformer"), loras=tuple(map(lora_source, loras)))


def latents_identity(plan: RenderPlan) -> str:
    """What decides the final latents. Raises InvalidInput when the image or a LoRA file has vanished."""
    job, sampling = plan.job, plan.job.sampling
    guided = job.is_guided  # without true CFG nothing looks at the negative prompt
    return digest_of(
        render=RENDER_VERSION,
        pack=plan.pack.identity(),
        image=content_of(job.image) if job.image else f"start {job.start}",
        image_fit=asdict(job.image_fit),
        prompt=job.prompt,
        negative_prompt=job.negative_prompt if guided else "",
        sections=len(job.sections.sections),
        window=job.sections.window,
        sampling=asdict(sampling if guided else replace(sampling, guidance_rescale=0.0)),
        bake=bake_recipe(plan).identity,
        **_changing(job.execution),
        **_directed(plan),
        **_continued(job),
        **({} if plan.computes is None else {"computes": plan.computes}),
    )


def content_of(path: Path) -> str:
    """The SHA-256 of a file of a job. Raises InvalidInput when it has vanished since it was planned."""
    try:
        return known_sha256_of(path)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read any more: {error.strerror or error}") from error


def _directed(plan: RenderPlan) -> dict[str, object]:
    """What sections are told where it is not all the same, the image that ends the video, and paddings by hand."""
    job = plan.job
    told: dict[str, object] = {}
    if job.end is not None:
        told["end"] = [content_of(job.end.picture.path), asdict(job.end.picture.fit), job.end.strength]
    if job.paddings not in (None, default_paddings(len(job.sections.sections))):
        told["paddings"] = job.paddings
    if job.one_frame is not None:
        told["still"] = [
            *(list(indices) for indices in _indices(job)),
            [[content_of(each.picture.path), asdict(each.picture.fit)] for each in job.one_frame.controls],
        ]
    if job.is_directed:
        own = _direction(job.own_direction, _recipe(plan, plan.loras))
        directions = [_direction(each, bake_recipe(plan, section)) for section, each in enumerate(job.directions)]
        if any(direction != own for direction in directions):
            told["directions"] = directions
    return told


def _indices(job: Job) -> tuple[tuple[int, ...], ...]:
    (section,) = job.sections.sections
    return section.latent_indices, section.clean_indices, section.clean_2x_indices, section.clean_4x_indices


def _continued(job: Job) -> dict[str, object]:
    """The video that sections go on with, as they see it."""
    if job.extension is None:
        return {}
    clip = job.extension.clip
    return {"video": [content_of(clip.path), clip.fps, asdict(job.extension.fit)]}


def _direction(direction: Direction, bake: BakeRecipe) -> dict[str, object]:
    """What decides a section: without true CFG no negative prompt, and of its LoRAs what is baked."""
    image = direction.image
    return {
        **{key: value for key, value in asdict(direction).items() if key not in ("loras", "image")},
        "negative_prompt": direction.negative_prompt if direction.true_cfg_scale != 1.0 else "",
        "image": None if image is None else [content_of(image.path), asdict(image.fit)],
        "bake": bake.identity,
    }


def _changing(execution: Execution) -> dict[str, str]:
    """What of the execution changes the output by more than rounding; the rest plays no part in an identity."""
    asked = {}
    if execution.precision is not WantedPrecision.AUTO:
        asked["precision"] = str(execution.precision)
    if execution.attention is AttentionBackend.SAGE:
        asked["attention"] = str(execution.attention)
    return asked


def job_identity(plan: RenderPlan) -> str:
    """What decides the video file: the latents, its rate and its quality. Raises as `latents_identity` does."""
    decode = {"decode": str(plan.job.decode)} if plan.job.decode is not DecodeMode.OVERLAP else {}
    return digest_of(
        latents=latents_identity(plan),
        fps=plan.job.fps,
        crf=plan.job.output.crf,
        **decode,
        **_coding(plan.job.output),
        **_post(plan.job),
        **_joined(plan.job),
    )


def _joined(job: Job) -> dict[str, object]:
    """How the new part and the video that it goes on with become one."""
    if job.extension is None:
        return {}
    extension = job.extension
    return {"join": extension.join, "faded": extension.faded, "sound": extension.sounds}


def _coding(output: Output) -> dict[str, object]:
    """What the file is where it is no plain MP4, and whether it is not to tell how it was made."""
    usual = output.format is Format.MP4 and output.codec is Codec.H264
    coding = {} if usual else {"format": str(output.format), "codec": str(output.codec)}
    return {**coding, **({} if output.metadata else {"metadata": False})}


def _post(job: Job) -> dict[str, object]:
    if job.post is None:
        return {}
    upscale = None if job.post.upscale is None else content_of(job.post.upscale)
    return {"post": {"interpolate": job.post.interpolate, "upscale": upscale}}
