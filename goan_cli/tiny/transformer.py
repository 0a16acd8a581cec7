"""Trains the tiny packed transformers with flow matching, section by section as the samplers will ask for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goan_cli.jobs.sections import Family, Section, plan_sections
from goan_cli.model.transformer import PackedTransformer, TextConditioning
from goan_cli.render.sampling import TIME_SCALE, clean_latents
from goan_cli.tiny.clips import Clip, history_of, paddings
from goan_cli.tiny.palette import MOTIONS
from goan_cli.tiny.parts import CONFIG, WINDOW
from goan_cli.tiny.training import SEED, LossPart, Schedule, seeded, train
from goan_cli.tiny.world import between, captions, choice

SCHEDULES = {
    Family.INVERTED: Schedule(
        name="transformer-inverted", steps=4200, matrix_rate=2e-3, vector_rate=2e-3, decay_from=0.4
    ),
    Family.F1: Schedule(name="transformer-f1", steps=2000, matrix_rate=2e-3, vector_rate=2e-3, decay_from=0.3),
}
_BATCH = 32
_HELD_OUT = 64
# Where the steps of an 8-step sampler lie, roughly: more of them near the noise.
_SHIFT = 1.6
# History is what was sampled before, not what was encoded: a little noise keeps small errors from growing.
_HISTORY_NOISE = 0.2
_NO_CAPTION = 0.06
# Guidance means how surely the caption is obeyed: always from `_OBEYED` on, half of the time at 1.
_GUIDANCE = (1.0, 12.0)
_OBEYED = 6.0

Texts = Mapping[str, TextConditioning]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sections that share their positions and their number of text tokens, ready for one call of the model.

    `latents` `(b, 16, 3, 8, 8)` is what they should become, `start` and `history` what is known;
    `guidance` `(b,)` is the distilled scale.
    """

    section: Section
    latents: Tensor
    start: Tensor
    history: Tensor
    image: Tensor
    text: TextConditioning
    guidance: Tensor


def train_transformer(
    family: Family, clips: Sequence[Clip], texts: Texts, folder: Path, *, origin: PackedTransformer | None = None
) -> tuple[PackedTransformer, dict[str, float]]:
    """A trained transformer and its figures; the forward family starts from `origin`, as FramePack F1 did."""
    model = empty_transformer()
    if origin is not None:
        model.load_state_dict(origin.state_dict())
    stream = 5 if family is Family.INVERTED else 6
    parts = partial(loss_parts, model, family, clips[_HELD_OUT:], texts, stream, _BATCH)
    validate = partial(held_out_loss, model, family, clips[:_HELD_OUT], texts, 7, 8, _BATCH)
    figures = train(model, SCHEDULES[family], parts, validate, folder)
    return model.eval(), figures


