"""On a GPU: streamed, lent, quantised and compiled weights do what resident ones do. Skipped where there is none.

No transformer is larger than 250 MB, and diffusers is imported for the decode alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.bench.section import TEXT_TOKENS, random_input
from goan_cli.bench.subjects import SubjectShape
from goan_cli.bench.weights import synthetic_transformer
from goan_cli.jobs.job import AttentionBackend, Sampling
from goan_cli.jobs.sections import Family
from goan_cli.model import fp8
from goan_cli.model.attention import Attend, attention, sdpa
from goan_cli.model.calls import BlockCalls, compiled_calls
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import E4M3, Fp8Linear, multiplies_in_fp8, quantised, scaled_linear, use_fp8, widened
from goan_cli.model.transformer import CleanLatents, PackedTransformer, TextConditioning
from goan_cli.render import streaming
from goan_cli.render.budget import memory_of
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.engine import Engine
from goan_cli.render.events import Event
from goan_cli.render.execution import ResolvedExecution, lacking_compiler
from goan_cli.render.identity import bake_recipe
from goan_cli.render.lora_files import lora_file
from goan_cli.render.memory import SLOTS, plan_memory, tokens_of
from goan_cli.render.plan import RenderPlan
from goan_cli.render.sampling import sample_sections
from goan_cli.render.streaming import BlockStream, streamed_tensors
from goan_cli.render.transformers import Transformers
from tests.helpers import (
    CPU,
    SMALL,
    TINY_CONFIG,
    TINY_MLP,
    TINY_QKV,
    factors,
    random_transformer,
    relative_error,
    tiny_plan,
    write_lora,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda", 0)
BLOCKS = SMALL.num_layers + SMALL.num_single_layers
STREAMED = (False,) * BLOCKS
SPLITS = (STREAMED, (False, True, False, False), (True, False, True, False))
PRECISIONS = ("bf16", "fp8")
STEPS = 4
# Wide enough that copies and products take a while, and that weights, ring and activations are of like sizes.
WIDE = TransformerConfig(
    num_attention_heads=8,
    num_layers=3,
    num_single_layers=6,
    text_embed_dim=512,
    pooled_projection_dim=128,
    image_proj_dim=256,
)
WIDE_SHAPE = SubjectShape(
    name="wide", config=WIDE, family=Family.INVERTED, size=(384, 384), window=9, image_tokens=196, steps=STEPS
)
# cuBLAS and cuBLASLt may take 32 MiB each on Hopper, which a plan counts among its overhead.
WORKSPACES = 64 << 20
# The largest unit in the last place of bfloat16, as a part of a value.
BF16 = 2.0**-7


def capability() -> tuple[int, int]:
    """Of the device; (0, 0) without one."""
    return torch.cuda.get_device_capability(CUDA) if torch.cuda.is_available() else (0, 0)


needs_fp8 = pytest.mark.skipif(capability() < (8, 9), reason="products in fp8 need compute capability 8.9")
needs_bf16 = pytest.mark.skipif(capability() < (8, 0), reason="bf16 needs compute capability 8.0")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed, made on the CPU: the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model_in(precision: str) -> PackedTransformer:
    """The small random transformer on the device, with the dtypes that a precision gives it; bf16 around fp8."""
    model = random_transformer().to(CUDA)
    if precision != "fp32":
        model.to(torch.bfloat16).proj_out.float()
    if precision == "fp8":
        use_fp8(model)
    return model


def stream_of(
    model: PackedTransformer, resident: Sequence[bool] = STREAMED, *, slots: int = SLOTS
) -> BlockStream:
    """The model's blocks streamed as the model's source."""
    stream = BlockStream(tuple(model.own_blocks()), resident, CUDA, slots=slots)
    model.block_source = stream
    return stream


def stepper(model: PackedTransformer, *, frames: int = 3, side: int = 8) -> Callable[[], Tensor]:
    """A function that runs a step on what the one before made; nothing in it waits for the device."""
    config, dtype = model.config, model.dtype

    def placed(*shape: int, seed: int) -> Tensor:
        return random(*shape, seed=seed).to(CUDA, dtype)

    with torch.inference_mode():
        context = model.context_for(
            latent_indices=torch.arange(2, 2 + frames),
            latent_size=(side, side),
            clean=[CleanLatents(latents=random(1, 16, 2, side, side, seed=1), indices=torch.arange(2), pool=1)],
            image_embeds=random(1, 5, config.image_proj_dim, seed=2),
        )
        text = TextConditioning(
            embeds=placed(1, 7, config.text_embed_dim, seed=3), pooled=placed(1, config.pooled_projection_dim, seed=4)
        )
        timestep = torch.tensor([500.0]).to(CUDA, dtype)
        (step,) = model.step_conditionings(text, [timestep], timestep)
    latents = placed(1, 16, frames, side, side, seed=5)

    def run() -> Tensor:
        nonlocal latents
        with torch.inference_mode():
            out: Tensor = model(latents, step=step, context=context)
            latents = out.to(dtype)
        return out

    return run


def several(run: Callable[[], Tensor], count: int = STEPS) -> list[Tensor]:
    """The results of so many steps, queued without waiting for any of them."""
    return [run() for _ in range(count)]


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Whether the results of all steps are the same, bit for bit, and numbers."""
    pairs = list(zip(left, right, strict=True))
    return all(torch.equal(one, other) and bool(one.isfinite().all()) for one, other in pairs)


