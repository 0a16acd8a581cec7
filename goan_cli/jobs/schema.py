"""What a job file may say: the pydantic models at the border, and the JSON schema made from them.

Every field is optional here, since presets, defaults, jobs and the command line are layers of one another.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

MULTIPLE = 16

_NAME = re.compile(r"[\w][\w .+@=,-]{0,119}", re.UNICODE)


def _name(value: object) -> object:
    if isinstance(value, str) and (not _NAME.fullmatch(value) or value.endswith((".", " "))):
        raise ValueError("must be usable as a file name: letters, digits and . _ - + @ = , inside, 120 at most")
    return value


def _size(value: object) -> object:
    if value == "auto":
        return value
    if not (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    ):
        raise ValueError(f"must be auto or [width, height], not {value!r}")
    for side in value:
        if side % MULTIPLE or not MULTIPLE <= side <= 4096:
            low, high = max(MULTIPLE, side // MULTIPLE * MULTIPLE), (side // MULTIPLE + 1) * MULTIPLE
            raise ValueError(
                f"width and height must be multiples of {MULTIPLE} from {MULTIPLE} to 4096; "
                f"{side} is not (near it: {low} and {high})"
            )
    return list(value)


def _step_cache(value: object) -> object:
    if value == "teacache":
        return {"kind": "teacache"}
    if value in ("off", False):
        return {"kind": "off"}
    if not isinstance(value, dict):
        raise ValueError(f"must be off, teacache, or {{kind: teacache, threshold: 0.15}}, not {value!r}")
    return value


def _lora(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSpec(_Layer):
    """One LoRA of a job; a bare path means weight 1."""

    path: StrictStr = Field(min_length=1, description="LoRA file (safetensors), relative to this file.")
    weight: StrictFloat | StrictInt = Field(1.0, ge=-4, le=4, description="How strongly it is baked.")


class StepCacheSpec(_Layer):
    """An approximate step cache."""

    kind: Literal["teacache", "off"] = Field("teacache", description="Which cache.")
    threshold: StrictFloat | StrictInt = Field(
        0.15, gt=0, le=10, description="Accumulated change below which blocks are skipped."
    )


class OutputSpec(_Layer):
    """Where and how results are written."""

    dir: StrictStr | None = Field(None, min_length=1, description="Folder for results (default renders/).")
    keep_latents: StrictBool | None = Field(None, description="Also save the final latents as safetensors.")
    crf: StrictInt | None = Field(None, ge=1, le=51, description="x264 quality, lower is better (default 16).")


class JobSpec(_Layer):
    """The keys of one job. A key left out comes from `defaults`, then the preset, then the model pack."""

    name: Annotated[StrictStr, BeforeValidator(_name)] | None = Field(
        None, description="File name of the result without suffix (default: from the file's name)."
    )
    preset: StrictStr | None = Field(None, description="draft, balanced, quality, or a YAML file of keys.")
    model: StrictStr | None = Field(None, min_length=1, description="A pack's name, its folder or its manifest.")
    image: StrictStr | None = Field(None, min_length=1, description="Start image, relative to this file.")
    prompt: StrictStr | None = Field(None, description="What happens in the video.")
    negative_prompt: StrictStr | None = Field(None, description="What to avoid; acts with true_cfg_scale > 1.")
    seconds: StrictFloat | StrictInt | None = Field(
        None, gt=0, le=600, description="Length; snapped to whole sections, shown in the plan."
    )
    sections: StrictInt | None = Field(None, ge=1, le=1000, description="Length in sections, instead of seconds.")
    fps: StrictFloat | StrictInt | None = Field(None, ge=1, le=120, description="Frames per second (default 30).")
    size: Annotated[list[StrictInt] | Literal["auto"] | None, BeforeValidator(_size)] = Field(
        None,
        description="auto (nearest bucket of the model) or [width, height], multiples of 16.",
        json_schema_extra={"examples": ["auto", [640, 608]]},
    )
    seed: StrictInt | None = Field(
        None, ge=0, lt=2**63, description="Noise seed; absent: drawn, and recorded in the sidecar."
    )
    steps: StrictInt | None = Field(None, ge=1, le=1000, description="Sampler steps per section.")
    window: StrictInt | None = Field(None, ge=1, le=64, description="New latent frames per section.")
    guidance_scale: StrictFloat | StrictInt | None = Field(
        None, ge=0, le=100, description="Distilled guidance (default 10)."
    )
    true_cfg_scale: StrictFloat | StrictInt | None = Field(
        None, ge=1, le=100, description="True CFG; 1 (default) is off, more doubles the work."
    )
    guidance_rescale: StrictFloat | StrictInt | None = Field(
        None, ge=0, le=1, description="Pull of true CFG back to the positive branch's deviation (default 0)."
    )
    shift: StrictFloat | StrictInt | None = Field(
        None, gt=0, le=100, description="Shift of the noise schedule; absent: from the token count."
    )
    step_cache: Annotated[StepCacheSpec | None, BeforeValidator(_step_cache)] = Field(
        None, description="off (default) or teacache, approximate and faster."
    )
    loras: list[Annotated[LoraSpec, BeforeValidator(_lora)]] | None = Field(
        None, max_length=32, description="LoRAs baked into the weights for this job."
    )
    output: OutputSpec | None = Field(None, description="Where and how results are written.")


class BatchSpec(_Layer):
    """A file of several jobs. `jobs` is checked one by one, so that every job's problems are found."""

    version: Literal[1] = Field(1, description="Version of this schema.")
    defaults: dict[str, Any] | None = Field(None, description="Keys for every job that does not say otherwise.")
    jobs: list[Any] = Field(min_length=1, description="The jobs.")


class _SingleJobFile(JobSpec):
    version: Literal[1] = 1


class _BatchFile(_Layer):
    version: Literal[1] = 1
    defaults: JobSpec | None = None
    jobs: list[JobSpec] = Field(min_length=1)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a job file, for editors."""
    single = _SingleJobFile.model_json_schema(ref_template="#/$defs/{model}")
    batch = _BatchFile.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**single.pop("$defs", {}), **batch.pop("$defs", {})}
    # A LoRA may be a bare path; the models see that only before validation.
    lora = {"anyOf": [{"$ref": "#/$defs/LoraSpec"}, {"type": "string"}]}
    cache = {"enum": ["off", "teacache"]}
    for properties in (single["properties"], definitions["JobSpec"]["properties"]):
        properties["loras"]["anyOf"][0]["items"] = lora
        properties["step_cache"]["anyOf"].insert(0, cache)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "goan job file",
        "description": "One job, or defaults and a list of jobs.",
        "anyOf": [
            {**single, "title": "One job", "not": {"required": ["jobs"]}},
            {**batch, "title": "Several jobs"},
        ],
        "$defs": definitions,
    }
