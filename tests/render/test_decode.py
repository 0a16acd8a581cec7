"""Overlapped decoding against the plain way: everything decoded section by section, each appended softly."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from goan_cli.jobs.sections import Family, SectionPlan, plan_sections
from goan_cli.render.decode import chunk_bounds, cross_fade, decode_video, to_uint8, vae_decoder

PLANS = [(count, window) for count in (1, 2, 3, 4, 6) for window in (1, 2, 3, 9)]


class _Decoder:
    """A stand-in for the VAE: 4 n - 3 frames of n latents, each frame touched by its whole chunk."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, latents: Tensor) -> Tensor:
        count = latents.shape[2]
        self.sizes.append(count)
        at = (torch.arange(4 * count - 3) + 3) // 4
        frames = latents[:, :3, at]
        # The same latent gives other pixels in another chunk, as a causal VAE's do; so blending shows.
        context = latents.mean(dim=2, keepdim=True)[:, :3] + torch.arange(4 * count - 3).view(1, 1, -1, 1, 1) / 7
        return frames + context.sin()


def _latents(plan: SectionPlan) -> Tensor:
    generator = torch.Generator().manual_seed(plan.latent_frames)
    return torch.randn((1, 16, plan.latent_frames, 2, 2), generator=generator, dtype=torch.float64)


def _append_softly(earlier: Tensor, later: Tensor, overlap: int) -> Tensor:
    """`later` after `earlier`, with `overlap` frames of both blended, 1 -> 0 on the earlier."""
    weight = torch.linspace(1, 0, overlap, dtype=earlier.dtype).view(1, 1, -1, 1, 1)
    blended = earlier[:, :, -overlap:] * weight + later[:, :, :overlap] * (1 - weight)
    return torch.cat((earlier[:, :, :-overlap], blended, later[:, :, overlap:]), dim=2)


