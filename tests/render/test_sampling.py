"""Sampling section by section: the noise stream, the history, guidance, and what the model is called with."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goan_cli.errors import QualityFailed
from goan_cli.jobs.job import Sampling, StepCache
from goan_cli.jobs.sections import Family, SectionPlan, plan_sections
from goan_cli.model.step_cache import TeaCache
from goan_cli.model.transformer import (
    CleanLatents,
    PackedTransformer,
    SectionContext,
    StepConditioning,
    TextConditioning,
)
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.sampling import Progress, SampledSection, Stopped, guided, sample_sections, teacache_of
from goan_cli.render.schedule import noise_sigmas
from tests.helpers import SMALL, random_transformer, relative_error

WINDOW = 2


@pytest.fixture(scope="module")
def model() -> PackedTransformer:
    """A small transformer with random weights."""
    return random_transformer()


@pytest.fixture(scope="module")
def conditioning() -> Conditioning:
    """Random text of both branches, image features and start latent (4 x 4)."""
    generator = torch.Generator().manual_seed(0)

    def text(rows: int) -> TextConditioning:
        return TextConditioning(
            embeds=torch.randn((1, rows, SMALL.text_embed_dim), generator=generator),
            pooled=torch.randn((1, SMALL.pooled_projection_dim), generator=generator),
        )

    return Conditioning(
        positive=text(5),
        negative=text(1),
        image_embeds=torch.randn((1, 3, SMALL.image_proj_dim), generator=generator),
        start_latent=torch.randn((1, 16, 1, 4, 4), generator=generator),
    )


@dataclass
class _Calls:
    """What the transformer was asked for, in order."""

    contexts: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    forwards: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def _recorded(model: PackedTransformer) -> Iterator[_Calls]:
    calls, context_for, step_conditionings = _Calls(), model.context_for, model.step_conditionings

    def recording(
        *, latent_indices: Tensor, latent_size: tuple[int, int], clean: Sequence[CleanLatents], image_embeds: Tensor
    ) -> SectionContext:
        calls.contexts.append({"indices": latent_indices, "size": latent_size, "clean": clean})
        return context_for(
            latent_indices=latent_indices, latent_size=latent_size, clean=clean, image_embeds=image_embeds
        )

    def tabling(text: TextConditioning, timesteps: Sequence[Tensor], guidance: Tensor) -> list[StepConditioning]:
        calls.tables.append({"text": text, "timesteps": timesteps, "guidance": guidance})
        return step_conditionings(text, timesteps, guidance)

    def before(_: object, arguments: tuple[Tensor], options: dict[str, Any]) -> None:
        calls.forwards.append({"latents": arguments[0].clone(), **options})

    hook = model.register_forward_pre_hook(before, with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "context_for", recording)
        patch.setattr(model, "step_conditionings", tabling)
        try:
            yield calls
        finally:
            hook.remove()


def _sample(
    model: PackedTransformer, conditioning: Conditioning, plan: SectionPlan, **options: Any
) -> list[SampledSection]:
    sampling = Sampling(**{"steps": 3, "seed": 11, **options})
    return list(sample_sections(model, conditioning, plan, sampling, make_cache=teacache_of(sampling)))


@pytest.mark.parametrize("family", list(Family))
def test_noise_is_one_stream_of_the_seed(model: PackedTransformer, conditioning: Conditioning, family: Family) -> None:
    """Each section starts from the next draw of one CPU generator with the job's seed, in sampling order."""
    with _recorded(model) as calls:
        _sample(model, conditioning, plan_sections(family, 3, WINDOW))
    generator = torch.Generator("cpu").manual_seed(11)
    for section in range(3):
        noise = torch.randn((1, 16, WINDOW, 4, 4), generator=generator)
        assert torch.equal(calls.forwards[3 * section]["latents"], noise)


