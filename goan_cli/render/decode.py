"""Latents to frames, in viewing order so that they can be streamed: FramePack's overlapped decode, or each latent once.

`DecodeMode.OVERLAP` is upstream's. Every section is decoded together with a window of its neighbour and cross-faded,
and within such a chunk diffusers decodes windows of 5 latents that overlap too: with a window of 9, about three times
the latents of a long video. `DecodeMode.SINGLE` decodes windows of up to 9 latents that share two, at most 9/7 of the
latents, and makes other pixels: of the tiny pack's clips every frame is within 45 dB PSNR, at windows' seams too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from goan_cli.jobs.job import DecodeMode
from goan_cli.jobs.sections import LATENT_FRAME, Family, SectionPlan
from goan_cli.render.vae_memory import SINGLE_PASS, Tiling, VaeShape, vae_shape

Decode = Callable[[Tensor], Tensor]


def decoded(latents: Tensor, plan: SectionPlan, decode: Decode, mode: DecodeMode) -> Iterator[Tensor]:
    """Yield pixels `(1, 3, frames, h, w)` in viewing order from final latents `(1, 16, n, h/8, w/8)`.

    Of the latents of a video that was gone on with, those within a window of the new ones are decoded with them.
    `decode` turns scaled latents into pixels about [-1, 1] in the way of this mode (see `vae_decoder`).
    """
    beside = min(plan.window, latents.shape[2] - len(plan.sections) * plan.window)
    if plan.family is Family.F1:
        latents = latents[:, :, -(beside + len(plan.sections) * plan.window) :]
    else:
        latents = latents[:, :, : plan.latent_frames + plan.window]
    return decode_once(latents, decode) if mode is DecodeMode.SINGLE else decode_video(latents, plan, decode)


def own_latents(latents: Tensor, plan: SectionPlan) -> Tensor:
    """Of a job's final latents those that its sections made, and the one that they begin from: a video of their own."""
    if plan.family is Family.F1:
        return latents[:, :, -plan.latent_frames :]
    return latents[:, :, : plan.latent_frames]


def chunk_bounds(plan: SectionPlan, latent_frames: int | None = None) -> list[tuple[int, int]]:
    """Half-open latent ranges, in viewing order, that upstream decodes for each section.

    The first sampled section is decoded alone; each later one together with one window of its neighbour. Where there
    are more `latent_frames` than the plan's, the first sampled one is decoded with those too, of a given video.
    """
    count, window = len(plan.sections), plan.window
    total = plan.latent_frames if latent_frames is None else latent_frames
    if plan.family is Family.F1:
        given = total - window * count  # the start latent alone, where no video is given
        return [(0, given + window), *((given + window * (k - 1), given + window * (k + 1)) for k in range(1, count))]
    if count == 1:
        return [(0, total)]
    # The inverted model's first section in view holds the start latent; its last in view was sampled first.
    middle = ((1 + window * k, 1 + window * (k + 2)) for k in range(1, count - 1))
    return [(0, 1 + 2 * window), *middle, (1 + window * (count - 1), total)]


def decode_video(latents: Tensor, plan: SectionPlan, decode: Decode) -> Iterator[Tensor]:
    """The overlapped decode. At most two chunks are in memory at a time."""
    overlap = LATENT_FRAME * plan.window - (LATENT_FRAME - 1)
    held: Tensor | None = None
    for start, stop in chunk_bounds(plan, latents.shape[2]):
        pixels = decode(latents[:, :, start:stop])
        if held is not None:
            ready, blended = held[:, :, :-overlap], cross_fade(held[:, :, -overlap:], pixels[:, :, :overlap])
            if ready.shape[2]:
                yield ready
            pixels = torch.cat((blended, pixels[:, :, overlap:]), dim=2)
        held = pixels
    if held is not None:
        yield held


