"""The start image to conditioning: cropped pixels, SigLIP features, and the start latent."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from goan_cli.jobs.fields import colour_of
from goan_cli.jobs.images import open_image
from goan_cli.jobs.sizes import Fit

# Keeps the posterior's draw apart from the section noise, which is the seed's own stream.
_POSTERIOR_STREAM = 0x5EED_1A7E
# The place of a video's frames among a job's pictures: after any number of those.
CLIP = 1_000_000
_TILE, _TILE_STRIDE = 256, 192  # pixels


def fitted_pixels(path: Path, fit: Fit) -> NDArray[np.uint8]:
    """The image resized (Lanczos) and cut at the centre, black where it does not reach: `(h, w, 3)` uint8."""
    image = open_image(path)
    if fit.resized != image.size:
        image = image.resize(fit.resized, Image.Resampling.LANCZOS)
    return np.asarray(image.crop(fit.box))


def filled_pixels(start: str, size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """The start of a video without an image: `(h, w, 3)` uint8 of one colour, or of noise that the seed decides."""
    colour = colour_of(start)
    width, height = size
    if colour is None:
        drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        return np.asarray(drawn, np.uint8)
    return np.full((height, width, 3), colour, np.uint8)


class ImageEncoder:
    """SigLIP with its image processor, loaded once. A model in a file of its own is described by `config`."""

    def __init__(
        self, *, model: Path, processor: Path, device: torch.device, dtype: torch.dtype, config: Path | None = None
    ) -> None:
        from goan_cli.render import loading  # noqa: PLC0415 - imports transformers, which a cached image does not need

        siglip, self.processor = loading.load_siglip(model, processor, dtype, config=config)
        self.model = siglip.to(device)

    def to(self, device: torch.device) -> None:
        """Move the encoder."""
        self.model.to(device)

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> Tensor:
        """`(h, w, 3)` uint8 to the last hidden state `(1, patches, d)`."""
        inputs = self.processor(images=pixels, return_tensors="pt", input_data_format="channels_last")
        values = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        features: Tensor = self.model(pixel_values=values).last_hidden_state
        return features


@torch.inference_mode()
def posterior(vae: Any, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - see decode
    """Mean and log-variance `(1, 16, 1, h/8, w/8)` of the VAE's posterior, fp32 on the CPU, not yet scaled."""
    x = torch.from_numpy(pixels.astype(np.float32)) / 127.5 - 1
    return _encoded(vae, x.permute(2, 0, 1)[None, :, None])


@torch.inference_mode()
def clip_posterior(vae: Any, frames: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - see decode
    """Of 1 + 4 n frames `(1 + 4 n, h, w, 3)`: mean and log-variance `(1, 16, 1 + n, h/8, w/8)`, as `posterior`'s.

    In diffusers' tiles, in time and of large frames, as FramePack encodes on all but the largest cards.
    """
    x = torch.from_numpy(frames.astype(np.float32)) / 127.5 - 1
    vae.enable_tiling(
        tile_sample_min_height=_TILE,
        tile_sample_min_width=_TILE,
        tile_sample_stride_height=_TILE_STRIDE,
        tile_sample_stride_width=_TILE_STRIDE,
    )  # whatever was decoded before
    try:
        return _encoded(vae, x.permute(3, 0, 1, 2)[None])
    finally:
        vae.disable_tiling()


def _encoded(vae: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - see decode
    distribution = vae.encode(x.to(vae.device, vae.dtype)).latent_dist
    return distribution.mean.float().cpu(), distribution.logvar.float().cpu()


def start_latent(mean: Tensor, logvar: Tensor, *, scale: float, seed: int, picture: int = 0) -> Tensor:
    """A draw from a posterior, times the VAE's scale: `(1, 16, 1, h/8, w/8)`, decided by the seed.

    `picture` numbers the job's pictures, so that two are not drawn alike: 0 is the start. Of a video's posterior, all
    its latents.
    """
    generator = torch.Generator("cpu").manual_seed((seed ^ _POSTERIOR_STREAM) + picture)
    noise = torch.randn(mean.shape, generator=generator)
    return (mean + (0.5 * logvar).exp() * noise) * scale