@pytest.mark.parametrize("family", list(Family))
def test_history_as_the_model_sees_it(model: PackedTransformer, conditioning: Conditioning, family: Family) -> None:
    """Each section sees the start, and the 19 nearest latents at 1x, 2x and 4x, zeros where there are none."""
    plan = plan_sections(family, 4, 6)
    with _recorded(model) as calls:
        sections = _sample(model, conditioning, plan, steps=1)
    start, blank = conditioning.start_latent, torch.zeros((1, 16, 19, 4, 4))
    so_far = torch.zeros((1, 16, 0, 4, 4)) if family is Family.INVERTED else start
    for section, call in zip(sections, calls.contexts, strict=True):
        if family is Family.INVERTED:
            near = torch.cat((so_far, blank), dim=2)[:, :, :19]
            expected = {1: near[:, :, :1], 2: near[:, :, 1:3], 4: near[:, :, 3:]}
        else:
            near = torch.cat((blank, so_far), dim=2)[:, :, -19:]
            expected = {4: near[:, :, :16], 2: near[:, :, 16:18], 1: near[:, :, 18:]}
        expected[1] = torch.cat((start, expected[1]), dim=2)
        given_parts = {part.pool: part for part in call["clean"]}
        assert given_parts.keys() == expected.keys()
        for pool, latents in expected.items():
            assert torch.equal(given_parts[pool].latents, latents)
        assert tuple(given_parts[1].indices.tolist()) == section.section.clean_indices
        assert tuple(given_parts[2].indices.tolist()) == section.section.clean_2x_indices
        assert tuple(given_parts[4].indices.tolist()) == section.section.clean_4x_indices
        assert tuple(call["indices"].tolist()) == section.section.latent_indices
        assert call["size"] == (4, 4)
        parts = (section.latents, so_far) if family is Family.INVERTED else (so_far, section.latents)
        so_far = torch.cat(parts, dim=2)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("count", [1, 3])
def test_video_so_far(model: PackedTransformer, conditioning: Conditioning, family: Family, count: int) -> None:
    """The latents are in viewing order, and begin with the start latent at the end at the latest."""
    plan = plan_sections(family, count, WINDOW)
    sections = _sample(model, conditioning, plan, steps=1)
    made = [section.latents for section in sections]
    assert torch.equal(
        sections[-1].progress.history,
        torch.cat((conditioning.start_latent, *(made[::-1] if family is Family.INVERTED else made)), dim=2),
    )
    assert sections[-1].progress.history.shape[2] == plan.latent_frames
    assert all(section.latents.shape == (1, 16, WINDOW, 4, 4) for section in sections)
    assert all(section.progress.history.dtype == torch.float32 for section in sections)
    assert [section.section for section in sections] == list(plan.sections)
    if family is Family.INVERTED and count > 1:
        assert sections[0].progress.history.shape[2] == WINDOW


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_number_of_model_calls(model: PackedTransformer, conditioning: Conditioning, steps: int, scale: float) -> None:
    """The model runs once a step, twice with true CFG; with true CFG off the negative text is never run."""
    with _recorded(model) as calls:
        _sample(model, conditioning, plan_sections(Family.INVERTED, 2, WINDOW), steps=steps, true_cfg_scale=scale)
    branches = 1 if scale == 1.0 else 2
    assert len(calls.forwards) == 2 * steps * branches
    rows = [call["step"].text_tokens.shape[1] for call in calls.forwards]
    assert rows == ([5] if branches == 1 else [5, 1]) * (2 * steps)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_tables_are_made_once_a_job(model: PackedTransformer, conditioning: Conditioning, scale: float) -> None:
    """The steps' conditioning is made once for each CFG branch, and every section takes it in order."""
    with _recorded(model) as calls:
        _sample(model, conditioning, plan_sections(Family.INVERTED, 3, WINDOW), steps=4, true_cfg_scale=scale)
    branches = 1 if scale == 1.0 else 2
    assert [call["text"].embeds.shape[1] for call in calls.tables] == [5, 1][:branches]
    steps = [id(call["step"]) for call in calls.forwards]
    assert steps == steps[: 4 * branches] * 3
    assert len(set(steps)) == 4 * branches


def test_timesteps_and_guidance(model: PackedTransformer, conditioning: Conditioning) -> None:
    """The model is told 1000 sigma of each step, never 0, and 1000 times the distilled scale."""
    plan = plan_sections(Family.INVERTED, 1, WINDOW)
    with _recorded(model) as calls:
        _sample(model, conditioning, plan, steps=4, guidance_scale=6.5, shift=2.0)
    sigmas = noise_sigmas(4, tokens=0, shift=2.0)
    (table,) = calls.tables
    assert [float(each) for each in table["timesteps"]] == pytest.approx((sigmas[:-1] * 1000).tolist(), rel=1e-6)
    assert float(table["guidance"]) == 6500.0


