"""A job with nothing left to default: what crosses from the user's words into the renderer."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from goan_cli.jobs.sections import Family, SectionPlan
from goan_cli.jobs.sizes import Fit

STATE_DIR = ".goan"


@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """What a model pack decides where a job is silent. `resolution` is the bucket size in pixels."""

    family: Family
    window: int
    steps: int
    resolution: int


class StepCacheKind(StrEnum):
    """TeaCache looks at what changes while it samples; MagCache goes by what a calibration measured."""

    TEACACHE = "teacache"
    MAGCACHE = "magcache"


@dataclass(frozen=True, kw_only=True)
class StepCache:
    """Skip steps' blocks while an accumulated change, or error, stays under `threshold`."""

    threshold: float
    kind: StepCacheKind = StepCacheKind.TEACACHE


class WantedPrecision(StrEnum):
    """In what the transformer computes: what suits the device, or this; fp8 is for the blocks' linears alone."""

    AUTO = "auto"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"


class Compile(StrEnum):
    """Whether torch compiles the blocks; auto: on a GPU, when a run has enough steps to pay for it."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class AttentionBackend(StrEnum):
    """Whose attention kernel runs. `sage` is approximate."""

    AUTO = "auto"
    SDPA = "sdpa"
    CUDNN = "cudnn"
    FLASH = "flash"
    SAGE = "sage"


class DecodeMode(StrEnum):
    """Decode as FramePack does, most latents twice and cross-faded, or each once, which is cheaper."""

    OVERLAP = "overlap"
    SINGLE = "single"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the sampling is carried out; all but fp8 and sage make the same output up to rounding.

    `memory` is the budget on the device in bytes, None for what is free there.
    """

    precision: WantedPrecision = WantedPrecision.AUTO
    compile: Compile = Compile.AUTO
    attention: AttentionBackend = AttentionBackend.AUTO
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the sampler; `guidance_scale` is the distilled one, `shift` None means by token count."""

    steps: int
    seed: int
    guidance_scale: float = 10.0
    true_cfg_scale: float = 1.0
    guidance_rescale: float = 0.0
    shift: float | None = None
    step_cache: StepCache | None = None


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """One LoRA file, how strongly it is baked, and which modules it may change (glob patterns on names).

    `trusted` accepts a file that cannot be told from FLUX.1's.
    """

    path: Path
    weight: float
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    trusted: bool = False


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file, and how it fills the render size."""

    path: Path
    fit: Fit


@dataclass(frozen=True, kw_only=True)
class EndImage:
    """The image that a video ends on, and how closely, above 0 to 1."""

    picture: Picture
    strength: float


@dataclass(frozen=True, kw_only=True)
class GuidanceSchedule:
    """Distilled guidance over the video: `shape` is linear or roll-off; see `jobs.timeline.scheduled_scales`."""

    shape: str
    end: float
    start_at: float
    curve: float
    trim: float


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What changes from a section on, counted from 0 in viewing order; `at` is the time that was asked for.

    None is for what stays as it was. Over the first `blend` sections the prompt goes over into the new one.
    """

    at: float
    section: int
    blend: int = 0
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    image: Picture | None = None
    loras: tuple[LoraUse, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What one section is told: to show `prompt`, of which `share` (0 to 1) has come in the place of `earlier`.

    `image` is looked at in place of the start image, None for that one.
    """

    prompt: str
    negative_prompt: str
    guidance_scale: float
    true_cfg_scale: float
    loras: tuple[LoraUse, ...]
    image: Picture | None = None
    earlier: str = ""
    share: float = 1.0


