"""Compiled blocks: the same as uncompiled ones up to rounding, and compiled once for all blocks of a kind."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from goan_cli.model.attention import Attend, sdpa
from goan_cli.model.blocks import Kept
from goan_cli.model.calls import BlockCalls, compiled_calls
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import use_fp8
from goan_cli.model.rope import rope_table
from goan_cli.model.transformer import (
    CleanLatents,
    PackedTransformer,
    SectionContext,
    StepConditioning,
    TextConditioning,
)
from tests.helpers import SMALL, random_transformer, relative_error

# More blocks of each kind than there are graphs, of the same widths.
DEEP = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=3,
    num_single_layers=5,
    num_refiner_layers=1,
    text_embed_dim=24,
    pooled_projection_dim=16,
    image_proj_dim=20,
    rope_axes_dim=(4, 6, 6),
)
# The double block, the single block, and the last single one, which keeps the noisy rows only.
GRAPHS = 3
# Compiled blocks norm, turn and join in another order: a few units in the last place.
CLOSE = 1e-6
EAGER = compiled_calls("eager")


def _forget_graphs() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def _graphs() -> int:
    """How many graphs have been compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _section(
    model: PackedTransformer, *, frames: int = 3, size: tuple[int, int] = (8, 8), seed: int = 0, history: bool = True
) -> SectionContext:
    """A section of so many latents of a size, with the whole history, or with none."""
    generator = torch.Generator().manual_seed(seed)
    kinds = zip((1, 2, 4), (2, 2, 16), strict=True) if history else ()
    clean = [
        CleanLatents(
            latents=torch.randn((1, 16, count, *size), generator=generator),
            indices=torch.randint(0, 60, (count,), generator=generator),
            pool=pool,
        )
        for pool, count in kinds
    ]
    return model.context_for(
        latent_indices=torch.arange(frames) + seed,
        latent_size=size,
        clean=clean,
        image_embeds=_random(1, 5, SMALL.image_proj_dim, seed=seed),
    )


def _steps(model: PackedTransformer, *, words: int = 7, seed: int = 0, steps: int = 2) -> list[StepConditioning]:
    """The tables of a prompt of so many tokens."""
    text = TextConditioning(embeds=_random(1, words, SMALL.text_embed_dim, seed=seed), pooled=_random(1, 16, seed=seed))
    timesteps = [torch.tensor([900.0 - 100 * step]) for step in range(steps)]
    return model.step_conditionings(text, timesteps, torch.tensor([6000.0]))


def _error(model: PackedTransformer, *, size: tuple[int, int] = (8, 8), frames: int = 3, history: bool = True) -> float:
    """How far a compiled step is from the uncompiled one."""
    with torch.inference_mode():
        context, (step,) = _section(model, size=size, frames=frames, history=history), _steps(model, steps=1)
        latents = _random(1, 16, frames, *size)
        model.calls = BlockCalls()
        expected = model(latents, step=step, context=context)
        model.calls = EAGER
        return relative_error(model(latents, step=step, context=context), expected)


# One process, one size after another --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun() -> Iterator[int]:
    """A first compiled step, and how many graphs it took; the tests go on from it in this order."""
    _forget_graphs()
    assert _error(random_transformer()) < CLOSE
    yield _graphs()
    _forget_graphs()


def test_one_graph_for_all_blocks_of_a_kind(begun: int) -> None:
    """Three graphs in all, which serve the blocks of a deeper model too."""
    assert begun == GRAPHS
    assert _error(random_transformer(DEEP, seed=1)) < CLOSE
    assert _graphs() == begun


def test_no_recompilation_for_sections_prompts_and_jobs(begun: int) -> None:
    """Sections, prompts of any length, both CFG branches and a second job of one size run by the first graphs."""
    model = random_transformer()
    model.calls = EAGER
    for job, words in enumerate(((7, 1), (256, 12))):
        with torch.inference_mode():
            tables = [_steps(model, words=count, seed=count) for count in words]
            for section in range(3):
                context = _section(model, seed=10 * job + section)
                for number in range(2):
                    for branch in tables:
                        model(_random(1, 16, 3, 8, 8, seed=number), step=branch[number], context=context)
    assert _graphs() == begun


def test_weights_are_inputs_of_the_graphs(begun: int) -> None:
    """Weights that are rewritten in place act, in every block and without another compilation."""
    model = random_transformer(DEEP)

    def run(calls: BlockCalls) -> Tensor:
        model.calls = calls
        with torch.inference_mode():
            context, (step,) = _section(model), _steps(model, steps=1)
            out: Tensor = model(_random(1, 16, 3, 8, 8), step=step, context=context)
        return out

    before = run(EAGER)
    for number, block in enumerate([*model.transformer_blocks, *model.single_transformer_blocks]):
        weight = block.get_parameter("attn.to_v.weight")
        weight.copy_(_random(*weight.shape, seed=number) / 4)
        after = run(EAGER)
        assert relative_error(after, before) > 1e-3
        assert relative_error(after, run(BlockCalls())) < CLOSE
        before = after
    assert _graphs() == begun