def wide_model(precision: str, resident: Sequence[bool] | None = None) -> PackedTransformer:
    """The wider transformer, whose random weights a device makes the same every time."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return synthetic_transformer(WIDE, device=CUDA, dtype=dtype, fp8=precision == "fp8", resident=resident)


# Streaming ----------------------------------------------------------------------------------------------------


@needs_bf16
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_split_never_changes_a_result(
    precision: str, slots: int, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever blocks are streamed, from pinned or from pageable memory, every step is bit-equal to resident ones."""
    if not pinned:
        monkeypatch.setattr(streaming, "_pinned", lambda *_: False)
    expected = several(stepper(model_in(precision)))
    for resident in SPLITS:
        model = model_in(precision)
        stream = stream_of(model, resident, slots=slots)
        assert equal(several(stepper(model)), expected), resident
        if not pinned:
            assert stream.pageable == resident.count(False)
            assert stream.note is not None


@needs_bf16
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_copies_that_take_a_while(precision: str, slots: int) -> None:
    """With blocks of tens of megabytes, copied while others compute, ten steps in a row are bit-equal too."""
    expected = several(stepper(wide_model(precision), side=48), 10)
    resident = (False,) * (WIDE.num_layers + WIDE.num_single_layers)
    model = wide_model(precision, resident)
    stream = stream_of(model, resident, slots=slots)
    assert stream.note is None
    assert equal(several(stepper(model, side=48), 10), expected)


@needs_bf16
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bake_in_place_acts(precision: str) -> None:
    """After `refresh` the next step runs on what was written into slabs, blocks that were copied ahead included."""
    models = model_in(precision), model_in(precision)
    stream = stream_of(models[1], (False, True, False, False))
    runs = [stepper(model) for model in models]
    before = [several(run) for run in runs]
    assert equal(*before)
    torch.cuda.synchronize(CUDA)
    for model in models:
        for number, block in enumerate(model.own_blocks()):
            tensors = streamed_tensors(block)
            weight = random(*tensors["attn.to_q.weight"].shape, seed=number)
            if precision == "fp8":
                weight, scale = quantised(weight)
                tensors["attn.to_q.scale"].copy_(scale)
            tensors["attn.to_q.weight"].copy_(weight)
    stream.refresh()
    after = [several(run) for run in runs]
    assert equal(*after)
    assert relative_error(after[0][0], before[0][-1]) > BF16