def test_shift_by_token_count(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Without a shift the schedule is that of the noisy tokens: window x h x w / 4."""
    with _recorded(model) as calls:
        _sample(model, conditioning, plan_sections(Family.INVERTED, 1, 6), steps=4)
    sigmas = noise_sigmas(4, tokens=6 * 4 * 4 // 4)
    (table,) = calls.tables
    assert [float(each) for each in table["timesteps"]] == pytest.approx((sigmas[:-1] * 1000).tolist(), rel=1e-6)


def test_one_step_is_one_prediction(model: PackedTransformer, conditioning: Conditioning) -> None:
    """With one step the section is noise minus velocity: x0 at sigma 1."""
    with _recorded(model) as calls:
        (section,) = _sample(model, conditioning, plan_sections(Family.INVERTED, 1, WINDOW), steps=1)
    (call,) = calls.forwards
    latents = call.pop("latents")
    with torch.inference_mode():
        assert torch.equal(section.latents, latents - model(latents, **call))


def test_cached_branches_are_apart(model: PackedTransformer, conditioning: Conditioning) -> None:
    """With TeaCache each CFG branch has a state of its own, and each section new ones."""
    plan = plan_sections(Family.INVERTED, 2, WINDOW)
    with _recorded(model) as calls:
        sections = _sample(model, conditioning, plan, steps=4, true_cfg_scale=2.0, step_cache=StepCache(threshold=10.0))
    caches: list[TeaCache] = [call["cache"] for call in calls.forwards]
    assert len({id(cache) for cache in caches}) == 4
    for section in range(2):
        of_section = caches[8 * section : 8 * section + 8]
        assert all(cache is of_section[0] for cache in of_section[::2])
        assert all(cache is of_section[1] for cache in of_section[1::2])
        assert of_section[0] is not of_section[1]
        # First and last step are computed in both branches, however high the threshold.
        assert [cache.computed for cache in of_section[:2]] == [[0, 3], [0, 3]]
    assert [section.progress.computed_steps[-1] for section in sections] == [(0, 3), (0, 3)]


def test_cached_negative_branch_does_not_touch_the_positive(
    model: PackedTransformer, conditioning: Conditioning
) -> None:
    """With a true CFG scale so near 1 that the negative branch has no weight, caching is as without it."""
    plan, cache = plan_sections(Family.INVERTED, 1, WINDOW), StepCache(threshold=10.0)
    alone = _sample(model, conditioning, plan, steps=4, step_cache=cache)
    beside = _sample(model, conditioning, plan, steps=4, step_cache=cache, true_cfg_scale=1.0 + 1e-7)
    assert relative_error(beside[-1].progress.history, alone[-1].progress.history) < 1e-4


def test_without_a_cache_no_steps_are_listed(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Where no step cache is used every step is computed and none is listed."""
    with _recorded(model) as calls:
        sections = _sample(model, conditioning, plan_sections(Family.F1, 1, WINDOW))
    assert sections[0].progress.computed_steps == ((),)
    assert all(call["cache"] is None for call in calls.forwards)


def test_true_cfg_changes_the_result(model: PackedTransformer, conditioning: Conditioning) -> None:
    """True CFG and its rescale both act."""
    plan = plan_sections(Family.INVERTED, 1, WINDOW)
    plain, scaled, rescaled = (
        _sample(model, conditioning, plan, true_cfg_scale=scale, guidance_rescale=rescale)[-1].progress.history
        for scale, rescale in ((1.0, 0.0), (3.0, 0.0), (3.0, 0.7))
    )
    assert relative_error(scaled, plain) > 1e-3
    assert relative_error(rescaled, scaled) > 1e-3


def test_steps_are_told(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Each step is told after it is done, numbered from 0 in every section; sections come as they are asked for."""
    told: list[int] = []
    plan, sampling = plan_sections(Family.INVERTED, 2, WINDOW), Sampling(steps=3, seed=1)
    sections = sample_sections(model, conditioning, plan, sampling, on_step=told.append)
    assert told == []
    next(sections)
    assert told == [0, 1, 2]
    assert len(list(sections)) == 1
    assert told == [0, 1, 2, 0, 1, 2]


def test_global_random_state_has_no_part(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Sampling neither depends on torch's global random state nor moves it."""
    plan = plan_sections(Family.INVERTED, 2, WINDOW)
    torch.manual_seed(1)
    first = _sample(model, conditioning, plan)[-1].progress.history
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = _sample(model, conditioning, plan)[-1].progress.history
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_matters(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Another seed gives another video."""
    plan = plan_sections(Family.F1, 1, WINDOW)
    first, second = (_sample(model, conditioning, plan, seed=seed)[-1].latents for seed in (1, 2))
    assert relative_error(first, second) > 0.1


def test_sampling_leaves_gradients_as_they_were(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Between two sections the caller's code runs with gradients on, as before."""
    plan = plan_sections(Family.F1, 2, WINDOW)
    for _ in sample_sections(model, conditioning, plan, Sampling(steps=1, seed=1)):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


# Stopping and going on ------------------------------------------------------------------------------------

# The step cache of seven steps skips some of them, and the sum that decides is neither empty nor full in between.
CACHE = StepCache(threshold=0.2)


def _step_by_step(
    model: PackedTransformer, conditioning: Conditioning, plan: SectionPlan, sampling: Sampling, told: list[int]
) -> list[Progress]:
    """All progress there is to go on from: stopped after every step, gone on with, to the end."""
    seen: list[Progress] = []
    while not seen or seen[-1].sections < len(plan.sections):
        after = seen[-1] if seen else None
        sections = sample_sections(
            model,
            conditioning,
            plan,
            sampling,
            after=after,
            make_cache=teacache_of(sampling),
            on_step=told.append,
            stop=lambda: True,
        )
        try:
            seen.append(next(sections).progress)
        except Stopped as stopped:
            seen.append(stopped.progress)
    return seen


@pytest.mark.parametrize(
    ("family", "cache", "scale"), list(product(Family, (None, CACHE), (1.0, 2.0))), ids=lambda value: str(value)[:12]
)
def test_going_on_after_any_stop(
    model: PackedTransformer, conditioning: Conditioning, family: Family, cache: StepCache | None, scale: float
) -> None:
    """After a stop behind any step or section, the rest is bit for bit what it is without the stop."""
    steps = 7 if cache else 4
    plan = plan_sections(family, 2, WINDOW)
    sampling = Sampling(steps=steps, seed=11, true_cfg_scale=scale, step_cache=cache)
    make_cache = teacache_of(sampling)
    *_, whole = sample_sections(model, conditioning, plan, sampling, make_cache=make_cache)
    if cache:
        assert 2 < len(whole.progress.computed_steps[-1]) < steps
    told: list[int] = []
    *begun, last = _step_by_step(model, conditioning, plan, sampling, told)
    # One step at a time, though the stop is always due; a section's last step is no place to stop in.
    assert told == [*range(steps)] * 2
    places = [(after.sections, after.within.sampler.done if after.within else 0) for after in begun]
    assert places == [*((0, step) for step in range(1, steps)), *((1, step) for step in range(steps))]
    _assert_same(last, whole.progress)
    for after in begun:
        if after.within is not None:
            assert len(after.within.caches) == (0 if cache is None else 1 if scale == 1.0 else 2)
        *_, section = sample_sections(model, conditioning, plan, sampling, after=after, make_cache=make_cache)
        _assert_same(section.progress, whole.progress)


def _assert_same(progress: Progress, wanted: Progress) -> None:
    assert torch.equal(progress.history, wanted.history)
    assert torch.equal(progress.noise_state, wanted.noise_state)
    assert progress.computed_steps == wanted.computed_steps
    assert progress.within is None


def test_nothing_is_left_after_the_last_section(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Going on after the last section calls no model and yields nothing."""
    plan, sampling = plan_sections(Family.F1, 2, WINDOW), Sampling(steps=2, seed=11)
    *_, last = sample_sections(model, conditioning, plan, sampling)
    with _recorded(model) as calls:
        assert list(sample_sections(model, conditioning, plan, sampling, after=last.progress)) == []
    assert calls.forwards == []


def test_progress_of_a_section_does_not_move(model: PackedTransformer, conditioning: Conditioning) -> None:
    """What was yielded after a section stays as it was while the next one is sampled."""
    plan = plan_sections(Family.F1, 3, WINDOW)
    kept: list[tuple[Progress, Tensor, Tensor]] = []
    for section in sample_sections(model, conditioning, plan, Sampling(steps=2, seed=11)):
        progress = section.progress
        kept.append((progress, progress.history.clone(), progress.noise_state.clone()))
    for number, (progress, history, noise_state) in enumerate(kept, start=1):
        assert torch.equal(progress.history, history)
        assert torch.equal(progress.noise_state, noise_state)
        assert progress.sections == number


# Values that are not finite -------------------------------------------------------------------------------


@contextmanager
def _overflowing(model: PackedTransformer, after: int, value: float) -> Iterator[None]:
    """The model's answers hold `value` once it has been called `after` times."""
    calls = iter(range(10_000))

    def overflow(_: object, __: object, velocity: Tensor) -> Tensor | None:
        return None if next(calls) < after else torch.full_like(velocity, value)

    hook = model.register_forward_hook(overflow)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(model: PackedTransformer, conditioning: Conditioning, value: float) -> None:
    """The section whose latents are not finite fails, by its number; those before it were handed out."""
    plan, sampling = plan_sections(Family.INVERTED, 3, WINDOW), Sampling(steps=2, seed=11)
    with _overflowing(model, after=2, value=value):
        sections = sample_sections(model, conditioning, plan, sampling)
        assert bool(next(sections).latents.isfinite().all())
        with pytest.raises(QualityFailed, match=r"^section 2: .* not finite"):
            next(sections)


def test_latents_that_need_not_be_finite(model: PackedTransformer, conditioning: Conditioning) -> None:
    """Where nothing asks for finite latents, all sections are sampled and say what they hold."""
    plan, sampling = plan_sections(Family.INVERTED, 2, WINDOW), Sampling(steps=2, seed=11)
    with _overflowing(model, after=2, value=float("nan")):
        sections = list(sample_sections(model, conditioning, plan, sampling, must_be_finite=False))
    assert [bool(section.latents.isfinite().all()) for section in sections] == [True, False]


# Guidance -------------------------------------------------------------------------------------------------


def _velocities(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positive = torch.randn((1, 16, 2, 4, 4), generator=generator, dtype=torch.float64)
    return positive, torch.randn((1, 16, 2, 4, 4), generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 7.5])
def test_guided_extrapolates(scale: float) -> None:
    """True CFG is negative + scale x (positive - negative)."""
    positive, negative = _velocities(0)
    expected = scale * positive + (1 - scale) * negative
    torch.testing.assert_close(guided(positive, negative, scale, 0.0), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1.1, 10), rescale=st.floats(0, 1))
def test_guided_rescale(seed: int, scale: float, rescale: float) -> None:
    """The rescale moves the deviation linearly from the guided one to the positive branch's, direction kept."""
    positive, negative = _velocities(seed)
    plain, out = guided(positive, negative, scale, 0.0), guided(positive, negative, scale, rescale)
    wanted = rescale * positive.std() + (1 - rescale) * plain.std()
    torch.testing.assert_close(out.std(), wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(out / out.norm(), plain / plain.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("given_latents", [1, 3, 25])
@pytest.mark.parametrize("family", list(Family))
def test_going_on_with_a_video(
    model: PackedTransformer, conditioning: Conditioning, family: Family, given_latents: int
) -> None:
    """A video's latents are the history from the first section on, to the bit as if they had been sampled."""
    plan = plan_sections(family, 2, WINDOW)
    video = torch.randn((1, 16, given_latents, 4, 4), generator=torch.Generator().manual_seed(5))
    with _recorded(model) as calls:
        made = _sample(model, replace(conditioning, video=video), plan)
    noise_state = torch.Generator("cpu").manual_seed(11).get_state()
    earlier = Progress(history=video, noise_state=noise_state)
    resumed = list(sample_sections(model, conditioning, plan, Sampling(steps=3, seed=11), after=earlier))
    assert all(torch.equal(one.latents, other.latents) for one, other in zip(made, resumed, strict=True))
    near = {part.pool: part.latents for part in calls.contexts[0]["clean"]}[1][:, :, 1]
    assert torch.equal(near, video[:, :, -1 if family is Family.F1 else 0])
    first, second = (section.latents for section in made)
    start = conditioning.start_latent
    whole = (video, first, second) if family is Family.F1 else (start, second, first, video)
    assert torch.equal(made[-1].progress.history, torch.cat(whole, dim=2))
