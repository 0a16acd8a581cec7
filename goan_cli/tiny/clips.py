"""The transformers' training data: the world's clips as the pack's own encoders see them, made once and kept."""

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from goan_cli.files import replaced_when_complete, sha256_of
from goan_cli.jobs.sections import HISTORY, LATENT_FRAME, Family, default_paddings
from goan_cli.model.transformer import TextConditioning
from goan_cli.render.image import ImageEncoder, posterior
from goan_cli.render.loading import load_vae
from goan_cli.render.text import TextEncoders
from goan_cli.tiny.parts import WINDOW
from goan_cli.tiny.training import seeded
from goan_cli.tiny.world import Scene, all_captions, choice, draw_blank_scene, draw_scene, render_clip

_CLIPS = 2100
# One clip in so many begins from nothing.
_BLANK_EVERY = 7
# A clip's length in sections; four is where padding 3 means two things, so it is shown more often.
_LENGTHS = (1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 9, 10)
_ENCODERS = (("vae", "diffusion_pytorch_model.safetensors"), ("image_encoder", "model.safetensors"))
_CPU = torch.device("cpu")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip, encoded and scaled.

    `latents` `(16, 3 sections + 1, 8, 8)`; the first frame's posterior alone, mean and deviation
    `(16, 1, 8, 8)`; SigLIP's `image` `(s, d)`.
    """

    scene: Scene
    latents: Tensor
    start_mean: Tensor
    start_deviation: Tensor
    image: Tensor

    @property
    def sections(self) -> int:
        """How many sections of the tiny window it lasts."""
        return (self.latents.shape[1] - 1) // WINDOW


def training_scenes() -> list[Scene]:
    """What the transformers are trained on, the same every time."""
    return [_scene(number) for number in range(_CLIPS)]


def load_clips(pack: Path, scenes: Sequence[Scene], folder: Path) -> list[Clip]:
    """The scenes' whole clips, encoded with the parts in `pack` and kept in `folder` for the next time."""
    encoders = [sha256_of(pack / part / name) for part, name in _ENCODERS]
    key = hashlib.sha256(repr((encoders, scenes)).encode()).hexdigest()[:16]
    file = folder / f"clips-{key}.safetensors"
    if not file.exists():
        with replaced_when_complete(file) as part:
            save_file(_encoded(pack, scenes), part)
    tensors = load_file(file)
    return [
        Clip(
            scene=scene,
            latents=tensors[f"{number}.latents"].float(),
            start_mean=tensors[f"{number}.start_mean"].float(),
            start_deviation=tensors[f"{number}.start_deviation"].float(),
            image=tensors[f"{number}.image"].float(),
        )
        for number, scene in enumerate(scenes)
    ]


def encode_captions(pack: Path) -> dict[str, TextConditioning]:
    """Every caption of the world, and the empty one, through the pack's text encoders."""
    encoders = TextEncoders(
        llama=pack / "text_encoder",
        tokenizer=pack / "tokenizer",
        clip=pack / "text_encoder_2",
        clip_tokenizer=pack / "tokenizer_2",
        device=_CPU,
        dtype=torch.float32,
    )
    # Cloned out of inference mode, so that a training can save them for its backward pass.
    encoded = {text: encoders.encode(text)[0] for text in ["", *all_captions()]}
    return {
        text: TextConditioning(embeds=kept.embeds.clone(), pooled=kept.pooled.clone()) for text, kept in encoded.items()
    }


def paddings(sections: int) -> tuple[int, ...]:
    """The padding that an inverted sampler uses for each section of a video, in viewing order."""
    return tuple(reversed(default_paddings(sections)))


def history_of(clip: Clip, start: Tensor, section: int, family: Family) -> Tensor:
    """What is known when a section is sampled: the 19 latents `(16, 19, 8, 8)` nearest, zeros where none are.

    `start` `(16, 1, 8, 8)` is the start latent as it was drawn.
    """
    first = 1 + section * WINDOW
    if family is Family.INVERTED:
        known = clip.latents[:, first + WINDOW :][:, :HISTORY]
    else:
        known = torch.cat((start, clip.latents[:, 1:first]), dim=1)[:, -HISTORY:]
    gap = known.new_zeros((known.shape[0], HISTORY - known.shape[1], *known.shape[2:]))
    return torch.cat((known, gap) if family is Family.INVERTED else (gap, known), dim=1)


def _scene(number: int) -> Scene:
    generator = seeded(number, stream=4)
    sections = choice(generator, _LENGTHS)
    draw = draw_blank_scene if number % _BLANK_EVERY == _BLANK_EVERY - 1 else draw_scene
    return draw(generator, duration=sections * WINDOW * LATENT_FRAME)


def _encoded(pack: Path, scenes: Sequence[Scene]) -> dict[str, Tensor]:
    vae = load_vae(pack / "vae", _CPU, torch.float32)
    images = ImageEncoder(
        model=pack / "image_encoder", processor=pack / "feature_extractor", device=_CPU, dtype=torch.float32
    )
    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:  # each on one thread, see training.train
        for number, encoded in enumerate(workers.map(partial(_encoded_scene, vae, images), scenes)):
            tensors |= {f"{number}.{name}": tensor.half().clone().contiguous() for name, tensor in encoded.items()}
            if (number + 1) % 200 == 0:
                log.info("clips encoded: %d of %d", number + 1, len(scenes))
    return tensors


@torch.inference_mode()
def _encoded_scene(vae: Any, images: ImageEncoder, scene: Scene) -> dict[str, Tensor]:  # noqa: ANN401 - see decode
    clip = render_clip(scene, scene.duration + 1)
    pixels = rearrange((clip[0] * 255).round().byte(), "c h w -> h w c").numpy()
    mean, log_variance = posterior(vae, pixels)
    with torch.autocast("cpu", torch.bfloat16):
        encoded = vae.encode(rearrange(clip * 2 - 1, "t c h w -> 1 c t h w")).latent_dist.mean
    scale = float(vae.config.scaling_factor)
    return {
        "latents": encoded[0].float() * scale,
        "start_mean": mean[0] * scale,
        "start_deviation": (0.5 * log_variance[0]).exp() * scale,
        "image": images.encode(pixels)[0],
    }