@needs_bf16
@pytest.mark.parametrize("precision", PRECISIONS)
def test_streams_hold_what_is_planned(precision: str) -> None:
    """Weights lie where a plan puts them, and sampling takes no more than its tables, ring and activations at once."""
    execution = tokens_of(size=WIDE_SHAPE.size, window=WIDE_SHAPE.window, image=WIDE_SHAPE.image_tokens, text=TEXT_TOKENS)
    roomy = plan_memory(WIDE, precision=precision, tokens=execution, steps=STEPS, budget=10**12)
    budget = roomy.total - roomy.resident_bytes // 2
    plan = plan_memory(WIDE, precision=precision, tokens=execution, steps=STEPS, budget=budget)
    assert 0 < plan.resident.count(False) < len(plan.resident)
    (torch.ones((64, 64), device=CUDA) @ torch.ones((64, 64), device=CUDA)).sum().item()  # takes its workspace
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(CUDA)
    model = wide_model(precision, plan.resident)
    stream = stream_of(model, plan.resident)
    given = random_input(WIDE_SHAPE, WIDE_SHAPE.size)
    assert stream.slab_bytes == plan.pinned
    assert torch.cuda.memory_allocated(CUDA) - before == pytest.approx(plan.weights, rel=0.01)
    torch.cuda.reset_peak_memory_stats(CUDA)
    sampling = Sampling(steps=STEPS, seed=0, guidance_scale=10.0)
    for _ in sample_sections(model, given.conditioning, given.plan, sampling, after=given.before):
        pass
    assert stream.slot_bytes == plan.ring
    work = max(plan.lent, plan.tables + plan.ring + plan.activations)
    assert torch.cuda.max_memory_allocated(CUDA) - before <= plan.weights + work + WORKSPACES
    stream.release()
    assert stream.slot_bytes == 0
    assert torch.cuda.memory_allocated(CUDA) - before <= plan.weights * 1.01 + WORKSPACES