def empty_transformer() -> PackedTransformer:
    """The untrained transformer: every gate and the final projection start at zero."""
    torch.manual_seed(SEED)
    model = PackedTransformer(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gate = name.endswith(("norm1.linear.weight", "norm1_context.linear.weight", "norm.linear.weight"))
            if is_gate or "norm_out.linear" in name or name.startswith("proj_out"):
                nn.init.zeros_(parameter)
            # The refiner's gates multiply whole branches with nothing else to train first: they start half open.
            if "refiner_blocks" in name and name.endswith("norm_out.linear.bias"):
                nn.init.constant_(parameter, 0.5)
    return model


def draw_batch(
    family: Family, clips: Sequence[Clip], texts: Texts, generator: torch.Generator, size: int = _BATCH
) -> Batch:
    """A batch of sections: the first is drawn freely, the others must share its padding and text length."""
    lead = choice(generator, clips)
    number = int(torch.randint(lead.sections, (), generator=generator))
    padding = paddings(lead.sections)[number]
    caption = _caption(lead, generator)
    length = texts[caption].embeds.shape[1]
    if between(generator, 0.0, 1.0) < _NO_CAPTION:
        length = texts[""].embeds.shape[1]
    rows, used = [(lead, number)], [caption if texts[caption].embeds.shape[1] == length else ""]
    guidance = [between(generator, *_GUIDANCE) for _ in range(size)]
    while len(rows) < size:
        clip = choice(generator, clips)
        number = int(torch.randint(clip.sections, (), generator=generator))
        if family is Family.INVERTED and paddings(clip.sections)[number] != padding:
            continue
        caption = ""
        if length != texts[""].embeds.shape[1]:
            caption = _caption(clip, generator, guidance[len(rows)])
            if texts[caption].embeds.shape[1] != length:
                continue
        rows.append((clip, number))
        used.append(caption)
    starts = [clip.start_mean + clip.start_deviation * _noise(clip.start_mean, generator) for clip, _ in rows]
    histories = [history_of(clip, start, number, family) for start, (clip, number) in zip(starts, rows, strict=True)]
    history = torch.stack(histories)
    shaken = _HISTORY_NOISE * torch.rand((size, 1, 1, 1, 1), generator=generator) * _noise(history, generator)
    return Batch(
        section=_section(family, padding),
        latents=torch.stack([clip.latents[:, 1 + n * WINDOW : 1 + (n + 1) * WINDOW] for clip, n in rows]),
        start=torch.stack(starts),
        history=history + shaken * (history != 0),
        image=torch.stack([clip.image for clip, _ in rows]),
        text=TextConditioning(
            embeds=torch.cat([texts[caption].embeds for caption in used]),
            pooled=torch.cat([texts[caption].pooled for caption in used]),
        ),
        guidance=torch.tensor(guidance),
    )


def flow_loss(  # PEFT wraps models in classes that are untyped here
    model: Any,  # noqa: ANN401
    family: Family,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """Squared error of the velocity `noise - latents` at noise levels spread over the sampler's range.

    `model` is a PackedTransformer, or one that PEFT has wrapped. Source: flow matching (arXiv 2210.02747).
    """
    size = len(batch.latents)
    share = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    sigma = (_SHIFT * share / (1 + (_SHIFT - 1) * share))[torch.randperm(size, generator=generator)]
    noise = _noise(batch.latents, generator)
    level = sigma.view(-1, 1, 1, 1, 1)
    clean = clean_latents(batch.section, family, batch.history, batch.start)
    context = model.context_for(
        latent_indices=torch.tensor(batch.section.latent_indices),
        latent_size=(batch.latents.shape[-2], batch.latents.shape[-1]),
        clean=clean,
        image_embeds=batch.image,
    )
    velocity = model.velocity_at(
        (1 - level) * batch.latents + level * noise,
        timestep=TIME_SCALE * sigma,
        guidance=TIME_SCALE * batch.guidance,
        text=batch.text,
        context=context,
    )
    loss: Tensor = (velocity - (noise - batch.latents)).square().mean()
    return loss


def loss_parts(
    model: Any,  # noqa: ANN401 - see flow_loss
    family: Family,
    clips: Sequence[Clip],
    texts: Texts,
    stream: int,
    size: int,
    step: int,
) -> list[LossPart]:
    """The losses of one step's two batches: all sections of one share a padding and a text length."""

    def loss(part: int) -> Tensor:
        generator = seeded(2 * step + part, stream)
        return flow_loss(model, family, draw_batch(family, clips, texts, generator, size), generator)

    return [partial(loss, part) for part in range(2)]


@torch.no_grad()
def held_out_loss(
    model: Any,  # noqa: ANN401 - see flow_loss
    family: Family,
    clips: Sequence[Clip],
    texts: Texts,
    stream: int,
    batches: int,
    size: int,
) -> dict[str, float]:
    """The velocity's mean squared error over batches of clips that are not trained on."""
    losses = []
    for number in range(batches):
        generator = seeded(number, stream)
        losses.append(flow_loss(model, family, draw_batch(family, clips, texts, generator, size), generator).item())
    return {"held_out": sum(losses) / len(losses)}


def _section(family: Family, padding: int) -> Section:
    """The positions of a section: an inverted one's depend on its padding alone, a forward one's on nothing."""
    if family is Family.F1:
        return plan_sections(family, 1, WINDOW).sections[0]
    return plan_sections(family, padding + 1, WINDOW).sections[0]


def _caption(clip: Clip, generator: torch.Generator, guidance: float = _GUIDANCE[1]) -> str:
    scene = clip.scene
    obeyed = 0.5 + 0.5 * (guidance - 1) / (_OBEYED - 1)
    motion = scene.motion if between(generator, 0.0, 1.0) < obeyed else choice(generator, MOTIONS)
    return choice(generator, captions(shape=scene.shape, colour=scene.colour, motion=motion))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)
