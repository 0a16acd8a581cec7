"""On a GPU: streamed, lent, quantised and compiled weights do what resident ones do. Skipped where there is none.

No transformer is larger than 250 MB, and diffusers is imported for the decode alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from goan_cli.bench.section import TEXT_TOKENS, random_input
from goan_cli.bench.subjects import SubjectShape
from goan_cli.bench.weights import synthetic_transformer
from goan_cli.jobs.job import AttentionBackend, Sampling
from goan_cli.jobs.sections import Family
from goan_cli.model import fp8
from goan_cli.model.attention import attention, sdpa
from goan_cli.model.calls import compiled_calls
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import E4M3, Fp8Linear, multiplies_in_fp8, quantised, scaled_linear, use_fp8, widened
from goan_cli.model.transformer import CleanLatents, PackedTransformer, TextConditioning
from goan_cli.render import streaming
from goan_cli.render.budget import memory_of
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.device import Precision
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


def stream_of(model: PackedTransformer, resident: Sequence[bool] = STREAMED, *, slots: int = SLOTS) -> BlockStream:
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
    shape = WIDE_SHAPE
    tokens = tokens_of(size=shape.size, window=shape.window, image=shape.image_tokens, text=TEXT_TOKENS)
    roomy = plan_memory(WIDE, precision=precision, tokens=tokens, steps=STEPS, budget=10**12)
    budget = roomy.total - roomy.resident_bytes // 2
    plan = plan_memory(WIDE, precision=precision, tokens=tokens, steps=STEPS, budget=budget)
    assert 0 < plan.resident.count(False) < len(plan.resident)
    (torch.ones((64, 64), device=CUDA) @ torch.ones((64, 64), device=CUDA)).sum().item()  # takes its workspace
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(CUDA)
    model = wide_model(precision, plan.resident)
    stream = stream_of(model, plan.resident)
    given = random_input(shape, shape.size)
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
    """The device quantises as the CPU does, but for a scale's last place: torch divides by a number there by
    multiplying with its reciprocal. That tips next to no code, and none by more than one.
    """
    weight = random(*shape).flatten(0, -2)
    codes, scale = quantised(weight)
    on_device, its_scale = quantised(weight.to(CUDA))
    torch.testing.assert_close(its_scale.cpu(), scale, rtol=2.0**-22, atol=0)
    torch.testing.assert_close(on_device.cpu().float(), codes.float(), rtol=2.0**-3, atol=2.0**-9)
    assert float((on_device.cpu().float() != codes.float()).float().mean()) < 0.001


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


def _attended(name: str, dtype: torch.dtype) -> Tensor:
    """The attention of a name, with fewer queries than keys."""
    query, key, value = _attending(dtype)
    return attention(name, CUDA)(query, key, value)


def _attending(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (random(1, n, 4, 64, seed=seed).to(CUDA, dtype) for n, seed in ((300, 0), (501, 1), (501, 2)))
    return query, key, value


@needs_bf16
@pytest.mark.parametrize("name", ["auto", "sdpa", "cudnn"])
def test_kernels_agree(name: str) -> None:
    """Each kernel is within the rounding of its result and of its weights to bfloat16, half a unit each."""
    exact = sdpa(*(each.double() for each in _attending(torch.bfloat16)))
    out = _attended(name, torch.bfloat16)
    assert (out.shape, out.dtype) == ((1, 300, 256), torch.bfloat16)
    assert relative_error(out, exact) < BF16


@pytest.mark.skipif(capability() < (9, 0), reason="cuDNN's kernel comes first from compute capability 9.0")
def test_cudnn_comes_first() -> None:
    """From Hopper on `auto` is cuDNN's kernel, bit for bit, and another one in fp32, which cuDNN does not take."""
    assert torch.equal(_attended("auto", torch.bfloat16), _attended("cudnn", torch.bfloat16))
    exact = sdpa(*(each.double() for each in _attending(torch.float32)))
    assert relative_error(_attended("auto", torch.float32), exact) < 1e-5


