"""What a job file may say: the pydantic models at the border.

Every field is optional here, since presets, defaults, jobs and the command line are layers of one another.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from goan_cli.checking import SchemaVersion
from goan_cli.jobs.fields import (
    Number,
    PathText,
    memory_value,
    name_value,
    on_or_off_value,
    path_or_keys_value,
    patterns_value,
    seconds_value,
    size_value,
    start_value,
    step_cache_value,
    template_value,
)

# Two ways to say one thing: the stronger layer's takes the other's place.
RIVALS = {"seconds": "sections", "sections": "seconds", "image": "start", "start": "image"}


def _seconds_or_none(value: object) -> object:
    return None if value is None else seconds_value(value)


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSpec(_Layer):
    """One LoRA of a job; a bare path means weight 1."""

    path: PathText = Field(description="LoRA file (safetensors), relative to this file.")
    weight: Number = Field(1.0, ge=-4, le=4, description="How strongly it is baked.")
    include: Annotated[list[StrictStr], BeforeValidator(patterns_value)] = Field(
        default_factory=list, description="Only modules that match, such as single_transformer_blocks.*"
    )
    exclude: Annotated[list[StrictStr], BeforeValidator(patterns_value)] = Field(
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


class VideoSpec(_Layer):
    """A video that the new part goes on with; a bare path means the defaults."""

    path: PathText = Field(description="Video file, relative to this file.")
    audio: StrictBool = Field(default=False, description="Keep its sound.")
    cross_fade: Annotated[float | None, BeforeValidator(_seconds_or_none)] = Field(
        None, ge=0, le=10, description="Seconds over which it goes over into the new part (default 0.5s)."
    )
    join: StrictBool = Field(default=True, description="Write it and the new part as one; false: the new part alone.")


class OutputSpec(_Layer):
    """Where and how results are written."""

    dir: PathText | None = Field(None, description="Folder for results (default renders/).")
    keep_latents: StrictBool | None = Field(None, description="Also save the final latents as safetensors.")
    contact_sheet: StrictBool | None = Field(None, description="Also write frames of the whole video as one PNG.")
    format: Literal["mp4", "webm", "gif", "webp", "png", "mov"] | None = Field(
        None, description="Kind of file (default mp4); png is a folder of pictures, mov is ProRes."
    )
    codec: Literal["h264", "hevc", "av1", "vp9", "gif", "webp", "png", "prores"] | None = Field(
        None, description="Of mp4: h264 (default), hevc, av1; of webm: vp9 (default), av1; of others their one."
    )
    crf: StrictInt | None = Field(
        None,
        ge=1,
        le=63,
        description="Quality, lower is better: h264 1 to 51 (default 16), hevc 1 to 51 (18), av1 and vp9 1 to 63 (22).",
    )
    poster: StrictBool | None = Field(None, description="Also write the first frame as NAME.png.")
    keep: Annotated[list[Literal["latents", "sections", "preview"]] | None, BeforeValidator(patterns_value)] = Field(
        None,
        description="Also keep the final latents, each section's stretch as a video, a rough picture of each section.",
    )
    template: Annotated[StrictStr | None, BeforeValidator(template_value)] = Field(
        None,
        description="Pattern of file names; fields are name, seed, lora, model, width, height and steps.",
        json_schema_extra={"examples": ["{name}-{seed}-{lora}"]},
    )
    metadata: StrictBool | None = Field(
        None, description="Whether results hold the job that they were made from (default true)."
    )


GateWord = Literal["fail", "warn", "off"]


class GatesSpec(_Layer):
    """What is done about defects of the result: fail the job, note them, or do not look."""

    nan: GateWord | None = Field(None, description="Latents or pixels that are no numbers (default fail).")
    black: GateWord | None = Field(None, description="Frames that are nearly black, or of one colour (default warn).")
    frozen: GateWord | None = Field(None, description="A stretch without motion (default warn).")
    drift: GateWord | None = Field(None, description="Brightness or saturation that wander (default off).")


class PostSpec(_Layer):
    """What is done with the finished frames before they are encoded."""

    interpolate: Number | None = Field(
        None, gt=1, le=240, description="Frames per second to come to, by frames that are made between the others."
    )
    upscale: PathText | None = Field(
        None, description="Upscaling model (safetensors) that every frame goes through; needs goan-cli[post]."
    )


LoraList = Annotated[list[Annotated[LoraSpec, BeforeValidator(path_or_keys_value)]], Field(max_length=32)]


class MomentSpec(_Layer):
    """What changes from a time of the finished video on; what is not given stays as it was."""

    # So that a moment whose time is wrong has its other keys looked at; see `checking.checked`.
    stand_ins: ClassVar[Mapping[str, float]] = {"at": 0.0}

    at: Annotated[float, BeforeValidator(seconds_value)] = Field(
        ge=0, le=600, description="When, in seconds of the video (2.4s); snapped to a section, shown in the plan."
    )
    blend: StrictInt = Field(0, ge=0, le=100, description="Sections over which the prompt goes over into this one.")
    prompt: StrictStr | None = Field(None, description="What happens from here on.")
    negative_prompt: StrictStr | None = Field(None, description="What to avoid from here on.")
    guidance_scale: Number | None = Field(None, ge=0, le=100, description="Distilled guidance from here on.")
    true_cfg_scale: Number | None = Field(None, ge=1, le=100, description="True CFG from here on; 1 is off.")
    image: PathText | None = Field(None, description="A picture to look at from here on, in place of the start image.")
    loras: LoraList | None = Field(None, description="LoRAs from here on, in place of the others.")


class ControlSpec(_Layer):
    """A further picture that one-frame inference looks at, and its frame index."""

    image: PathText = Field(description="Image, relative to this file.")
    index: StrictInt = Field(ge=0, le=1000, description="Its frame index; the start image's is 0.")


class OneFrameSpec(_Layer):
    """One picture instead of a video: what would be seen at a frame index, from the start image and others."""

    target: StrictInt | None = Field(None, ge=0, le=1000, description="Frame index to make (default: the window).")
    controls: list[ControlSpec] = Field(default_factory=list, max_length=18, description="Further control images.")
    no_2x: StrictBool = Field(default=False, description="Leave out the empty history at half resolution.")
    no_4x: StrictBool = Field(default=False, description="Leave out the empty history at a quarter.")
    no_post: StrictBool = Field(default=False, description="Leave out the empty frame that comes after.")


class GuidanceScheduleSpec(_Layer):
    """How the distilled guidance goes from `guidance_scale` at the video's start to `end` at its end."""

    shape: Literal["linear", "roll-off"] = Field("linear", description="Straight, or held and then rolled off.")
    end: Number = Field(ge=0, le=100, description="The scale of the last section.")
    start_at: Number = Field(0.75, ge=0, lt=1, description="Of roll-off: share of the video until which it is held.")
    curve: Number = Field(1.0, gt=0, le=10, description="Of roll-off: 1 is straight, more begins slower.")
    trim: Number = Field(1.0, ge=0, le=10, description="Factor on the first section's scale.")


