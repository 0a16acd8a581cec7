"""Overlapped decoding against the plain way: everything decoded section by section, each appended softly.

And the decode of each latent once: against diffusers' own windows, and against the overlapped one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from goan_cli.jobs.job import DecodeMode
from goan_cli.jobs.sections import Family, SectionPlan, plan_sections
from goan_cli.packs.find import find_pack
from goan_cli.render.decode import (
    chunk_bounds,
    cross_fade,
    decode_once,
    decode_video,
    decoded,
    fade_in,
    own_latents,
    to_uint8,
    vae_decoder,
    window_bounds,
)
from goan_cli.render.image import posterior
from goan_cli.render.loading import load_vae
from goan_cli.render.vae_memory import OVERLAP_PASS, SINGLE_PASS, Tiling
from goan_cli.tiny.training import seeded
from goan_cli.tiny.world import draw_scene, render_clip
from tests.helpers import CPU, GOLDEN

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


def test_to_uint8_leaves_pixels_alone() -> None:
    """The pixels that are converted are not written to."""
    pixels = torch.full((1, 3, 1, 2, 2), 0.25)
    to_uint8(pixels)
    assert bool((pixels == 0.25).all())


# Each latent once ------------------------------------------------------------------------------------------


@given(st.integers(2, 2000))
def test_windows_cover_the_video(latent_frames: int) -> None:
    """Windows of at most nine latents, of like sizes, follow one another, share two, and decode 9/7 at the most."""
    bounds = window_bounds(latent_frames)
    sizes = [stop - start for start, stop in bounds]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == latent_frames
    assert all(after[0] == before[1] - 2 for before, after in pairwise(bounds))
    assert max(sizes) <= SINGLE_PASS
    assert max(sizes) - min(sizes) <= 2
    assert sum(sizes) <= latent_frames * 9 / 7


@pytest.mark.parametrize(
    ("latent_frames", "bounds"),
    [
        (2, [(0, 2)]),
        (9, [(0, 9)]),
        (10, [(0, 6), (4, 10)]),
        (16, [(0, 9), (7, 16)]),
        (23, [(0, 9), (7, 16), (14, 23)]),
        (28, [(0, 8), (6, 15), (13, 21), (19, 28)]),
    ],
)
def test_windows(latent_frames: int, bounds: list[tuple[int, int]]) -> None:
    """One window is enough for nine latents; more share the latents evenly."""
    assert window_bounds(latent_frames) == bounds


@given(st.sampled_from(Family), st.integers(1, 40), st.integers(1, 12))
def test_single_frames_are_the_plans(family: Family, count: int, window: int) -> None:
    """Any plan gives exactly its frames, in passes of nine latents at the most, and the first after the first pass."""
    plan, decode = plan_sections(family, count, window), _Decoder()
    latents = torch.zeros(1, 16, plan.latent_frames, 1, 1)
    frames, seen = 0, []
    for stretch in decoded(latents, plan, decode, DecodeMode.SINGLE):
        assert stretch.shape[2] > 0
        frames += stretch.shape[2]
        seen.append(len(decode.sizes))
    assert frames == plan.frames
    assert seen == list(range(1, len(window_bounds(plan.latent_frames)) + 1))
    assert max(decode.sizes) <= SINGLE_PASS


@given(st.integers(2, 120))
def test_single_frames_are_in_viewing_order(latent_frames: int) -> None:
    """Every latent's frames stand where they belong: latent 0 makes the first one, each later latent the next four."""

    def decode(latents: Tensor) -> Tensor:
        return torch.cat((latents[:, :3, :1], latents[:, :3, 1:].repeat_interleave(4, dim=2)), dim=2)

    latents = torch.arange(latent_frames, dtype=torch.float32).view(1, 1, -1, 1, 1).expand(1, 16, -1, 1, 1)
    frames = torch.cat(list(decode_once(latents, decode)), dim=2)
    assert frames[0, 0, :, 0, 0].tolist() == [(number + 3) // 4 for number in range(4 * latent_frames - 3)]


def test_fade_in() -> None:
    """The first frame is still the leaving one's; the last is three quarters the coming one's."""
    leaving, coming = torch.zeros(1, 3, 4, 1, 1), torch.ones(1, 3, 4, 1, 1)
    assert fade_in(leaving, coming)[0, 0, :, 0, 0].tolist() == [0.0, 0.25, 0.5, 0.75]


# With a VAE ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae() -> Any:
    """The embedded pack's VAE."""
    return load_vae(find_pack("tiny").vae, CPU, torch.float32)


def _random(latent_frames: int, height: int = 2, width: int = 2) -> Tensor:
    return torch.randn((1, 16, latent_frames, height, width), generator=torch.Generator().manual_seed(latent_frames))


def _frames(latents: Tensor, plan: SectionPlan, vae: Any, mode: DecodeMode) -> Tensor:
    return torch.cat(list(decoded(latents, plan, vae_decoder(vae, mode), mode)), dim=2)


@contextmanager
def _latents_counted(vae: Any) -> Iterator[list[int]]:
    """The latent frames of every pass through the decoder."""
    passes: list[int] = []
    hook = vae.decoder.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[2]))
    try:
        yield passes
    finally:
        hook.remove()


