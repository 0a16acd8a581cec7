"""What decoding needs on the device, and the tiles that make it fit. No torch.

The estimate counts, from the architecture, the activations that are alive at once (see `pass_bytes`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from goan_cli.jobs.job import DecodeMode
from goan_cli.jobs.sections import LATENT_FRAME, SectionPlan

# Latent frames that go through the decoder in one pass. Overlap: diffusers' own temporal window, as upstream uses it.
OVERLAP_PASS = 5
SINGLE_PASS = 9
# Pixels that neighbouring tiles share, across which they are blended: as many as with diffusers' own tiles.
TILE_OVERLAP = 64
_LATENT = 8  # pixels a side of a latent
_LATENT_CHANNELS = 16
_SMALLEST = 128  # pixels a side of the smallest tile
# Beyond 32-bit indices some of torch's CUDA kernels refuse tensors, or fall back to slow ways. Not measured.
_MOST_VALUES = 2**31 - 1
_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class VaeShape:
    """What a decoder's memory depends on: channels of its blocks, from the pixels inwards, and bytes of a value."""

    channels: tuple[int, int, int, int]
    value_bytes: int


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Tiles of so many pixels, each so many pixels after its neighbour; both multiples of 8."""

    height: int
    width: int
    stride_height: int
    stride_width: int


def vae_shape(config: Mapping[str, Any], value_bytes: int) -> VaeShape:
    """From the VAE's `config.json`, for values of so many bytes."""
    first, second, third, fourth = (int(channels) for channels in config["block_out_channels"])
    return VaeShape(channels=(first, second, third, fourth), value_bytes=value_bytes)


def longest_pass(plan: SectionPlan, mode: DecodeMode) -> int:
    """The most latent frames of a video of this plan that are decoded in one pass."""
    return min(SINGLE_PASS if mode is DecodeMode.SINGLE else OVERLAP_PASS, plan.latent_frames)


def pass_bytes(shape: VaeShape, *, latent_frames: int, height: int, width: int) -> int:
    """Bytes alive at the peak of one pass over a tile of `height` x `width` pixels, weights not counted.

    One of these is the peak, with channels c0 (of the last block, at full size) to c3 (of the middle one):

    - the last upsampling: its result in two copies, padded, and convolved, c1 each; what it is made from twice, c1,
      and its block's input, c2, both with half the frames, height and width;
    - the last block's first layer: its input, normed, and padded, c1 each, and convolved, c0;
    - its later layers: the block's input, c1, and theirs, normed, padded, and convolved, c0 each;
    - the middle block: the causal mask, tokens x tokens, as truth values and fp32, then as fp32 and values; and what
      comes in, in three copies, c3.

    The latents come to each of these, before and after the convolution in front of the decoder.
    """
    convolutions = _convolutions(shape, latent_frames, height, width)
    return max(convolutions, _attention(shape, _tokens(latent_frames, height, width)))


