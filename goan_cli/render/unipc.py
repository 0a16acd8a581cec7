"""UniPC in data prediction for flow matching: predictor and corrector of order 3, variant bh1.

Source: "UniPC: A Unified Predictor-Corrector Framework" (arXiv 2302.04867), as FramePack runs it. diffusers'
scheduler does not reproduce it: it takes the logarithm of alpha = 1 - sigma, which is -inf at sigma 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PredictX0 = Callable[[Tensor, float, int], Tensor]
_HIGHEST_ORDER = 3


@dataclass(frozen=True, kw_only=True)
class UniPCState:
    """The sampler after a step: steps done, the corrected x, and the newest x0 predictions, oldest first.

    With them sampling goes on, bit for bit, as if it had not been stopped.
    """

    done: int
    x: Tensor
    predictions: tuple[Tensor, ...]


def sample_unipc(predict_x0: PredictX0, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Denoise `noise` along `sigmas` (the last one, 0, is never evaluated); returns the last x0 prediction."""
    *_, last = unipc_steps(predict_x0, noise, sigmas)
    return last.predictions[-1]


def unipc_steps(
    predict_x0: PredictX0, noise: Tensor, sigmas: Sequence[float], after: UniPCState | None = None
) -> Iterator[UniPCState]:
    """Yield the state after each step, going on after `after` where it is given.

    `predict_x0(x, sigma, step)` is called once a step. Coefficients are computed in double precision and
    applied in the dtype of `noise`.
    """
    steps = len(sigmas) - 1
    highest = min(_HIGHEST_ORDER, steps - 1)
    if after is None:
        after = UniPCState(done=1, x=noise, predictions=(predict_x0(noise, sigmas[0], 0),))
        yield after
    x, predictions = after.x, after.predictions
    for step in range(after.done, steps):
        order = min(step, highest)
        recent = predictions[::-1][:order]
        earlier = [sigmas[step - 1 - back] for back in range(order)]
        plan = _step(earlier, sigmas[step])
        base = plan.keep * x - plan.phi * recent[0]
        slopes = [(past - recent[0]) / ratio for past, ratio in zip(recent[1:], plan.ratios, strict=True)]

        predictor = base - plan.scale * _weighted(plan.predictor, slopes)
        prediction = predict_x0(predictor, sigmas[step], step)
        corrector = _weighted(plan.corrector[:-1], slopes) + plan.corrector[-1] * (prediction - recent[0])
        x = base - plan.scale * corrector
        predictions = (*predictions, prediction)[-max(highest, 1) :]
        yield UniPCState(done=step + 1, x=x, predictions=predictions)


@dataclass(frozen=True, kw_only=True)
class _Step:
    """The scalars of one step: x is kept times `keep`, less `phi` times the newest x0, less `scale` times slopes."""

    keep: float
    phi: float
    scale: float
    ratios: tuple[float, ...]
    predictor: tuple[float, ...]
    corrector: tuple[float, ...]


def _step(earlier: Sequence[float], sigma: float) -> _Step:
    """The step from `earlier[0]` (newest first) to `sigma`, with lambda = -log sigma; the order is their number."""
    order = len(earlier)
    here = -math.log(earlier[0])
    width = -math.log(sigma) - here
    hh = -width
    growth = math.expm1(hh)
    ratios = tuple((-math.log(past) - here) / width for past in earlier[1:])

    nodes = np.array([*ratios, 1.0])
    rows = np.stack([nodes**power for power in range(order)])
    right, phi = [], growth / hh - 1
    for index in range(1, order + 1):
        right.append(phi * math.factorial(index) / hh)  # B(h) = hh in variant bh1
        phi = phi / hh - 1 / math.factorial(index + 1)
    return _Step(
        keep=sigma / earlier[0],
        phi=growth,
        scale=hh,
        ratios=ratios,
        predictor=_solved(rows[:-1, :-1], right[:-1]) if order > 2 else (0.5,) * (order - 1),
        corrector=_solved(rows, right) if order > 1 else (0.5,),
    )


def _solved(matrix: NDArray[np.float64], right: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.linalg.solve(matrix, np.array(right)))


def _weighted(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor | float:
    return sum((weight * tensor for weight, tensor in zip(weights, tensors, strict=True)), 0.0)
