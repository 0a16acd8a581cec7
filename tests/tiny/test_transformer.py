"""How the tiny transformers are trained: what a section's history is, what a batch holds, what the loss is."""

import pytest
import torch

from goan_cli.jobs.sections import Family, plan_sections
from goan_cli.model.transformer import TextConditioning
from goan_cli.render.sampling import clean_latents
from goan_cli.tiny.clips import Clip, history_of, paddings
from goan_cli.tiny.parts import CONFIG, WINDOW
from goan_cli.tiny.training import seeded
from goan_cli.tiny.transformer import draw_batch, empty_transformer, flow_loss
from goan_cli.tiny.world import all_captions, draw_scene
from tests.helpers import random_transformer, relative_error


def clip_of(sections: int, seed: int = 0) -> Clip:
    """A clip of random latents."""
    generator = seeded(seed, stream=60)
    frames = sections * WINDOW + 1
    return Clip(
        scene=draw_scene(generator, duration=4 * (frames - 1)),
        latents=torch.randn((16, frames, 8, 8), generator=generator),
        start_mean=torch.randn((16, 1, 8, 8), generator=generator),
        start_deviation=torch.rand((16, 1, 8, 8), generator=generator),
        image=torch.randn((4, CONFIG.image_proj_dim), generator=generator),
    )


def texts() -> dict[str, TextConditioning]:
    """Conditioning of every caption, as long as its words are many, and of the empty one."""
    generator = seeded(0, stream=61)
    return {
        text: TextConditioning(
            embeds=torch.randn((1, len(text.split()) + 1, CONFIG.text_embed_dim), generator=generator),
            pooled=torch.randn((1, CONFIG.pooled_projection_dim), generator=generator),
        )
        for text in ["", *all_captions()]
    }


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("sections", [1, 4, 10])
def test_history_is_what_the_sampler_would_have(family: Family, sections: int) -> None:
    """Every section of a clip is taught with the very clean latents that sampling it would pass."""
    clip = clip_of(sections)
    plan = plan_sections(family, sections, WINDOW)
    start = clip.start_mean[None]
    for section in plan.sections:
        number = section.number if family is Family.F1 else sections - 1 - section.number
        first = 1 + number * WINDOW
        if family is Family.INVERTED:
            so_far = clip.latents[None, :, first + WINDOW :]
        else:
            so_far = torch.cat([start, clip.latents[None, :, 1:first]], dim=2)
        taught = history_of(clip, clip.start_mean, number, family)[None]
        wanted = clean_latents(section, family, so_far, start)
        for given, expected in zip(clean_latents(section, family, taught, start), wanted, strict=True):
            assert torch.equal(given.latents, expected.latents)


def test_paddings_are_the_sampler_s() -> None:
    """In viewing order: a short video counts up, a long one stops at 2 before its last section."""
    assert paddings(3) == (0, 1, 2)
    assert paddings(6) == (0, 1, 2, 2, 2, 3)


@pytest.mark.parametrize("family", Family)
def test_batches_share_what_one_call_needs(family: Family) -> None:
    """All rows have one section's positions and one text length; every padding and the empty caption come up."""
    clips, known = [clip_of(1 + seed % 6, seed) for seed in range(24)], texts()
    seen, lengths = set(), set()
    for seed in range(40):
        batch = draw_batch(family, clips, known, seeded(seed), 6)
        assert batch.latents.shape == (6, 16, WINDOW, 8, 8)
        assert batch.history.shape == (6, 16, 19, 8, 8)
        assert batch.text.embeds.shape[0] == batch.text.pooled.shape[0] == 6
        assert 1 <= batch.guidance.min() <= batch.guidance.max() <= 12
        seen.add(batch.section.padding)
        lengths.add(batch.text.embeds.shape[1])
    assert seen == ({None} if family is Family.F1 else {0, 1, 2, 3})
    assert lengths == {1, 5, 6, 7, 8}


@pytest.mark.parametrize("family", Family)
def test_loss_of_an_untrained_model_is_the_velocity_s_power(family: Family) -> None:
    """The untrained model says zero, so its loss is that of noise minus latents: about 2. It has a gradient."""
    model = empty_transformer()
    batch = draw_batch(family, [clip_of(4, seed) for seed in range(8)], texts(), seeded(1), 8)
    loss = flow_loss(model, family, batch, seeded(2))
    assert loss.item() == pytest.approx(2, rel=0.05)
    loss.backward()
    assert model.proj_out.weight.grad is not None
    assert model.proj_out.weight.grad.norm() > 0


@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one() -> None:
    """A training batch gives each row what a render of batch size 1 would give it."""
    model = random_transformer(CONFIG)
    batch = draw_batch(Family.INVERTED, [clip_of(4, seed) for seed in range(8)], texts(), seeded(3), 3)

    def velocity(rows: slice) -> torch.Tensor:
        context = model.context_for(
            latent_indices=torch.tensor(batch.section.latent_indices),
            latent_size=(8, 8),
            clean=clean_latents(batch.section, Family.INVERTED, batch.history[rows], batch.start[rows]),
            image_embeds=batch.image[rows],
        )
        made: torch.Tensor = model.velocity_at(
            batch.latents[rows],
            timestep=torch.tensor([900.0, 500.0, 100.0])[rows],
            guidance=1000 * batch.guidance[rows],
            text=TextConditioning(embeds=batch.text.embeds[rows], pooled=batch.text.pooled[rows]),
            context=context,
        )
        return made

    together = velocity(slice(0, 3))
    for row in range(3):
        assert relative_error(together[row : row + 1], velocity(slice(row, row + 1))) < 1e-5