def _convolutions(shape: VaeShape, latent_frames: int, height: int, width: int) -> int:
    c0, c1, c2, _ = shape.channels
    full = (LATENT_FRAME * (latent_frames - 1) + 1) * height * width
    half = (2 * latent_frames - 1) * (height // 2) * (width // 2)
    padded = _padded(latent_frames, height, width)
    upsampling = 3 * c1 * full + c1 * padded + (2 * c1 + c2) * half
    first_layer = (2 * c1 + c0) * full + c1 * padded
    later_layers = (c1 + 3 * c0) * full + c0 * padded
    latents = 2 * _LATENT_CHANNELS * _tokens(latent_frames, height, width)
    return (max(upsampling, first_layer, later_layers) + latents) * shape.value_bytes


def _attention(shape: VaeShape, tokens: int) -> int:
    truth_or_value = 1 if shape.value_bytes == _FP32 else shape.value_bytes
    beside = (3 * shape.channels[3] + 2 * _LATENT_CHANNELS) * tokens
    return tokens**2 * (_FP32 + truth_or_value) + beside * shape.value_bytes


def _padded(latent_frames: int, height: int, width: int) -> int:
    """Values of a channel before a convolution at full size: two frames in front, a pixel around."""
    return (LATENT_FRAME * (latent_frames - 1) + 3) * (height + 2) * (width + 2)


def _tokens(latent_frames: int, height: int, width: int) -> int:
    return latent_frames * (height // _LATENT) * (width // _LATENT)


def pixel_bytes(shape: VaeShape, plan: SectionPlan, mode: DecodeMode, *, height: int, width: int) -> int:
    """Bytes of decoded pixels beside a pass: a chunk in fp32 that the next one is blended with, and windows of it."""
    latents = SINGLE_PASS if mode is DecodeMode.SINGLE else 2 * plan.window + 1
    frames = LATENT_FRAME * min(latents, plan.latent_frames) - (LATENT_FRAME - 1)
    # diffusers' windows overlap: 17 frames for every 12, and the tiles of one more.
    return 3 * height * width * frames * (_FP32 + 2 * shape.value_bytes)


def least_decode_bytes(shape: VaeShape, plan: SectionPlan, mode: DecodeMode, *, height: int, width: int) -> int:
    """What decoding in the smallest tiles needs on a GPU besides the VAE's weights."""
    smallest = _on_gpu(shape, longest_pass(plan, mode), _rows(height)[-1][0], _rows(width)[-1][0])
    return pixel_bytes(shape, plan, mode, height=height, width=width) + smallest


def choose_tiling(
    shape: VaeShape, plan: SectionPlan, mode: DecodeMode, *, height: int, width: int, free: int
) -> Tiling | None:
    """How to decode frames of `height` x `width` pixels on a GPU with `free` bytes besides the VAE's weights.

    None is untiled. Otherwise the grid of tiles that fit whose overlaps cost the least; where none fit, the smallest.
    """
    latent_frames = longest_pass(plan, mode)
    room = free - pixel_bytes(shape, plan, mode, height=height, width=width)

    def fits(tile_height: int, tile_width: int) -> bool:
        padded = shape.channels[1] * _padded(latent_frames, tile_height, tile_width)
        indexed = max(padded, _tokens(latent_frames, tile_height, tile_width) ** 2)
        return indexed <= _MOST_VALUES and _on_gpu(shape, latent_frames, tile_height, tile_width) <= room

    if fits(height, width):
        return None
    grids = [
        (decoded_height * decoded_width, Tiling(height=tall, width=wide, stride_height=down, stride_width=across))
        for (tall, down, decoded_height), (wide, across, decoded_width) in product(_rows(height), _rows(width))
        if fits(tall, wide)
    ]
    if grids:
        return min(grids, key=lambda grid: grid[0])[1]
    (tall, down, _), (wide, across, _) = _rows(height)[-1], _rows(width)[-1]
    return Tiling(height=tall, width=wide, stride_height=down, stride_width=across)


def _on_gpu(shape: VaeShape, latent_frames: int, height: int, width: int) -> int:
    """A pass with what cuDNN may take for itself, not measured: a convolution's input and output in its own layout."""
    workspace = 2 * shape.channels[1] * _padded(latent_frames, height, width) * shape.value_bytes
    convolutions = _convolutions(shape, latent_frames, height, width) + workspace
    return max(convolutions, _attention(shape, _tokens(latent_frames, height, width)))


def _rows(length: int) -> list[tuple[int, int, int]]:
    """Ways to cut a length into equal tiles, fewest first: (tile, stride, pixels that are decoded in all)."""
    latents, ways = -(-length // _LATENT), [(length, length, length)]
    for count in range(2, latents + 1):
        stride = -(-latents // count) * _LATENT
        tile = stride + TILE_OVERLAP
        if tile < _SMALLEST:
            break
        starts = range(0, length, stride)
        # A last tile narrower than the overlap would see too little.
        if tile >= length or stride == ways[-1][1] or length - starts[-1] < TILE_OVERLAP:
            continue
        ways.append((tile, stride, sum(min(tile, length - start) for start in starts)))
    return ways
