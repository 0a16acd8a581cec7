"""Weights in fp8: how far the codes are from what they stand for, which linears have them, and writing in place."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from goan_cli.errors import InvalidInput
from goan_cli.model import fp8
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import (
    E4M3,
    Fp8Linear,
    fp8_linear_names,
    multiplies_in_fp8,
    quantised,
    scaled_linear,
    use_fp8,
    widened,
)
from goan_cli.model.transformer import CleanLatents, PackedTransformer, TextConditioning
from goan_cli.model.weights import empty_transformer
from tests.helpers import CPU, SMALL, random_transformer, relative_error

# e4m3 has three bits after the first: half a unit in the last place of 1 is 2^-4, and 1 + 2^-4 lies farthest from both
# neighbours for its size. Below 2^-6 the codes are 2^-9 apart.
HALF_UNIT = 2.0**-4 / (1 + 2.0**-4)
HALF_STEP = 2.0**-10
# Roundings of fp32 on the way.
FLOAT32 = 2.0**-21


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _bound(values: Tensor, scale: Tensor) -> Tensor:
    """How far a value may be from what its code stands for."""
    return torch.maximum(values.double().abs() * HALF_UNIT, scale.double() * HALF_STEP) * (1 + FLOAT32)


def _linear(inputs: int, outputs: int, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> Fp8Linear:
    linear = Fp8Linear(inputs, outputs, bias=bias, dtype=dtype)
    linear.weight, linear.scale = quantised(_random(outputs, inputs) / inputs**0.5)
    if linear.bias is not None:
        linear.bias.data.copy_(_random(outputs, seed=1))
    return linear.requires_grad_(requires_grad=False)


# Codes and scales -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    dtype=st.sampled_from((torch.float64, torch.float32, torch.bfloat16, torch.float16)),
    sizes=st.floats(-30, 30),
    spread=st.floats(0, 6),
    seed=st.integers(0, 2**16),
)
def test_every_value_is_near_its_code(
    rows: int, columns: int, dtype: torch.dtype, sizes: float, spread: float, seed: int
) -> None:
    """Values are within a 17th part of themselves, small ones within 2^-10 of the row's scale, for rows of any size."""
    size = 10.0 ** (sizes / 12 if dtype == torch.float16 else sizes)
    weight = (_random(rows, columns, seed=seed) * torch.exp(spread * _random(rows, columns, seed=seed + 1))).double()
    weight = (weight * size).clamp(-6e4 if dtype == torch.float16 else -1e38, 6e4 if dtype == torch.float16 else 1e38)
    weight = weight.to(dtype)
    codes, scale = quantised(weight)
    assert (codes.dtype, codes.shape) == (E4M3, weight.shape)
    assert (scale.dtype, scale.shape) == (torch.float32, (rows, 1))
    error = (widened(codes, scale, torch.float32).double() - weight.double()).abs()
    assert bool((error <= _bound(weight, scale)).all())


def test_the_error_of_normal_weights() -> None:
    """Normally distributed weights lose 2.6 % in the mean square: 2^-4 over the root of 3 at most, as rounding does."""
    weight = _random(512, 1024) * 0.02
    error = relative_error(widened(*quantised(weight), torch.float32), weight)
    assert 0.025 < error < 0.028 < 2.0**-4 / 3**0.5


def test_the_largest_value_of_a_row_is_the_largest_code() -> None:
    """Every row uses the whole range, and its largest magnitude is kept to fp32's rounding."""
    weight = _random(64, 100) * torch.logspace(-20, 20, 64).unsqueeze(1)
    codes, scale = quantised(weight)
    assert bool((codes.float().abs().amax(dim=1) == 448).all())
    kept = widened(codes, scale, torch.float32).abs().amax(dim=1)
    torch.testing.assert_close(kept, weight.abs().amax(dim=1), rtol=FLOAT32, atol=0)


