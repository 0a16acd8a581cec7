"""Placement by budget: weights counted as they are, the plans of full-size jobs, and what does not fit."""

import dataclasses
import json
import math
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.fields import memory_bytes
from goan_cli.model import fp8
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import use_fp8
from goan_cli.model.transformer import CleanLatents, PackedTransformer, TextConditioning
from goan_cli.model.weights import empty_transformer
from goan_cli.render.memory import (
    OVERHEAD,
    MemoryPlan,
    Tokens,
    activation_bytes,
    automatic_budget,
    block_bytes,
    describe,
    fixed_bytes,
    plan_memory,
    spread,
    tokens_of,
)
from goan_cli.render.streaming import streamed_tensors
from tests.helpers import GOLDEN, SMALL, random_transformer

FULL = TransformerConfig()
# 640 x 608, window 9, a prompt of 200 tokens: what the design's figures are for.
USUAL = tokens_of(size=(640, 608), window=9, image=729, text=200)
MODULATION = {"norm1", "norm1_context", "norm"}


def full_size(budget: str, precision: str = "bf16", *, tokens: Tokens = USUAL) -> MemoryPlan:
    """The plan of a full-size job of 25 steps."""
    return plan_memory(FULL, precision=precision, tokens=tokens, steps=25, budget=memory_bytes(budget))


def full_size_keys() -> dict[str, int]:
    """Parameters of each tensor of the published checkpoints."""
    shapes = json.loads((GOLDEN / "full_size_keys.json").read_text(encoding="utf-8"))
    return {name: math.prod(shape) for name, shape in shapes.items()}


def is_streamed(name: str) -> bool:
    """Whether a checkpoint's tensor is a block's and no modulation."""
    stack, _, rest = name.partition(".")
    return stack.endswith("transformer_blocks") and rest.split(".")[1] not in MODULATION


def test_tokens_of_the_usual_size() -> None:
    """The packed history is counted with its padding: 4 x 10 x 10 patches at 4x, 20 x 19 at 2x, two frames at 1x."""
    assert Tokens(noisy=9 * 1520, clean=2 * 1520 + 380 + 400, image=729, text=200) == USUAL
    assert (USUAL.packed, USUAL.beside, USUAL.total) == (17_500, 929, 18_429)


def test_tokens_are_those_of_the_model() -> None:
    """For a size that divides by nothing but 16, the counts are the lengths of what the model embeds."""
    model = random_transformer()
    frames = {1: 2, 2: 2, 4: 16}
    with torch.inference_mode():
        context = model.context_for(
            latent_indices=torch.arange(3),
            latent_size=(14, 22),
            clean=[
                CleanLatents(latents=torch.zeros(1, 16, count, 14, 22), indices=torch.arange(count), pool=pool)
                for pool, count in frames.items()
            ],
            image_embeds=torch.zeros(1, 5, SMALL.image_proj_dim),
        )
    tokens = tokens_of(size=(176, 112), window=3, image=5, text=7)
    assert context.clean_tokens.shape[1] == tokens.clean
    assert len(context.rope) == tokens.packed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_of_the_published_checkpoints(precision: str) -> None:
    """Blocks, what always stays and what tables are made with are together exactly the checkpoint's parameters."""
    keys, plan = full_size_keys(), plan_memory(FULL, precision=precision, tokens=USUAL, steps=25, budget=None)
    wide = {"fp32": 4, "bf16": 2}[precision]
    first = {
        stack: sum(count for name, count in keys.items() if name.startswith(f"{stack}.0.") and is_streamed(name)) * wide
        for stack in ("transformer_blocks", "single_transformer_blocks")
    }
    assert (plan.double_block, plan.single_block) == tuple(first.values())
    assert sum(plan.blocks) == sum(count for name, count in keys.items() if is_streamed(name)) * wide
    last = sum(count for name, count in keys.items() if name.startswith("proj_out."))
    assert plan.weights + plan.conditioning == (sum(keys.values()) - last) * wide + last * 4


