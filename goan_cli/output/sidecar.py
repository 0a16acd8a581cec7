"""The JSON beside a video: everything needed to say what it is, and to render it again."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from goan_cli.errors import InvalidInput
from goan_cli.files import write_text
from goan_cli.jobs.directing import LoraUse, Moment, OneFrame
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.job import Job, Post
from goan_cli.jobs.sizes import fit
from goan_cli.output.quality import Finding, Quality
from goan_cli.output.video import VideoInfo

SIDECAR_VERSION = 1
# Characters that JSON allows as they are and YAML does not, since a sidecar's settings are a job file again; and
# those that stand for bytes of a file's name that are no text, which no encoding has.
_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff]")


class _VideoShape(BaseModel):
    model_config = ConfigDict(strict=True)

    file: str
    sha256: str
    frames: int
    seconds: float


class _Shape(BaseModel):
    """What readers of a sidecar rely on; the rest may be anything."""

    model_config = ConfigDict(strict=True)

    version: int
    settings: dict[str, Any]
    video: _VideoShape
    pack: dict[str, Any]
    inputs: dict[str, Any] = {}
    bake: dict[str, Any] | None = None
    versions: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    """The model pack that rendered."""

    name: str
    family: str
    manifest: Path
    identity: str


@dataclass(frozen=True, kw_only=True)
class RejectedSeed:
    """A seed whose render a gate refused, and why."""

    seed: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RenderRecord:
    """What only the render knows. `bake` is the bake report as plain data, None without LoRAs.

    `identity` is that of the job as it was asked for, with `asked_seed`; the seed that made the video may be a
    later one, after `rejected` ones. `pictures` are the SHA-256 of every image file by its path. The two digests are
    of the final latents' and of the frames' bytes. `timings` are seconds by stage; `computed_steps` lists, per
    section, the steps that a step cache ran; `machines` are where it was sampled, more than one only when it was gone
    on with elsewhere; `memory` says where the transformer's weights were, None on a CPU. `post` is what the frames went
    through before they were encoded, None for nothing: the digest and the quality are of the frames before it.
    """

    identity: str
    asked_seed: int
    rejected: Sequence[RejectedSeed]
    latents_sha256: str
    frames_sha256: str
    quality: Quality
    findings: Sequence[Finding]
    machines: Sequence[str]
    pack: PackRecord
    pictures: Mapping[str, str]
    bake: Mapping[str, Any] | None
    computed_steps: Sequence[Sequence[int]]
    timings: Mapping[str, float]
    seconds_per_step: float
    device: str
    dtype: str
    compiled: bool
    memory: str | None
    versions: Mapping[str, str]
    notes: Sequence[str]
    post: Mapping[str, Any] | None = None


def sidecar(job: Job, record: RenderRecord, video: VideoInfo, video_sha256: str) -> dict[str, Any]:
    """The sidecar's content; paths are text, and every value is JSON."""
    return {
        "version": SIDECAR_VERSION,
        "name": job.name,
        "video": {
            "file": job.video.name,
            "format": "png" if job.one_frame else str(job.output.format),
            "codec": "png" if job.one_frame else str(job.output.codec),
            "sha256": video_sha256,
            "frames": video.frames,
            "fps": video.fps,
            "width": video.size[0],
            "height": video.size[1],
            "seconds": round(video.frames / video.fps, 6),
        },
        "identity": record.identity,
        "latents_sha256": record.latents_sha256,
        "frames_sha256": record.frames_sha256,
        # What `auto` came to: a replay compiles where this render did.
        "settings": {**settings_of(job), "compile": "on" if record.compiled else "off"},
        "seed_drawn": job.seed_drawn,
        "asked_seed": record.asked_seed,
        "rejected_seeds": [asdict(seed) for seed in record.rejected],
        "quality": {**asdict(record.quality), "findings": [asdict(finding) for finding in record.findings]},
        "inputs": _inputs(job, record.pictures),
        "pack": {**asdict(record.pack), "manifest": str(record.pack.manifest)},
        "bake": record.bake,
        "sections": [asdict(section) for section in job.sections.sections],
        "computed_steps": [list(steps) for steps in record.computed_steps],
        "timings": {stage: round(seconds, 4) for stage, seconds in record.timings.items()},
        "seconds_per_step": round(record.seconds_per_step, 5),
        "device": record.device,
        "machines": list(record.machines),
        "dtype": record.dtype,
        "compiled": record.compiled,
        "memory": record.memory,
        "versions": dict(record.versions),
        "notes": list(record.notes),
        **({"post": dict(record.post)} if record.post else {}),
    }


