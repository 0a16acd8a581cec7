"""MagCache's calibration: what is measured while a job is sampled exactly, and what it comes to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from goan_cli.errors import InvalidInput, RenderFailed
from goan_cli.model.transformer import PackedTransformer, TextConditioning
from goan_cli.render.calibrate import MagnitudeRecorder, Sample, calibrated, magnitude_ratio
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.plan import RenderPlan
from goan_cli.render.sampling import MakeCache, sample_sections
from goan_cli.render.schedule import noise_sigmas
from tests.helpers import SMALL, TINY_SQUARE, factors, random_transformer, tiny_plan, write_lora

STEPS = 4


@pytest.fixture(scope="module")
def model() -> PackedTransformer:
    """A small transformer with random weights."""
    return random_transformer()


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    """Random conditioning of both branches for 32 x 32 pixels."""
    generator = torch.Generator().manual_seed(0)

    def text(rows: int) -> TextConditioning:
        return TextConditioning(
            embeds=torch.randn((1, rows, SMALL.text_embed_dim), generator=generator),
            pooled=torch.randn((1, SMALL.pooled_projection_dim), generator=generator),
        )

    return Conditioning(
        positive=text(5),
        negative=text(2),
        image_embeds=torch.randn((1, 3, SMALL.image_proj_dim), generator=generator),
        start_latent=torch.randn((1, 16, 1, 4, 4), generator=generator),
    )


# One residual after another -------------------------------------------------------------------------------


def test_ratio_is_a_mean_over_tokens() -> None:
    """Each token's norms are compared first, and then averaged: large tokens count as much as small ones."""
    before = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 100.0]]])
    residual = torch.tensor([[[6.0, 8.0], [0.0, 1.0], [300.0, 0.0]]])
    assert magnitude_ratio(residual, before) == pytest.approx((2 + 1 + 3) / 3)


def test_ratio_of_residuals_in_bfloat16() -> None:
    """Norms are taken in float32, whatever the residuals are in."""
    before, residual = torch.full((1, 2, 4096), 1.0), torch.full((1, 2, 4096), 1.5)
    assert magnitude_ratio(residual.bfloat16(), before.bfloat16()) == pytest.approx(1.5, rel=1e-5)


def test_recorder_has_every_step_computed() -> None:
    """A recorder never skips; its first ratio is 1, and each further one is to the step just before."""
    recorder = MagnitudeRecorder(steps=4)
    for size in (2.0, 1.0, 3.0, 3.0):
        assert recorder.residual_to_reuse(lambda: torch.zeros(1)) is None
        recorder.keep(torch.full((1, 5, 4), size))
    assert recorder.computed == [0, 1, 2, 3]
    assert recorder.ratios == pytest.approx([1.0, 0.5, 3.0, 1.0])


# Whole jobs -----------------------------------------------------------------------------------------------


@contextmanager
def _residuals(model: PackedTransformer) -> Iterator[list[NDArray[np.float64]]]:
    """What the blocks add to the noisy tokens `(tokens, width)` at every step, seen from outside the model."""
    noisy: list[Tensor] = []
    added: list[NDArray[np.float64]] = []

    def embedded(_: object, __: object, tokens: Tensor) -> None:
        noisy.append(tokens)

    def finished(_: object, __: object, tokens: Tensor) -> None:
        added.append((tokens[0, -noisy[-1].shape[1] :].double() - noisy[-1][0].double()).numpy())

    hooks = [
        model.x_embedder.register_forward_hook(embedded),
        model.single_transformer_blocks[-1].register_forward_hook(finished),
    ]
    try:
        yield added
    finally:
        for hook in hooks:
            hook.remove()


def _sampled_by(model: PackedTransformer, conditioning: Conditioning) -> Sample:
    """Samples a plan's sections with the small model."""

    def sample(plan: RenderPlan, make_cache: MakeCache) -> None:
        list(sample_sections(model, conditioning, plan.job.sections, plan.job.sampling, make_cache=make_cache))

    return sample


