"""One section of a job, made up and sampled by the code that renders, with a clock beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from goan_cli.bench.machine import Clock, seconds_of
from goan_cli.bench.subjects import SubjectShape
from goan_cli.jobs.job import Sampling
from goan_cli.jobs.sections import HISTORY, Section, SectionPlan, plan_sections
from goan_cli.model.transformer import PackedTransformer, SectionContext, StepConditioning, TextConditioning
from goan_cli.render.conditioning import Conditioning, placed
from goan_cli.render.sampling import TIME_SCALE, Progress, clean_latents, sample_sections
from goan_cli.render.schedule import noise_sigmas

TEXT_TOKENS = 200  # of a prompt of four sentences
WARM_UP = 2  # steps that are not counted; the first one compiles
GUIDANCE = 10.0


@dataclass(frozen=True, kw_only=True)
class BenchInput:
    """Random conditioning, and a history that leaves the last section of a plan to be sampled."""

    conditioning: Conditioning
    plan: SectionPlan
    before: Progress

    @property
    def section(self) -> Section:
        """The one to sample."""
        return self.plan.sections[-1]


@dataclass(frozen=True, kw_only=True)
class SectionTimes:
    """Seconds: to the end of the first step, of each counted step, of a job's tables, of a section's context."""

    first: float
    steps: tuple[float, ...]
    tables: float
    context: float


def random_input(shape: SubjectShape, size: tuple[int, int]) -> BenchInput:
    """The same every time, for a section of `size` (width, height) pixels with a full history before it."""
    config, generator = shape.config, torch.Generator().manual_seed(0)
    width, height = (length // 8 for length in size)

    def random(*lengths: int) -> Tensor:
        return torch.randn(lengths, generator=generator)

    text = TextConditioning(
        embeds=random(1, TEXT_TOKENS, config.text_embed_dim), pooled=random(1, config.pooled_projection_dim)
    )
    return BenchInput(
        conditioning=Conditioning(
            positive=text,
            negative=None,
            image_embeds=random(1, shape.image_tokens, config.image_proj_dim),
            start_latent=random(1, config.in_channels, 1, height, width),
        ),
        plan=plan_sections(shape.family, 2, shape.window),
        before=Progress(
            history=random(1, config.in_channels, HISTORY, height, width),
            noise_state=generator.get_state(),
            computed_steps=((),),
        ),
    )


def section_times(model: PackedTransformer, given: BenchInput, *, steps: int, tables: int) -> SectionTimes:
    """Sample the section in `WARM_UP` and `steps` counted steps, then time its context and `tables` steps' tables.

    Raises QualityFailed for latents that are not finite.
    """
    device, sampling = model.device, Sampling(steps=WARM_UP + steps, seed=0, guidance_scale=GUIDANCE)
    clock = Clock(device)
    clock.mark()
    for _ in sample_sections(
        model, given.conditioning, given.plan, sampling, after=given.before, on_step=lambda _: clock.mark()
    ):
        pass
    seconds = clock.seconds()
    return SectionTimes(
        first=seconds[0],
        steps=tuple(seconds[WARM_UP:]),
        tables=seconds_of(lambda: make_tables(model, given, tables), device),
        context=seconds_of(lambda: make_context(model, given), device),
    )


@torch.inference_mode()
def make_tables(model: PackedTransformer, given: BenchInput, steps: int) -> list[StepConditioning]:
    """The conditioning of every step of a job."""
    start = given.conditioning.start_latent
    sigmas = noise_sigmas(steps, tokens=given.plan.window * start[0, 0].numel() // 4).tolist()
    text = placed(given.conditioning.positive, model.device, model.dtype)
    timesteps = [_scaled(sigma, model) for sigma in sigmas[:-1]]
    return model.step_conditionings(text, timesteps, _scaled(GUIDANCE, model))


@torch.inference_mode()
def make_context(model: PackedTransformer, given: BenchInput) -> SectionContext:
    """What the section's steps have in common."""
    start = given.conditioning.start_latent
    return model.context_for(
        latent_indices=torch.tensor(given.section.latent_indices),
        latent_size=(start.shape[-2], start.shape[-1]),
        clean=clean_latents(given.section, given.plan.family, given.before.history, start),
        image_embeds=given.conditioning.image_embeds,
    )


@torch.inference_mode()
def one_forward(model: PackedTransformer, given: BenchInput) -> Tensor:
    """The velocity of noise in the middle of the schedule, on the CPU."""
    start = given.conditioning.start_latent
    shape = (*start.shape[:2], given.plan.window, *start.shape[3:])
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(model.device, model.dtype)
    velocity = model.velocity_at(
        noise,
        timestep=_scaled(0.5, model),
        guidance=_scaled(GUIDANCE, model),
        text=placed(given.conditioning.positive, model.device, model.dtype),
        context=make_context(model, given),
    )
    return velocity.float().cpu()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def _scaled(value: float, model: PackedTransformer) -> Tensor:
    """A timestep or guidance, rounded as a render rounds it."""
    return torch.tensor([value * TIME_SCALE], device=model.device).to(model.dtype)