class Gate(StrEnum):
    """What is done about a render that shows a defect."""

    FAIL = "fail"
    WARN = "warn"
    OFF = "off"


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Which defects fail a job, which are noted, which are not looked at; see `output.quality` for the measures."""

    nan: Gate = Gate.FAIL
    black: Gate = Gate.WARN
    frozen: Gate = Gate.WARN
    drift: Gate = Gate.OFF


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A job's place in its matrix: the matrix's name, its axes with their values as text, and the place on each."""

    matrix: str
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    place: tuple[int, ...]

    @property
    def values(self) -> dict[str, str]:
        """The job's own value on each axis."""
        return {key: values[at] for (key, values), at in zip(self.axes, self.place, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where and how the result is written."""

    dir: Path
    keep_latents: bool
    contact_sheet: bool
    crf: int


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to render. `size` is (width, height); `seconds` is what was asked for, if it was.

    Without an `image` the video begins from `start` (see `jobs.fields.start_value`). `directions` are the sections',
    in sampling order, as `timeline` and `guidance_schedule` come to.
    """

    name: str
    model: str
    image: Path | None
    image_fit: Fit
    prompt: str
    negative_prompt: str
    seconds: float | None
    fps: float
    sections: SectionPlan
    sampling: Sampling
    seed_drawn: bool
    loras: tuple[LoraUse, ...]
    directions: tuple[Direction, ...]
    output: Output
    start: str | None = None
    end: EndImage | None = None
    loop: bool = False
    timeline: tuple[Moment, ...] = ()
    guidance_schedule: GuidanceSchedule | None = None
    paddings: tuple[int, ...] | None = None
    execution: Execution = Execution()
    decode: DecodeMode = DecodeMode.OVERLAP
    gates: Gates = Gates()
    retry_seeds: int = 0
    variant: Variant | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the video in pixels."""
        return self.image_fit.size

    @property
    def is_directed(self) -> bool:
        """Whether sections are told different things, or other than the job's own keys say."""
        own = Direction(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            guidance_scale=self.sampling.guidance_scale,
            true_cfg_scale=self.sampling.true_cfg_scale,
            loras=self.loras,
        )
        return any(direction != own for direction in self.directions)

    @property
    def is_guided(self) -> bool:
        """Whether any section has true CFG, and so looks at a negative prompt."""
        return any(direction.true_cfg_scale != 1.0 for direction in self.directions)

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Every image file that the video is made from, each once."""
        end = (self.end.picture.path,) if self.end else ()
        seen = (direction.image.path for direction in self.directions if direction.image)
        return tuple(dict.fromkeys([*((self.image,) if self.image else ()), *end, *seen]))

    @property
    def video(self) -> Path:
        """Where the finished MP4 goes."""
        return self.output.dir / f"{self.name}.mp4"

    @property
    def sidecar(self) -> Path:
        """Where the JSON beside it goes; its presence means that the job is complete."""
        return self.output.dir / f"{self.name}.json"

    @property
    def latents(self) -> Path:
        """Where the final latents go, if they are kept."""
        return self.output.dir / f"{self.name}.latents.safetensors"

    @property
    def contact_sheet(self) -> Path:
        """Where the contact sheet goes, if one is asked for."""
        return self.output.dir / f"{self.name}.sheet.png"

    @property
    def rejected(self) -> Path:
        """Where a video goes that did not pass the job's gates, to be looked at."""
        return self.state_dir / f"{self.name}.rejected.mp4"

    @property
    def state_dir(self) -> Path:
        """The folder of what is not finished: locks, checkpoints, records of failures."""
        return self.output.dir / STATE_DIR

    @property
    def lock(self) -> Path:
        """Held by the process that renders the job."""
        return self.state_dir / f"{self.name}.lock"

    @property
    def failure(self) -> Path:
        """Why the job failed the last time, if it did."""
        return self.state_dir / f"{self.name}.failed.json"

    def checkpoint(self, identity: str) -> Path:
        """How far the sampling with this identity is."""
        return self.state_dir / f"{self.name}.{identity[:16]}.safetensors"

    def preview(self, section: int) -> Path:
        """Where the rough picture of a section goes, numbered from 1."""
        return self.output.dir / f"{self.name}.section-{section}.png"

    @property
    def results(self) -> tuple[Path, ...]:
        """Every file that the job will write, previews apart."""
        latents = (self.latents,) if self.output.keep_latents else ()
        sheet = (self.contact_sheet,) if self.output.contact_sheet else ()
        return (self.video, self.sidecar, *latents, *sheet)
