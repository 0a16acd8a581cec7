"""UniPC against a plain float64 reading of the design, and against a flow whose solution is known."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goan_cli.render.schedule import noise_sigmas
from goan_cli.render.unipc import UniPCState, sample_unipc, unipc_steps
from tests.helpers import relative_error

STEPS = (1, 2, 3, 4, 5, 8, 25)


def _sigmas(steps: int, shift: float = 3.0) -> list[float]:
    values: list[float] = noise_sigmas(steps, tokens=1, shift=shift).tolist()
    return values


def _reference(predict: Callable[[Tensor, float], Tensor], noise: Tensor, sigmas: list[float]) -> list[Tensor]:
    """All x0 predictions of UniPC, order 3, B(h) = h, with matrices solved in float64."""
    steps = len(sigmas) - 1
    lambdas = [-math.log(sigma) for sigma in sigmas[:-1]]
    x = noise
    predictions = [predict(x, sigmas[0])]
    for i in range(1, steps):
        order = min(i, 3, steps - 1)
        h = lambdas[i] - lambdas[i - 1]
        hh, newest = -h, predictions[-1]
        phi1 = math.expm1(hh)
        ratios = [(lambdas[i - 1 - k] - lambdas[i - 1]) / h for k in range(1, order)]
        slopes = [(predictions[-1 - k] - newest) / ratio for k, ratio in enumerate(ratios, start=1)]
        nodes = torch.tensor([*ratios, 1.0], dtype=torch.float64)
        matrix = torch.stack([nodes**row for row in range(order)])
        phi, phis = phi1 / hh - 1, []
        for k in range(1, order + 1):
            phis.append(phi)
            phi = phi / hh - 1 / math.factorial(k + 1)
        right = torch.tensor([math.factorial(k) * value / hh for k, value in enumerate(phis, 1)], dtype=torch.float64)

        rho_p = {1: [], 2: [0.5]}.get(order)
        if rho_p is None:
            rho_p = torch.linalg.solve(matrix[:-1, :-1], right[:-1]).tolist()
        rho_c = [0.5] if order == 1 else torch.linalg.solve(matrix, right).tolist()

        base = (sigmas[i] / sigmas[i - 1]) * x - phi1 * newest
        guess = base - hh * sum((r * d for r, d in zip(rho_p, slopes, strict=True)), torch.zeros_like(x))
        prediction = predict(guess, sigmas[i])
        correction = sum((r * d for r, d in zip(rho_c[:-1], slopes, strict=True)), torch.zeros_like(x))
        x = base - hh * (correction + rho_c[-1] * (prediction - newest))
        predictions.append(prediction)
    return predictions


def _wavy(x: Tensor, sigma: float) -> Tensor:
    """A prediction that depends on x and sigma in no simple way."""
    return torch.sin(2 * x) * (1 - sigma) + 0.3 * x + math.cos(5 * sigma)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shift", [0.5, 1.0, 7.0])
def test_equals_the_formulas(steps: int, shift: float) -> None:
    """Every prediction, predictor and corrector of orders 1 to 3 among them, is that of the formulas to 1e-12."""
    noise = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas, seen = _sigmas(steps, shift), []

    def predict(x: Tensor, sigma: float, _: int) -> Tensor:
        seen.append(_wavy(x, sigma))
        return seen[-1]

    result = sample_unipc(predict, noise, sigmas)
    expected = _reference(_wavy, noise, sigmas)
    assert len(seen) == len(expected) == steps
    assert all(relative_error(actual, wanted) < 1e-12 for actual, wanted in zip(seen, expected, strict=True))
    assert result is seen[-1]


@pytest.mark.parametrize("steps", STEPS)
def test_calls(steps: int) -> None:
    """The model is called once a step, in order, at every sigma but the last, 0."""
    sigmas = _sigmas(steps)
    calls: list[tuple[float, int]] = []

    def predict(x: Tensor, sigma: float, step: int) -> Tensor:
        calls.append((sigma, step))
        return 0.5 * x

    sample_unipc(predict, torch.ones(3), sigmas)
    assert calls == [(sigma, step) for step, sigma in enumerate(sigmas[:-1])]
    assert all(sigma > 0 for sigma, _ in calls)


@pytest.mark.parametrize("steps", STEPS)
def test_first_call_sees_the_noise(steps: int) -> None:
    """The first prediction is made from the noise itself."""
    noise, first = torch.randn(4, generator=torch.Generator().manual_seed(1)), []

    def predict(x: Tensor, _: float, step: int) -> Tensor:
        if step == 0:
            first.append(x)
        return x

    sample_unipc(predict, noise, _sigmas(steps))
    assert torch.equal(first[0], noise)


@pytest.mark.parametrize("steps", STEPS)
def test_last_prediction_is_the_result(steps: int) -> None:
    """What comes back is the last x0 prediction, not the sampler's state."""
    result = sample_unipc(lambda x, _, step: torch.full_like(x, float(step)), torch.zeros(2), _sigmas(steps))
    assert torch.equal(result, torch.full((2,), float(steps - 1)))


