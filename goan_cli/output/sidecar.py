"""The JSON beside a video: everything needed to say what it is, and to render it again."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from goan_cli.files import write_text
from goan_cli.jobs.job import Job
from goan_cli.output.video import VideoInfo

SIDECAR_VERSION = 1
# Characters that JSON allows as they are and YAML does not: a sidecar's settings are a job file again.
_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    """The model pack that rendered."""

    name: str
    family: str
    manifest: Path
    identity: str


@dataclass(frozen=True, kw_only=True)
class RenderRecord:
    """What only the render knows. `bake` is the bake report as plain data, None without LoRAs.

    `timings` are seconds by stage; `computed_steps` lists, per section, the steps that a step cache ran.
    """

    pack: PackRecord
    image_sha256: str
    bake: Mapping[str, Any] | None
    computed_steps: Sequence[Sequence[int]]
    timings: Mapping[str, float]
    seconds_per_step: float
    device: str
    dtype: str
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
        "settings": settings_of(job),
        "seed_drawn": job.seed_drawn,
        "inputs": {"image": {"path": str(job.image), "sha256": record.image_sha256, **asdict(job.image_fit)}},
        "pack": {**asdict(record.pack), "manifest": str(record.pack.manifest)},
        "bake": record.bake,
        "sections": [asdict(section) for section in job.sections.sections],
        "computed_steps": [list(steps) for steps in record.computed_steps],
        "timings": {stage: round(seconds, 4) for stage, seconds in record.timings.items()},
        "seconds_per_step": round(record.seconds_per_step, 5),
        "device": record.device,
        "dtype": record.dtype,
        "versions": dict(record.versions),
        "notes": list(record.notes),
    }


def settings_of(job: Job) -> dict[str, Any]:
    """Every resolved key under its name in a job file, so that the sidecar's settings make a job again."""
    cache = job.sampling.step_cache
    return {
        "model": job.model,
        "image": str(job.image),
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
        "step_cache": {"kind": "teacache", "threshold": cache.threshold} if cache else "off",
        "loras": [
            {
                "path": str(lora.path),
                "weight": lora.weight,
                "include": list(lora.include),
                "exclude": list(lora.exclude),
                "trusted": lora.trusted,
            }
            for lora in job.loras
        ],
        "output": {
            "dir": str(job.output.dir),
            "keep_latents": job.output.keep_latents,
            "contact_sheet": job.output.contact_sheet,
            "crf": job.output.crf,
        },
    }


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
