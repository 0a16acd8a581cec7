"""What a job file may say: the pydantic models at the border, and the JSON schema made from them.

Every field is optional here, since presets, defaults, jobs and the command line are layers of one another.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
)

from goan_cli.checking import SchemaVersion, shown

MULTIPLE = 16

_LARGEST = 4096
_NAME = re.compile(r"[\w][\w .+@=,-]*", re.UNICODE)
# File systems take 255 bytes, and a result's files have endings of their own.
_LONGEST_NAME = 200
NAME_RULE = f"letters, digits, spaces and . _ - + @ = , and at most {_LONGEST_NAME} bytes"


# Two ways to say one thing: the stronger layer's takes the other's place.
RIVALS = {"seconds": "sections", "sections": "seconds"}


def is_name(value: str) -> bool:
    """Whether a result can have this name on every file system."""
    fits = len(value.encode("utf-8", "replace")) <= _LONGEST_NAME
    return fits and _NAME.fullmatch(value) is not None and not value.endswith((".", " "))


def _name(value: object) -> object:
    if isinstance(value, str) and not is_name(value):
        raise ValueError(f"must be usable as a file name: {NAME_RULE}")
    return value


def _size(value: object) -> object:
    if value is None or value == "auto":
        return value
    if not (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    ):
        raise ValueError(f"must be auto or [width, height], not {shown(value)}")
    for side in value:
        if side % MULTIPLE or not MULTIPLE <= side <= _LARGEST:
            around = {min(max(side // MULTIPLE * MULTIPLE + up, MULTIPLE), _LARGEST) for up in (0, MULTIPLE)}
            near = " and ".join(str(length) for length in sorted(around))
            raise ValueError(
                f"width and height must be multiples of {MULTIPLE} from {MULTIPLE} to {_LARGEST}; "
                f"{side} is not (near it: {near})"
            )
    return list(value)


STEP_CACHES = ("off", "teacache", "magcache")


def _step_cache(value: object) -> object:
    if value is False:
        return {"kind": "off"}
    if isinstance(value, str) and value in STEP_CACHES:
        return {"kind": value}
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"must be off, teacache, magcache, or {{kind: teacache, threshold: 0.15}}, not {shown(value)}")
    return value


_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(GB|GIB|MB|MIB|B)\s*", re.ASCII | re.IGNORECASE)
_UNITS = {"GB": 10**9, "GIB": 1 << 30, "MB": 10**6, "MIB": 1 << 20, "B": 1}


def memory_bytes(text: str | None) -> int | None:
    """The bytes of a budget such as 12GB, None for auto. Raises ValueError for what is neither."""
    if text is None or text == "auto":
        return None
    found = _MEMORY.fullmatch(text) if isinstance(text, str) else None
    size = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= size < math.inf:
        raise ValueError(f"must be auto or a size such as 12GB, not {shown(text)}")
    return round(size)


def _memory(value: object) -> object:
    memory_bytes(value)  # type: ignore[arg-type]  # it says what is wrong with anything
    return value


def _on_or_off(value: object) -> object:
    """YAML 1.1's habit: `true` and `false` where on and off are meant."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _lora(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


def _patterns(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _number(value: object) -> object:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"must be a number, not {shown(value)}")
    return value


def _path(value: object) -> object:
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("no file name can hold a NUL character")
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"there is no user for {shown(value)}") from None
    return value


Number = Annotated[float, BeforeValidator(_number)]
PathText = Annotated[StrictStr, BeforeValidator(_path), Field(min_length=1)]


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSpec(_Layer):
    """One LoRA of a job; a bare path means weight 1."""

    path: PathText = Field(description="LoRA file (safetensors), relative to this file.")
    weight: Number = Field(1.0, ge=-4, le=4, description="How strongly it is baked.")
    include: Annotated[list[StrictStr], BeforeValidator(_patterns)] = Field(
        default_factory=list, description="Only modules that match, such as single_transformer_blocks.*"
    )
    exclude: Annotated[list[StrictStr], BeforeValidator(_patterns)] = Field(
        default_factory=list, description="No modules that match."
    )
    trusted: StrictBool = Field(
        default=False,
        description="Accept a file that cannot be told from one for FLUX.1, whose names and shapes are the same.",
    )


class StepCacheSpec(_Layer):
    """An approximate step cache."""

    kind: Literal["teacache", "magcache", "off"] = Field("teacache", description="Which cache.")
    threshold: Number | None = Field(
        None, gt=0, le=10, description="Accumulated change below which blocks are skipped (default by kind)."
    )


class OutputSpec(_Layer):
    """Where and how results are written."""

    dir: PathText | None = Field(None, description="Folder for results (default renders/).")
    keep_latents: StrictBool | None = Field(None, description="Also save the final latents as safetensors.")
    contact_sheet: StrictBool | None = Field(None, description="Also write frames of the whole video as one PNG.")
    crf: StrictInt | None = Field(None, ge=1, le=51, description="x264 quality, lower is better (default 16).")


GateWord = Literal["fail", "warn", "off"]


class GatesSpec(_Layer):
    """What is done about defects of the result: fail the job, note them, or do not look."""

    nan: GateWord | None = Field(None, description="Latents or pixels that are no numbers (default fail).")
    black: GateWord | None = Field(None, description="Frames that are nearly black, or of one colour (default warn).")
    frozen: GateWord | None = Field(None, description="A stretch without motion (default warn).")
    drift: GateWord | None = Field(None, description="Brightness or saturation that wander (default off).")


