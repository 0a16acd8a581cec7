"""TeaCache: skip all blocks of a step while little has changed since the last computed one.

Source: "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model" (arXiv 2411.19108), with the
polynomial that FramePack uses for HunyuanVideo. Approximate by nature.
"""

from dataclasses import dataclass

from torch import Tensor

# Highest power first: accumulated relative change of the modulated input -> expected change of the output.
_POLYNOMIAL = (7.33226126e02, -4.01131952e02, 6.75869174e01, -3.14987800e00, 9.61237896e-02)


@dataclass(frozen=True, kw_only=True)
class TeaCacheState:
    """What a cache knows between two steps; with it, it goes on as if it had not been stopped."""

    computed: tuple[int, ...]
    step: int
    accumulated: float
    previous_input: Tensor | None
    residual: Tensor | None


class TeaCache:
    """The state of one section and one CFG branch; `computed` lists the 0-based steps whose blocks ran."""

    def __init__(self, *, threshold: float, steps: int) -> None:
        self.threshold = threshold
        self.steps = steps
        self.computed: list[int] = []
        self._step = 0
        self._accumulated = 0.0
        self._previous_input: Tensor | None = None
        self._residual: Tensor | None = None

    @property
    def state(self) -> TeaCacheState:
        """What it knows now."""
        return TeaCacheState(
            computed=tuple(self.computed),
            step=self._step,
            accumulated=self._accumulated,
            previous_input=self._previous_input,
            residual=self._residual,
        )

    def resume(self, state: TeaCacheState) -> None:
        """Go on from what a cache of the same settings knew; its tensors must be on the model's device."""
        self.computed = list(state.computed)
        self._step = state.step
        self._accumulated = state.accumulated
        self._previous_input = state.previous_input
        self._residual = state.residual

    def residual_to_reuse(self, modulated_input: Tensor) -> Tensor | None:
        """The residual to add instead of running the blocks at this step, or None when they must run."""
        step, previous = self._step, self._previous_input
        self._step += 1
        self._previous_input = modulated_input
        if previous is not None and 0 < step < self.steps - 1:
            change = (modulated_input - previous).abs().mean() / previous.abs().mean()
            self._accumulated += _expected_change(float(change))
            if self._accumulated < self.threshold:
                return self._residual
        self._accumulated = 0.0
        self.computed.append(step)
        return None

    def keep(self, residual: Tensor) -> None:
        """Remember what the blocks added at the step that was just computed."""
        self._residual = residual


def _expected_change(change: float) -> float:
    value = 0.0
    for coefficient in _POLYNOMIAL:
        value = value * change + coefficient
    return value
