"""The packed transformer against the recorded architecture and against diffusers' own class."""

import json
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import Tensor, nn

from goan_cli.model.config import TransformerConfig
from goan_cli.model.embedders import sinusoid
from goan_cli.model.step_cache import TeaCache
from goan_cli.model.transformer import CleanLatents, PackedTransformer, SectionContext, TextConditioning
from goan_cli.model.weights import empty_transformer
from tests.helpers import GOLDEN, SMALL, random_transformer, relative_error

_ROWS = 12  # text rows with padding


class _Sinusoid(nn.Module):
    """goan's timestep features, which round alike on every machine; see `sinusoid`."""

    def forward(self, values: Tensor) -> Tensor:
        return sinusoid(values)


@pytest.fixture(scope="module")
def model() -> PackedTransformer:
    """A small transformer with random weights."""
    return random_transformer()


@pytest.fixture(scope="module")
def reference(model: PackedTransformer) -> Any:
    """diffusers' class with the same weights, loaded strictly by name."""
    theirs = HunyuanVideoFramepackTransformer3DModel(
        num_attention_heads=SMALL.num_attention_heads,
        attention_head_dim=SMALL.attention_head_dim,
        num_layers=SMALL.num_layers,
        num_single_layers=SMALL.num_single_layers,
        num_refiner_layers=SMALL.num_refiner_layers,
        text_embed_dim=SMALL.text_embed_dim,
        pooled_projection_dim=SMALL.pooled_projection_dim,
        rope_axes_dim=SMALL.rope_axes_dim,
        has_image_proj=True,
        image_proj_dim=SMALL.image_proj_dim,
        has_clean_x_embedder=True,
    )
    theirs.load_state_dict(model.state_dict(), strict=True)
    # Their fp32 `exp` differs between CPUs, by more than 1e-5 of the output where guidance is in the thousands.
    theirs.time_text_embed.time_proj = _Sinusoid()
    theirs.context_embedder.time_text_embed.time_proj = _Sinusoid()
    return theirs.eval()


def _clean(frames: tuple[int, int, int], size: tuple[int, int], generator: torch.Generator) -> list[CleanLatents]:
    """Random history of so many frames at 1x, 2x and 4x, with indices that are neither ordered nor dense."""
    return [
        CleanLatents(
            latents=torch.randn((1, 16, count, *size), generator=generator),
            indices=torch.randint(0, 60, (count,), generator=generator),
            pool=pool,
        )
        for pool, count in zip((1, 2, 4), frames, strict=True)
    ]


def _context(model: PackedTransformer, generator: torch.Generator, frames: int = 2, size: int = 4) -> SectionContext:
    return model.context_for(
        latent_indices=torch.arange(1, 1 + frames),
        latent_size=(size, size),
        clean=_clean((2, 2, 16), (size, size), generator),
        image_embeds=torch.randn((1, 3, SMALL.image_proj_dim), generator=generator),
    )


def _text(generator: torch.Generator, rows: int = 5) -> TextConditioning:
    return TextConditioning(
        embeds=torch.randn((1, rows, SMALL.text_embed_dim), generator=generator),
        pooled=torch.randn((1, SMALL.pooled_projection_dim), generator=generator),
    )


def test_full_size_names_and_shapes() -> None:
    """The default configuration has the names, shapes and 12.87 B parameters of the public checkpoints."""
    expected = json.loads((GOLDEN / "full_size_keys.json").read_text())
    model = empty_transformer(TransformerConfig())
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert all(parameter.is_meta for parameter in model.parameters())
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 3) == 12.874


@pytest.mark.parametrize(
    ("frames", "size", "clean_frames"),
    [
        pytest.param(3, (8, 8), (2, 2, 16), id="nothing padded"),
        pytest.param(2, (6, 10), (2, 2, 16), id="2x and 4x padded in rows and columns"),
        pytest.param(9, (4, 6), (2, 2, 16), id="full window"),
        pytest.param(1, (2, 2), (1, 3, 6), id="padded in frames too"),
        pytest.param(2, (12, 2), (3, 1, 5), id="single column"),
    ],
)
@pytest.mark.parametrize("words", [1, 7, _ROWS])
@torch.inference_mode()
def test_forward_equals_diffusers(
    model: PackedTransformer,
    reference: Any,
    frames: int,
    size: tuple[int, int],
    clean_frames: tuple[int, int, int],
    words: int,
) -> None:
    """A forward equals diffusers' to 1e-5, whose text is padded and masked where goan's is cropped."""
    generator = torch.Generator().manual_seed(words)
    latents = torch.randn((1, 16, frames, *size), generator=generator)
    indices = torch.randint(0, 60, (frames,), generator=generator)
    clean = _clean(clean_frames, size, generator)
    image = torch.randn((1, 5, SMALL.image_proj_dim), generator=generator)
    text = _text(generator, _ROWS)
    mask = torch.zeros((1, _ROWS), dtype=torch.long)
    mask[:, :words] = 1
    timestep, guidance = torch.tensor([421.5]), torch.tensor([6_000.0])
    expected: Tensor = reference(
        hidden_states=latents,
        timestep=timestep,
        encoder_hidden_states=text.embeds,
        encoder_attention_mask=mask,
        pooled_projections=text.pooled,
        image_embeds=image,
        indices_latents=indices,
        guidance=guidance,
        latents_clean=clean[0].latents,
        indices_latents_clean=clean[0].indices,
        latents_history_2x=clean[1].latents,
        indices_latents_history_2x=clean[1].indices,
        latents_history_4x=clean[2].latents,
        indices_latents_history_4x=clean[2].indices,
        return_dict=False,
    )[0]

    # In another order than the packed one, which is the model's own business.
    context = model.context_for(latent_indices=indices, latent_size=size, clean=clean[::-1], image_embeds=image)
    cropped = TextConditioning(embeds=text.embeds[:, :words], pooled=text.pooled)
    actual = model.velocity_at(latents, timestep=timestep, guidance=guidance, text=cropped, context=context)

    assert actual.shape == expected.shape == latents.shape
    assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize("changed", ["text", "pooled", "image", "clean", "indices", "timestep", "guidance"])