def _inputs(job: Job, pictures: Mapping[str, str]) -> dict[str, Any]:
    """The start image as it was fitted in, or what took its place, and the other pictures."""
    if job.image is None:
        start: dict[str, Any] = {"start": job.start}
    else:
        start = {"path": str(job.image), "sha256": pictures[str(job.image)]}
    clip = job.extension.clip if job.extension else None
    video = {}
    if clip is not None:
        read = {"frames": clip.frames, "fps": clip.own_fps, "seen": list(job.extension.seen) if job.extension else []}
        video = {"video": {"path": str(clip.path), "sha256": pictures[str(clip.path)], **read}}
    own = (str(job.image), str(clip.path) if clip else "")
    others = {path: sha256 for path, sha256 in pictures.items() if path not in own}
    return {"image": {**start, **asdict(job.image_fit)}, **video, **({"pictures": others} if others else {})}


def settings_of(job: Job) -> dict[str, Any]:
    """Every resolved key under its name in a job file, so that the sidecar's settings make a job again."""
    cache, execution = job.sampling.step_cache, job.execution
    return {
        "model": job.model,
        "image": None if job.image is None else str(job.image),
        "start": job.start,
        "video": None if job.extension is None else _continued(job.extension),
        **_ending(job),
        "fit": _fit(job),
        "paddings": None if job.paddings is None else list(job.paddings),
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "sections": None if job.one_frame else len(job.sections.sections),
        "one_frame": None if job.one_frame is None else _one_frame(job.one_frame),
        "fps": job.fps,
        "size": list(job.size),
        "seed": job.sampling.seed,
        "steps": job.sampling.steps,
        "window": None if job.one_frame else job.sections.window,
        "guidance_scale": job.sampling.guidance_scale,
        "true_cfg_scale": job.sampling.true_cfg_scale,
        "guidance_rescale": job.sampling.guidance_rescale,
        "shift": job.sampling.shift,
        "step_cache": {"kind": str(cache.kind), "threshold": cache.threshold} if cache else "off",
        "precision": str(execution.precision),
        "compile": str(execution.compile),
        "attention": str(execution.attention),
        "memory": "auto" if execution.memory is None else f"{execution.memory}B",
        "decode": None if job.one_frame else str(job.decode),
        "loras": [_lora(lora) for lora in job.loras],
        "timeline": [_moment(moment) for moment in job.timeline] or None,
        "guidance_schedule": None if job.guidance_schedule is None else asdict(job.guidance_schedule),
        "post": post_settings(job.post),
        "output": {
            "dir": str(job.output.dir),
            **({} if job.one_frame else _coding(job)),
            "keep_latents": job.output.keep_latents,
            "keep": [
                *(("sections",) if job.output.keep_sections else ()),
                *(("preview",) if job.output.keep_previews else ()),
            ],
            "contact_sheet": job.output.contact_sheet,
            "poster": job.output.poster,
            "metadata": job.output.metadata,
        },
        "gates": {defect: str(gate) for defect, gate in asdict(job.gates).items()},
        "retry_seeds": job.retry_seeds,
    }


