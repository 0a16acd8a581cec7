"""TeaCache's decisions against a plain reading of the design, MagCache's by its steps, and going on with both."""

from collections.abc import Callable, Collection
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goan_cli.model.step_cache import MagCache, StepCache, StepCacheState, TeaCache

_POLYNOMIAL = [7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02]


def _run(cache: StepCache, inputs: list[Tensor], first: int = 0) -> list[float | None]:
    """What the cache answers from the step `first` on; a computed step leaves its own number as the residual."""
    answers = []
    for step, value in enumerate(inputs[first:], start=first):
        answer = cache.residual_to_reuse(_made_of(value))
        if answer is None:
            cache.keep(torch.tensor(float(step)))
        answers.append(None if answer is None else float(answer))
    return answers


def _made_of(value: Tensor) -> Callable[[], Tensor]:
    return lambda: value


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
    assert answers == [None, 0, None, 2, None, 4, None, None]


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
            answer = cache.residual_to_reuse(_made_of(torch.full((4,), value)))
            assert answer is None or float(answer) == residual
            if answer is None:
                cache.keep(torch.tensor(residual))
    assert (still.computed, moving.computed) == ([0], [0, 1, 2])


def test_input_is_made_once_a_step() -> None:
    """TeaCache has the modulated input made exactly once at every step, computed or skipped."""
    cache, made = TeaCache(threshold=10.0, steps=5), 0

    def modulated_input() -> Tensor:
        nonlocal made
        made += 1
        return torch.ones(4)

    for step in range(5):
        if cache.residual_to_reuse(modulated_input) is None:
            cache.keep(torch.tensor(float(step)))
        assert made == step + 1
    assert cache.computed == [0, 4]


# MagCache -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(later=st.sets(st.integers(1, 11)), steps=st.integers(1, 12))
def test_chosen_steps_are_computed(later: set[int], steps: int) -> None:
    """Exactly the chosen steps are computed, and each other one gets the residual of the last of them."""
    computes = {0, *later}
    cache = MagCache(computes=computes)
    answers = _run(cache, [torch.ones(4)] * steps)
    assert cache.computed == sorted(computes & set(range(steps)))
    assert answers == [
        None if step in computes else max(each for each in computes if each < step) for step in range(steps)
    ]


def test_magcache_does_not_look_at_the_input() -> None:
    """Nothing is computed for MagCache to decide by."""

    def modulated_input() -> Tensor:
        raise AssertionError("it was asked for")

    cache = MagCache(computes=(0, 2))
    for step in range(4):
        if cache.residual_to_reuse(modulated_input) is None:
            cache.keep(torch.tensor(float(step)))
    assert cache.computed == [0, 2]


# Going on -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    factors=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=10),
    threshold=st.sampled_from([0.09, 0.15, 0.5, 10.0]),
    later=st.sets(st.integers(1, 10)),
)
def test_going_on_after_any_step(factors: list[float], threshold: float, later: set[int]) -> None:
    """From the state after any step, or before the first, a new cache answers as the old one would have."""
    inputs = [torch.full((4,), float(value)) for value in np.cumprod([1.0, *factors])]
    steps = len(inputs)
    _assert_goes_on(lambda: TeaCache(threshold=threshold, steps=steps), inputs)
    _assert_goes_on(lambda: MagCache(computes={0, *later}), inputs)


def _assert_goes_on(new: Callable[[], StepCache], inputs: list[Tensor]) -> None:
    whole = new()
    expected = _run(whole, inputs)
    for done in range(len(inputs) + 1):
        first, second = new(), new()
        _run(first, inputs[:done])
        second.resume(first.state)
        assert _run(second, inputs, first=done) == expected[done:]
        assert second.computed == whole.computed
        assert second.state.step == whole.state.step == len(inputs)


@pytest.mark.parametrize("kind", ["TeaCache", "MagCache"])
def test_a_state_does_not_move_with_its_cache(kind: str) -> None:
    """A state that was taken stays, though the cache it came from and a cache that resumed it go on."""
    cache, other = _two(kind, computes=range(5))
    _run(cache, [torch.ones(4)] * 2)
    state = cache.state
    other.resume(state)
    for each in (cache, other):
        assert each.residual_to_reuse(lambda: torch.full((4,), 2.0)) is None
        each.keep(torch.tensor(9.0))
    assert (state.computed, state.step) == ((0, 1), 2)
    assert state.residual is not None
    assert float(state.residual) == 1.0
    if kind == "TeaCache":
        assert state.previous_input is not None
        assert torch.equal(state.previous_input, torch.ones(4))
    assert cache.computed == other.computed == [0, 1, 2]


def _two(kind: str, computes: Collection[int]) -> tuple[StepCache, StepCache]:
    if kind == "TeaCache":
        return TeaCache(threshold=0.09, steps=5), TeaCache(threshold=0.09, steps=5)
    return MagCache(computes=computes), MagCache(computes=computes)


@pytest.mark.parametrize("kind", ["TeaCache", "MagCache"])
def test_state_of_a_cache_that_has_seen_nothing(kind: str) -> None:
    """Before the first step there is no tensor to keep."""
    cache, _ = _two(kind, computes=(0,))
    assert cache.state == StepCacheState(computed=(), step=0, residual=None, accumulated=0.0, previous_input=None)


def test_a_state_on_a_device() -> None:
    """A state's tensors go to the device that is told, one that is missing stays so, and nothing else changes."""
    state = StepCacheState(
        computed=(0, 2), step=3, residual=torch.ones(2), accumulated=0.25, previous_input=torch.zeros(3)
    )
    moved = state.on(torch.device("meta"))
    assert (moved.computed, moved.step, moved.accumulated) == ((0, 2), 3, 0.25)
    assert moved.residual is not None
    assert moved.previous_input is not None
    assert (moved.residual.device.type, moved.previous_input.device.type) == ("meta", "meta")
    fresh = MagCache(computes=(0,)).state
    assert fresh.on(torch.device("meta")) == fresh
