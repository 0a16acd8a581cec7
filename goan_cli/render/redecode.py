"""Latents that were kept, to frames: no transformer and no encoder is loaded."""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from goan_cli.errors import Interrupted, InvalidInput, RenderFailed
from goan_cli.jobs.job import DecodeMode
from goan_cli.jobs.sections import SectionPlan
from goan_cli.packs.find import FoundPart
from goan_cli.render.decode import decoded, shape_of, to_uint8, vae_decoder
from goan_cli.render.device import precision_for
from goan_cli.render.parts import Parts
from goan_cli.render.vae_memory import Tiling, choose_tiling

_LATENT = 8  # pixels a side of a latent


def decoded_frames(
    part: FoundPart,
    latents: NDArray[np.float32],
    sections: SectionPlan,
    mode: DecodeMode,
    *,
    device: torch.device,
    tiling: Tiling | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[NDArray[np.uint8]]:
    """Frames `(n, h, w, 3)` in viewing order, a stretch at a time, as a render with these settings makes them.

    `part` is the VAE, the only part of a pack that is read. Without a `tiling` it goes by the memory there is. Raises
    Interrupted when `stop()` says so before a stretch, and RenderFailed for pixels that are not finite.
    """
    vae = Parts(device, precision_for(device), make_room=lambda: None).vae_at(part.usable, part.config)
    if int(vae.config.latent_channels) != latents.shape[1]:
        channels = f"{vae.config.latent_channels} channels, not {latents.shape[1]}"
        raise InvalidInput(f"{part.usable}: this VAE has {channels}")
    tiling = tiling or _tiling_for(vae, latents, sections, mode, device)
    for pixels in decoded(torch.from_numpy(latents), sections, vae_decoder(vae, mode, tiling), mode):
        if stop():
            raise Interrupted("while decoding")
        if not bool(pixels.isfinite().all()):
            raise RenderFailed("decoded pixels are not finite", hint="the VAE overflows in this precision")
        yield to_uint8(pixels).numpy()


# diffusers' VAE is Any here, as in render.decode.
def _tiling_for(
    vae: Any,  # noqa: ANN401
    latents: NDArray[np.float32],
    sections: SectionPlan,
    mode: DecodeMode,
    device: torch.device,
) -> Tiling | None:
    """The tiles that fit into what is free on a GPU, None for whole frames."""
    if device.type != "cuda":
        return None
    height, width = (side * _LATENT for side in latents.shape[-2:])
    free = torch.cuda.mem_get_info(device)[0]
    return choose_tiling(shape_of(vae), sections, mode, height=height, width=width, free=free)