@pytest.mark.parametrize("number", range(1, 13))
def test_another_size(begun: int, number: int) -> None:
    """Token counts are no constants of the graphs: a dozen sizes and windows run by the first three, and rightly."""
    frames, size = 1 + number % 4, (4 + 2 * (number % 5), 8 + 2 * (number % 3))
    assert _error(random_transformer(), size=size, frames=frames) < CLOSE
    assert _graphs() == begun


@pytest.mark.parametrize(
    ("size", "frames", "history"),
    [
        pytest.param((2, 2), 1, True, id="one noisy token"),
        pytest.param((8, 8), 3, False, id="noisy tokens only"),
        pytest.param((8, 8), 3, True, id="as before"),
    ],
)
def test_sizes_that_are_special(begun: int, size: tuple[int, int], frames: int, history: bool) -> None:
    """One token, which is no dynamic count, and a section whose every token is kept run too, and those before again."""
    assert begun == GRAPHS
    assert _error(random_transformer(), size=size, frames=frames, history=history) < CLOSE


# Single blocks ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_graphs() -> Iterator[None]:
    """No block is compiled yet, and none is left compiled."""
    _forget_graphs()
    yield
    _forget_graphs()


def _block(dtype: torch.dtype, *, fp8: bool = False) -> nn.Module:
    """A single block, which has all that a double one has."""
    model = random_transformer().to(dtype)
    if fp8:
        use_fp8(model)
    return model.single_transformer_blocks[0]


def _run(calls: BlockCalls, block: nn.Module, dtype: torch.dtype, tokens: int = 9, attend: Attend = sdpa) -> Tensor:
    rope = rope_table(SMALL, torch.tensor([3]), 1, tokens)
    x, modulation = _random(1, tokens, SMALL.width, seed=1).to(dtype), _random(1, 3, SMALL.width, seed=2).to(dtype)
    with torch.inference_mode():
        return calls.single(block, x, modulation, rope, attend, None)


def _block_error(
    calls: BlockCalls, block: nn.Module, dtype: torch.dtype, tokens: int = 9, attend: Attend = sdpa
) -> float:
    return relative_error(_run(calls, block, dtype, tokens, attend), _run(BlockCalls(), block, dtype, tokens, attend))


def test_precisions_within_a_process(no_graphs: None) -> None:
    """Jobs of several precisions in turn compile once for each, and not again when one comes back."""
    bounds = {torch.bfloat16: 2**-6, torch.float16: 2**-9, torch.float32: CLOSE}
    for tokens in (9, 12):
        for dtype, bound in bounds.items():
            assert _block_error(EAGER, _block(dtype), dtype, tokens) < bound
    assert _graphs() == len(bounds)


def test_fp8(no_graphs: None) -> None:
    """A block whose linears are in fp8 compiles as the others do, and what is stored in them later acts."""
    block = _block(torch.float32, fp8=True)
    before = _run(EAGER, block, torch.float32)
    block.get_buffer("attn.to_v.scale").mul_(2)
    assert relative_error(_run(EAGER, block, torch.float32), before) > 1e-2
    assert _block_error(EAGER, block, torch.float32) < CLOSE
    assert _graphs() == 1


def test_ahead_of_time(no_graphs: None) -> None:
    """Traced down to single operations, as code generators take them, it is the same too."""
    for tokens in (9, 12):
        assert _block_error(compiled_calls("aot_eager"), _block(torch.float32), torch.float32, tokens) < CLOSE
    assert _graphs() == 1


def test_attention_is_the_one_that_is_given(no_graphs: None) -> None:
    """A compiled block attends with the function that it is given, also when another one follows."""
    block = _block(torch.float32)

    def doubled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return 2 * sdpa(query, key, value)

    for _ in range(2):
        for attend in (sdpa, doubled):
            assert _block_error(EAGER, block, torch.float32, attend=attend) < CLOSE
    assert _graphs() == 2


def test_calls_are_made_once() -> None:
    """Whoever asks for compiled calls again gets the same ones, with what they have compiled."""
    assert compiled_calls("eager") is EAGER
    assert compiled_calls("aot_eager") is not EAGER


@torch.inference_mode()
def test_uncompiled_calls_are_the_blocks() -> None:
    """Uncompiled, a call is the block's own `forward`, bit for bit."""
    model, calls = random_transformer(), BlockCalls()
    double, single = model.transformer_blocks[0], model.single_transformer_blocks[0]
    rope = rope_table(SMALL, torch.tensor([3]), 1, 9)
    image, text = _random(1, 9, SMALL.width, seed=1), _random(1, 4, SMALL.width, seed=2)
    six, three = _random(1, 6, SMALL.width, seed=3), _random(1, 3, SMALL.width, seed=4)
    pair = calls.double(double, image, text, six, six, rope, sdpa)
    assert all(map(torch.equal, pair, double(image, text, six, six, rope, sdpa)))
    tokens, longer, rows = torch.cat(pair, dim=1), rope.with_text(4), slice(2, 9)
    kept = Kept(tokens=tokens[:, rows], rope=longer.rows(rows))
    whole = single(tokens, three, longer, sdpa)
    assert torch.equal(calls.single(single, tokens, three, longer, sdpa, None), whole)
    assert relative_error(calls.single(single, tokens, three, longer, sdpa, kept), whole[:, rows]) < CLOSE
