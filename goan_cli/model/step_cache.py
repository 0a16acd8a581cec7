"""Step caches: skip all blocks of a step, and add what they added at the last step that was computed.

Sources: TeaCache, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108), with
the polynomial that FramePack uses for HunyuanVideo; MagCache, "MagCache: Fast Video Generation with Magnitude-Aware
Cache" (arXiv 2506.09045). Approximate by nature.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Highest power first: accumulated relative change of the modulated input -> expected change of the output.
_POLYNOMIAL = (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02)


@dataclass(frozen=True, kw_only=True)
class StepCacheState:
    """What a cache knows between two steps; with it, it goes on as if it had not been stopped.

    `accumulated` and `previous_input` are TeaCache's.
    """

    computed: tuple[int, ...]
    step: int
    residual: Tensor | None
    accumulated: float = 0.0
    previous_input: Tensor | None = None

    def on(self, device: torch.device) -> "StepCacheState":
        """The same with its tensors on a device."""
        return StepCacheState(
            computed=self.computed,
            step=self.step,
            residual=None if self.residual is None else self.residual.to(device),
            accumulated=self.accumulated,
            previous_input=None if self.previous_input is None else self.previous_input.to(device),
        )


class StepCache(Protocol):
    """The cache of one section and one CFG branch; `computed` lists the 0-based steps whose blocks ran."""

    computed: list[int]

    @property
    def state(self) -> StepCacheState:
        """What it knows now."""

    def resume(self, state: StepCacheState) -> None:
        """Go on from what a cache of the same settings knew; its tensors must be on the model's device."""

    def residual_to_reuse(self, modulated_input: Callable[[], Tensor]) -> Tensor | None:
        """The residual to add instead of running the blocks at this step, or None when they must run.

        Asked once a step; `modulated_input` makes the first block's modulated input for a cache that looks at it.
        """

    def keep(self, residual: Tensor) -> None:
        """Remember what the blocks added at the step that was just computed."""


class TeaCache:
    """Skips while the changes of the modulated input since the last computed step sum up to under `threshold`."""

    def __init__(self, *, threshold: float, steps: int) -> None:
        self.threshold = threshold
        self.steps = steps
        self.computed: list[int] = []
        self._step = 0
        self._accumulated = 0.0
        self._previous_input: Tensor | None = None
        self._residual: Tensor | None = None

    @property
    def state(self) -> StepCacheState:
        """What it knows now."""
        return StepCacheState(
            computed=tuple(self.computed),
            step=self._step,
            residual=self._residual,
            accumulated=self._accumulated,
            previous_input=self._previous_input,
        )

    def resume(self, state: StepCacheState) -> None:
        """Go on from what a cache of the same settings knew; its tensors must be on the model's device."""
        self.computed = list(state.computed)
        self._step = state.step
        self._residual = state.residual
        self._accumulated = state.accumulated
        self._previous_input = state.previous_input

    def residual_to_reuse(self, modulated_input: Callable[[], Tensor]) -> Tensor | None:
        """The residual to add instead of running the blocks at this step, or None when they must run."""
        step, previous = self._step, self._previous_input
        self._step += 1
        self._previous_input = current = modulated_input()
        if previous is not None and 0 < step < self.steps - 1:
            change = (current - previous).abs().mean() / previous.abs().mean()
            self._accumulated += _expected_change(float(change))
            if self._accumulated < self.threshold:
                return self._residual
        self._accumulated = 0.0
        self.computed.append(step)
        return None

    def keep(self, residual: Tensor) -> None:
        """Remember what the blocks added at the step that was just computed."""
        self._residual = residual


class MagCache:
    """Runs the blocks at the steps `computes` and skips the others: `magnitudes.steps_to_compute` chose them.

    The first step is always computed.
    """

    def __init__(self, *, computes: Collection[int]) -> None:
        self.computes = frozenset(computes)
        self.computed: list[int] = []
        self._step = 0
        self._residual: Tensor | None = None

    @property
    def state(self) -> StepCacheState:
        """What it knows now."""
        return StepCacheState(computed=tuple(self.computed), step=self._step, residual=self._residual)

    def resume(self, state: StepCacheState) -> None:
        """Go on from what a cache of the same settings knew; its tensors must be on the model's device."""
        self.computed = list(state.computed)
        self._step = state.step
        self._residual = state.residual

    def residual_to_reuse(self, modulated_input: Callable[[], Tensor]) -> Tensor | None:  # noqa: ARG002 - not looked at
        """The residual to add instead of running the blocks at this step, or None when they must run."""
        step = self._step
        self._step += 1
        if step in self.computes or self._residual is None:
            self.computed.append(step)
            return None
        return self._residual

    def keep(self, residual: Tensor) -> None:
        """Remember what the blocks added at the step that was just computed."""
        self._residual = residual


def _expected_change(change: float) -> float:
    value = 0.0
    for coefficient in _POLYNOMIAL:
        value = value * change + coefficient
    return value