def _psnr(frames: Tensor, others: Tensor) -> Tensor:
    """Of each frame, in dB, of pixels in [-1, 1]."""
    error = (frames.clamp(-1, 1) - others.clamp(-1, 1)).square().mean(dim=(0, 1, 3, 4)) / 4
    return -10 * error.clamp_min(1e-10).log10()


def test_vae_decoder_unscales(vae: Any) -> None:
    """Latents are divided by the VAE's scaling factor, and decode to what the VAE makes of them."""
    latents = _random(2)
    with torch.inference_mode():
        expected = vae.decode(latents / vae.config.scaling_factor).sample
    assert torch.equal(vae_decoder(vae)(latents), expected)


def test_vae_decoder_casts() -> None:
    """Latents in fp32 are decoded in the VAE's own dtype, and pixels come back in fp32."""
    vae = load_vae(find_pack("tiny").vae, CPU, torch.bfloat16)
    latents = _random(1)
    with torch.inference_mode():
        expected = vae.decode(latents.bfloat16() / vae.config.scaling_factor).sample
    pixels = vae_decoder(vae)(latents)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, expected.float())


@pytest.mark.parametrize("window", [1, 2, 3])
def test_one_pass_is_the_same_in_both_modes(vae: Any, window: int) -> None:
    """A video of up to four latents is one pass either way, to the bit."""
    plan = plan_sections(Family.F1, 1, window)
    latents = _random(plan.latent_frames)
    overlap, single = (_frames(latents, plan, vae, mode) for mode in DecodeMode)
    assert torch.equal(overlap, single)


def test_single_is_diffusers_own_windows(vae: Any) -> None:
    """Two whole windows are what diffusers makes of all latents at once with windows of 32 frames, 28 apart.

    But for the last latent, for which diffusers begins a third one.
    """
    latents = _random(16)
    own = load_vae(find_pack("tiny").vae, CPU, torch.float32)
    own.tile_sample_min_num_frames, own.tile_sample_stride_num_frames = 32, 28
    with torch.inference_mode():
        expected = own.decode(latents / own.config.scaling_factor).sample
    frames = torch.cat(list(decode_once(latents, vae_decoder(vae, DecodeMode.SINGLE))), dim=2)
    assert frames.shape == expected.shape
    assert torch.equal(frames[:, :, :-4], expected[:, :, :-4])


def test_modes_follow_one_another(vae: Any) -> None:
    """A decode in one mode is the same before and after one in the other."""
    plan = plan_sections(Family.F1, 2, 5)
    latents = _random(plan.latent_frames)
    overlap, single = (_frames(latents, plan, vae, mode) for mode in DecodeMode)
    assert not torch.equal(overlap, single)
    assert torch.equal(_frames(latents, plan, vae, DecodeMode.OVERLAP), overlap)
    assert torch.equal(_frames(latents, plan, vae, DecodeMode.SINGLE), single)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(("count", "window", "overlap", "single"), [(1, 9, 15, 12), (4, 9, 99, 45), (30, 9, 827, 347)])
def test_latents_decoded(family: Family, count: int, window: int, overlap: int, single: int) -> None:
    """In passes of 5 and 9 latents at the most, overlap decodes up to 3.1 times a video's latents, single 1.3 times."""
    folder = GOLDEN / "packed" / "vae"
    vae, plan = load_vae(folder, CPU, torch.float32), plan_sections(family, count, window)
    latents = _random(plan.latent_frames, 1, 1)
    for mode, most, expected in ((DecodeMode.OVERLAP, OVERLAP_PASS, overlap), (DecodeMode.SINGLE, SINGLE_PASS, single)):
        with _latents_counted(vae) as passes:
            assert _frames(latents, plan, vae, mode).shape[2] == plan.frames
        assert max(passes) <= most
        assert sum(passes) == expected


