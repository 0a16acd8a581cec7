"""The noise schedule of flow matching, shifted by the number of tokens as FramePack does."""

import math

import torch
from torch import Tensor

# The line through (tokens, mu) that the shift runs on, extrapolated, and its cap.
_SHORT, _LONG = (256, 0.5), (4096, 1.15)
_MOST_MU = math.log(7.0)


def shift_for(tokens: int) -> float:
    """mu, the logarithm of the shift, for a number of noisy tokens."""
    slope = (_LONG[1] - _SHORT[1]) / (_LONG[0] - _SHORT[0])
    return min(_SHORT[1] + slope * (tokens - _SHORT[0]), _MOST_MU)


def noise_sigmas(steps: int, *, tokens: int, shift: float | None = None) -> Tensor:
    """`(steps + 1,)` sigmas in fp32 from 1 to 0; `shift` replaces the one by `tokens` (frames x h x w / 4)."""
    mu = math.log(shift) if shift is not None else shift_for(tokens)
    sigmas = torch.linspace(1, 0, steps + 1)
    return math.exp(mu) / (math.exp(mu) + (1 / sigmas - 1))
