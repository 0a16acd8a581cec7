"""One-frame inference with the tiny pack: the picture at a frame index is where the motion would be by then."""

from pathlib import Path

import numpy as np
import pytest

from goan_cli.render.engine import Engine
from goan_cli.tiny.measures import track
from tests.conftest import plan_files, write_jobs

START = Path(__file__).parents[2] / "examples" / "start.png"
SEEDS = (1, 2, 3, 4)


def _moved(folder: Path, prompt: str, target: int) -> tuple[float, float]:
    """How far right and down of where it starts the shape is: the mean over some seeds."""
    job = {"model": "tiny", "image": str(START), "prompt": prompt, "one_frame": {"target": target}}
    file = write_jobs(folder / "still.yaml", {"jobs": [{**job, "seed": seed} for seed in SEEDS]})
    engine = Engine(device="cpu", cache=folder / "cache")
    ways = []
    for plan in plan_files(file):
        conditioning = engine.conditioning_for(plan)
        latents = engine.sample(plan, conditioning).latents
        assert latents.shape[2] == 1
        made, start = (
            track(np.concatenate(list(engine.frames(plan, each)))) for each in (latents, conditioning.start_latent)
        )
        ways.append((made.x[0] - start.x[0], made.y[0] - start.y[0]))
    across, down = np.mean(ways, axis=0)
    return float(across), float(down)


@pytest.mark.slow
def test_motion_by_a_frame(tmp_path: Path) -> None:
    """Further on, the shape has moved further, and as the prompt says."""
    near, _ = _moved(tmp_path, "a red circle moves left", 1)
    far, level = _moved(tmp_path, "a red circle moves left", 9)
    beside, below = _moved(tmp_path, "a red circle moves down", 9)
    assert far < near - 3
    assert far < beside - 1
    assert below > level + 5
