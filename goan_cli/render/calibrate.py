"""Calibrates MagCache: jobs are sampled exactly, and what their blocks add is measured from step to step."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from goan_cli.errors import InvalidInput, RenderFailed
from goan_cli.model.step_cache import MagCache
from goan_cli.packs.magnitudes import Magnitudes
from goan_cli.render.plan import RenderPlan
from goan_cli.render.sampling import MakeCache
from goan_cli.render.schedule import shift_for

# Samples all sections of a plan, with these step caches in the place of its own.
Sample = Callable[[RenderPlan, MakeCache], object]

_DIGITS = 6


class MagnitudeRecorder(MagCache):
    """Has every step computed; `ratios` holds, for each so far, how its residual compares to the one before.

    Of one that goes on from a state, only those of the steps that it has seen itself.
    """

    def __init__(self, *, steps: int) -> None:
        super().__init__(computes=range(steps))
        self.ratios: list[float] = []

    def keep(self, residual: Tensor) -> None:
        """Measure what the blocks added against what they added at the step before."""
        before = self.state.residual
        self.ratios.append(1.0 if before is None else magnitude_ratio(residual, before))
        super().keep(residual)


def magnitude_ratio(residual: Tensor, before: Tensor) -> float:
    """The mean over tokens of the ratio of two residuals' norms over the width; both `(1, tokens, width)`."""
    norm, norm_before = (torch.linalg.vector_norm(each, dim=-1, dtype=torch.float32) for each in (residual, before))
    return float((norm / norm_before).mean())


def calibrated(plans: Sequence[RenderPlan], sample: Sample) -> Magnitudes:
    """The mean ratios of all sections of the plans, whose own step caches are not used.

    Raises InvalidInput for plans that differ in what a calibration is for, and RenderFailed for residuals that
    are zero or not finite.
    """
    wanted = {(plan.pack.manifest, plan.job.sampling.steps, plan.job.sections.window, _shift(plan)) for plan in plans}
    if len(wanted) != 1 or any(plan.every_lora for plan in plans):
        raise InvalidInput(
            "jobs to calibrate MagCache with must have one model, no LoRAs, and equal steps, windows and shifts"
        )
    ((_, steps, window, shift),) = wanted
    recorders: list[MagnitudeRecorder] = []

    def recorder() -> MagnitudeRecorder:
        recorders.append(MagnitudeRecorder(steps=steps))
        return recorders[-1]

    for plan in plans:
        sample(plan, recorder)
    curves = torch.tensor([each.ratios for each in recorders], dtype=torch.float64)
    if not (curves.isfinite() & (curves > 0)).all():
        raise RenderFailed("what the blocks add to a section is zero or not finite: there is nothing to calibrate")
    return Magnitudes(
        transformer=plans[0].pack.identity_of("transformer"),
        window=window,
        shift=round(shift, _DIGITS),
        samples=len(curves),
        spread=round(float(curves.std(dim=0, correction=0).max()), _DIGITS),
        ratios=tuple(round(ratio, _DIGITS) for ratio in curves.mean(dim=0).tolist()),
    )


def _shift(plan: RenderPlan) -> float:
    """Of the job's noise schedule, given or by its noisy tokens: one for each 16 x 16 pixels of a latent."""
    if plan.job.sampling.shift is not None:
        return plan.job.sampling.shift
    width, height = plan.job.size
    return math.exp(shift_for(plan.job.sections.window * (width // 16) * (height // 16)))