def test_every_code_stands_for_itself() -> None:
    """What codes stand for is quantised to the same codes and scales again, all 253 of them."""
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(E4M3).float()
    weight = torch.stack([codes[codes.isfinite()] * 2.0**exponent for exponent in (-9, 0, 5)])
    again, scale = quantised(weight)
    assert torch.equal(scale, torch.tensor([[2.0**-9], [1.0], [2.0**5]]))
    assert torch.equal(widened(again, scale, torch.float32), weight)
    assert weight[0].unique().numel() == 253


def test_rows_of_zeros_and_rows_at_the_ends_of_float32() -> None:
    """Zero rows stay zero, the largest numbers stay finite, and numbers below fp32's normal range are not blown up."""
    largest, smallest = torch.finfo(torch.float32).max, torch.finfo(torch.float32).smallest_normal
    weight = torch.tensor(
        [[0.0, 0.0], [largest, -largest / 3], [smallest, -smallest / 7], [2.0**-149, 0.0], [1.0, 0.0]]
    )
    codes, scale = quantised(weight)
    back = widened(codes, scale, torch.float32)
    assert bool((codes[0].float() == 0).all())
    assert bool(scale.isfinite().all())
    assert bool((scale > 0).all())
    assert bool(((back.double() - weight.double()).abs() <= _bound(weight, scale)).all())
    assert torch.equal(back[4], weight[4])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("row", [0, 99])
def test_values_that_are_not_finite(value: float, row: int) -> None:
    """NaN and infinity are refused wherever they stand: no code would say that they had been there."""
    weight = _random(100, 3072)
    weight[row, 17] = value
    with pytest.raises(InvalidInput, match="not finite"):
        quantised(weight)


class _Widest(TorchDispatchMode):
    """Remembers how many values the largest tensor had that was made in fp32."""

    values = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float32:
            self.values = max(self.values, out.numel())
        return out


def test_blocks_of_rows() -> None:
    """A large weight is quantised block by block: as its rows alone, and without a copy of it in fp32."""
    weight = _random(200, 3072).bfloat16()
    with _Widest() as widest:  # type: ignore[no-untyped-call]  # torch declares no types for it
        codes, scale = quantised(weight)
    assert widest.values <= weight.numel() // 8
    for row in (0, 20, 21, 22, 199):
        alone, its_scale = quantised(weight[row : row + 1])
        assert torch.equal(alone.float(), codes[row : row + 1].float())
        assert torch.equal(its_scale, scale[row : row + 1])