# Compiled blocks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def compiling() -> Iterator[None]:
    """Compiles for this test anew."""
    lacking = lacking_compiler(CUDA)
    if lacking is not None:
        pytest.skip(f"no {lacking}")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize(
    "precision",
    ["fp32", pytest.param("bf16", marks=needs_bf16), pytest.param("fp8", marks=needs_bf16)],
)
def test_compiled_blocks(precision: str, compiling: None) -> None:
    """Three graphs, of both kinds of block and of the last, serve two numbers of tokens, streamed blocks and all.

    Results are as near to the uncompiled ones as those are to fp32's, twice at most; in fp32 within 1e-5.
    """
    models = [model_in(precision) for _ in range(3)]
    exact = model_in("fp32")
    for model in models:
        model.attend = attention("auto", CUDA)
    stream_of(models[2])
    for model in models[1:]:
        model.calls = compiled_calls()
    for frames, side in ((3, 8), (5, 12), (3, 8)):
        wide = stepper(exact, frames=frames, side=side)()
        eager, compiled, streamed = (stepper(model, frames=frames, side=side)() for model in models)
        bound = 1e-5 if precision == "fp32" else 2 * relative_error(eager, wide)
        assert relative_error(compiled, eager) < bound
        assert torch.equal(streamed, compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@needs_bf16
@pytest.mark.parametrize("precision", PRECISIONS)
def test_compiled_and_streamed(precision: str, compiling: None) -> None:
    """Several steps of compiled blocks are bit-equal whatever is streamed, and a bake in place acts on them."""
    models = model_in(precision), model_in(precision)
    stream = stream_of(models[1], (False, True, False, False))
    for model in models:
        model.calls, model.attend = compiled_calls(), attention("auto", CUDA)
    runs = [stepper(model) for model in models]
    before = [several(run) for run in runs]
    assert equal(*before)
    torch.cuda.synchronize(CUDA)
    for model in models:
        for block in model.own_blocks():
            streamed_tensors(block)["attn.to_q.bias"].add_(1)
    stream.refresh()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert equal(*[several(run) for run in runs])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


# The tiny pack: bakes, sampling, decode -------------------------------------------------------------------------------

ALL = (True,) * (TINY_CONFIG.num_layers + TINY_CONFIG.num_single_layers)
NONE = (False,) * len(ALL)
FP32 = ResolvedExecution(dtype=torch.float32, fp8=False, compiled=False, attention=AttentionBackend.AUTO)
EXECUTIONS = {
    "fp32": FP32,
    "bf16": replace(FP32, dtype=torch.bfloat16),
    "fp8": replace(FP32, dtype=torch.bfloat16, fp8=True),
}


@dataclass
class Held:
    """The transformers of a device, and what they told."""

    device: torch.device
    told: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        stage = lambda _: nullcontext()  # noqa: E731 - a stage that tells nothing
        self.transformers = Transformers(self.device, cache=None, stage=stage, tell=self.told.append)

    def weights(self, plan: RenderPlan, execution: ResolvedExecution, resident: Sequence[bool]) -> dict[str, Tensor]:
        """Copies on the CPU of all weights, with the plan's LoRAs in them."""
        whole = memory_of(plan, precision=execution.short_precision, image=9, text=20, budget=None)
        memory = replace(whole, resident=tuple(resident), slots=0 if all(resident) else SLOTS)
        loras = [lora_file(lora) for lora in plan.loras]
        model, _ = self.transformers.ready(plan.pack, execution, memory, loras, bake_recipe(plan))
        return {name: tensor.to(CPU, copy=True) for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RenderPlan]:
    """A job without LoRAs, and one with a LoRA on streamed weights and modulation."""
    folder, width = tmp_path_factory.mktemp("plans"), TINY_CONFIG.width
    tensors = (
        factors("lora_unet_single_transformer_blocks_1_proj_mlp", TINY_MLP, rank=3, seed=2)
        | factors("lora_unet_transformer_blocks_0_norm1_linear", (6 * width, width), seed=6)
        | factors("lora_unet_double_blocks_0_img_attn_qkv", TINY_QKV, rank=4, seed=5)
    )
    lora = write_lora(folder / "lora.safetensors", tensors)
    return {
        "none": tiny_plan(folder, "none", seed=11, precision="fp32"),
        "baked": tiny_plan(folder, "baked", [(lora, 1.0)], seed=11, precision="fp32"),
    }


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether two models have the same weights under the same names."""
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16, E4M3: torch.uint8}
    return left.keys() == right.keys() and all(
        torch.equal(tensor.view(bits[tensor.dtype]), right[name].view(bits[tensor.dtype]))
        for name, tensor in left.items()
    )


@pytest.mark.parametrize("precision", EXECUTIONS)
def test_bakes_on_the_device(plans: dict[str, RenderPlan], precision: str) -> None:
    """A bake that computes on the device writes the same bits into resident and into streamed weights.

    They are the CPU's within one rounding to the weights' dtype, which a hundredth of them at most shows: products
    are summed in another order in fp32. Without LoRAs again they are those that were
    loaded: outside fp8 the checkpoint's.
    """
    execution = EXECUTIONS[precision]
    resident, streamed, host = Held(CUDA), Held(CUDA), Held(CPU)
    pristine = host.weights(plans["none"], execution, ALL)
    loaded = resident.weights(plans["none"], execution, ALL)
    assert execution.fp8 or same_bits(loaded, pristine)
    baked = resident.weights(plans["baked"], execution, ALL)
    assert same_bits(streamed.weights(plans["baked"], execution, NONE), baked)
    expected = host.weights(plans["baked"], execution, ALL)
    assert not same_bits(expected, pristine)
    unit = {torch.float32: 2.0**-20, torch.bfloat16: BF16, E4M3: 2.0**-3}
    for name, tensor in expected.items():
        theirs, ours = baked[name].float(), tensor.float()
        # A code may be the next one; where numbers cancel, what counts is the size of those that did.
        smallest = 2.0**-9 if tensor.dtype == E4M3 else 2.0**-20 * float(ours.abs().max())
        # A scale is made of one rounded weight.
        part = BF16 if name.endswith("scale") else unit[tensor.dtype]
        torch.testing.assert_close(theirs, ours, rtol=part, atol=smallest, msg=name)
        if tensor.dtype != torch.float32:
            assert float((theirs != ours).float().mean()) < 0.01, name
    for each, split in ((resident, ALL), (streamed, NONE)):
        assert same_bits(each.weights(plans["none"], execution, split), loaded)


@pytest.fixture
def conditioning() -> Conditioning:
    """Made up: no encoder is needed."""
    return Conditioning(
        positive=TextConditioning(
            embeds=random(1, 20, TINY_CONFIG.text_embed_dim, seed=1),
            pooled=random(1, TINY_CONFIG.pooled_projection_dim, seed=2),
        ),
        negative=None,
        image_embeds=random(1, 9, TINY_CONFIG.image_proj_dim, seed=3),
        start_latent=random(1, 16, 1, 4, 4, seed=4),
    )


@pytest.mark.parametrize("name", ["none", "baked"])
def test_latents_are_the_cpus(
    plans: dict[str, RenderPlan], conditioning: Conditioning, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32 an engine on the device makes the CPU's latents up to rounding, and the same bits every time."""
    # By default convolutions round their inputs to TF32, which has ten bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected = Engine(device="cpu").sample(plans[name], conditioning).latents
    engine = Engine(device="cuda:0")
    latents = engine.sample(plans[name], conditioning).latents
    assert relative_error(latents, expected) < 1e-4
    assert torch.equal(engine.sample(plans[name], conditioning).latents, latents)
    assert torch.equal(Engine(device="cuda:0").sample(plans[name], conditioning).latents, latents)


@pytest.mark.parametrize(
    "precision",
    ["fp32", pytest.param("bf16", marks=needs_bf16), pytest.param("fp8", marks=needs_bf16)],
)
def test_a_budget_that_streams(conditioning: Conditioning, precision: str, tmp_path: Path) -> None:
    """A job whose budget leaves blocks in main memory has the latents of one without a budget, bit for bit."""
    roomy = tiny_plan(tmp_path, "roomy", precision=precision, seed=11)
    whole = memory_of(roomy, precision=precision, image=9, text=20, budget=10**12)
    budget = whole.total - whole.resident_bytes // 2
    tight = tiny_plan(tmp_path, "tight", precision=precision, seed=11, memory=f"{budget}B")
    engine = Engine(device="cuda:0")
    expected = engine.sample(roomy, conditioning)
    actual = engine.sample(tight, conditioning)
    assert torch.equal(actual.latents, expected.latents)
    assert torch.equal(engine.sample(roomy, conditioning).latents, expected.latents)
    assert expected.memory is not None
    assert "streamed" not in expected.memory
    assert actual.memory is not None
    assert "streamed" in actual.memory


def test_frames_are_the_cpus(plans: dict[str, RenderPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 the device decodes latents to the CPU's frames, but for a level where rounding tips it."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plan, latents = plans["none"], random(1, 16, plans["none"].job.sections.latent_frames, 4, 4, seed=9)
    precision = Precision(transformer=torch.float32, encoders=torch.float32)
    frames = [
        np.concatenate(list(Engine(device=device, precision=precision).frames(plan, latents)))
        for device in ("cpu", "cuda:0")
    ]
    assert frames[0].shape == frames[1].shape
    assert int(np.abs(frames[0].astype(np.int16) - frames[1].astype(np.int16)).max()) <= 1
