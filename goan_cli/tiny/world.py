"""The tiny pack's world: seeded clips of one coloured shape on a calm background, and the captions that tell them.

Lengths are in pixels of a 64 x 64 picture whatever size is drawn, times in frames; pictures are RGB in [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from goan_cli.jobs.fields import COLOURS as START_COLOURS
from goan_cli.jobs.fields import NOISE
from goan_cli.render.image import filled_pixels
from goan_cli.tiny.palette import COLOURS, DIRECTIONS, DUSK, MOTIONS, SHAPES

SIDE = 64
# The fastest a shape travels, in pixels a frame: four frames, one latent's, then still overlap.
FASTEST = 1.3
# One hop, in frames: as long as a section of window 3, so that every section starts on the ground.
HOP = 12
HOP_HEIGHT = 7.0
# How far to either side a shape sways, as often as another hops.
SWAY = 6.0
# The frames that dusk takes to fall.
NIGHTFALL = 12
# The frames that a shape and its ground take to appear where a video begins from nothing: two latents.
APPEARANCE = 8
RADII = (8.0, 12.0)
# A shape that travels keeps this far from the edge.
MARGIN = 2.0
# Half the width of an edge: soft ones survive an autoencoder with 8 x 8 patches.
_SOFTNESS = 1.6

# What a blank scene begins from; None stands for any colour.
_BLANKS = (*START_COLOURS, NOISE, None, None)

_Option = TypeVar("_Option")

_WORDINGS = {
    "left": ("moves left", "moves to the left"),
    "right": ("moves right", "moves to the right"),
    "up": ("moves up", "moves upwards"),
    "down": ("moves down", "moves downwards"),
    "bounce": ("bounces", "bounces up and down"),
    "grow": ("grows", "gets bigger"),
    "shrink": ("shrinks", "gets smaller"),
    "still": ("stands still", "does not move"),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip's content: what is where at its first frame, and what becomes of it.

    A shape travels, grows or shrinks by `way` pixels within `duration` frames, slowing down if `ease` is over 1.
    What the demonstration LoRAs add: the shape `sways` from side to side, or `dusk` falls on the background.
    A `blank` scene's first frame is a job's `start`, a colour or noise (drawn from `blank_seed`), out of which shape
    and background appear.
    """

    shape: str
    colour: str
    motion: str
    x: float
    y: float
    radius: float
    top: tuple[float, float, float]
    bottom: tuple[float, float, float]
    way: float = 0.0
    duration: int = 1
    ease: float = 1.0
    sways: bool = False
    dusk: bool = False
    blank: str | None = None
    blank_seed: int = 0


def draw_scene(generator: torch.Generator, *, duration: int, motion: str | None = None) -> Scene:
    """A scene drawn from `generator`, of one motion if told; where it starts leaves room for the motion.

    The motion takes the whole `duration`, in frames, however long it is: the inverted family knows where in a
    video it is only as "near the start" or "far", so a pace that did not depend on the length would be torn.
    """
    shape, colour = choice(generator, SHAPES), choice(generator, tuple(COLOURS))
    motion = motion or choice(generator, MOTIONS)
    radius, way = between(generator, *RADII), between(generator, 12.0, 30.0)
    ease = between(generator, 1.0, 2.5)
    if motion in ("grow", "shrink"):
        radius = RADII[0] - 2 if motion == "grow" else RADII[1] + 2
        way = between(generator, 5.0, 8.0)
    way = min(way, FASTEST * duration / ease)
    x, y = (between(generator, *_room(radius + (way if motion == "grow" else 0))) for _ in range(2))
    if motion in DIRECTIONS:
        along_x, along_y = DIRECTIONS[motion]
        low, high = _room(radius)
        start = low + between(generator, 0.0, max(high - low - way, 1.0))
        x = x if not along_x else start if along_x > 0 else SIDE - start
        y = y if not along_y else start if along_y > 0 else SIDE - start
    if motion == "bounce":
        y = max(y, MARGIN + radius + HOP_HEIGHT)
    shade, hue = between(generator, 0.22, 0.62), between(generator, 0.0, 2 * math.pi)
    slope = choice(generator, (0.0, 0.10, 0.18))
    return Scene(
        shape=shape,
        colour=colour,
        motion=motion,
        x=x,
        y=y,
        radius=radius,
        way=way,
        duration=duration,
        ease=ease,
        top=_tint(shade - slope / 2, hue),
        bottom=_tint(shade + slope / 2, hue),
    )