# The linear -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_where_fp8_is_for_storage_only(dtype: torch.dtype, bias: bool) -> None:
    """On a CPU the linear is that of the widened weight, bit for bit, for any widths."""
    linear = _linear(21, 10, bias=bias, dtype=dtype)
    x = _random(1, 7, 21, seed=5).to(dtype)
    out = linear(x)
    assert (out.shape, out.dtype) == ((1, 7, 10), dtype)
    assert torch.equal(out, F.linear(x, widened(linear.weight, linear.scale, dtype), linear.bias))


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_of_codes(bias: bool) -> None:
    """The scaled product is that of the quantised tokens and weights, rounded to bfloat16."""
    linear, x = _linear(512, 96, bias=bias), _random(2, 33, 512, seed=5).bfloat16()
    out = scaled_linear(x, linear.weight, linear.scale, linear.bias)
    assert (out.shape, out.dtype) == ((2, 33, 96), torch.bfloat16)
    tokens = widened(*quantised(x.flatten(0, 1)), torch.float32).view(x.shape)
    offset = None if linear.bias is None else linear.bias.bfloat16().double()
    expected = F.linear(tokens.double(), widened(linear.weight, linear.scale, torch.float32).double(), offset)
    magnitude = F.linear(tokens.abs(), widened(linear.weight, linear.scale, torch.float32).abs())
    # A unit of bfloat16, and what fp32 sums of 512 terms may be off by.
    assert bool(((out.double() - expected).abs() <= expected.abs() * 2.0**-8 + magnitude * 2.0**-18).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scaled_product_is_near_the_linear(dtype: torch.dtype) -> None:
    """Both operands are within a 17th part, so each sum is within two of them of its terms' sizes; 3.7 % in all."""
    weight, x = _random(96, 512) / 512**0.5, _random(40, 512, seed=5).to(dtype)
    codes, scale = quantised(weight)
    out, expected = scaled_linear(x, codes, scale, None), x.double() @ weight.double().T
    assert out.dtype == dtype
    bounds = [values.double().abs() + _bound(values, quantised(values)[1]) for values in (x, weight)]
    worst = bounds[0] @ bounds[1].T - x.double().abs() @ weight.double().abs().T + expected.abs() * 2.0**-7
    assert bool(((out.double() - expected).abs() <= worst).all())
    # The mean-square errors of two independent roundings.
    assert 0.03 < relative_error(out, expected) < 0.0265 * 2**0.5 * 1.1


def test_every_token_has_its_own_scale() -> None:
    """A token that is a thousand times larger, or not finite, changes nothing in the others."""
    linear, x = _linear(64, 32, bias=False), _random(1, 5, 64, seed=5).bfloat16()
    out = scaled_linear(x, linear.weight, linear.scale, None)
    louder = x.clone()
    louder[:, 1] *= 1024
    louder[:, 2, 7] = math.inf
    louder[:, 3, 7] = math.nan
    after = scaled_linear(louder, linear.weight, linear.scale, None)
    assert torch.equal(after[:, [0, 4]], out[:, [0, 4]])
    assert torch.equal(after[:, 1], out[:, 1] * 1024)
    assert bool(after[:, 2:4].isnan().all())


@pytest.mark.parametrize(
    ("capability", "cuda", "platform", "expected"),
    [
        ((8, 9), "13.0", "linux", True),
        ((9, 0), "12.8", "linux", True),
        ((12, 0), "13.0", "linux", True),
        ((8, 6), "13.0", "linux", False),
        ((7, 5), "12.8", "linux", False),
        ((9, 4), None, "linux", False),  # ROCm counts otherwise
        ((8, 9), "13.0", "win32", False),
    ],
)
def test_which_gpus_multiply_in_fp8(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cuda: str | None, platform: str, expected: bool
) -> None:
    """NVIDIA GPUs do from compute capability 8.9 on, except where torch has no such product."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr("sys.platform", platform)
    assert multiplies_in_fp8(torch.device("cuda")) == expected
    assert not multiplies_in_fp8(CPU)


@pytest.mark.parametrize("scaled", [True, False])
def test_compiled_in_one_graph(monkeypatch: pytest.MonkeyPatch, scaled: bool) -> None:
    """Either way compiles without a break, with one graph for any number of tokens and the same result."""
    monkeypatch.setattr(fp8, "multiplies_in_fp8", torch.compiler.assume_constant_result(lambda _: scaled))
    linear, graphs = _linear(64, 32, dtype=torch.bfloat16), 0

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    torch.compiler.reset()
    compiled = torch.compile(linear, fullgraph=True, backend=count)
    for tokens in (5, 8, 13):
        x = _random(1, tokens, 64, seed=tokens).bfloat16()
        torch._dynamo.mark_dynamic(x, 1)
        assert torch.equal(compiled(x), linear(x))
    assert graphs == 1


# Models ---------------------------------------------------------------------------------------------------


def test_which_linears() -> None:
    """All linears of the blocks are in fp8 but those of the modulation, and nothing outside the blocks is."""
    model = random_transformer()
    names = fp8_linear_names(model)
    double = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0", "to_add_out")
    expected = {f"transformer_blocks.{block}.attn.{name}" for block in range(2) for name in double}
    expected |= {
        f"transformer_blocks.{block}.{name}"
        for block in range(2)
        for name in ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
    }
    expected |= {
        f"single_transformer_blocks.{block}.{name}"
        for block in range(2)
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
    }
    assert set(names) == expected
    assert len(names) == len(expected)


@pytest.mark.parametrize("meta", [False, True])
def test_linears_are_replaced_in_their_places(meta: bool) -> None:
    """Paths, shapes, biases, device and all other modules stay; each fp8 weight has its scale beside it."""
    model = empty_transformer(SMALL) if meta else random_transformer()
    before = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    biases = {name: model.get_submodule(name).bias for name in fp8_linear_names(model)}
    names = fp8_linear_names(model)
    use_fp8(model)
    after = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    assert all(tensor.is_meta == meta for tensor in model.state_dict().values())
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, Fp8Linear)
        assert linear.bias is biases[name]
        shape, _ = before.pop(f"{name}.weight")
        assert after.pop(f"{name}.weight") == (shape, E4M3)
        assert after.pop(f"{name}.scale") == ((shape[0], 1), torch.float32)
    assert after == before
    assert fp8_linear_names(model) == []


def test_weights_resident_while_sampling() -> None:
    """At full size what the blocks, embedders and final layer keep on the device is 9.18 GB."""
    model = empty_transformer(TransformerConfig())
    use_fp8(model)
    conditioning = {"time_text_embed", "context_embedder", "norm_out", "norm1", "norm1_context", "norm"}
    resident = 0
    for name, tensor in model.state_dict().items():
        if conditioning.isdisjoint(name.split(".")):
            # The meta model is in fp32; loaded, all but fp8, scales and the final projection is in bf16.
            kept = tensor.dtype == E4M3 or name.endswith("scale") or name.startswith("proj_out.")
            resident += tensor.numel() * (tensor.element_size() if kept else 2)
    assert sum(isinstance(module, Fp8Linear) for module in model.modules()) == 20 * 12 + 40 * 5
    assert 9.1e9 < resident < 9.2e9


def _velocity(model: PackedTransformer) -> Tensor:
    clean = [CleanLatents(latents=_random(1, 16, 1, 8, 8, seed=3), indices=torch.tensor([0]), pool=1)]
    context = model.context_for(
        latent_indices=torch.tensor([1, 2]),
        latent_size=(8, 8),
        clean=clean,
        image_embeds=_random(1, 5, SMALL.image_proj_dim, seed=4),
    )
    text = TextConditioning(
        embeds=_random(1, 6, SMALL.text_embed_dim, seed=6), pooled=_random(1, SMALL.pooled_projection_dim, seed=7)
    )
    timestep, guidance = torch.tensor([700.0]), torch.tensor([10_000.0])
    latents = _random(1, 16, 2, 8, 8, seed=8)
    velocity: Tensor = model.velocity_at(latents, timestep=timestep, guidance=guidance, text=text, context=context)
    return velocity


def _coarsened(model: PackedTransformer, seed: int) -> PackedTransformer:
    """The model with every weight that fp8 is for off by 2^-4 of itself, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    for name in fp8_linear_names(model):
        weight = model.get_parameter(f"{name}.weight")
        signs = torch.randint(0, 2, tuple(weight.shape), generator=generator) * 2 - 1
        weight.mul_(1 + signs * 2.0**-4)
    return model


@pytest.mark.parametrize("scaled", [False, True])
def test_a_forward_in_fp8(monkeypatch: pytest.MonkeyPatch, scaled: bool) -> None:
    """One forward differs from fp32's, and by less than the largest error that e4m3 can make in every weight.

    Weights that are off by 2^-4 each, the most that rounding may do, bound those that are rounded: by 2^-4 over the
    root of 3 in the mean square. Where tokens are rounded as well, the two errors are together below the same bound.
    """
    monkeypatch.setattr(fp8, "multiplies_in_fp8", lambda _: scaled)
    exact = _velocity(random_transformer())
    model = random_transformer()
    use_fp8(model)
    error = relative_error(_velocity(model), exact)
    bound = min(relative_error(_velocity(_coarsened(random_transformer(), seed)), exact) for seed in range(3))
    assert 2.0**-9 < error < bound