class JobSpec(_Layer):
    """The keys of one job. A key left out comes from `defaults`, then the preset, then the model pack."""

    name: Annotated[StrictStr, BeforeValidator(_name)] | None = Field(
        None, description="File name of the result without suffix (default: from the file's name)."
    )
    preset: PathText | None = Field(None, description="draft, balanced, quality, or a YAML file of keys.")
    model: PathText | None = Field(None, description="A pack's name, its folder or its manifest.")
    image: PathText | None = Field(None, description="Start image, relative to this file.")
    prompt: StrictStr | None = Field(None, description="What happens in the video.")
    negative_prompt: StrictStr | None = Field(None, description="What to avoid; acts with true_cfg_scale > 1.")
    seconds: Number | None = Field(
        None, gt=0, le=600, description="Length; snapped to whole sections, shown in the plan."
    )
    sections: StrictInt | None = Field(None, ge=1, le=20_000, description="Length in sections, instead of seconds.")
    fps: Number | None = Field(None, ge=1, le=120, description="Frames per second (default 30).")
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
    guidance_scale: Number | None = Field(None, ge=0, le=100, description="Distilled guidance (default 10).")
    true_cfg_scale: Number | None = Field(
        None, ge=1, le=100, description="True CFG; 1 (default) is off, more doubles the work."
    )
    guidance_rescale: Number | None = Field(
        None, ge=0, le=1, description="Pull of true CFG back to the positive branch's deviation (default 0)."
    )
    shift: Number | None = Field(
        None, ge=0.01, le=100, description="Shift of the noise schedule; absent: from the token count."
    )
    step_cache: Annotated[StepCacheSpec | None, BeforeValidator(_step_cache)] = Field(
        None, description="off (default), teacache or magcache: approximate and faster."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "fp8"] | None = Field(
        None, description="What the transformer computes in (default auto: by the device); fp8 is approximate."
    )
    compile: Annotated[Literal["auto", "on", "off"] | None, BeforeValidator(_on_or_off)] = Field(
        None, description="Compile the blocks (default auto: on a GPU, when there are enough steps to pay for it)."
    )
    attention: Literal["auto", "sdpa", "cudnn", "flash", "sage"] | None = Field(
        None, description="Attention kernel (default auto); sage is approximate."
    )
    memory: Annotated[StrictStr | None, BeforeValidator(_memory)] = Field(
        None,
        description="Memory to use on the GPU, such as 12GB (default auto: what is free there).",
        json_schema_extra={"examples": ["auto", "24GB", "12GB", "8GB", "6GB"]},
    )
    decode: Literal["overlap", "single"] | None = Field(
        None, description="overlap (default) as FramePack decodes, or single: cheaper, not the same pixels."
    )
    loras: list[Annotated[LoraSpec, BeforeValidator(_lora)]] | None = Field(
        None, max_length=32, description="LoRAs baked into the weights for this job."
    )
    output: OutputSpec | None = Field(None, description="Where and how results are written.")
    gates: GatesSpec | None = Field(None, description="What is done about defects of the result.")
    retry_seeds: StrictInt | None = Field(
        None, ge=0, le=100, description="Further seeds to try when a gate fails the job (default 0)."
    )


class JobEntry(JobSpec):
    """A job of a file, which may stand for several; see `jobs.expand`."""

    images: Any = Field(
        None,
        description="A pattern such as stills/*.png, or a list of them: one job an image.",
        json_schema_extra={
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]
        },
    )
    matrix: Any = Field(
        None,
        description="Lists of values by key, such as seed or loras.0.weight: one job for each combination.",
        json_schema_extra={
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"max": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 256}},
                    "additionalProperties": {"type": "array", "minItems": 1},
                },
                {"type": "null"},
            ]
        },
    )


class BatchSpec(_Layer):
    """A file of several jobs. `jobs` is checked one by one, so that every job's problems are found."""

    version: SchemaVersion = Field(1, description="Version of this schema.")
    defaults: dict[str, Any] | None = Field(None, description="Keys for every job that does not say otherwise.")
    jobs: list[Any] = Field(min_length=1, description="The jobs.")


class _SingleJobFile(JobEntry):
    version: SchemaVersion = 1


class _BatchFile(_Layer):
    version: SchemaVersion = 1
    defaults: JobSpec | None = None
    jobs: list[JobEntry] = Field(min_length=1)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a job file, for editors."""
    single = _SingleJobFile.model_json_schema(ref_template="#/$defs/{model}")
    batch = _BatchFile.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**single.pop("$defs", {}), **batch.pop("$defs", {})}
    # A LoRA may be a bare path; the models see that only before validation.
    lora = {"anyOf": [{"$ref": "#/$defs/LoraSpec"}, {"type": "string"}]}
    cache = {"enum": list(STEP_CACHES)}
    for properties in (single["properties"], *(definitions[name]["properties"] for name in ("JobSpec", "JobEntry"))):
        properties["loras"]["anyOf"][0]["items"] = lora
        properties["step_cache"]["anyOf"].insert(0, cache)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "goan job file",
        "description": "One job, or defaults and a list of jobs.",
        "anyOf": [
            {**single, "title": "One job", "not": {"required": ["jobs"]}},
            {**batch, "title": "Several jobs"},
        ],
        "$defs": definitions,
    }
    return dict(_in_schema_words(schema))


# pydantic leaves its own names where a bound stands on an optional number.
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def _in_schema_words(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {_BOUNDS.get(key, key): _in_schema_words(inner) for key, inner in value.items()}
    return [_in_schema_words(inner) for inner in value] if isinstance(value, list) else value