@torch.inference_mode()
def test_every_input_matters(model: PackedTransformer, changed: str) -> None:
    """No conditioning input is dropped: changing any one of them changes the velocity."""

    def velocity(change: str | None) -> Tensor:
        def given(name: str, value: Tensor) -> Tensor:
            return value * 1.5 + 1 if name == change else value

        generator = torch.Generator().manual_seed(3)
        clean = _clean((2, 2, 16), (4, 4), generator)
        context = model.context_for(
            latent_indices=given("indices", torch.arange(2.0)),
            latent_size=(4, 4),
            clean=[
                CleanLatents(latents=given("clean", part.latents), indices=part.indices, pool=part.pool)
                for part in clean
            ],
            image_embeds=given("image", torch.randn((1, 3, SMALL.image_proj_dim), generator=generator)),
        )
        text = _text(generator)
        out: Tensor = model.velocity_at(
            torch.randn((1, 16, 2, 4, 4), generator=generator),
            timestep=given("timestep", torch.tensor([500.0])),
            guidance=given("guidance", torch.tensor([6_000.0])),
            text=TextConditioning(embeds=given("text", text.embeds), pooled=given("pooled", text.pooled)),
            context=context,
        )
        return out

    assert relative_error(velocity(changed), velocity(None)) > 1e-4


@torch.inference_mode()
def test_section_without_history(model: PackedTransformer) -> None:
    """Without any clean latents the context holds no clean tokens, and positions for the noisy ones alone."""
    generator = torch.Generator().manual_seed(4)
    context = model.context_for(
        latent_indices=torch.arange(3),
        latent_size=(4, 6),
        clean=[],
        image_embeds=torch.randn((1, 3, SMALL.image_proj_dim), generator=generator),
    )
    assert context.clean_tokens.shape == (1, 0, SMALL.width)
    assert len(context.rope) == 3 * 2 * 3


@torch.inference_mode()
def test_cached_step_runs_no_block(model: PackedTransformer) -> None:
    """A skipped step adds the last residual instead of running blocks; without change the result is the same."""
    generator = torch.Generator().manual_seed(5)
    context, text = _context(model, generator), _text(generator)
    latents = torch.randn((1, 16, 2, 4, 4), generator=generator)
    ran: list[str] = []
    hooks = [
        block.register_forward_hook(lambda *_: ran.append("block"))
        for block in (*model.transformer_blocks, *model.single_transformer_blocks)
    ]
    cache = TeaCache(threshold=10.0, steps=3)
    try:
        first, skipped = (
            model.velocity_at(
                latents,
                timestep=torch.tensor([500.0]),
                guidance=torch.tensor([6_000.0]),
                text=text,
                context=context,
                cache=cache,
            )
            for _ in range(2)
        )
    finally:
        for hook in hooks:
            hook.remove()
    assert cache.computed == [0]
    assert len(ran) == SMALL.num_layers + SMALL.num_single_layers
    assert relative_error(skipped, first) < 1e-5


@torch.inference_mode()
def test_cache_that_never_skips_changes_nothing(model: PackedTransformer) -> None:
    """A step that a cache computes gives the very bits of a step without a cache."""
    generator = torch.Generator().manual_seed(6)
    context, text = _context(model, generator), _text(generator)
    latents = torch.randn((1, 16, 2, 4, 4), generator=generator)
    plain, cached = (
        model.velocity_at(
            latents,
            timestep=torch.tensor([500.0]),
            guidance=torch.tensor([6_000.0]),
            text=text,
            context=context,
            cache=cache,
        )
        for cache in (None, TeaCache(threshold=0.15, steps=2))
    )
    assert torch.equal(plain, cached)


@torch.inference_mode()
def test_bfloat16_blocks_and_float32_projection() -> None:
    """With blocks in bfloat16 and the projection in float32, the velocity is float32 and near the exact one."""
    exact, rounded = random_transformer(), random_transformer().to(torch.bfloat16)
    rounded.proj_out.float()
    assert (rounded.dtype, rounded.proj_out.weight.dtype) == (torch.bfloat16, torch.float32)

    def velocity(model: PackedTransformer) -> Tensor:
        generator = torch.Generator().manual_seed(8)
        context, text = _context(model, generator), _text(generator)
        out: Tensor = model.velocity_at(
            torch.randn((1, 16, 2, 4, 4), generator=generator).to(model.dtype),
            timestep=torch.tensor([512.0], dtype=model.dtype),
            guidance=torch.tensor([6_144.0], dtype=model.dtype),
            text=TextConditioning(embeds=text.embeds.to(model.dtype), pooled=text.pooled.to(model.dtype)),
            context=context,
        )
        return out

    actual, expected = velocity(rounded), velocity(exact)
    assert actual.dtype == torch.float32
    # bfloat16 keeps 8 bits (0.4%) of every value, in weights and activations of six random layers.
    assert 1e-4 < relative_error(actual, expected) < 0.1
