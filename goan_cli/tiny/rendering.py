"""Renders scenes of the tiny world through the renderer that renders everything else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from goan_cli.documents import Data
from goan_cli.files import replaced_when_complete
from goan_cli.jobs.load import request_from_settings, settings_document
from goan_cli.render.engine import Engine
from goan_cli.render.plan import RenderPlan, plan_renders
from goan_cli.tiny.world import Scene, render_clip

_NOTHING: Mapping[str, Data] = MappingProxyType({})


def write_start_image(path: Path, scene: Scene, *, height: int = 64, width: int = 64) -> None:
    """The scene's first frame as a PNG. Raises EnvironmentFault where it cannot be written."""
    frame = render_clip(scene, 1, height=height, width=width)[0]
    with replaced_when_complete(path) as temporary:
        Image.fromarray(pixels_of(frame[None])[0]).save(temporary)


def pixels_of(clip: Tensor) -> NDArray[np.uint8]:
    """A clip `(n, 3, h, w)` in [0, 1] as frames `(n, h, w, 3)`."""
    frames: NDArray[np.uint8] = rearrange((clip.clamp(0, 1) * 255).round().byte(), "n c h w -> n h w c").numpy()
    return frames


def plan_scene(
    folder: Path,
    name: str,
    scene: Scene,
    prompt: str,
    *,
    loras: Sequence[tuple[Path, float]] = (),
    settings: Mapping[str, Data] = _NOTHING,
) -> RenderPlan:
    """The plan of a job that starts from the scene's first frame; start image and results lie in `folder`.

    A blank scene's job has no image: it names the start.
    """
    start: dict[str, Data] = {"start": scene.blank}
    if scene.blank is None:
        image = folder / f"{name}.start.png"
        write_start_image(image, scene)
        start = {"image": str(image)}
    keys: dict[str, Data] = {
        **start,
        "prompt": prompt,
        "model": "tiny",
        "seed": 1,
        "sections": 4,
        "output": {"dir": str(folder)},
        "loras": [{"path": str(path), "weight": weight} for path, weight in loras],
        **settings,
    }
    requests, problems = request_from_settings(settings_document((), keys), name=name)
    (plan,) = plan_renders(requests, problems)
    return plan


def rendered(engine: Engine, plan: RenderPlan) -> NDArray[np.uint8]:
    """The plan's frames `(n, h, w, 3)`, without a video file between."""
    sampled = engine.sample(plan, engine.conditioning_for(plan))
    return np.concatenate(list(engine.frames(plan, sampled.latents)))
