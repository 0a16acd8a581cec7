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
from goan_cli.jobs.job import Job, LoraUse, Moment
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
    on with elsewhere; `memory` says where the transformer's weights were, None on a CPU.
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


def sidecar(job: Job, record: RenderRecord, video: VideoInfo, video_sha256: str) -> dict[str, Any]:
    """The sidecar's content; paths are text, and every value is JSON."""
    return {
        "version": SIDECAR_VERSION,
        "name": job.name,
        "video": {
            "file": job.video.name,
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
    }


def _inputs(job: Job, pictures: Mapping[str, str]) -> dict[str, Any]:
    """The start image as it was fitted in, or what took its place, and the other pictures."""
    if job.image is None:
        start: dict[str, Any] = {"start": job.start}
    else:
        start = {"path": str(job.image), "sha256": pictures[str(job.image)]}
    others = {path: sha256 for path, sha256 in pictures.items() if path != str(job.image)}
    return {"image": {**start, **asdict(job.image_fit)}, **({"pictures": others} if others else {})}


def settings_of(job: Job) -> dict[str, Any]:
    """Every resolved key under its name in a job file, so that the sidecar's settings make a job again."""
    cache, execution = job.sampling.step_cache, job.execution
    return {
        "model": job.model,
        "image": None if job.image is None else str(job.image),
        "start": job.start,
        **_ending(job),
        "fit": "pad" if job.image_fit.beside else "crop",
        "paddings": None if job.paddings is None else list(job.paddings),
        "prompt": job.prompt,
        "negative_prompt": job.negative_prompt,
        "sections": len(job.sections.sections),
        "fps": job.fps,
        "size": list(job.size),
        "seed": job.sampling.seed,
        "steps": job.sampling.steps,
        "window": job.sections.window,
        "guidance_scale": job.sampling.guidance_scale,
        "true_cfg_scale": job.sampling.true_cfg_scale,
        "guidance_rescale": job.sampling.guidance_rescale,
        "shift": job.sampling.shift,
        "step_cache": {"kind": str(cache.kind), "threshold": cache.threshold} if cache else "off",
        "precision": str(execution.precision),
        "compile": str(execution.compile),
        "attention": str(execution.attention),
        "memory": "auto" if execution.memory is None else f"{execution.memory}B",
        "decode": str(job.decode),
        "loras": [_lora(lora) for lora in job.loras],
        "timeline": [_moment(moment) for moment in job.timeline] or None,
        "guidance_schedule": None if job.guidance_schedule is None else asdict(job.guidance_schedule),
        "output": {
            "dir": str(job.output.dir),
            "keep_latents": job.output.keep_latents,
            "contact_sheet": job.output.contact_sheet,
            "crf": job.output.crf,
        },
        "gates": {defect: str(gate) for defect, gate in asdict(job.gates).items()},
        "retry_seeds": job.retry_seeds,
    }


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