def _reference(latents: Tensor, plan: SectionPlan) -> Tensor:
    """The public implementation's loop: after each sampled section, decode the new end and append it softly."""
    decode, window, count = _Decoder(), plan.window, len(plan.sections)
    overlap = 4 * window - 3
    pixels: Tensor | None = None
    for number in range(count):
        if plan.family is Family.INVERTED:
            # Sampled from the end to the start; the last section brings the start latent with it.
            last = number == count - 1
            so_far = latents[:, :, latents.shape[2] - (number + 1) * window - (1 if last else 0) :]
            size = 2 * window + 1 if last else 2 * window
            pixels = decode(so_far) if pixels is None else _append_softly(decode(so_far[:, :, :size]), pixels, overlap)
        else:
            so_far = latents[:, :, : 1 + (number + 1) * window]
            pixels = (
                decode(so_far)
                if pixels is None
                else _append_softly(pixels, decode(so_far[:, :, -2 * window :]), overlap)
            )
    assert pixels is not None
    return pixels


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(("count", "window"), PLANS)
def test_equals_decoding_section_by_section(family: Family, count: int, window: int) -> None:
    """Streamed in viewing order, the frames are those of the public loop, to 1e-12 in float64."""
    plan = plan_sections(family, count, window)
    latents = _latents(plan)
    frames = torch.cat(list(decode_video(latents, plan, _Decoder())), dim=2)
    assert frames.shape[2] == plan.frames
    torch.testing.assert_close(frames, _reference(latents, plan), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(("count", "window"), PLANS)
def test_chunks_cover_the_video(family: Family, count: int, window: int) -> None:
    """There is one chunk a section, in viewing order; each overlaps the one before by a window of latents."""
    bounds = chunk_bounds(plan_sections(family, count, window))
    assert len(bounds) == count
    assert bounds[0][0] == 0
    assert bounds[-1][1] == count * window + 1
    assert all(after[0] == before[1] - window for before, after in pairwise(bounds))


@pytest.mark.parametrize(
    ("family", "count", "bounds"),
    [
        (Family.INVERTED, 1, [(0, 10)]),
        (Family.F1, 1, [(0, 10)]),
        (Family.INVERTED, 2, [(0, 19), (10, 19)]),
        (Family.F1, 2, [(0, 10), (1, 19)]),
        (Family.INVERTED, 3, [(0, 19), (10, 28), (19, 28)]),
        (Family.F1, 3, [(0, 10), (1, 19), (10, 28)]),
    ],
)
def test_bounds(family: Family, count: int, bounds: list[tuple[int, int]]) -> None:
    """With window 9: the first sampled section alone, later ones with one window of their neighbour."""
    assert chunk_bounds(plan_sections(family, count, 9)) == bounds


@pytest.mark.parametrize("family", list(Family))
def test_frames_are_streamed(family: Family) -> None:
    """The first frames come after two decodes, each next stretch after one more: never the whole video at once."""
    plan, decode = plan_sections(family, 5, 3), _Decoder()
    seen = [len(decode.sizes) for _ in decode_video(_latents(plan), plan, decode)]
    assert seen == [2, 3, 4, 5, 5]
    assert max(decode.sizes) <= 2 * 3 + 1


@pytest.mark.parametrize("family", list(Family))
def test_no_stretch_is_empty(family: Family) -> None:
    """Every stretch that is yielded holds frames, for the smallest window too."""
    for count, window in PLANS:
        plan = plan_sections(family, count, window)
        assert all(stretch.shape[2] > 0 for stretch in decode_video(_latents(plan), plan, _Decoder()))


@pytest.mark.parametrize("family", list(Family))
def test_sections_make_their_frames(family: Family) -> None:
    """The plan's frame ranges of the sections, in viewing order, follow one another and fill the video."""
    plan = plan_sections(family, 4, 3)
    ranges = sorted(section.frames for section in plan.sections)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == plan.frames


def test_cross_fade() -> None:
    """The leaving frames fade from whole to nothing, linearly; the coming ones the other way round."""
    leaving, coming = torch.zeros(1, 3, 5, 1, 1), torch.ones(1, 3, 5, 1, 1)
    assert cross_fade(leaving, coming)[0, 0, :, 0, 0].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    torch.testing.assert_close(cross_fade(coming, coming), coming, rtol=0, atol=1e-7)


def test_cross_fade_of_one_frame() -> None:
    """A single overlapping frame stays the leaving one's, as upstream's weights 1 -> 0 begin with 1."""
    leaving, coming = torch.zeros(1, 3, 1, 1, 1), torch.ones(1, 3, 1, 1, 1)
    assert torch.equal(cross_fade(leaving, coming), leaving)


@pytest.mark.parametrize(
    ("value", "byte"),
    [(-1.0, 0), (1.0, 255), (0.0, 128), (-5.0, 0), (5.0, 255), (1 - 0.9 / 127.5, 254), (-1 + 0.6 / 127.5, 1)],
)
def test_to_uint8(value: float, byte: int) -> None:
    """Pixels become bytes by rounding, clamped at both ends."""
    assert int(to_uint8(torch.full((1, 3, 1, 1, 1), value))[0, 0, 0, 0]) == byte


def test_to_uint8_layout() -> None:
    """Frames come as (frames, height, width, channel), contiguous, as an encoder wants them."""
    pixels = torch.rand((1, 3, 2, 4, 5), generator=torch.Generator().manual_seed(0)) * 2 - 1
    frames = to_uint8(pixels)
    assert (frames.shape, frames.dtype, frames.is_contiguous()) == ((2, 4, 5, 3), torch.uint8, True)
    assert abs(float(frames[1, 2, 3, 0]) - float((pixels[0, 0, 1, 2, 3] + 1) * 127.5)) <= 0.5
    assert Image.fromarray(frames[0].numpy()).size == (5, 4)
    assert np.array_equal(np.asarray(Image.fromarray(frames[0].numpy())), frames[0].numpy())


def test_vae_decoder_unscales() -> None:
    """Latents are divided by the VAE's scaling factor, cast to its dtype, and come back in fp32."""

    class Vae:
        device, dtype = torch.device("cpu"), torch.float16

        class config:  # noqa: N801 - diffusers' own name
            scaling_factor = 0.5

        def decode(self, latents: Tensor, *, return_dict: bool) -> tuple[Tensor]:
            assert (latents.dtype, return_dict) == (torch.float16, False)
            return (latents + 1,)

    pixels = vae_decoder(Vae())(torch.full((1, 16, 1, 2, 2), 3.0))
    assert pixels.dtype == torch.float32
    assert float(pixels.mean()) == 7.0
