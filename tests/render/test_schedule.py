"""The noise schedule: its ends, its shift, and the line through token counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goan_cli.render.schedule import noise_sigmas, shift_for


@pytest.mark.parametrize(
    ("tokens", "mu"),
    [
        pytest.param(256, 0.5, id="short end of the line"),
        pytest.param(4096, 1.15, id="long end"),
        pytest.param(2176, 0.825, id="half way"),
        pytest.param(0, 0.5 - 256 * 0.65 / 3840, id="extrapolated downwards"),
        pytest.param(6000, 0.5 + (6000 - 256) * 0.65 / 3840, id="extrapolated upwards"),
        pytest.param(13_680, math.log(7), id="640 x 608, window 9: capped"),
    ],
)
def test_shift_for(tokens: int, mu: float) -> None:
    """mu runs on the line through (256, 0.5) and (4096, 1.15), extrapolated, and ends at log 7."""
    assert shift_for(tokens) == pytest.approx(mu, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 25, 1000])
@pytest.mark.parametrize("shift", [None, 0.1, 1.0, 3.0, 100.0])
def test_ends_and_order(steps: int, shift: float | None) -> None:
    """The schedule has steps + 1 values in fp32, from exactly 1 to exactly 0, strictly falling."""
    sigmas = noise_sigmas(steps, tokens=2048, shift=shift)
    assert (sigmas.shape, sigmas.dtype) == ((steps + 1,), torch.float32)
    assert (float(sigmas[0]), float(sigmas[-1])) == (1.0, 0.0)
    assert bool((sigmas.diff() < 0).all())


def test_shift_of_one_is_linear() -> None:
    """A shift of 1 leaves the sigmas evenly spaced."""
    torch.testing.assert_close(noise_sigmas(10, tokens=999, shift=1.0), torch.linspace(1, 0, 11), rtol=1e-6, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 100), tokens=st.integers(1, 20_000), shift=st.one_of(st.none(), st.floats(0.05, 50)))
def test_formula(steps: int, tokens: int, shift: float | None) -> None:
    """Every sigma is s x / (1 + (s - 1) x) of its even spacing x, with s the given shift or exp(mu)."""
    factor = math.exp(shift_for(tokens)) if shift is None else shift
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    expected = factor * even / (1 + (factor - 1) * even)
    torch.testing.assert_close(noise_sigmas(steps, tokens=tokens, shift=shift).double(), expected, rtol=1e-5, atol=1e-6)


def test_given_shift_replaces_the_token_count() -> None:
    """With a shift, the token count has no part in it."""
    assert torch.equal(noise_sigmas(9, tokens=1, shift=2.5), noise_sigmas(9, tokens=99_999, shift=2.5))
