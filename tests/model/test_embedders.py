"""Sinusoidal features, clean-latent patches and the token refiner."""

import pytest
import torch
from diffusers.models.embeddings import Timesteps
from torch.nn import functional as F

from goan_cli.model.embedders import CleanPatchEmbed, PatchEmbed, TokenRefiner, sinusoid
from tests.helpers import SMALL, relative_error


@pytest.mark.parametrize("value", [0.0, 1.0, 0.35, 421.5, 999.0, 1_000.0, 10_000.0])
def test_sinusoid_is_exact(value: float) -> None:
    """Features are cosines, then sines, of the angles in double precision, to fp32's rounding of a frequency."""
    half = torch.arange(128, dtype=torch.float64)
    angles = value * torch.exp(-torch.log(torch.tensor(10_000.0, dtype=torch.float64)) * half / 128)
    exact = torch.cat((angles.cos(), angles.sin()))[None]
    actual = sinusoid(torch.tensor([value]))
    assert (actual.shape, actual.dtype) == ((1, 256), torch.float32)
    # The exponent is fp32 (relative error 2^-24 of at most 9.2), the angle at most `value`.
    assert float((actual.double() - exact).abs().max()) <= 1e-7 + value * 2e-6


@pytest.mark.parametrize("value", [0.0, 1.0, 421.5, 1_000.0, 10_000.0])
def test_sinusoid_is_diffusers(value: float) -> None:
    """Features are diffusers' up to their fp32 frequencies."""
    expected = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(torch.tensor([value]))
    assert float((sinusoid(torch.tensor([value])) - expected).abs().max()) <= 1e-7 + value * 2e-6


@pytest.mark.parametrize(
    ("pool", "size", "tokens"),
    [
        (1, (2, 4, 6), 2 * 2 * 3),
        (2, (2, 8, 8), 1 * 2 * 2),
        (2, (2, 6, 10), 1 * 2 * 3),
        (2, (1, 4, 4), 1),
        (4, (16, 8, 8), 4 * 1 * 1),
        (4, (16, 10, 6), 4 * 2 * 1),
        (4, (5, 2, 2), 2),
    ],
)
def test_clean_tokens(pool: int, size: tuple[int, int, int], tokens: int) -> None:
    """History is cut into patches of (pool, 2 pool, 2 pool), incomplete ones counted as whole."""
    out = CleanPatchEmbed(SMALL)(torch.ones((1, 16, *size)), pool)
    assert out.shape == (1, tokens, SMALL.width)


def test_padding_repeats_the_border() -> None:
    """An incomplete patch is filled up with its own last values, at the end of each axis."""
    embed = CleanPatchEmbed(SMALL)
    latents = torch.randn((1, 16, 1, 4, 6), generator=torch.Generator().manual_seed(0))
    by_hand = F.pad(latents, (0, 2, 0, 0, 0, 1), mode="replicate")
    assert torch.equal(by_hand[..., -1], latents[..., -1].expand(1, 16, 2, 4))
    assert torch.equal(embed(latents, 2), embed(by_hand, 2))


def test_tokens_run_row_by_row() -> None:
    """Tokens are in the order frames, rows, columns: the order of the rotary table."""
    embed = PatchEmbed(SMALL)
    latents = torch.randn((1, 16, 2, 4, 6), generator=torch.Generator().manual_seed(0))
    tokens = embed(latents)
    for index, (frame, row, column) in enumerate(torch.cartesian_prod(*map(torch.arange, (2, 2, 3))).tolist()):
        patch = latents[:, :, frame : frame + 1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(tokens[:, index], embed.proj(patch).flatten(1), rtol=1e-5, atol=1e-6)


def test_refiner_in_bfloat16() -> None:
    """In bfloat16 the refiner keeps its dtype and stays near float32's result."""
    torch.manual_seed(0)
    refiner = TokenRefiner(SMALL)
    features = torch.randn((1, 9, SMALL.text_embed_dim), generator=torch.Generator().manual_seed(1))
    expected = refiner(features, torch.tensor([512.0]))
    actual = refiner.to(torch.bfloat16)(features.bfloat16(), torch.tensor([512.0], dtype=torch.bfloat16))
    assert actual.dtype == torch.bfloat16
    assert relative_error(actual, expected) < 0.05