def test_resident_while_sampling_at_full_size() -> None:
    """18.23 GB in bf16 and 9.18 GB in fp8; a double block is 453 MB and a single one 227 MB in bf16."""
    bf16, fp8 = (plan_memory(FULL, precision=p, tokens=USUAL, steps=25, budget=None) for p in ("bf16", "fp8"))
    assert (bf16.double_block, bf16.single_block) == (453_096_448, 226_542_080)
    assert bf16.weights == 18_231_402_752
    assert fp8.weights == 9_180_061_952
    assert bf16.weights <= 18.3e9
    assert fp8.weights <= 9.4e9
    assert bf16.conditioning == fp8.conditioning == 7_517_620_224


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
def test_weights_of_the_modules(precision: str) -> None:
    """For an odd configuration, every figure is that of the modules in their dtypes, in fp8 with scales."""
    config = dataclasses.replace(SMALL, num_layers=3, num_single_layers=1, in_channels=8, mlp_ratio=3.0)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    model = empty_transformer(config).to(dtype)
    model.proj_out.float()
    if precision == "fp8":
        use_fp8(model)
    double, single = (
        sum(-(-tensor.nbytes // 256) * 256 for tensor in streamed_tensors(stack[0]).values())
        for stack in (model.transformer_blocks, model.single_transformer_blocks)
    )
    assert block_bytes(config, precision) == (double, single)
    fixed = (model.x_embedder, model.clean_x_embedder, model.image_projection, model.proj_out)
    assert fixed_bytes(config, precision) == sum(_bytes(module) for module in fixed)
    conditioning = [model.context_embedder, model.time_text_embed, model.norm_out]
    for block in chain(model.transformer_blocks, model.single_transformer_blocks):
        conditioning += [module for name, module in block.named_children() if name in MODULATION]
    plan = plan_memory(config, precision=precision, tokens=USUAL, steps=1, budget=None)
    assert plan.conditioning == sum(_bytes(module) for module in conditioning)
    assert plan.lent == max(_bytes(module) for module in conditioning)


def _bytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in chain(module.parameters(), module.buffers()))


@pytest.mark.parametrize("branches", [1, 2])
def test_tables_of_a_job(branches: int) -> None:
    """Tables take what the model makes for every step and CFG branch."""
    model, text = random_transformer(), 7
    with torch.inference_mode():
        conditioning = TextConditioning(embeds=torch.zeros(1, text, SMALL.text_embed_dim), pooled=torch.zeros(1, 16))
        (step,) = model.step_conditionings(conditioning, [torch.tensor([500.0])], torch.tensor([6000.0]))
    made = sum(getattr(step, each.name).nbytes for each in dataclasses.fields(step))
    tokens = tokens_of(size=(64, 64), window=3, image=5, text=text)
    plan = plan_memory(SMALL, precision="fp32", tokens=tokens, steps=25, branches=branches, budget=None)
    assert plan.tables == 25 * branches * made


def measured_peak(model: PackedTransformer, *, text: int) -> int:
    """Bytes that a step without tables allocates at its peak, beyond what there was before."""
    config, dtype = model.config, model.dtype
    with torch.inference_mode():
        context = model.context_for(
            latent_indices=torch.arange(2, 9),
            latent_size=(32, 32),
            clean=[CleanLatents(latents=torch.randn(1, 16, 2, 32, 32), indices=torch.arange(2), pool=1)],
            image_embeds=torch.randn(1, 20, config.image_proj_dim),
        )
        conditioning = TextConditioning(
            embeds=torch.randn(1, text, config.text_embed_dim).to(dtype),
            pooled=torch.randn(1, config.pooled_projection_dim).to(dtype),
        )
        timestep = torch.tensor([500.0]).to(dtype)
        (step,) = model.step_conditionings(conditioning, [timestep], timestep)
        latents = torch.randn(1, 16, 7, 32, 32).to(dtype)
        model(latents, step=step, context=context)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            model(latents, step=step, context=context)
    kept = context.clean_tokens.nbytes + context.image_tokens.nbytes + context.rope.table.nbytes
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + kept


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_activations_cover_a_step(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is not less than what a step allocates, nor much more.

    In fp8 it is for devices that quantise activations, as many at a time as on a GPU; their product is left out,
    for which a CPU widens everything.
    """
    config = dataclasses.replace(SMALL, num_attention_heads=4, attention_head_dim=64, rope_axes_dim=(16, 24, 24))
    model = random_transformer(config)
    if precision != "fp32":
        model.to(torch.bfloat16).proj_out.float()
    if precision == "fp8":
        use_fp8(model)
        monkeypatch.setattr(fp8, "multiplies_in_fp8", lambda _: True)
        monkeypatch.setattr(fp8, "_CACHED_VALUES", fp8._DEVICE_VALUES)
        monkeypatch.setattr(torch, "_scaled_mm", _no_product)
    tokens = Tokens(noisy=7 * 256, clean=2 * 256, image=20, text=44)
    estimate, measured = activation_bytes(config, precision, tokens), measured_peak(model, text=44)
    assert measured <= estimate <= measured * 1.25


def _no_product(codes: torch.Tensor, weight: torch.Tensor, **_: object) -> torch.Tensor:
    return torch.empty((len(codes), weight.shape[1]), dtype=torch.bfloat16)


def test_activations_of_the_usual_size() -> None:
    """About 1.6 GB in bf16; a step cache holds a residual and a modulated input more; fp8 holds codes beside."""
    usual = activation_bytes(FULL, "bf16", USUAL)
    assert usual == 1_600_186_304
    caches = activation_bytes(FULL, "bf16", USUAL, caches=2) - usual
    assert caches == 2 * (13_680 + 17_500) * 3072 * 2
    assert activation_bytes(FULL, "fp8", USUAL) > usual


@pytest.mark.parametrize(
    ("budget", "precision", "doubles", "singles"),
    [
        ("24GB", "bf16", 20, 40),
        ("12GB", "bf16", 13, 11),
        ("8GB", "bf16", 9, 1),
        ("6GB", "bf16", 5, 1),
        ("4GB", "bf16", 1, 0),
        ("24GB", "fp8", 20, 40),
        ("12GB", "fp8", 19, 36),
        ("8GB", "fp8", 13, 13),
        ("6GB", "fp8", 10, 1),
    ],
)
def test_plans_of_the_usual_size(budget: str, precision: str, doubles: int, singles: int) -> None:
    """How many blocks of each kind stay within a budget; the rest goes through two slots of a double block's size."""
    plan = full_size(budget, precision)
    assert (plan.resident[:20].count(True), plan.resident[20:].count(True)) == (doubles, singles)
    everything = doubles + singles == 60
    assert plan.ring == (0 if everything else 2 * plan.double_block)
    assert plan.resident_bytes == doubles * plan.double_block + singles * plan.single_block
    assert plan.pinned == sum(plan.blocks) - plan.resident_bytes
    assert plan.total == plan.weights + plan.tables + plan.ring + plan.activations + OVERHEAD
    assert plan.total <= (plan.budget or 0)
    # Not one block more would fit.
    assert everything or plan.total + plan.single_block > (plan.budget or 0)


def test_copies_are_spread_over_both_kinds() -> None:
    """Of the kind with more bytes to copy per block more stay, until both have as many, up to one block."""
    plan = full_size("12GB")
    double = plan.double_block * (1 - plan.resident[:20].count(True) / 20)
    single = plan.single_block * (1 - plan.resident[20:].count(True) / 40)
    assert abs(double - single) <= plan.double_block / 20


def test_without_a_budget_everything_is_resident() -> None:
    """In main memory nothing is streamed and nothing is CUDA's."""
    plan = plan_memory(FULL, precision="fp32", tokens=USUAL, steps=25, budget=None)
    assert all(plan.resident)
    assert not plan.streams
    assert (plan.ring, plan.pinned, plan.overhead, plan.decode_room) == (0, 0, 0, None)


def test_what_does_not_fit() -> None:
    """Where not even streaming every block is enough, the error says how much would be."""
    least = plan_memory(FULL, precision="bf16", tokens=USUAL, steps=25, budget=3_600_000_000)
    assert not any(least.resident)
    with pytest.raises(EnvironmentFault) as caught:
        plan_memory(FULL, precision="bf16", tokens=USUAL, steps=25, budget=least.total - 1)
    assert "3.5 GB" in caught.value.message
    assert "1.6 GB of it for activations" in caught.value.message
    assert "smaller size or window" in str(caught.value.hint)
    assert plan_memory(FULL, precision="bf16", tokens=USUAL, steps=25, budget=least.total).total == least.total


def test_decoding_gets_the_room_of_sampling() -> None:
    """The VAE may have all but the resident blocks; where it needs more than sampling, fewer blocks stay."""
    small = tokens_of(size=(320, 320), window=9, image=729, text=200)
    plan = full_size("8GB", tokens=small)
    assert plan.decode_room == 8_000_000_000 - plan.weights - OVERHEAD
    need = plan.decode_room + 1
    with_decode = plan_memory(FULL, precision="bf16", tokens=small, steps=25, budget=8_000_000_000, decode=need)
    assert with_decode.resident_bytes < plan.resident_bytes
    assert with_decode.decode_room is not None
    assert with_decode.decode_room >= need


def test_lent_modules_count_where_activations_are_small() -> None:
    """Before sampling the token refiner is on the device, and of a small job that may be the most."""
    plan = plan_memory(FULL, precision="bf16", tokens=Tokens(noisy=16, clean=4, image=1, text=1), steps=1, budget=None)
    assert plan.work == plan.lent > plan.activations + plan.tables


def test_automatic_budget() -> None:
    """`auto` leaves a little of the free memory, and counts CUDA's own, which is taken, as the plan does."""
    assert automatic_budget(24_000_000_000) == round(24_000_000_000 * 0.98) + OVERHEAD // 2


@given(st.integers(1, 200).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_spreading(case: tuple[int, int]) -> None:
    """So many places are taken as were asked for, and gaps differ by at most one, round the end as well."""
    count, total = case
    places = [place for place, taken in enumerate(spread(count, total)) if taken]
    assert len(spread(count, total)) == total
    assert len(places) == count
    if places:
        gaps = [after - before for before, after in zip(places, [*places[1:], places[0] + total], strict=True)]
        assert max(gaps) - min(gaps) <= 1


@given(st.integers(0, 30_000_000_000), st.sampled_from(["bf16", "fp8"]))
def test_every_plan_keeps_its_budget(budget: int, precision: str) -> None:
    """A plan is within its budget and wastes less than a block's size of it, or is refused."""
    try:
        plan = plan_memory(FULL, precision=precision, tokens=USUAL, steps=25, budget=budget)
    except EnvironmentFault:
        assert budget < 5_000_000_000
        return
    assert plan.total <= budget
    assert not plan.streams or budget - plan.total < 2 * plan.double_block
    assert plan.slots == (2 if plan.streams else 0)


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ("24GB", "all 60 blocks resident (18.1 GB), activations 1.6 GB, 20.7 GB in all"),
        (
            "8GB",
            (
                "10 of 60 blocks resident (4.3 GB), 50 streamed through 2 slots (0.91 GB), activations 1.6 GB, 7.8 "
                "GB in all, 13.8 GB of main memory pinned"
            ),
        ),
        (
            "3.6GB",
            (
                "no block resident, 60 streamed through 2 slots (0.91 GB), activations 1.6 GB, 3.5 GB in all, 18.1 "
                "GB of main memory pinned"
            ),
        ),
    ],
)
def test_describe(budget: str, told: str) -> None:
    """A plan in a line."""
    assert describe(full_size(budget)) == told


def test_describe_in_main_memory() -> None:
    """Without a budget there is nothing to tell but how much it takes in all."""
    plan = plan_memory(FULL, precision="fp32", tokens=USUAL, steps=25, budget=None)
    assert describe(plan) == "everything in main memory, 54.8 GB"
