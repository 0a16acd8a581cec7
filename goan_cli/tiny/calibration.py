"""Calibrates MagCache for the tiny packs with scenes of their world: `python -m goan_cli.tiny.calibration`.

To be run again whenever their transformers are trained anew; it takes half a minute.
"""

import logging
import sys
import tempfile
from pathlib import Path

import torch

from goan_cli.documents import Data
from goan_cli.jobs.load import request_from_settings, settings_document
from goan_cli.packs.find import find_pack
from goan_cli.packs.magnitudes import Magnitudes, magnitudes_file, write_magnitudes
from goan_cli.packs.manifest import EMBEDDED
from goan_cli.packs.pack import Pack
from goan_cli.render.calibrate import calibrated
from goan_cli.render.engine import Engine
from goan_cli.render.plan import RenderPlan, plan_renders
from goan_cli.render.sampling import MakeCache
from goan_cli.tiny.rendering import write_start_image
from goan_cli.tiny.training import seeded
from goan_cli.tiny.world import captions, draw_scene

CLIPS = 8
SECTIONS = 4
# What the shipped packs are calibrated for besides their default steps: FramePack's own number.
_STEPS = 25
_STREAM = 43

log = logging.getLogger(__name__)


def calibrate(engine: Engine, model: str, steps: int, *, clips: int = CLIPS, sections: int = SECTIONS) -> Magnitudes:
    """The ratios of a pack for a number of steps, over videos of the world at the pack's own size.

    Raises what planning and rendering raise.
    """
    pack = find_pack(model)
    with tempfile.TemporaryDirectory() as folder:
        plans = [
            scene_plan(Path(folder), model, pack, number, steps=steps, sections=sections) for number in range(clips)
        ]

        def sample(plan: RenderPlan, make_cache: MakeCache) -> None:
            engine.sample(plan, engine.conditioning_for(plan), make_cache=make_cache)

        return calibrated(plans, sample)


def scene_plan(folder: Path, model: str, pack: Pack, number: int, *, steps: int, sections: int) -> RenderPlan:
    """The plan of a video of the scene with this number, its start image as large as the pack renders."""
    scene = draw_scene(seeded(number, stream=_STREAM), duration=4 * pack.window * sections)
    image = folder / f"{number}.png"
    write_start_image(image, scene, height=pack.resolution, width=pack.resolution)
    keys: dict[str, Data] = {
        "model": model,
        "image": str(image),
        "prompt": captions(shape=scene.shape, colour=scene.colour, motion=scene.motion)[number % 4],
        "seed": number,
        "steps": steps,
        "sections": sections,
        "output": {"dir": str(folder)},
    }
    requests, problems = request_from_settings(settings_document((), keys), name=f"scene-{number}")
    (plan,) = plan_renders(requests, problems)
    return plan


def main() -> None:
    """Calibrate the shipped packs, for their default steps and for FramePack's, and write it beside them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    torch.set_num_threads(1)  # renders this small gain nothing from a second one
    engine = Engine(device="cpu")
    for model in EMBEDDED:
        pack = find_pack(model)
        for steps in (pack.steps, _STEPS):
            magnitudes = calibrate(engine, model, steps)
            write_magnitudes(pack, magnitudes)
            log.info("%s %d: spread %.3f, %s", model, steps, magnitudes.spread, magnitudes.ratios)
        log.info("written to %s", magnitudes_file(pack))


if __name__ == "__main__":
    main()
