"""What decoding is said to need, against what is alive while the full-size VAE decodes, on tensors without data."""

import json
import weakref
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from goan_cli.jobs.job import DecodeMode
from goan_cli.jobs.sections import Family, SectionPlan, plan_sections
from goan_cli.packs.find import find_pack
from goan_cli.render.decode import decoded, shape_of, vae_decoder
from goan_cli.render.vae_memory import (
    OVERLAP_PASS,
    SINGLE_PASS,
    TILE_OVERLAP,
    Tiling,
    VaeShape,
    choose_tiling,
    least_decode_bytes,
    longest_pass,
    pass_bytes,
    vae_shape,
)

FULL = (128, 256, 512, 512)
TINY = (16, 32, 48, 48)
FULL_SHAPE = VaeShape(channels=FULL, value_bytes=2)
FIVE_SECONDS = plan_sections(Family.INVERTED, 4, 9)
SHORT = plan_sections(Family.INVERTED, 3, 3)  # three blended chunks, and two windows
SIDES = st.integers(4, 100).map(lambda sixteenths: 16 * sixteenths)


class _Alive(TorchDispatchMode):
    """Sums the bytes of all storages that are made and not yet gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.bytes -= size


@cache
def _vae(channels: tuple[int, ...] = FULL, dtype: torch.dtype = torch.float16) -> Any:
    """A VAE of which only shapes are there: the full-size one unless said otherwise."""
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo(block_out_channels=channels, norm_num_groups=8)
    return vae.to(dtype).eval().requires_grad_(requires_grad=False)


def _peak(vae: Any, latent_frames: int, height: int, width: int) -> int:
    """Of one pass."""
    latents = torch.empty(1, 16, latent_frames, height // 8, width // 8, dtype=vae.dtype, device="meta")
    vae.use_framewise_decoding = False
    with torch.inference_mode(), _Alive() as alive:
        vae.decode(latents)
    return int(alive.peak)


def _video_peak(plan: SectionPlan, mode: DecodeMode, height: int, width: int, tiling: Tiling | None) -> int:
    """Of a whole video's decode, each stretch of pixels gone before the next one comes."""
    vae = _vae()
    latents = torch.empty(1, 16, plan.latent_frames, height // 8, width // 8, device="meta")
    frames = 0
    with _Alive() as alive:
        for stretch in decoded(latents, plan, vae_decoder(vae, mode, tiling), mode):
            assert stretch.shape[3:] == (height, width)
            frames += stretch.shape[2]
            del stretch
    assert frames == plan.frames
    return int(alive.peak)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (640, 608), (384, 608), (720, 1280)])
@pytest.mark.parametrize("latent_frames", [2, 3, OVERLAP_PASS, SINGLE_PASS])
@pytest.mark.parametrize(
    ("channels", "dtype"),
    [
        (FULL, torch.float16),
        (FULL, torch.float32),
        (TINY, torch.float32),
        ((64, 128, 256, 512), torch.bfloat16),
        # Its last block's later layers are the peak.
        ((128, 128, 128, 128), torch.float16),
    ],
)
def test_a_pass(channels: tuple[int, ...], dtype: torch.dtype, latent_frames: int, height: int, width: int) -> None:
    """What is said of a pass is not less than what is alive at its peak, and at most 4% more."""
    vae = _vae(channels, dtype)
    said = pass_bytes(shape_of(vae), latent_frames=latent_frames, height=height, width=width)
    peak = _peak(vae, latent_frames, height, width)
    assert peak <= said <= 1.04 * peak


def test_a_pass_of_one_latent() -> None:
    """A single frame has no frames to upsample in time: a quarter too much is said at the most."""
    said = pass_bytes(FULL_SHAPE, latent_frames=1, height=640, width=608)
    assert _peak(_vae(), 1, 640, 608) <= said <= 1.25 * _peak(_vae(), 1, 640, 608)


@pytest.mark.parametrize("mode", list(DecodeMode))
@pytest.mark.parametrize(("height", "width", "gigabytes"), [(640, 608, 24), (640, 608, 8), (720, 1280, 12)])
def test_a_video_fits(mode: DecodeMode, height: int, width: int, gigabytes: int) -> None:
    """A video decodes within the memory that is free, by the tiling chosen for it, blended chunks included."""
    free = gigabytes * 10**9
    tiling = choose_tiling(FULL_SHAPE, SHORT, mode, height=height, width=width, free=free)
    assert _video_peak(SHORT, mode, height, width, tiling) <= free


def test_a_long_chunk_fits() -> None:
    """With windows of nine, what is held of blended chunks is a third of what a pass needs at this size, and fits."""
    plan = plan_sections(Family.F1, 3, 9)
    free = least_decode_bytes(FULL_SHAPE, plan, DecodeMode.OVERLAP, height=128, width=128)
    tiling = choose_tiling(FULL_SHAPE, plan, DecodeMode.OVERLAP, height=128, width=128, free=free)
    assert tiling is None
    assert _video_peak(plan, DecodeMode.OVERLAP, 128, 128, tiling) <= free