@pytest.mark.parametrize("seed", [1, 3])
def test_single_is_near_to_overlap(vae: Any, seed: int) -> None:
    """Of a moving clip, no frame is farther than 45 dB from overlap's, at seams or elsewhere.

    It is as near to the clip itself, and moves as the clip does at seams too: to 0.2 dB.
    """
    plan = plan_sections(Family.INVERTED, 5, 4)
    clip = render_clip(draw_scene(seeded(seed, stream=5), duration=plan.frames), plan.frames, height=48, width=48)
    clip = clip[None].transpose(1, 2) * 2 - 1
    with torch.inference_mode():
        latents = vae.encode(clip).latent_dist.mean * vae.config.scaling_factor
    overlap, single = (_frames(latents, plan, vae, mode) for mode in DecodeMode)
    assert float(_psnr(single, overlap).min()) > 45
    assert abs(float(_psnr(single, clip).mean() - _psnr(overlap, clip).mean())) < 0.2
    # Four blended frames at each seam, and the steps into the first and out of the last.
    seams = [4 * (start + 1) + step for start, _ in window_bounds(plan.latent_frames)[1:] for step in range(5)]
    changes = [
        _psnr(frames[:, :, 1:] - frames[:, :, :-1], clip[:, :, 1:] - clip[:, :, :-1])[seams].mean()
        for frames in (single, overlap)
    ]
    assert abs(float(changes[0] - changes[1])) < 0.2


def test_tiled(vae: Any) -> None:
    """Tiles make the untiled frames up to how they are blended, and leave the VAE encoding images whole."""
    latents, pixels = _random(2, 22, 18), np.random.default_rng(0).integers(0, 256, (176, 144, 3), dtype=np.uint8)
    before = posterior(vae, pixels)
    whole = vae_decoder(vae)(latents)
    with _latents_counted(vae) as passes:
        tiled = vae_decoder(vae, tiling=Tiling(height=152, width=136, stride_height=88, stride_width=72))(latents)
    assert passes == [2] * 4
    assert tiled.shape == whole.shape
    # Outside of the blended stretches a tile differs by its norms' statistics alone.
    assert float(_psnr(tiled, whole).min()) > 35
    assert not torch.equal(tiled, whole)
    assert all(torch.equal(first, second) for first, second in zip(before, posterior(vae, pixels), strict=True))


@pytest.mark.parametrize(
    ("family", "count", "given", "bounds"),
    [
        (Family.F1, 1, 1, [(0, 10)]),
        (Family.F1, 1, 9, [(0, 18)]),
        (Family.F1, 3, 4, [(0, 13), (4, 22), (13, 31)]),
        (Family.INVERTED, 1, 9, [(0, 19)]),
        (Family.INVERTED, 3, 4, [(0, 19), (10, 28), (19, 32)]),
    ],
)
def test_bounds_beside_a_given_video(family: Family, count: int, given: int, bounds: list[tuple[int, int]]) -> None:
    """The latents of a video that is gone on with are decoded with the first sampled section."""
    plan = plan_sections(family, count, 9)
    before = 1 if family is Family.INVERTED else 0
    assert chunk_bounds(plan, before + 9 * count + given) == bounds


@pytest.mark.parametrize("mode", list(DecodeMode))
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("given", [1, 2, 3, 7])
def test_decoded_beside_a_given_video(family: Family, given: int, mode: DecodeMode) -> None:
    """At most a window of its latents is decoded too, the nearest; the new frames are those between them."""
    plan = plan_sections(family, 2, 3)
    latents = torch.zeros((1, 16, given + 6 + (1 if family is Family.INVERTED else 0), 2, 2))
    latents[:, :] = torch.arange(latents.shape[2]).view(1, 1, -1, 1, 1)

    def decode(part: Tensor) -> Tensor:
        at = (torch.arange(4 * part.shape[2] - 3) + 3) // 4
        return part[:, :3, at]

    frames = torch.cat(list(decoded(latents, plan, decode, mode)), dim=2)[0, 0, :, 0, 0]
    beside = min(given, 3)
    kept = latents[0, 0, :, 0, 0]
    kept = kept[-(beside + 6) :] if family is Family.F1 else kept[: 7 + beside]
    expected = kept[(torch.arange(4 * len(kept) - 3) + 3) // 4]
    torch.testing.assert_close(frames, expected)
    own = own_latents(latents, plan)
    assert own.shape[2] == plan.latent_frames
    assert torch.equal(own, latents[:, :, -7:] if family is Family.F1 else latents[:, :, :7])
