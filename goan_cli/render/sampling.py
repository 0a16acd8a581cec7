"""Sampling a video section by section: history, guidance, and the sampler around the transformer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from goan_cli.errors import QualityFailed
from goan_cli.jobs.job import Sampling, StepCacheKind
from goan_cli.jobs.sections import CLEAN_2X, CLEAN_4X, HISTORY, Family, Section, SectionPlan
from goan_cli.model.step_cache import StepCache, StepCacheState, TeaCache
from goan_cli.model.transformer import (
    CleanLatents,
    PackedTransformer,
    SectionContext,
    StepConditioning,
)
from goan_cli.render.conditioning import Conditioning, SectionConditioning, placed
from goan_cli.render.schedule import noise_sigmas
from goan_cli.render.unipc import UniPCState, unipc_steps

TIME_SCALE = 1000.0
OnStep = Callable[[int], None]
# Makes a step cache of one section and CFG branch.
MakeCache = Callable[[], StepCache]


@dataclass(frozen=True, kw_only=True)
class SectionProgress:
    """A section that was stopped between two steps: the sampler's state, and each CFG branch's step cache."""

    sampler: UniPCState
    caches: tuple[StepCacheState, ...]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job's sampling is: with the same settings and weights it goes on from here, bit for bit.

    `history` holds all real latents so far in viewing order, the start latent included once it is in place, and those
    of a video that is gone on with.
    `noise_state` is the noise generator's before the next section's noise; `computed_steps` has an entry for
    each finished section, empty where no step cache is used; `within` is the section that was begun.
    """

    history: Tensor
    noise_state: Tensor
    computed_steps: tuple[tuple[int, ...], ...] = ()
    within: SectionProgress | None = None

    @property
    def sections(self) -> int:
        """Finished sections."""
        return len(self.computed_steps)


@dataclass(frozen=True, kw_only=True)
class SampledSection:
    """One section's new latents `(1, 16, window, h, w)`, and how far the video is with it."""

    section: Section
    latents: Tensor
    progress: Progress


class Stopped(Exception):
    """Sampling was asked to stop between two steps, and can go on from `progress`."""

    def __init__(self, progress: Progress) -> None:
        super().__init__("stopped")
        self.progress = progress


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """One CFG branch in one section: its conditioning of each step, and the step cache that is its own."""

    steps: Sequence[StepConditioning]
    cache: StepCache | None


def _ignore(_: int) -> None:
    pass


def _never() -> bool:
    return False


def teacache_of(sampling: Sampling) -> MakeCache | None:
    """What makes the TeaCaches of a job that wants them, None for one that does not."""
    wanted = sampling.step_cache
    if wanted is None or wanted.kind is not StepCacheKind.TEACACHE:
        return None
    return lambda: TeaCache(threshold=wanted.threshold, steps=sampling.steps)


