"""What sections are told: LoRAs, pictures to look at, moments of a timeline, guidance, and how a video ends."""

from dataclasses import dataclass
from pathlib import Path

from goan_cli.jobs.sizes import Fit


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
class Control:
    """A further picture that one-frame inference looks at, at a frame index."""

    picture: Picture
    index: int


@dataclass(frozen=True, kw_only=True)
class OneFrame:
    """One picture instead of a video; see `jobs.sections.plan_still`."""

    target: int
    controls: tuple[Control, ...]
    no_2x: bool
    no_4x: bool
    no_post: bool


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
