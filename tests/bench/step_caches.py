"""What step caches skip and what that costs, on the tiny packs: `python -m tests.bench.step_caches`.

Every clip is rendered exactly and with each cache, from the same seed; speeds are CPU time. Nothing here is a test.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from goan_cli.render.engine import Engine
from goan_cli.tiny.evaluate import central_scene
from goan_cli.tiny.measures import psnr_of_all
from goan_cli.tiny.palette import DIRECTIONS
from goan_cli.tiny.rendering import plan_scene
from goan_cli.tiny.world import captions

THRESHOLDS = {"teacache": (0.1, 0.15, 0.2, 0.3, 0.5), "magcache": (0.05, 0.1, 0.15, 0.2, 0.4, 0.8)}


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Frames of every clip, the steps computed in every section, and the CPU seconds of sampling."""

    frames: list[NDArray[np.uint8]]
    computed: list[int]
    seconds: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", choices=("tiny", "tiny-f1"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--clips", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine(device="cpu")
    table = Table(title=f"{options.model}, {options.steps} steps, {options.clips} clips", title_justify="left")
    for column in ("cache", "threshold", "computed", "speed", "PSNR, dB", "worst"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        clips(engine, Path(folder), options.model, options.steps, 1, None)  # the first render is the slowest
        exact = clips(engine, Path(folder), options.model, options.steps, options.clips, None)
        for kind, thresholds in THRESHOLDS.items():
            for threshold in thresholds:
                cache = (kind, threshold)
                made = clips(engine, Path(folder), options.model, options.steps, options.clips, cache)
                worst = min(psnr_of_all([one], [other]) for one, other in zip(made.frames, exact.frames, strict=True))
                table.add_row(
                    kind,
                    f"{threshold:g}",
                    f"{statistics.mean(made.computed):.1f}",
                    f"{exact.seconds / made.seconds:.2f}x",
                    f"{psnr_of_all(made.frames, exact.frames):.1f}",
                    f"{worst:.1f}",
                )
    Console(width=100).print(table)


def clips(engine: Engine, folder: Path, model: str, steps: int, count: int, cache: tuple[str, float] | None) -> Clips:
    """Clips of four sections of the tiny world's evaluation scenes, with a cache of (kind, threshold) or none."""
    setting = "off" if cache is None else {"kind": cache[0], "threshold": cache[1]}
    frames, computed, seconds = [], [], 0.0
    for number in range(count):
        scene = central_scene(200 + number)
        motion = list(DIRECTIONS)[number % len(DIRECTIONS)]
        prompt = captions(shape=scene.shape, colour=scene.colour, motion=motion)[0]
        settings = {"model": model, "steps": steps, "seed": number, "step_cache": setting}
        plan = plan_scene(folder, "clip", scene, prompt, settings=settings)
        conditioning = engine.conditioning_for(plan)
        started = time.process_time()
        sampled = engine.sample(plan, conditioning)
        seconds += time.process_time() - started
        computed += [len(section) or steps for section in sampled.computed_steps]
        frames.append(np.concatenate(list(engine.frames(plan, sampled.latents))))
    return Clips(frames=frames, computed=computed, seconds=seconds)


if __name__ == "__main__":
    main()