def window_bounds(latent_frames: int) -> list[tuple[int, int]]:
    """Half-open latent ranges that `decode_once` decodes, in viewing order: the fewest that serve, of like sizes.

    Neighbours share two latents. The later one sees the first of them only: to a causal VAE a first latent stands for
    one frame instead of four. Across the second one both are blended.
    """
    # The first and the last window have a latent more that is theirs alone.
    count = max(1, -(-(latent_frames - 2) // (SINGLE_PASS - 2)))
    ends = [1 + (number + 1) * (latent_frames - 2) // count for number in range(count - 1)]
    return list(zip([0, *(end - 1 for end in ends)], [*(end + 1 for end in ends), latent_frames], strict=True))


def decode_once(latents: Tensor, decode: Decode) -> Iterator[Tensor]:
    """Every latent decoded once, but for two at each seam. At most one window and a latent's frames are in memory."""
    held: Tensor | None = None
    bounds = window_bounds(latents.shape[2])
    for start, stop in bounds:
        pixels = decode(latents[:, :, start:stop])
        if held is not None:
            # The seen latent's frame goes; the blended one's four follow it.
            coming = pixels[:, :, 1 : 1 + LATENT_FRAME]
            pixels = torch.cat((fade_in(held, coming), pixels[:, :, 1 + LATENT_FRAME :]), dim=2)
        if stop < latents.shape[2]:
            held = pixels[:, :, -LATENT_FRAME:].clone()
            pixels = pixels[:, :, :-LATENT_FRAME]
        yield pixels


def cross_fade(leaving: Tensor, coming: Tensor) -> Tensor:
    """Blend two stretches of equally many frames, weight 1 -> 0 on the one that leaves."""
    # Made on the CPU, whose weights need not be a GPU's to the last bit.
    weight = torch.linspace(1, 0, leaving.shape[2], dtype=leaving.dtype).to(leaving.device).view(1, 1, -1, 1, 1)
    return leaving * weight + coming * (1 - weight)


def fade_in(leaving: Tensor, coming: Tensor) -> Tensor:
    """Blend as diffusers does at its windows' seams: the last frame is not yet wholly the coming one's."""
    weight = torch.arange(leaving.shape[2], dtype=leaving.dtype, device=leaving.device) / leaving.shape[2]
    weight = weight.view(1, 1, -1, 1, 1)
    return leaving * (1 - weight) + coming * weight


# diffusers' VAE is Any here: its types are not part of its interface.
def vae_decoder(vae: Any, mode: DecodeMode = DecodeMode.OVERLAP, tiling: Tiling | None = None) -> Decode:  # noqa: ANN401
    """A function that decodes scaled latents with this VAE: fp32 out, on the VAE's device. Untiled without a tiling."""

    # Not around the whole generator: its caller would be left in inference mode between two chunks.
    @torch.inference_mode()
    def decode(latents: Tensor) -> Tensor:
        scaled = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor
        vae.use_framewise_decoding = mode is DecodeMode.OVERLAP
        if tiling is not None:
            vae.enable_tiling(
                tile_sample_min_height=tiling.height,
                tile_sample_min_width=tiling.width,
                tile_sample_stride_height=tiling.stride_height,
                tile_sample_stride_width=tiling.stride_width,
            )
        try:
            pixels: Tensor = vae.decode(scaled, return_dict=False)[0]
        finally:
            vae.disable_tiling()  # an image is always encoded whole, whatever was decoded before
        return pixels.float()

    return decode


def shape_of(vae: Any) -> VaeShape:  # noqa: ANN401
    """What the memory of this VAE's decoder depends on."""
    return vae_shape(vae.config, vae.dtype.itemsize)


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels `(1, 3, frames, h, w)` in [-1, 1] to `(frames, h, w, 3)` uint8, rounded, on the CPU.

    Made where the pixels are: a quarter of the bytes is copied.
    """
    levels = pixels[0].clamp(-1, 1).add_(1).mul_(127.5).round_()
    return levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()
