"""A job with nothing left to default: what crosses from the user's words into the renderer."""

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from goan_cli.jobs.directing import Direction, EndImage, GuidanceSchedule, LoraUse, Moment, OneFrame
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.formats import SUFFIXES, Codec, Coding, Format
from goan_cli.jobs.sections import Family, Section, SectionPlan
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
class Post:
    """What finished frames go through: `upscale` is a model's file, `interpolate` the frames a second to come to."""

    upscale: Path | None = None
    interpolate: float | None = None


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
    """Where and how the result is written, and what is kept beside it; `metadata` puts the job into the files."""

    dir: Path
    keep_latents: bool
    contact_sheet: bool
    crf: int | None
    format: Format = Format.MP4
    codec: Codec = Codec.H264
    keep_sections: bool = False
    keep_previews: bool = False
    poster: bool = False
    metadata: bool = True

    @property
    def coding(self) -> Coding:
        """How videos are written."""
        return Coding(format=self.format, codec=self.codec, crf=self.crf)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video to render. `size` is (width, height); `seconds` is what was asked for, if it was.

    Without an `image` the video begins from `start` (see `jobs.fields.start_value`), or with the video of an
    `extension`. `directions` are the sections', in sampling order, as `timeline` and `guidance_schedule` come to.
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
    post: Post | None = None
    extension: Extension | None = None
    one_frame: OneFrame | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the video in pixels."""
        return self.image_fit.size

    @property
    def frames(self) -> int:
        """Frames of the finished video: of what is sampled, with those of the video that it goes on with."""
        if self.extension is None:
            return self.sections.frames
        # One of the frames that sections count as theirs is the video's.
        return self.sections.frames - 1 + (self.extension.clip.frames if self.extension.join else 0)

    @property
    def has_start(self) -> bool:
        """Whether it begins from something of its own, not from the video that it goes on with."""
        return self.image is not None or self.start is not None

    def frames_of(self, section: Section) -> tuple[int, int]:
        """The frames, half open, of the finished video that a section makes."""
        first, stop = section.frames
        if self.extension is None:
            return first, stop
        if self.extension.family is Family.INVERTED:
            return first, min(stop, self.sections.frames - 1)
        before = (self.extension.clip.frames if self.extension.join else 0) - 1
        return max(first, 1) + before, stop + before

    @property
    def decoded_sections(self) -> SectionPlan:
        """What decoding is as much work as: with the video that is gone on with as one more section."""
        if self.extension is None:
            return self.sections
        return replace(self.sections, sections=(*self.sections.sections, self.sections.sections[-1]))

    @property
    def decoded_before(self) -> int:
        """How many frames are decoded before those that its sections count as theirs."""
        forward = self.extension is not None and self.extension.family is Family.F1
        return self.extension.overlap - 1 if self.extension is not None and forward else 0

    @property
    def own_direction(self) -> Direction:
        """What the job's own keys tell every section."""
        return Direction(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            guidance_scale=self.sampling.guidance_scale,
            true_cfg_scale=self.sampling.true_cfg_scale,
            loras=self.loras,
        )

    @property
    def is_directed(self) -> bool:
        """Whether sections are told different things, or other than the job's own keys say."""
        return any(direction != self.own_direction for direction in self.directions)

    @property
    def is_guided(self) -> bool:
        """Whether any section has true CFG, and so looks at a negative prompt."""
        return any(direction.true_cfg_scale != 1.0 for direction in self.directions)

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Every image file that the video is made from, each once."""
        end = (self.end.picture.path,) if self.end else ()
        seen = (direction.image.path for direction in self.directions if direction.image)
        controls = (control.picture.path for control in self.one_frame.controls) if self.one_frame else ()
        return tuple(dict.fromkeys([*((self.image,) if self.image else ()), *end, *seen, *controls]))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The pictures, and the video that is gone on with."""
        return (*self.pictures, *((self.extension.clip.path,) if self.extension else ()))

    @property
    def video(self) -> Path:
        """Where the finished video goes, a folder where the format is png; of one-frame inference, the picture."""
        if self.one_frame is not None:
            return self.output.dir / f"{self.name}.png"
        return self.output.dir / f"{self.name}{SUFFIXES[self.output.format]}"

    @property
    def poster(self) -> Path:
        """Where the first frame goes, if it is asked for."""
        return self.output.dir / f"{self.name}.png"

    def section_video(self, section: int) -> Path:
        """Where the stretch of a section goes, numbered from 1 as in the plan, if it is kept."""
        return self.output.dir / f"{self.name}.section-{section}{SUFFIXES[self.output.format]}"

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
        return self.state_dir / f"{self.name}.rejected{self.video.suffix}"

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
        """Every file that the job will write, and a folder of frames; previews only where they are kept."""
        asked, numbers = self.output, range(1, len(self.sections.sections) + 1)
        return (
            self.video,
            self.sidecar,
            *((self.latents,) if asked.keep_latents else ()),
            *((self.contact_sheet,) if asked.contact_sheet else ()),
            *((self.poster,) if asked.poster else ()),
            *(self.section_video(number) for number in numbers if asked.keep_sections),
            *(self.preview(number) for number in numbers if asked.keep_previews),
        )