@torch.inference_mode()
def sample_sections(
    model: PackedTransformer,
    conditioning: Conditioning,
    plan: SectionPlan,
    sampling: Sampling,
    *,
    after: Progress | None = None,
    make_cache: MakeCache | None = None,
    must_be_finite: bool = True,
    on_step: OnStep = _ignore,
    stop: Callable[[], bool] = _never,
) -> Iterator[SampledSection]:
    """Sample the sections in the plan's order, those that `after` has not; latents are fp32 on the CPU.

    Noise is one stream from the seed, drawn on the CPU in sampling order, as in FramePack. `make_cache` makes the
    step caches, None where none is used. `on_step` is called after each step with its 0-based number. Raises
    Stopped when `stop()` says so after a step, and QualityFailed for latents that are not finite.
    """
    start = conditioning.start_latent.float().cpu()
    height, width = start.shape[-2:]
    generator = torch.Generator("cpu").manual_seed(sampling.seed)
    sigmas = noise_sigmas(sampling.steps, tokens=plan.window * height * width // 4, shift=sampling.shift).tolist()
    if after is None:
        empty = start.new_zeros((1, start.shape[1], 0, height, width))
        history = start if plan.family is Family.F1 else empty
        if conditioning.video is not None:
            history = conditioning.video.float().cpu()
        after = Progress(history=history, noise_state=generator.get_state())
    progress = after
    told: SectionConditioning | None = None
    tables: list[list[StepConditioning]] = []
    for section in plan.sections[after.sections :]:
        before, told = told, conditioning.of(section.number, sampling)
        if before is None or _texts(before) != _texts(told):
            tables = _tables(model, told, sigmas[:-1])
        generator.set_state(progress.noise_state)
        noise = torch.randn((1, start.shape[1], plan.window, height, width), generator=generator)
        context = model.context_for(
            latent_indices=torch.tensor(section.latent_indices),
            latent_size=(height, width),
            clean=clean_latents(
                section,
                Family.INVERTED if plan.still else plan.family,  # a still's history is empty, and lies behind it
                _seen_history(plan, progress, conditioning),
                told.start_latent.float().cpu(),
            ),
            image_embeds=told.image_embeds,
        )
        branches = _branches(tables, make_cache, progress.within, model.device)
        predict = _predictor(model, context, branches, told, sampling, on_step)
        begun = _placed(progress.within.sampler, model.device) if progress.within else None
        latents = noise
        for state in unipc_steps(predict, noise.to(model.device), sigmas, begun):
            if state.done < sampling.steps and stop():
                caches = tuple(branch.cache.state for branch in branches if branch.cache)
                raise Stopped(replace(progress, within=SectionProgress(sampler=state, caches=caches)))
            latents = state.predictions[-1]
        latents = latents.float().cpu()
        if must_be_finite and not latents.isfinite().all():
            raise QualityFailed(
                f"section {section.number + 1}: the latents are not finite",
                hint="a LoRA far too strong, or float16 overflowing on an older card",
            )
        cache = branches[0].cache
        progress = Progress(
            history=_extended(progress.history, latents, start, section, plan),
            noise_state=generator.get_state(),
            computed_steps=(*progress.computed_steps, tuple(cache.computed) if cache else ()),
        )
        yield SampledSection(section=section, latents=latents, progress=progress)


def _texts(told: SectionConditioning) -> tuple[object, ...]:
    """What a section's step conditionings depend on: the same tensors, not equal ones."""
    negative = None if told.negative is None else (id(told.negative.embeds), id(told.negative.pooled))
    positive = (id(told.positive.embeds), id(told.positive.pooled))
    return positive, negative, told.guidance_scale, told.true_cfg_scale


def _seen_history(plan: SectionPlan, progress: Progress, conditioning: Conditioning) -> Tensor:
    """The history that the next section sees: to the first one sampled, an end image is what comes after it.

    A still sees its further control images.
    """
    if plan.still:
        none = conditioning.start_latent[:, :, :0]
        return (none if conditioning.controls is None else conditioning.controls).float().cpu()
    if progress.sections == 0 and conditioning.end_latent is not None:
        return conditioning.end_latent.float().cpu()
    return progress.history


def _placed(state: UniPCState, device: torch.device) -> UniPCState:
    return replace(state, x=state.x.to(device), predictions=tuple(each.to(device) for each in state.predictions))


def clean_latents(section: Section, family: Family, history: Tensor, start: Tensor) -> list[CleanLatents]:
    """The start, and the 19 latents nearest to the section, at three resolutions; zeros where there are none.

    `history` `(b, 16, n, h, w)` in viewing order and `start` `(b, 16, 1, h, w)`; what comes after an inverted
    section, or before a forward one.
    """
    empty = start.new_zeros((*start.shape[:2], HISTORY, *start.shape[-2:]))
    # Of a video one frame is near at full resolution; a still has all its controls there.
    count = len(section.clean_indices) - 1
    if family is Family.INVERTED:
        near = torch.cat((history, empty), dim=2)[:, :, : count + CLEAN_2X + CLEAN_4X]
        near_1x, near_2x, near_4x = near.split((count, CLEAN_2X, CLEAN_4X), dim=2)
    else:
        near = torch.cat((empty, history), dim=2)[:, :, -HISTORY:]
        near_4x, near_2x, near_1x = near.split((CLEAN_4X, CLEAN_2X, 1), dim=2)
    parts = (
        (torch.cat((start, near_1x), dim=2), section.clean_indices, 1),
        (near_2x, section.clean_2x_indices, 2),
        (near_4x, section.clean_4x_indices, 4),
    )
    return [
        CleanLatents(latents=latents, indices=torch.tensor(indices), pool=pool)
        for latents, indices, pool in parts
        if indices
    ]


def _extended(history: Tensor, latents: Tensor, start: Tensor, section: Section, plan: SectionPlan) -> Tensor:
    if plan.still:
        return latents
    if plan.family is Family.F1:
        return torch.cat((history, latents), dim=2)
    is_last = section.number == len(plan.sections) - 1
    return torch.cat((start, latents, history) if is_last else (latents, history), dim=2)


def _tables(
    model: PackedTransformer, told: SectionConditioning, sigmas: Sequence[float]
) -> list[list[StepConditioning]]:
    """The conditioning of every step: of the positive branch, and of the negative one where true CFG is on."""
    texts = [told.positive]
    if told.true_cfg_scale != 1.0 and told.negative is not None:
        texts.append(told.negative)

    def rounded(value: float) -> Tensor:
        # In the model's dtype, as upstream rounds them: in bf16 that moves the timestep, and so the picture.
        return torch.tensor([value * TIME_SCALE], device=model.device).to(model.dtype)

    timesteps, guidance = [rounded(sigma) for sigma in sigmas], rounded(told.guidance_scale)
    return [model.step_conditionings(placed(text, model.device, model.dtype), timesteps, guidance) for text in texts]


def _branches(
    tables: Sequence[Sequence[StepConditioning]],
    make_cache: MakeCache | None,
    within: SectionProgress | None,
    device: torch.device,
) -> list[_Branch]:
    """The CFG branches of a section, their step caches as far as the section is."""
    branches = [_Branch(steps=steps, cache=make_cache() if make_cache else None) for steps in tables]
    for branch, state in zip(branches, within.caches if within else (), strict=False):
        if branch.cache is not None:
            branch.cache.resume(state.on(device))
    return branches


def _predictor(
    model: PackedTransformer,
    context: SectionContext,
    branches: list[_Branch],
    told: SectionConditioning,
    sampling: Sampling,
    on_step: OnStep,
) -> Callable[[Tensor, float, int], Tensor]:
    """x0 from x and sigma: x - sigma v in fp32, around model calls in the model's dtype."""

    def predict_x0(x: Tensor, sigma: float, step: int) -> Tensor:
        latents = x.to(model.dtype)
        positive, *negative = (
            model(latents, step=branch.steps[step], context=context, cache=branch.cache).float() for branch in branches
        )
        velocity = positive
        if negative:
            velocity = guided(positive, negative[0], told.true_cfg_scale, sampling.guidance_rescale)
        on_step(step)
        return x - sigma * velocity

    return predict_x0


def guided(positive: Tensor, negative: Tensor, scale: float, rescale: float) -> Tensor:
    """True CFG of two velocities, pulled towards the positive one's deviation by `rescale` (0 to 1).

    Source of the rescale: "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv 2305.08891).
    """
    combined = negative + scale * (positive - negative)
    if rescale == 0:
        return combined
    return combined * (rescale * positive.std() / combined.std() + (1 - rescale))