@needs_bf16
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_step_lets_the_host_run_ahead(precision: str, streamed: bool) -> None:
    """Nothing in a step has the host wait for the device, be its blocks resident or streamed from pinned memory."""
    resident = (not streamed,) * (WIDE.num_layers + WIDE.num_single_layers)
    model = wide_model(precision, resident)
    if streamed:
        assert stream_of(model, resident).note is None
    run = stepper(model)
    several(run, 2)
    with _no_waiting():
        several(run)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """torch raises where it would make the host wait."""
    torch.cuda.synchronize(CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_that_is_pinned_already() -> None:
    """A refusal to pin is told, and is not raised by what the device does next."""
    memory = torch.zeros(64 << 20, dtype=torch.uint8)
    assert streaming._pinned(memory, CUDA)
    try:
        assert memory.is_pinned()
        assert not streaming._pinned(memory, CUDA)
        assert float(torch.ones(8, device=CUDA).sum()) == 8
    finally:
        streaming._unpin(memory, CUDA)
    assert not memory.is_pinned()


def test_memory_is_let_go() -> None:
    """A stream that is let go takes its ring's and its slabs' registration with it, copies under way or not."""
    resident = (False,) * (WIDE.num_layers + WIDE.num_single_layers)
    model = wide_model("fp32", resident)
    before = torch.cuda.memory_allocated(CUDA)
    stream = stream_of(model, resident)
    memory = next(iter(stream._slabs.values())).memory
    assert memory.is_pinned()
    iterator = stream()
    next(iterator)  # two copies are queued
    model.block_source = None
    del stream, iterator
    torch.cuda.synchronize(CUDA)
    assert torch.cuda.memory_allocated(CUDA) == before
    assert not memory.is_pinned()


# Weights in main memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=needs_bf16), "fp32"])
def test_lent_weights(precision: str) -> None:
    """Steps are conditioned by weights in main memory as by weights on the device, bit for bit."""
    model = model_in(precision)
    text = TextConditioning(
        embeds=random(1, 7, SMALL.text_embed_dim, seed=3).to(CUDA, model.dtype),
        pooled=random(1, SMALL.pooled_projection_dim, seed=4).to(CUDA, model.dtype),
    )
    timesteps = [torch.tensor([value], device=CUDA).to(model.dtype) for value in (1000.0, 700.0, 10.0)]

    def conditioned() -> list[Tensor]:
        with torch.inference_mode():
            steps = model.step_conditionings(text, timesteps, timesteps[0])
        return [each for step in steps for each in (step.double, step.double_text, step.single, step.out)] + [
            step.text_tokens for step in steps
        ]

    expected = conditioned()
    lent = [model.time_text_embed, model.context_embedder, model.norm_out]
    lent += [child for block in model.own_blocks() for name, child in block.named_children() if "norm" in name]
    for module in lent:
        module.to(CPU)
    actual = conditioned()
    assert all(tensor.device == CUDA for tensor in actual)
    assert equal(actual, expected)
    assert all(parameter.device == CPU for module in lent for parameter in module.parameters())


# fp8 --------------------------------------------------------------------------------------------------------------


def test_which_gpus_multiply_in_fp8() -> None:
    """NVIDIA's do from compute capability 8.9 on."""
    assert multiplies_in_fp8(CUDA) == (capability() >= (8, 9) and torch.version.cuda is not None)


@pytest.mark.parametrize("shape", [(7, 64), (3, 5, 3072)])
def test_codes_are_the_cpus(shape: tuple[int, ...]) -> None:
    """The device quantises to the CPU's codes and scales, bit for bit: both divide and round as IEEE has it."""
    weight = random(*shape).flatten(0, -2)
    codes, scale = quantised(weight)
    on_device, its_scale = quantised(weight.to(CUDA))
    assert torch.equal(its_scale.cpu(), scale)
    assert torch.equal(on_device.cpu().view(torch.uint8), codes.view(torch.uint8))


@needs_bf16
def test_where_fp8_is_for_storage_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the device does not multiply in fp8, the linear is that of the widened weight, bit for bit."""
    monkeypatch.setattr(fp8, "multiplies_in_fp8", lambda _: False)
    linear, x = _linear(512, 96), random(1, 33, 512, seed=5).to(CUDA, torch.bfloat16)
    expected = F.linear(x, widened(linear.weight, linear.scale, torch.bfloat16), linear.bias)
    assert torch.equal(linear(x), expected)


def _linear(inputs: int, outputs: int) -> Fp8Linear:
    linear = Fp8Linear(inputs, outputs, device=CUDA, dtype=torch.bfloat16)
    linear.weight, linear.scale = quantised(random(outputs, inputs).to(CUDA) / inputs**0.5)
    if linear.bias is not None:
        linear.bias.data.copy_(random(outputs, seed=1))
    return linear.requires_grad_(requires_grad=False)


@needs_fp8
@pytest.mark.parametrize("tokens", [1, 33, 40])
def test_the_product_of_codes(tokens: int) -> None:
    """The scaled product is that of the quantised tokens and weights, rounded to bfloat16, for any number of tokens.

    The fast accumulator keeps 14 bits: each of the steps over 32 terms is off by less than a unit of all their sizes.
    """
    linear, x = _linear(512, 96), random(2, tokens, 512, seed=5).to(CUDA, torch.bfloat16)
    out = linear(x)
    assert (out.shape, out.dtype) == ((2, tokens, 96), torch.bfloat16)
    assert linear.bias is not None
    assert torch.equal(out, scaled_linear(x, linear.weight, linear.scale, linear.bias))
    token = widened(*quantised(x.flatten(0, 1)), torch.float32).view(x.shape).double()
    weight = widened(linear.weight, linear.scale, torch.float32).double()
    expected = F.linear(token, weight, linear.bias.double())
    magnitude = F.linear(token.abs(), weight.abs())
    bound = expected.abs() * 2.0**-8 + magnitude * (512 / 32 * 2.0**-13)
    assert bool(((out.double() - expected).abs() <= bound).all())


@needs_fp8
def test_the_scaled_product_is_near_the_linear() -> None:
    """Its error is the mean square of two independent roundings to e4m3, 3.7 % in all, as on a CPU."""
    weight = (random(96, 512) / 512**0.5).to(CUDA)
    x = random(40, 512, seed=5).to(CUDA, torch.bfloat16)
    error = relative_error(scaled_linear(x, *quantised(weight), None), x.double() @ weight.double().T)
    assert 0.03 < error < 0.0265 * 2**0.5 * 1.1


@needs_fp8
def test_a_token_that_is_not_finite() -> None:
    """A token with a value that is not finite gives NaN, and changes nothing in the others."""
    linear, x = _linear(64, 32), random(5, 64, seed=5).to(CUDA, torch.bfloat16)
    spoilt = x.clone()
    spoilt[2, 7], spoilt[3, 7] = float("inf"), float("nan")
    out, after = linear(x), linear(spoilt)
    assert torch.equal(after[[0, 1, 4]], out[[0, 1, 4]])
    assert bool(after[2:4].isnan().all())


# Attention --------------------------------------------------------------------------------------------------------


def _attended(attend: Attend, dtype: torch.dtype) -> float:
    """The relative error of attention with fewer queries than keys, against fp64."""
    query, key, value = (random(1, tokens, 4, 64, seed=tokens).to(CUDA, dtype) for tokens in (300, 501, 501 + 1)[:2] * 2
                         ) if False else _qkv(dtype)
    exact = sdpa(query.double(), key.double(), value.double())
    return relative_error(attend(query, key, value), exact)