def _coding(job: Job) -> dict[str, Any]:
    return {"format": str(job.output.format), "codec": str(job.output.codec), "crf": job.output.crf}


def _fit(job: Job) -> str:
    """How the job's images fill the size; where both ways are the same, either will do."""
    pictures = [*((job.end.picture,) if job.end else ()), *(each.image for each in job.timeline if each.image)]
    pictures += [control.picture for control in job.one_frame.controls] if job.one_frame else []
    clip = (job.extension.fit,) if job.extension else ()
    fits = [job.image_fit, *clip, *(picture.fit for picture in pictures)]
    return "crop" if all(each == fit(each.source, each.size) for each in fits) else "pad"


def _continued(extension: Extension) -> dict[str, Any]:
    """A job's `video`; a cross-fade goes with join only."""
    fade = {"cross_fade": extension.cross_fade} if extension.join else {}
    return {"path": str(extension.clip.path), "audio": extension.audio, "join": extension.join, **fade}


def _ending(job: Job) -> dict[str, Any]:
    if job.end is None:
        return {}
    end = {"loop": True} if job.loop else {"end_image": str(job.end.picture.path)}
    return {**end, "end_strength": job.end.strength}


def _lora(lora: LoraUse) -> dict[str, Any]:
    return {
        "path": str(lora.path),
        "weight": lora.weight,
        "include": list(lora.include),
        "exclude": list(lora.exclude),
        "trusted": lora.trusted,
    }


def _one_frame(one: OneFrame) -> dict[str, Any]:
    controls = [{"image": str(control.picture.path), "index": control.index} for control in one.controls]
    return {
        "target": one.target,
        "controls": controls,
        "no_2x": one.no_2x,
        "no_4x": one.no_4x,
        "no_post": one.no_post,
    }


def post_settings(post: Post | None) -> dict[str, Any] | None:
    """A job's `post`, as a job file has it."""
    if post is None:
        return None
    upscale = {} if post.upscale is None else {"upscale": str(post.upscale)}
    return {**upscale, **({} if post.interpolate is None else {"interpolate": post.interpolate})}


def _moment(moment: Moment) -> dict[str, Any]:
    """What a moment changes, as a timeline gives it."""
    keys = {
        "blend": moment.blend or None,
        "prompt": moment.prompt,
        "negative_prompt": moment.negative_prompt,
        "guidance_scale": moment.guidance_scale,
        "true_cfg_scale": moment.true_cfg_scale,
        "image": None if moment.image is None else str(moment.image.path),
        "loras": None if moment.loras is None else [_lora(lora) for lora in moment.loras],
    }
    return {"at": moment.at, **{key: value for key, value in keys.items() if value is not None}}


def read_sidecar(path: Path) -> dict[str, Any]:
    """The content of a sidecar. Raises InvalidInput for what is none, or of a newer version."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInput(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: not a sidecar: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("version"), int) and content["version"] > SIDECAR_VERSION:
        raise InvalidInput(f"{path}: a sidecar of version {content['version']}, which this goan cannot read")
    try:
        _Shape.model_validate(content)
    except ValidationError as error:
        raise InvalidInput(f"{path}: not a sidecar of goan") from error
    return dict(content)


def recorded_video(sidecar: Path, content: Mapping[str, Any]) -> Path:
    """Where the video of a sidecar is: beside it, and of its name, whatever it was called when it was written."""
    return sidecar.with_name(f"{sidecar.stem}{Path(content['video']['file']).suffix}")


def value_at(content: Mapping[str, Any], path: Sequence[str]) -> Any:  # noqa: ANN401 - JSON
    """The value under a path of keys in a sidecar, None where there is none."""
    value: Any = content
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def write_sidecar(path: Path, content: Mapping[str, Any]) -> None:
    """Write the sidecar under a temporary name and rename it into place."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, default=str, allow_nan=False)
    write_text(path, _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON has no infinity: such a ratio (of a change to zero weights) is null."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