@pytest.mark.parametrize("mode", list(DecodeMode))
@pytest.mark.parametrize(("height", "width"), [(240, 128), (64, 128)])
def test_the_least(mode: DecodeMode, height: int, width: int) -> None:
    """With the least that is said to do, the smallest tiles are chosen, and do."""
    least = least_decode_bytes(FULL_SHAPE, SHORT, mode, height=height, width=width)
    tiling = choose_tiling(FULL_SHAPE, SHORT, mode, height=height, width=width, free=least)
    assert _video_peak(SHORT, mode, height, width, tiling) <= least
    assert (tiling is None) == (height == 64)


def test_untiled_where_it_fits() -> None:
    """Overlap's passes at 640 x 608 are untiled where 24 GiB are free, and in two tiles where 16 GB are."""
    overlap, size = DecodeMode.OVERLAP, {"height": 640, "width": 608}
    assert choose_tiling(FULL_SHAPE, FIVE_SECONDS, overlap, **size, free=24 << 30) is None
    assert choose_tiling(FULL_SHAPE, FIVE_SECONDS, overlap, **size, free=16 * 10**9) == Tiling(
        height=384, width=608, stride_height=320, stride_width=608
    )


@pytest.mark.parametrize("mode", list(DecodeMode))
def test_32_bit_indices(mode: DecodeMode) -> None:
    """However much is free, a tile's largest tensors have fewer than 2**31 values."""
    tiling = choose_tiling(FULL_SHAPE, FIVE_SECONDS, mode, height=720, width=1280, free=10**15)
    assert tiling is not None
    latent_frames = longest_pass(FIVE_SECONDS, mode)
    assert 256 * (4 * latent_frames - 1) * (tiling.height + 2) * (tiling.width + 2) < 2**31
    assert (latent_frames * tiling.height * tiling.width // 64) ** 2 < 2**31


def _decoded_pixels(tiling: Tiling | None, height: int, width: int) -> int:
    """Pixels of all tiles."""
    if tiling is None:
        return height * width
    tall = sum(min(tiling.height, height - start) for start in range(0, height, tiling.stride_height))
    wide = sum(min(tiling.width, width - start) for start in range(0, width, tiling.stride_width))
    return tall * wide


@given(
    SIDES,
    SIDES,
    st.sampled_from(DecodeMode),
    st.integers(1, 20),
    st.integers(10**8, 10**11),
    st.integers(0, 10**11),
)
def test_tiles(height: int, width: int, mode: DecodeMode, count: int, free: int, more: int) -> None:
    """Tiles are whole latents, overlap by 64 pixels where there are several, and cost no more with more memory."""
    plan = plan_sections(Family.F1, count, 3)
    chosen = [choose_tiling(FULL_SHAPE, plan, mode, height=height, width=width, free=each) for each in (free, more)]
    for tiling in chosen:
        if tiling is not None:
            for length, tile, stride in (
                (height, tiling.height, tiling.stride_height),
                (width, tiling.width, tiling.stride_width),
            ):
                assert tile % 8 == stride % 8 == 0
                assert (tile, stride) == (length, length) or tile - stride == TILE_OVERLAP
                assert length - range(0, length, stride)[-1] >= min(TILE_OVERLAP, length)
    less, most = chosen if free <= more else chosen[::-1]
    assert _decoded_pixels(most, height, width) <= _decoded_pixels(less, height, width)


def test_passes_are_the_vaes_own() -> None:
    """The longest pass of overlap, and how far tiles overlap, are diffusers' own settings."""
    vae = AutoencoderKLHunyuanVideo(block_out_channels=TINY, norm_num_groups=8, layers_per_block=1)
    assert vae.tile_sample_min_num_frames // 4 + 1 == OVERLAP_PASS
    assert vae.tile_sample_min_height - vae.tile_sample_stride_height == TILE_OVERLAP
    assert longest_pass(FIVE_SECONDS, DecodeMode.OVERLAP) == OVERLAP_PASS
    assert longest_pass(plan_sections(Family.F1, 1, 2), DecodeMode.SINGLE) == 3


def test_shape_of_a_pack() -> None:
    """A part's config.json says the same as the VAE that is loaded from it."""
    config = json.loads((find_pack("tiny").vae / "config.json").read_text(encoding="utf-8"))
    assert vae_shape(config, 4) == VaeShape(channels=TINY, value_bytes=4)
    assert shape_of(_vae(TINY, torch.float32)) == VaeShape(channels=TINY, value_bytes=4)
