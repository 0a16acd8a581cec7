"""Measures what the tiny pack can do, and writes the figures beside it: `python -m goan_cli.tiny.evaluate`.

`make tiny-eval` runs all of it in a quarter of an hour. `evaluation.json` is for machines, `README.md` for people.
"""

import hashlib
import json
import logging
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from goan_cli.documents import Data
from goan_cli.files import sha256_of, write_text
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.engine import Engine
from goan_cli.render.events import Stage
from goan_cli.render.loading import load_vae
from goan_cli.render.plan import RenderPlan
from goan_cli.render.sampling import sample_sections
from goan_cli.tiny.autoencoder import psnr
from goan_cli.tiny.from_nothing import blank_figures
from goan_cli.tiny.loras import wrapped_with
from goan_cli.tiny.measures import (
    Frames,
    colour_kept,
    direction,
    drift_of,
    fallen_share,
    psnr_between,
    psnr_of_all,
    sway_of,
    track,
)
from goan_cli.tiny.palette import DIRECTIONS
from goan_cli.tiny.parts import LORAS, PACK
from goan_cli.tiny.rendering import pixels_of, plan_scene, rendered
from goan_cli.tiny.report import write_report
from goan_cli.tiny.training import seeded
from goan_cli.tiny.world import Scene, captions, draw_scene, render_clip

MODELS = ("tiny", "tiny-f1")
PROMPTS = 100
_HELD_OUT = 40
_MOTION_CLIPS = 12
_LORA_CLIPS = 4
_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
# TeaCache's polynomial is never below 0.052, so lower thresholds skip nothing.
_THRESHOLDS = (0.1, 0.15, 0.2, 0.3, 0.5)
_CACHE_RUNS = 3
_CACHE_STEPS = 25
_CPU = torch.device("cpu")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PromptResult:
    """What one prompt's video shows; drift is of the background, in 256ths, `area` the smallest share left."""

    wanted: str
    seen: str
    colour_kept: bool
    first_frame: float
    area: float
    drift: float