class JobSpec(_Layer):
    """The keys of one job. A key left out comes from `defaults`, then the preset, then the model pack."""

    name: Annotated[StrictStr, BeforeValidator(name_value)] | None = Field(
        None, description="File name of the result without suffix (default: from the file's name)."
    )
    preset: PathText | None = Field(None, description="draft, balanced, quality, or a YAML file of keys.")
    model: PathText | None = Field(None, description="A pack's name, its folder or its manifest.")
    image: PathText | None = Field(None, description="Start image, relative to this file.")
    start: Annotated[StrictStr | None, BeforeValidator(start_value)] = Field(
        None,
        description="What to begin from instead of an image: black, grey, white, '#rrggbb' or noise.",
        json_schema_extra={"examples": ["grey", "noise", "#3a6ea5"]},
    )
    video: Annotated[VideoSpec | None, BeforeValidator(path_or_keys_value)] = Field(
        None,
        description="Video to go on with: forward models continue it, inverted ones lead up to it. "
        "Lengths and the timeline's times are then those of the new part.",
    )
    end_image: PathText | None = Field(None, description="Image that the video ends on (inverted models).")
    end_strength: Number | None = Field(None, gt=0, le=1, description="How closely it ends on it (default 1).")
    loop: StrictBool | None = Field(None, description="End on the start image, so that the video can be repeated.")
    one_frame: OneFrameSpec | None = Field(
        None, description="Make one picture instead of a video (image editing with FramePack)."
    )
    prompt: StrictStr | None = Field(
        None, description="What happens in the video; not needed where a timeline says so from 0 s on."
    )
    timeline: list[MomentSpec] | None = Field(
        None, max_length=1000, description="What changes when, in seconds of the finished video."
    )
    negative_prompt: StrictStr | None = Field(None, description="What to avoid; acts with true_cfg_scale > 1.")
    seconds: Number | None = Field(
        None, gt=0, le=600, description="Length; snapped to whole sections, shown in the plan."
    )
    sections: StrictInt | None = Field(None, ge=1, le=20_000, description="Length in sections, instead of seconds.")
    fps: Number | None = Field(None, ge=1, le=120, description="Frames per second (default 30).")
    size: Annotated[list[StrictInt] | Literal["auto"] | None, BeforeValidator(size_value)] = Field(
        None,
        description="auto (nearest bucket of the model) or [width, height], multiples of 16.",
        json_schema_extra={"examples": ["auto", [640, 608]]},
    )
    resolution: StrictInt | None = Field(
        None, ge=64, le=2048, description="Of size: auto, the length of side that the buckets are made for."
    )
    fit: Literal["crop", "pad"] | None = Field(
        None, description="How images fill the size: cut off at the edges (default), or with black beside them."
    )
    paddings: list[Annotated[StrictInt, Field(ge=0, le=1000)]] | None = Field(
        None, min_length=1, description="How far each section is from the start, in sampling order (inverted models)."
    )
    seed: StrictInt | None = Field(
        None, ge=0, lt=2**63, description="Noise seed; absent: drawn, and recorded in the sidecar."
    )
    steps: StrictInt | None = Field(None, ge=1, le=1000, description="Sampler steps per section.")
    window: StrictInt | None = Field(None, ge=1, le=64, description="New latent frames per section.")
    guidance_scale: Number | None = Field(None, ge=0, le=100, description="Distilled guidance (default 10).")
    guidance_schedule: GuidanceScheduleSpec | None = Field(
        None, description="How the distilled guidance changes over the video."
    )
    true_cfg_scale: Number | None = Field(
        None, ge=1, le=100, description="True CFG; 1 (default) is off, more doubles the work."
    )
    guidance_rescale: Number | None = Field(
        None, ge=0, le=1, description="Pull of true CFG back to the positive branch's deviation (default 0)."
    )
    shift: Number | None = Field(
        None, ge=0.01, le=100, description="Shift of the noise schedule; absent: from the token count."
    )
    step_cache: Annotated[StepCacheSpec | None, BeforeValidator(step_cache_value)] = Field(
        None, description="off (default), teacache or magcache: approximate and faster."
    )
    precision: Literal["auto", "fp32", "fp16", "bf16", "fp8"] | None = Field(
        None, description="What the transformer computes in (default auto: by the device); fp8 is approximate."
    )
    compile: Annotated[Literal["auto", "on", "off"] | None, BeforeValidator(on_or_off_value)] = Field(
        None, description="Compile the blocks (default auto: on a GPU, when there are enough steps to pay for it)."
    )
    attention: Literal["auto", "sdpa", "cudnn", "flash", "sage"] | None = Field(
        None, description="Attention kernel (default auto); sage is approximate."
    )
    memory: Annotated[StrictStr | None, BeforeValidator(memory_value)] = Field(
        None,
        description="Memory to use on the GPU, such as 12GB (default auto: what is free there).",
        json_schema_extra={"examples": ["auto", "24GB", "12GB", "8GB", "6GB"]},
    )
    decode: Literal["overlap", "single"] | None = Field(
        None, description="overlap (default) as FramePack decodes, or single: cheaper, not the same pixels."
    )
    loras: LoraList | None = Field(None, description="LoRAs baked into the weights for this job.")
    post: PostSpec | None = Field(None, description="What is done with the finished frames: more a second, or larger.")
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


class SingleJobFile(JobEntry):
    """A file of one job."""

    version: SchemaVersion = 1


class BatchFile(_Layer):
    """A file of several jobs, as editors are told of it."""

    version: SchemaVersion = 1
    defaults: JobSpec | None = None
    jobs: list[JobEntry] = Field(min_length=1)
