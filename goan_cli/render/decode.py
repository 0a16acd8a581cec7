"""Latents to frames: overlapped decodes, cross-faded, in viewing order so that frames can be streamed."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from goan_cli.jobs.sections import LATENT_FRAME, Family, SectionPlan

Decode = Callable[[Tensor], Tensor]


def chunk_bounds(plan: SectionPlan) -> list[tuple[int, int]]:
    """Half-open latent ranges, in viewing order, that upstream decodes for each section.

    The first sampled section is decoded alone; each later one together with one window of its neighbour.
    """
    count, window = len(plan.sections), plan.window
    if count == 1:
        return [(0, window + 1)]
    if plan.family is Family.F1:
        return [(0, window + 1), *((1 + window * (k - 1), 1 + window * (k + 1)) for k in range(1, count))]
    # The inverted model's first section in view holds the start latent; its last in view was sampled first.
    middle = ((1 + window * k, 1 + window * (k + 2)) for k in range(1, count - 1))
    return [(0, 1 + 2 * window), *middle, (1 + window * (count - 1), 1 + window * count)]


def decode_video(latents: Tensor, plan: SectionPlan, decode: Decode) -> Iterator[Tensor]:
    """Yield pixels `(1, 3, frames, h, w)` in viewing order from final latents `(1, 16, n, h/8, w/8)`.

    `decode` turns scaled latents into pixels about [-1, 1]. At most two chunks are in memory at a time.
    """
    overlap = LATENT_FRAME * plan.window - (LATENT_FRAME - 1)
    held: Tensor | None = None
    for start, stop in chunk_bounds(plan):
        pixels = decode(latents[:, :, start:stop])
        if held is not None:
            ready, blended = held[:, :, :-overlap], cross_fade(held[:, :, -overlap:], pixels[:, :, :overlap])
            if ready.shape[2]:
                yield ready
            pixels = torch.cat((blended, pixels[:, :, overlap:]), dim=2)
        held = pixels
    if held is not None:
        yield held


def cross_fade(leaving: Tensor, coming: Tensor) -> Tensor:
    """Blend two stretches of equally many frames, weight 1 -> 0 on the one that leaves."""
    weight = torch.linspace(1, 0, leaving.shape[2], dtype=leaving.dtype, device=leaving.device)
    weight = weight.view(1, 1, -1, 1, 1)
    return leaving * weight + coming * (1 - weight)


# diffusers' VAE is Any here: its types are not part of its interface.
def vae_decoder(vae: Any) -> Decode:  # noqa: ANN401
    """A function that decodes scaled latents with this VAE, fp32 on the CPU out."""

    # Not around the whole generator: its caller would be left in inference mode between two chunks.
    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
        return pixels.float().cpu()

    return decode


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels `(1, 3, frames, h, w)` in [-1, 1] to `(frames, h, w, 3)` uint8, rounded."""
    return ((pixels[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous()