@settings(max_examples=30, deadline=None)
@given(value=st.floats(-10, 10), steps=st.integers(1, 30), shift=st.floats(0.2, 20), seed=st.integers(0, 2**16))
def test_constant_prediction_is_followed_exactly(value: float, steps: int, shift: float, seed: int) -> None:
    """With x0 predicted constant, every x lies on the straight line from noise to x0, and x0 is the result."""
    noise = torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    target = torch.full_like(noise, value)

    def predict(x: Tensor, sigma: float, _: int) -> Tensor:
        torch.testing.assert_close(x, (1 - sigma) * target + sigma * noise, rtol=1e-6, atol=1e-6)
        return target

    # From sigma 1 exactly: the line begins at the noise.
    assert torch.equal(sample_unipc(predict, noise, _sigmas(steps, shift)), target)


def test_converges_to_the_exact_flow() -> None:
    """On Gaussian data, whose flow is known in closed form, steps of half the size cut the error about eightfold."""
    mean, deviation = 0.7, 0.4
    noise = torch.linspace(-2, 2, 41, dtype=torch.float64)

    def spread(sigma: float) -> float:
        return math.hypot(deviation * (1 - sigma), sigma)

    def predict(x: Tensor, sigma: float, _: int) -> Tensor:
        gain = deviation**2 * (1 - sigma) / spread(sigma) ** 2
        return mean + gain * (x - (1 - sigma) * mean)

    errors = []
    for steps in (20, 40, 80):
        # Even in log sigma, so that half the size is half of every step.
        sigmas = [math.exp(-4 * step / (steps - 1)) for step in range(steps)]
        last = sigmas[-1]
        # At sigma 1 the flow starts at the noise; on it x is (1 - sigma) mean + spread(sigma) noise.
        exact = mean + deviation**2 * (1 - last) / spread(last) * noise
        errors.append(relative_error(sample_unipc(predict, noise, [*sigmas, 0.0]), exact))
    assert errors[0] < 5e-4
    assert errors[0] / errors[1] > 6
    assert errors[1] / errors[2] > 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_the_noise_s(dtype: torch.dtype) -> None:
    """The sampler works in the dtype of the noise; coefficients do not widen it."""
    result = sample_unipc(lambda x, sigma, _: _wavy(x, sigma), torch.ones(3, dtype=dtype), _sigmas(6))
    assert result.dtype == dtype


def test_inputs_are_not_written_to() -> None:
    """The noise and the predictions handed over stay as they were."""
    noise = torch.ones(3)
    kept: list[tuple[Tensor, Tensor]] = []

    def predict(x: Tensor, sigma: float, _: int) -> Tensor:
        kept.append((prediction := _wavy(x, sigma), prediction.clone()))
        return prediction

    sample_unipc(predict, noise, _sigmas(6))
    assert torch.equal(noise, torch.ones(3))
    assert all(torch.equal(held, copy) for held, copy in kept)


# Going on -------------------------------------------------------------------------------------------------


def _same(first: UniPCState, second: UniPCState) -> bool:
    """Whether two states are equal to the last bit."""
    return (
        first.done == second.done
        and torch.equal(first.x, second.x)
        and len(first.predictions) == len(second.predictions)
        and all(torch.equal(one, other) for one, other in zip(first.predictions, second.predictions, strict=True))
    )


@pytest.mark.parametrize("steps", STEPS)
def test_going_on_after_any_step(steps: int) -> None:
    """From the state after any step the rest is bit for bit what it is without a stop, the steps before not called."""
    noise = torch.randn(20, generator=torch.Generator().manual_seed(2))
    sigmas = _sigmas(steps)
    whole = list(unipc_steps(lambda x, sigma, _: _wavy(x, sigma), noise, sigmas))
    assert [state.done for state in whole] == list(range(1, steps + 1))
    for after in whole:
        calls: list[int] = []

        def predict(x: Tensor, sigma: float, step: int, calls: list[int] = calls) -> Tensor:
            calls.append(step)
            return _wavy(x, sigma)

        # The noise has no part in what is left.
        rest = list(unipc_steps(predict, torch.full_like(noise, math.nan), sigmas, after))
        assert calls == list(range(after.done, steps))
        assert len(rest) == steps - after.done
        assert all(_same(state, wanted) for state, wanted in zip(rest, whole[after.done :], strict=True))


@pytest.mark.parametrize("steps", STEPS)
def test_state_holds_what_the_order_needs(steps: int) -> None:
    """A state has the newest predictions, oldest first, and no more than the highest order will use."""
    highest = max(min(3, steps - 1), 1)

    def predict(x: Tensor, _: float, step: int) -> Tensor:
        return torch.full_like(x, float(step))

    for state in unipc_steps(predict, torch.zeros(2), _sigmas(steps)):
        made = [float(prediction[0]) for prediction in state.predictions]
        assert made == [float(step) for step in range(state.done)][-highest:]


def test_a_step_is_taken_only_when_asked_for() -> None:
    """Whoever stops asking has no further step computed."""
    calls: list[int] = []

    def predict(x: Tensor, _: float, step: int) -> Tensor:
        calls.append(step)
        return x

    states = unipc_steps(predict, torch.zeros(2), _sigmas(5))
    assert (next(states).done, next(states).done) == (1, 2)
    assert calls == [0, 1]
