"""Measures text to video: what becomes of a colour or of noise, and how near to it the first frame is."""

import tempfile
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from goan_cli.documents import Data
from goan_cli.render.engine import Engine
from goan_cli.render.image import filled_pixels
from goan_cli.tiny.measures import Frames, colour_kept, direction, psnr_between, track
from goan_cli.tiny.palette import DIRECTIONS
from goan_cli.tiny.rendering import plan_scene, rendered
from goan_cli.tiny.training import seeded
from goan_cli.tiny.world import APPEARANCE, SIDE, Scene, captions, draw_blank_scene

# Every kind of start that a job can name; the last two colours are none that have a name.
STARTS = ("black", "grey", "white", "noise", "#3a6ea5", "#7a2f5c")


@dataclass(frozen=True, kw_only=True)
class BlankResult:
    """What a video shows that began from nothing; directions and colours from where all of the shape has appeared.

    `first_frame` is the PSNR in dB of the first frame against the start, of noise against its mean colour.
    """

    wanted: str
    seen: str
    colour_kept: bool
    first_frame: float
    frames: Frames


def blank_result(
    engine: Engine, folder: Path, model: str, start: str, wanted: str, *, seed: int, steps: int = 8, sections: int = 3
) -> BlankResult:
    """Render a prompt's video from a start without an image, and read it."""
    scene = blank_scene(start, seed)
    prompt = captions(shape=scene.shape, colour=scene.colour, motion=wanted)[seed % 4]
    settings: dict[str, Data] = {"model": model, "seed": seed, "sections": sections, "steps": steps}
    frames = rendered(engine, plan_scene(folder, "blank", scene, prompt, settings=settings))
    found = track(frames[APPEARANCE:])
    mean = filled_pixels(start, (SIDE, SIDE), seed).mean(axis=(0, 1), keepdims=True)
    return BlankResult(
        wanted=wanted,
        seen=direction(found),
        colour_kept=colour_kept(found, scene.colour),
        first_frame=psnr_between(frames[:1], np.broadcast_to(mean, frames[:1].shape)),
        frames=frames,
    )


def blank_scene(start: str, number: int) -> Scene:
    """A scene that begins from `start`, of a shape and a colour by its number."""
    return replace(draw_blank_scene(seeded(number, stream=44), duration=24), blank=start, blank_seed=number)


def blank_figures(model: str) -> dict[str, float]:
    """Shares over videos of three sections: every start is told to go each of the four ways."""
    torch.set_num_threads(1)
    engine = Engine(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        results = [
            blank_result(engine, Path(folder), model, start, wanted, seed=seed)
            for seed, (start, wanted) in enumerate(product(STARTS, DIRECTIONS))
        ]
    return {
        "videos": len(results),
        "direction": float(np.mean([result.seen == result.wanted for result in results])),
        "colour": float(np.mean([result.colour_kept for result in results])),
        "first_frame": float(np.mean([result.first_frame for result in results])),
        "first_frame_worst": min(result.first_frame for result in results),
    }