@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["one branch", "true CFG"])
def test_ratios_of_whole_jobs(
    tmp_path: Path, model: PackedTransformer, conditioning: Conditioning, scale: float
) -> None:
    """The ratios are the mean, over every job's sections and branches, of what the blocks are seen to add."""
    plans = [
        tiny_plan(tmp_path, f"job-{seed}", sections=2, steps=STEPS, seed=seed, true_cfg_scale=scale) for seed in (1, 2)
    ]
    branches = 1 if scale == 1.0 else 2

    with _residuals(model) as added:
        found = calibrated(plans, _sampled_by(model, conditioning))
    norms = np.linalg.norm(np.stack(added), axis=-1)
    # Job, section, step, branch, token: the order in which the model is called.
    norms = norms.reshape(2, 2, STEPS, branches, -1)
    ratios = (norms[:, :, 1:] / norms[:, :, :-1]).mean(axis=-1)
    assert found.ratios == pytest.approx([1.0, *ratios.mean(axis=(0, 1, 3))], abs=1e-5)
    assert found.spread == pytest.approx(ratios.std(axis=(0, 1, 3)).max(), abs=1e-5)
    assert (found.steps, found.samples, found.window) == (STEPS, 4 * branches, 2)
    assert found.transformer == plans[0].pack.identity_of("transformer")


def test_calibration_does_not_use_the_jobs_own_cache(
    tmp_path: Path, model: PackedTransformer, conditioning: Conditioning
) -> None:
    """A job that wants a step cache is sampled exactly all the same, and to the bits of one without any."""
    plan = tiny_plan(tmp_path, steps=STEPS, step_cache={"kind": "teacache", "threshold": 10.0})
    made: list[Tensor] = []

    def sample(plan: RenderPlan, make_cache: MakeCache) -> None:
        *_, last = sample_sections(model, conditioning, plan.job.sections, plan.job.sampling, make_cache=make_cache)
        assert last.progress.computed_steps == (tuple(range(STEPS)),)
        made.append(last.latents)

    calibrated([plan], sample)
    (exact,) = sample_sections(model, conditioning, plan.job.sections, plan.job.sampling)
    assert torch.equal(made[0], exact.latents)


@pytest.mark.parametrize("shift", [None, 3.0])
def test_what_it_was_made_at(
    tmp_path: Path, model: PackedTransformer, conditioning: Conditioning, shift: float | None
) -> None:
    """A calibration notes the shift of the schedule that was sampled, given or by the number of tokens."""
    plan = tiny_plan(tmp_path, steps=2, window=3, shift=shift)
    found = calibrated([plan], _sampled_by(model, conditioning))
    _, sigma, _ = noise_sigmas(2, tokens=3 * 4 * 4 // 4, shift=shift).tolist()
    assert found.shift == pytest.approx(sigma / (1 - sigma), abs=1e-5)
    assert found.window == 3


def _never(_plan: RenderPlan, _make_cache: MakeCache) -> None:
    raise AssertionError("sampled")


def test_jobs_that_do_not_belong_together(tmp_path: Path) -> None:
    """Jobs of different steps, windows, shifts or models, jobs with LoRAs, and no jobs are refused unsampled."""
    plan = tiny_plan(tmp_path)
    lora = write_lora(tmp_path / "a.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE))
    others: list[dict[str, Any]] = [
        {"steps": 3},
        {"window": 3},
        {"shift": 2.0},
        {"size": [64, 32]},
        {"model": "tiny-f1"},
        {"loras": [(lora, 1.0)]},
    ]
    for number, settings in enumerate(others):
        with pytest.raises(InvalidInput, match="must have one model, no LoRAs, and equal steps"):
            calibrated([plan, tiny_plan(tmp_path, f"other-{number}", **settings)], _never)
    with pytest.raises(InvalidInput):
        calibrated([], _never)


def test_blocks_that_add_nothing(tmp_path: Path, conditioning: Conditioning) -> None:
    """Where the blocks add nothing there is no ratio, and that is told instead of written down."""
    model = random_transformer()
    for name, parameter in model.named_parameters():
        if "transformer_blocks" in name and ".norm" in name and ".linear." in name:
            parameter.zero_()  # every gate is shut

    with pytest.raises(RenderFailed, match="zero or not finite"):
        calibrated([tiny_plan(tmp_path)], _sampled_by(model, conditioning))
