"""TeaCache's decisions against a plain reading of the design."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goan_cli.model.step_cache import TeaCache

_POLYNOMIAL = [7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02]


def _run(cache: TeaCache, inputs: list[Tensor]) -> list[Tensor | None]:
    """What the cache answers step by step; a computed step leaves its own number as the residual."""
    answers = []
    for step, value in enumerate(inputs):
        answer = cache.residual_to_reuse(value)
        if answer is None:
            cache.keep(torch.tensor(float(step)))
        answers.append(answer)
    return answers


def _reference(changes: list[float], steps: int, threshold: float) -> list[int]:
    """The computed steps, from the relative change before each step."""
    computed, accumulated = [], 0.0
    for step in range(steps):
        if step not in (0, steps - 1):
            accumulated += float(np.polyval(_POLYNOMIAL, changes[step]))
            if accumulated < threshold:
                continue
        computed.append(step)
        accumulated = 0.0
    return computed


@pytest.mark.parametrize(
    ("steps", "threshold", "computed"),
    [
        pytest.param(1, 10.0, [0], id="one step"),
        pytest.param(2, 10.0, [0, 1], id="first and last only"),
        pytest.param(7, 10.0, [0, 6], id="a threshold never reached"),
        # An unchanged input still adds the polynomial's constant, 0.0961 a step.
        pytest.param(8, 0.15, [0, 2, 4, 6, 7], id="every second"),
        pytest.param(8, 0.20, [0, 3, 6, 7], id="every third"),
        pytest.param(5, 0.09, [0, 1, 2, 3, 4], id="below one step's share"),
    ],
)
def test_unchanged_input(steps: int, threshold: float, computed: list[int]) -> None:
    """First and last steps are always computed; between them the sum decides, and starts anew when it does."""
    cache = TeaCache(threshold=threshold, steps=steps)
    answers = _run(cache, [torch.ones(4)] * steps)
    assert cache.computed == computed
    assert [step for step, answer in enumerate(answers) if answer is None] == computed


def test_skipped_step_gets_the_last_residual() -> None:
    """A skipped step is given what the last computed step kept, not an older one."""
    cache = TeaCache(threshold=0.15, steps=8)
    answers = _run(cache, [torch.ones(4)] * 8)
    assert [None if answer is None else float(answer) for answer in answers] == [None, 0, None, 2, None, 4, None, None]


def test_change_is_measured_from_the_step_before() -> None:
    """The change is relative to the step before, whether that was skipped or computed."""
    drift = [torch.full((4,), 1.0 + 0.05 * step) for step in range(6)]
    changes = [0.0, *(0.05 / (1.0 + 0.05 * step) for step in range(5))]
    cache = TeaCache(threshold=0.15, steps=6)
    _run(cache, drift)
    assert cache.computed == _reference(changes, 6, 0.15)
    assert cache.computed != [0, 1, 2, 3, 4, 5]


def test_large_change_is_computed() -> None:
    """A step whose input leaps is computed at any sensible threshold."""
    cache = TeaCache(threshold=1.0, steps=4)
    _run(cache, [torch.ones(4), torch.ones(4), torch.full((4,), 3.0), torch.full((4,), 3.0)])
    assert cache.computed == [0, 2, 3]


@settings(max_examples=40, deadline=None)
@given(
    factors=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=20),
    threshold=st.sampled_from([0.05, 0.1, 0.15, 0.5, 2.0]),
)
def test_any_course(factors: list[float], threshold: float) -> None:
    """For any course of changes the computed steps are those of the design's formula."""
    values = list(np.cumprod([1.0, *factors]))
    changes = [0.0, *(abs(after - before) / before for before, after in pairwise(values))]
    cache = TeaCache(threshold=threshold, steps=len(values))
    _run(cache, [torch.full((4,), value, dtype=torch.float64) for value in values])
    assert cache.computed == _reference(changes, len(values), threshold)


def test_states_are_apart() -> None:
    """Two caches, as two CFG branches have, do not see each other's inputs or residuals."""
    still, moving = TeaCache(threshold=10.0, steps=4), TeaCache(threshold=0.09, steps=4)
    for step in range(3):
        for cache, value, residual in ((still, 1.0, -1.0), (moving, 2.0**step, 1.0)):
            answer = cache.residual_to_reuse(torch.full((4,), value))
            assert answer is None or float(answer) == residual
            if answer is None:
                cache.keep(torch.tensor(residual))
    assert (still.computed, moving.computed) == ([0], [0, 1, 2])


# Going on -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    factors=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=10),
    threshold=st.sampled_from([0.09, 0.15, 0.5, 10.0]),
)
def test_going_on_after_any_step(factors: list[float], threshold: float) -> None:
    """From the state after any step, or before the first, a new cache answers as the old one would have."""
    inputs = [torch.full((4,), float(value)) for value in np.cumprod([1.0, *factors])]
    steps = len(inputs)
    whole = TeaCache(threshold=threshold, steps=steps)
    expected = _run(whole, inputs)
    for done in range(steps + 1):
        first, second = (TeaCache(threshold=threshold, steps=steps) for _ in range(2))
        _run(first, inputs[:done])
        second.resume(first.state)
        rest = []
        for step in range(done, steps):
            answer = second.residual_to_reuse(inputs[step])
            if answer is None:
                second.keep(torch.tensor(float(step)))
            rest.append(answer)
        assert second.computed == whole.computed
        assert [None if each is None else float(each) for each in rest] == [
            None if each is None else float(each) for each in expected[done:]
        ]


def test_a_state_does_not_move_with_its_cache() -> None:
    """A state that was taken stays, though the cache it came from and a cache that resumed it go on."""
    cache, other = (TeaCache(threshold=0.09, steps=5) for _ in range(2))
    _run(cache, [torch.ones(4)] * 2)
    state = cache.state
    other.resume(state)
    for each in (cache, other):
        assert each.residual_to_reuse(torch.full((4,), 2.0)) is None
        each.keep(torch.tensor(9.0))
    assert (state.computed, state.step) == ((0, 1), 2)
    assert state.previous_input is not None
    assert state.residual is not None
    assert torch.equal(state.previous_input, torch.ones(4))
    assert float(state.residual) == 1.0
    assert cache.computed == other.computed == [0, 1, 2]


def test_state_of_a_cache_that_has_seen_nothing() -> None:
    """Before the first step there is no tensor to keep."""
    state = TeaCache(threshold=0.15, steps=3).state
    assert (state.computed, state.step, state.accumulated) == ((), 0, 0.0)
    assert state.previous_input is None
    assert state.residual is None