def draw_blank_scene(generator: torch.Generator, *, duration: int, motion: str | None = None) -> Scene:
    """A scene that begins from nothing: nothing but the words says where to, so it crosses the middle of the picture.

    The background takes a quarter of the colour that it appears from.
    """
    scene = draw_scene(generator, duration=duration, motion=motion)
    x, y = (SIDE / 2 + between(generator, -2.0, 2.0) for _ in range(2))
    way = scene.way
    if scene.motion in DIRECTIONS:
        way = min(between(generator, 20.0, 28.0), FASTEST * duration)
        along_x, along_y = DIRECTIONS[scene.motion]
        x, y = x - along_x * way / 2, y - along_y * way / 2
    blank = choice(generator, _BLANKS) or _drawn_colour(generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    ground = (0.42 + 0.25 * (rgb - 0.5) for rgb in _blank_pixels(blank, seed, SIDE, SIDE).mean(dim=(0, 1)).tolist())
    red, green, blue = ground
    return replace(
        scene,
        x=x,
        y=y,
        way=way,
        ease=1.0,
        top=(red, green, blue),
        bottom=(red, green, blue),
        blank=blank,
        blank_seed=seed,
    )


def captions(*, shape: str, colour: str, motion: str) -> tuple[str, ...]:
    """The ways to say what happens, such as "a red circle moves right", the plainest first."""
    return tuple(f"{article} {colour} {shape} {wording}" for wording in _WORDINGS[motion] for article in ("a", "the"))


def all_captions() -> list[str]:
    """Everything that the world has words for."""
    return [
        text
        for shape in SHAPES
        for colour in COLOURS
        for motion in MOTIONS
        for text in captions(shape=shape, colour=colour, motion=motion)
    ]


def poses(scene: Scene, frames: int) -> Tensor:
    """Where the shape is in each frame: (frames, 3) of x, y and radius."""
    time = torch.arange(frames, dtype=torch.float32)
    x, y, radius = (torch.full((frames,), value) for value in (scene.x, scene.y, scene.radius))
    progress = (time / scene.duration).clamp(max=1)
    way = scene.way * (1 - (1 - progress) ** scene.ease)
    if scene.motion in DIRECTIONS:
        along_x, along_y = DIRECTIONS[scene.motion]
        x, y = x + along_x * way, y + along_y * way
    elif scene.motion == "bounce":
        y = y - HOP_HEIGHT * (math.pi * time / HOP).sin().abs()
    elif scene.motion == "grow":
        radius = radius + way
    elif scene.motion == "shrink":
        radius = radius - way
    if scene.sways:
        x = x + SWAY * (2 * math.pi * time / HOP).sin()
    return torch.stack([x, y, radius], dim=1)


def render_clip(scene: Scene, frames: int, *, height: int = SIDE, width: int = SIDE) -> Tensor:
    """The clip's frames, (frames, 3, height, width) RGB in [0, 1]; the shorter side shows the world's 64 pixels."""
    coverage = shape_masks(scene, frames, height=height, width=width)
    share = (torch.arange(height) + 0.5) / height
    top, bottom, colour = (torch.tensor(rgb) for rgb in (scene.top, scene.bottom, COLOURS[scene.colour]))
    ground = rearrange(top, "c -> c 1 1") + rearrange(bottom - top, "c -> c 1 1") * rearrange(share, "h -> 1 h 1")
    ground = repeat(ground, "c h 1 -> t c h 1", t=frames)
    if scene.dusk:
        fallen = rearrange((torch.arange(frames) / NIGHTFALL).clamp(max=1), "t -> t 1 1 1")
        ground = ground + fallen * (rearrange(torch.tensor(DUSK), "c -> c 1 1") - ground)
    blank = None if scene.blank is None else _blank_pixels(scene.blank, scene.blank_seed, height, width)
    if blank is not None:
        before = reduce(blank, "h w c -> c 1 1", "mean")
        ground = before + rearrange(_appeared(frames), "t -> t 1 1 1") * (ground - before)
    clip = ground + rearrange(coverage, "t h w -> t 1 h w") * (rearrange(colour, "c -> c 1 1") - ground)
    if blank is not None:
        clip = torch.cat((rearrange(blank, "h w c -> 1 c h w"), clip[1:]))
    return clip


def shape_masks(scene: Scene, frames: int, *, height: int = SIDE, width: int = SIDE) -> Tensor:
    """How much of each pixel the shape covers, (frames, height, width) in [0, 1]."""
    scale = SIDE / min(height, width)
    down = (torch.arange(height) + 0.5) * scale - (height * scale - SIDE) / 2
    across = (torch.arange(width) + 0.5) * scale - (width * scale - SIDE) / 2
    x, y, radius = rearrange(poses(scene, frames), "t pose -> pose t 1 1")
    distance = _distance(scene.shape, across - x, rearrange(down, "h -> h 1") - y, radius)
    covered = (0.5 - distance / (2 * _SOFTNESS)).clamp(0, 1)
    return covered if scene.blank is None else covered * rearrange(_appeared(frames), "t -> t 1 1")


def _distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance from the outline, negative inside; the square and the triangle have a circle's area or so."""
    if shape == "circle":
        return x.square().add(y.square()).sqrt() - radius
    if shape == "square":
        return torch.maximum(x.abs().expand_as(y + x), y.abs().expand_as(y + x)) - 0.88 * radius
    # An upright triangle: the base below, two flanks that lean by 30 degrees.
    flank = math.cos(math.pi / 6) * x.abs() - math.sin(math.pi / 6) * (y + 1.25 * radius)
    return torch.maximum(flank, y - 0.8 * radius + 0 * x)


def _appeared(frames: int) -> Tensor:
    return (torch.arange(frames) / APPEARANCE).clamp(max=1)


def _blank_pixels(blank: str, seed: int, height: int, width: int) -> Tensor:
    """What a video without an image begins from: (height, width, 3) RGB in [0, 1]."""
    return torch.from_numpy(filled_pixels(blank, (width, height), seed)).float() / 255


def _drawn_colour(generator: torch.Generator) -> str:
    return "#" + "".join(f"{int(torch.randint(256, (), generator=generator)):02x}" for _ in range(3))


def _room(radius: float) -> tuple[float, float]:
    return MARGIN + radius, SIDE - MARGIN - radius


def _tint(shade: float, hue: float) -> tuple[float, float, float]:
    red, green, blue = (shade + 0.07 * math.cos(hue + 2 * math.pi * third / 3) for third in range(3))
    return red, green, blue


def between(generator: torch.Generator, low: float, high: float) -> float:
    """A number drawn evenly from low to high."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def choice(generator: torch.Generator, options: Sequence[_Option]) -> _Option:
    """One of the options, each as likely as the others."""
    return options[int(torch.randint(len(options), (), generator=generator))]