def main() -> None:
    """Measure everything, write it down, and print it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else PROMPTS
    engine = Engine(device="cpu")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures: dict[str, Any] = {"weights": weights_digest(), "autoencoder": autoencoder_figures()}
        log.info("autoencoder %s", figures["autoencoder"])
        # Renders this small gain nothing from a second thread, and everything from a second process.
        with ProcessPoolExecutor(max_workers=len(MODELS), mp_context=get_context("spawn")) as workers:
            for model, seen in zip(MODELS, workers.map(prompt_figures, MODELS, [prompts] * len(MODELS)), strict=True):
                figures[model] = seen
                log.info("%s %s", model, seen)
            for model, shares in zip(MODELS, workers.map(motion_figures, MODELS), strict=True):
                figures[model]["motions"] = shares
                log.info("%s %s", model, shares)
            for model, seen in zip(MODELS, workers.map(blank_figures, MODELS), strict=True):
                figures[model]["from_nothing"] = seen
                log.info("%s from nothing %s", model, seen)
        figures["loras"] = lora_figures(engine, folder)
        log.info("loras %s", figures["loras"])
        figures["step_caches"] = step_cache_figures(engine, folder)
        log.info("step caches %s", figures["step_caches"])
    write_text(PACK / "evaluation.json", json.dumps(figures, indent=2) + "\n")
    write_report(PACK)


@torch.inference_mode()
def autoencoder_figures() -> dict[str, float]:
    """PSNR in dB over held-out clips of 13 frames, decoded whole and from the third latent on."""
    vae = load_vae(PACK / "vae", _CPU, torch.float32)
    whole, later, pictures = [], [], []
    for number in range(_HELD_OUT):
        clip = render_clip(draw_scene(seeded(number, stream=40), duration=12 + 12 * (number % 10)), 13)
        frames = rearrange(clip * 2 - 1, "t c h w -> 1 c t h w")
        latents = vae.encode(frames).latent_dist.mean
        whole.append(_psnr_of(vae.decode(latents).sample, frames))
        later.append(_psnr_of(vae.decode(latents[:, :, 2:]).sample, frames[:, :, 8:]))
        pictures.append(_psnr_of(vae.decode(vae.encode(frames[:, :, :1]).latent_dist.mean).sample, frames[:, :, :1]))
    return {
        "clips": float(np.mean(whole)),
        "clips_worst": min(whole),
        "from_the_third_latent": float(np.mean(later)),
        "pictures": float(np.mean(pictures)),
    }


def _psnr_of(made: Tensor, wanted: Tensor) -> float:
    return psnr((made.clamp(-1, 1) - wanted).square().mean() / 4).item()


def prompt_figures(model: str, prompts: int) -> dict[str, float]:
    """Shares over prompts x seeds, four sections each: the same start image is told to go each of the four ways."""
    torch.set_num_threads(1)
    engine, results = Engine(device="cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(prompts):
            scene, wanted = central_scene(number // len(DIRECTIONS)), list(DIRECTIONS)[number % len(DIRECTIONS)]
            results.append(prompt_result(engine, Path(folder), model, scene, wanted, seed=number))
    return {
        "prompts": prompts,
        "direction": float(np.mean([result.seen == result.wanted for result in results])),
        "colour": float(np.mean([result.colour_kept for result in results])),
        "first_frame": float(np.mean([result.first_frame for result in results])),
        "first_frame_worst": min(result.first_frame for result in results),
        "shape_present": float(np.mean([result.area > 0.5 for result in results])),
        "smallest_area": min(result.area for result in results),
        "drift_mean": float(np.mean([result.drift for result in results])),
        "drift_worst": max(result.drift for result in results),
    }


def motion_figures(model: str) -> dict[str, float]:
    """Shares of twelve videos each, two sections long, in which the other motions are seen."""
    torch.set_num_threads(1)
    engine, seen = Engine(device="cpu"), {}
    with tempfile.TemporaryDirectory() as folder:
        for motion in ("bounce", "grow", "shrink", "still"):
            hits = []
            for number in range(_MOTION_CLIPS):
                scene = draw_scene(seeded(number, stream=42), duration=24, motion=motion)
                prompt = captions(shape=scene.shape, colour=scene.colour, motion=motion)[number % 4]
                settings = {"model": model, "seed": number, "sections": 2}
                plan = plan_scene(Path(folder), "motion", scene, prompt, settings=settings)
                hits.append(_shows(motion, rendered(engine, plan)))
            seen[motion] = float(np.mean(hits))
    return seen


def _shows(motion: str, frames: Frames) -> bool:
    """Whether a motion that leads nowhere can be seen: growth by a fifth of the area, a hop of two pixels."""
    found = track(frames)
    if not found.area.all():
        return False
    growth, height = found.area[-3:].mean() / found.area[:3].mean(), float(np.ptp(found.y))
    if motion in ("grow", "shrink"):
        return bool(growth > 1.2 if motion == "grow" else growth < 1 / 1.2)
    return height > 2 if motion == "bounce" else height < 2 and direction(found) == "still"


def central_scene(number: int) -> Scene:
    """A start image whose shape has room on every side, so that only the prompt says where it goes."""
    generator = seeded(number, stream=41)
    scene = draw_scene(generator, duration=48, motion="still")
    x, y = (26.0 + 12.0 * torch.rand((), generator=generator).item() for _ in range(2))
    return replace(scene, x=x, y=y)


def prompt_result(
    engine: Engine, folder: Path, model: str, scene: Scene, wanted: str, *, seed: int, sections: int = 4
) -> PromptResult:
    """Render a prompt's video and read it."""
    # All four ways to say it, in turn.
    prompt = captions(shape=scene.shape, colour=scene.colour, motion=wanted)[seed // len(DIRECTIONS) % 4]
    settings = {"model": model, "seed": seed, "sections": sections}
    frames = rendered(engine, plan_scene(folder, "prompt", scene, prompt, settings=settings))
    found = track(frames)
    return PromptResult(
        wanted=wanted,
        seen=direction(found),
        colour_kept=colour_kept(found, scene.colour),
        first_frame=psnr_between(frames[:1], pixels_of(render_clip(scene, 1))),
        area=float(found.area.min() / max(found.area[0], 1.0)),
        drift=drift_of(frames, found),
    )


def lora_figures(engine: Engine, folder: Path) -> dict[str, Any]:
    """Each LoRA's effect on `tiny` by weight (mean of four scenes), baked against PEFT's layers, and the way back."""
    numbers = range(_LORA_CLIPS)
    base = [lora_clip(engine, folder, "dusk", None, number) for number in numbers]
    before = _base_latents(engine, folder)
    effects: dict[str, list[float]] = {"dusk": [], "sway": []}
    back = []
    for name, row in effects.items():
        for weight in _WEIGHTS:
            clips = [lora_clip(engine, folder, name, weight, number) for number in numbers]
            row.append(float(np.mean([lora_effect(name, *pair) for pair in zip(base, clips, strict=True)])))
        back.append(torch.equal(_base_latents(engine, folder), before))
    return {
        "weights": list(_WEIGHTS),
        **effects,
        "baked_against_peft": {name: baked_against_peft(engine, folder, name) for name in effects},
        "base_again_bit_for_bit": all(back),
    }


def _lora_plan(folder: Path, name: str, weight: float | None, number: int) -> RenderPlan:
    scene = central_scene(100 + number)
    prompt = captions(shape=scene.shape, colour=scene.colour, motion="still")[0]
    loras = [] if weight is None else [(PACK / LORAS[name], weight)]
    return plan_scene(folder, "lora", scene, prompt, loras=loras, settings={"seed": number})


def lora_clip(engine: Engine, folder: Path, name: str, weight: float | None, number: int) -> Frames:
    """The frames of a scene that stands still, under one of the LoRAs, or without any."""
    return rendered(engine, _lora_plan(folder, name, weight, number))


def _base_latents(engine: Engine, folder: Path) -> Tensor:
    plan = _lora_plan(folder, "dusk", None, 0)
    return engine.sample(plan, engine.conditioning_for(plan)).latents


def lora_effect(name: str, base: Frames, clip: Frames) -> float:
    """How much of what the LoRA does can be seen: the share of the way to dusk, or the swing in pixels."""
    if name == "dusk":
        return fallen_share(track(base), track(clip))
    return sway_of(track(clip))


def baked_against_peft(engine: Engine, folder: Path, name: str) -> float:
    """The relative difference of whole renders' latents, baked and through PEFT's dynamic layers."""
    plan = _lora_plan(folder, name, 1.0, 0)
    conditioning = engine.conditioning_for(plan)
    baked = engine.sample(plan, conditioning).latents
    dynamic = _sampled_with_peft(plan, conditioning)
    return float((baked - dynamic).norm() / dynamic.norm())


def _sampled_with_peft(plan: RenderPlan, conditioning: Conditioning) -> Tensor:
    """The same sampler around PEFT's own layers, its factors from the file as the pack's adapter reads them."""
    model = wrapped_with(plan.pack.transformer, plan.loras[0].use.path)
    *_, last = sample_sections(model.base_model.model, conditioning, plan.job.sections, plan.job.sampling)
    return last.progress.history


def step_cache_figures(engine: Engine, folder: Path) -> dict[str, Any]:
    """TeaCache by threshold against the exact render, over four videos of four sections and 25 steps.

    Times are the least of three runs, all settings in turn.
    """
    settings: list[Data] = ["off", *({"kind": "teacache", "threshold": threshold} for threshold in _THRESHOLDS)]
    runs = [[_cached_clips(engine, folder, setting) for setting in settings] for _ in range(_CACHE_RUNS)]
    exact, *cached = runs[0]
    seconds = [min(run[place].seconds for run in runs) for place in range(len(settings))]
    rows = [
        {
            "threshold": threshold,
            "computed": made.computed,
            "speed": seconds[0] / own,
            "psnr": psnr_of_all(made.clips, exact.clips),
        }
        for threshold, made, own in zip(_THRESHOLDS, cached, seconds[1:], strict=True)
    ]
    return {"steps": _CACHE_STEPS, "teacache": rows}


@dataclass(frozen=True, kw_only=True)
class _Cached:
    """Clips, the seconds that sampling took, and the share of steps whose blocks ran."""

    clips: list[Frames]
    seconds: float
    computed: float


def _cached_clips(engine: Engine, folder: Path, step_cache: Data) -> _Cached:
    clips, seconds, shares = [], 0.0, []
    for number, motion in enumerate(DIRECTIONS):
        scene = central_scene(200 + number)
        prompt = captions(shape=scene.shape, colour=scene.colour, motion=motion)[0]
        settings = {"seed": number, "steps": _CACHE_STEPS, "step_cache": step_cache}
        plan = plan_scene(folder, "cached", scene, prompt, settings=settings)
        conditioning = engine.conditioning_for(plan)
        engine.begin()
        sampled = engine.sample(plan, conditioning)
        seconds += engine.timings[Stage.SAMPLE]
        shares += [len(steps) / _CACHE_STEPS for steps in sampled.computed_steps if steps]
        clips.append(np.concatenate(list(engine.frames(plan, sampled.latents))))
    return _Cached(clips=clips, seconds=seconds, computed=float(np.mean(shares or [1.0])))


def weights_digest(pack: Path = PACK) -> str:
    """SHA-256 over every weight file that ships, LoRAs too: what these figures belong to."""
    digest = hashlib.sha256()
    for file in sorted(pack.rglob("*.safetensors")):
        digest.update(f"{file.relative_to(pack)} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    started = time.monotonic()
    main()
    log.info("%.0f s", time.monotonic() - started)
