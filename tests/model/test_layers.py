"""The blocks' layers against their plain formulas in float64: alone and in batches, compiled, and backwards."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.model.blocks import DoubleBlock, Kept, SingleBlock
from goan_cli.model.fp8 import Fp8Linear, use_fp8
from goan_cli.model.layers import (
    EPS,
    FeedForward,
    HeadNorm,
    JointAttention,
    Modulation,
    Qkv,
    SelfAttention,
    add_gated,
    linear_of_both,
    modulate,
    split_heads,
)
from goan_cli.model.rope import Rope, apply_rope, rope_table
from tests.helpers import SMALL, random_transformer, relative_error

TOKENS, WIDTH, HEADS, HEAD = 7, SMALL.width, SMALL.num_attention_heads, SMALL.attention_head_dim
# What a few roundings of float32 (2^-24 each) come to; in bfloat16 (2^-9 each) the same few.
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 2**-7}
DTYPES = tuple(CLOSE)
BATCHES = (1, 3)

Tensors = Sequence[Tensor]


def _random(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def _double(tensors: Tensors) -> list[Tensor]:
    return [tensor.detach().double() for tensor in tensors]


@pytest.fixture(autouse=True)
def no_graphs_of_others() -> Iterator[None]:
    """What is compiled here neither finds graphs of other tests nor leaves any."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# The formulas ---------------------------------------------------------------------------------------------


def _layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return _layer_norm(x) * (1 + scale[:, None]) + shift[:, None]


def _gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return x + update * gate[:, None]


def _head_normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def _both(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.cat((first, second), dim=-1) @ weight.T + bias


def _rotated(x: Tensor, table: Tensor) -> Tensor:
    cos, sin = table[:, None].unbind(-1)
    real, imaginary = x[..., 0::2], x[..., 1::2]
    pairs = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return pairs.flatten(-2)


def _head_norm(x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = torch.func.functional_call(HeadNorm(HEAD), {"weight": weight}, (x,))
    return out


def _linear_of_both(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    # Plain tensors instead of parameters, so that gradients reach what was given.
    del linear.weight, linear.bias
    linear.weight, linear.bias = weight, bias  # type: ignore[assignment]
    return linear_of_both(linear, first, second)


def _apply_rope(x: Tensor, table: Tensor) -> Tensor:
    return apply_rope(x, Rope(table=table))


Case = tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[[int], Tensors]]


def _angles() -> Tensor:
    """Cosines and sines of a real table: positions of frames, rows and columns."""
    return rope_table(SMALL, torch.tensor([3]), 1, TOKENS).table


CASES: dict[str, Case] = {
    "modulate": (
        modulate,
        _modulated,
        lambda batch: (
            _random(batch, TOKENS, WIDTH, seed=1, size=3) + 2,
            _random(batch, WIDTH, seed=2),
            _random(batch, WIDTH, seed=3),
        ),
    ),
    "add_gated": (
        add_gated,
        _gated,
        lambda batch: (
            _random(batch, TOKENS, WIDTH, seed=1),
            _random(batch, TOKENS, WIDTH, seed=2),
            _random(batch, WIDTH, seed=3),
        ),
    ),
    "HeadNorm": (
        _head_norm,
        _head_normed,
        lambda batch: (_random(batch, TOKENS, HEADS, HEAD, seed=1, size=4), _random(HEAD, seed=2)),
    ),
    "linear_of_both": (
        _linear_of_both,
        _both,
        lambda batch: (
            _random(batch, TOKENS, WIDTH, seed=1),
            _random(batch, TOKENS, 3 * WIDTH, seed=2),
            _random(WIDTH, 4 * WIDTH, seed=3, size=WIDTH**-0.5),
            _random(WIDTH, seed=4),
        ),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CASES)
def test_formula(name: str, batch: int, dtype: torch.dtype) -> None:
    """Each gives what its formula gives in float64, up to a few roundings, in its input's dtype."""
    layer, formula, inputs = CASES[name]
    given = [tensor.to(dtype) for tensor in inputs(batch)]
    out = layer(*given)
    assert out.dtype == dtype
    assert out.shape == given[0].shape
    assert relative_error(out, formula(*_double(given))) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layout", ["whole", "rows of a longer one", "heads of a wider one"])
def test_rope(batch: int, dtype: torch.dtype, layout: str) -> None:
    """Pairs are turned by their token's angle, also where the tensor is a view of another."""
    wide = _random(batch, TOKENS + 2, 2 * HEADS, HEAD, seed=1).to(dtype)
    x = {
        "whole": wide[:, :TOKENS, :HEADS].clone(),
        "rows of a longer one": wide[:, 1 : TOKENS + 1],
        "heads of a wider one": wide[:, 2:, HEADS:],
    }[layout]
    before = x.clone()
    out = apply_rope(x, Rope(table=_angles()))
    assert (out.dtype, out.shape) == (dtype, x.shape)
    assert relative_error(out, _rotated(x.double(), _angles().double())) < CLOSE[dtype]
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", [*CASES, "apply_rope"])
@pytest.mark.parametrize("batch", BATCHES)
def test_gradients(name: str, batch: int) -> None:
    """Training goes through them: every input's gradient is that of the formula in float64."""
    if name == "apply_rope":
        layer, formula = _apply_rope, _rotated
        values: Tensors = (_random(batch, TOKENS, HEADS, HEAD, seed=1), _angles())
        learnt = 1  # the table is no parameter
    else:
        layer, formula, inputs = CASES[name]
        values = inputs(batch)
        learnt = len(values)
    ours = [value.clone().requires_grad_(number < learnt) for number, value in enumerate(values)]
    exact = [value.double().requires_grad_(number < learnt) for number, value in enumerate(values)]
    out, expected = layer(*ours), formula(*exact)
    towards = _random(*out.shape, seed=9)
    gradients = torch.autograd.grad(out, ours[:learnt], towards)
    for gradient, correct in zip(
        gradients, torch.autograd.grad(expected, exact[:learnt], towards.double()), strict=True
    ):
        assert relative_error(gradient, correct) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [*CASES, "apply_rope"])
def test_compiled_branch(name: str, batch: int, dtype: torch.dtype) -> None:
    """What runs under a compiler, which takes another way in places, gives the same up to rounding."""
    if name == "apply_rope":
        layer: Callable[..., Tensor] = _apply_rope
        given: Tensors = (_random(batch, TOKENS, HEADS, HEAD, seed=1).to(dtype), _angles())
    else:
        layer, _, inputs = CASES[name]
        given = [tensor.to(dtype) for tensor in inputs(batch)]
    if name == "HeadNorm":
        norm = HeadNorm(HEAD).to(dtype).requires_grad_(requires_grad=False)
        norm.weight.copy_(given[1])
        layer, given = norm, given[:1]
    if name == "linear_of_both":
        linear = nn.Linear(4 * WIDTH, WIDTH, dtype=dtype).requires_grad_(requires_grad=False)
        layer, given = lambda first, second: linear_of_both(linear, first, second), given[:2]
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert relative_error(compiled(*given), layer(*given)) < CLOSE[dtype]


# What the formulas leave open ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modulation_of_one_and_of_many(dtype: torch.dtype) -> None:
    """A sample modulated alone is that sample of a batch, up to rounding: they go by two ways."""
    x, shift, scale = (tensor.to(dtype) for tensor in CASES["modulate"][2](3))
    batch = modulate(x, shift, scale)
    for number in range(3):
        one = slice(number, number + 1)
        assert relative_error(modulate(x[one], shift[one], scale[one]), batch[one]) < CLOSE[dtype]


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-3, 1e3, 1e15])
def test_head_norm_of_any_size(size: float) -> None:
    """Heads of zeros stay zeros, and tiny and huge ones, whose squares float32 still holds, are normed as exactly."""
    x, weight = _random(1, TOKENS, HEADS, HEAD, seed=1, size=size), _random(HEAD, seed=2)
    out, expected = _head_norm(x, weight), _head_normed(x.double(), weight.double())
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=1e-36)


def test_head_norm_has_gradients_at_zero() -> None:
    """A head of zeros, of which a norm has no derivative, has a finite gradient: the scale over root EPS."""
    x = torch.zeros((1, 1, 1, HEAD), requires_grad=True)
    weight = _random(HEAD, seed=2)
    _head_norm(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten(), weight / EPS**0.5)


def test_a_quantised_linear_of_both_sees_whole_rows() -> None:
    """A linear in fp8 is given both sides by side: its own rows decide its scale, not halves of them."""
    block = nn.ModuleDict({"single_transformer_blocks": nn.ModuleList([SingleBlock(SMALL)])})
    use_fp8(block)
    linear = block.get_submodule("single_transformer_blocks.0.proj_out")
    assert isinstance(linear, Fp8Linear)
    for batch in BATCHES:
        first = _random(batch, TOKENS, WIDTH, seed=1)
        second = _random(batch, TOKENS, SMALL.mlp_width, seed=2)
        both = linear_of_both(linear, first, second)
        assert torch.equal(both, linear(torch.cat((first, second), dim=-1)))


def test_modulation_is_parts_of_a_linear() -> None:
    """AdaLN's outputs come part by part, in the order in which the checkpoint's rows are."""
    layer, temb = Modulation(WIDTH, 6), _random(2, WIDTH)
    out = layer(temb)
    assert out.shape == (2, 6, WIDTH)
    rows = F.silu(temb) @ layer.linear.weight.T + layer.linear.bias
    for part in range(6):
        torch.testing.assert_close(out[:, part], rows[:, part * WIDTH : (part + 1) * WIDTH])


@pytest.mark.parametrize("silu", [False, True])
def test_feed_forward(silu: bool) -> None:
    """GELU's tanh form in the blocks and SiLU in the refiner, between two linears."""
    layer, x = FeedForward(WIDTH, 4 * WIDTH, silu=silu), _random(2, TOKENS, WIDTH)
    weights = {name: tensor.double() for name, tensor in layer.named_parameters()}
    inner = x.double() @ weights["net.0.proj.weight"].T + weights["net.0.proj.bias"]
    inner = inner * inner.sigmoid() if silu else F.gelu(inner, approximate="tanh")
    expected = inner @ weights["net.2.weight"].T + weights["net.2.bias"]
    assert relative_error(layer(x), expected) < 1e-6


def test_heads_are_stretches_of_the_width() -> None:
    """The first head has the first channels."""
    x = _random(2, TOKENS, WIDTH)
    heads = split_heads(x, HEADS)
    assert heads.shape == (2, TOKENS, HEADS, HEAD)
    assert torch.equal(heads[:, :, 1], x[..., HEAD : 2 * HEAD])


@pytest.mark.parametrize("make", [SelfAttention, JointAttention])
def test_projections(make: type[SelfAttention | JointAttention]) -> None:
    """Queries and keys are normed by head where there are norms, values never; text has weights of its own."""
    layer, x = make(WIDTH, HEADS), _random(2, TOKENS, WIDTH)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(_random(*parameter.shape, seed=parameter.numel() % 97))
        query, key, value = layer.project(x)
        plain = [split_heads(linear(x), HEADS) for linear in (layer.to_q, layer.to_k, layer.to_v)]
        if isinstance(layer, JointAttention):
            norms: list[nn.Module] = [layer.norm_q, layer.norm_k]
            plain[:2] = [norm(each) for norm, each in zip(norms, plain[:2], strict=True)]
            text = layer.project_text(x)
            linears = (layer.add_q_proj, layer.add_k_proj, layer.add_v_proj)
            split = [split_heads(linear(x), HEADS) for linear in linears]
            expected = [layer.norm_added_q(split[0]), layer.norm_added_k(split[1]), split[2]]
            assert all(map(torch.equal, text, expected))
    assert all(map(torch.equal, (query, key, value), plain))


# Whole blocks --------------------------------------------------------------------------------------------------


def test_a_batch_of_blocks_is_its_samples() -> None:
    """Both kinds of block give for a batch what they give for each sample, and gradients reach every weight."""
    model = random_transformer()
    double, single = model.transformer_blocks[0], model.single_transformer_blocks[0]
    assert isinstance(double, DoubleBlock)
    assert isinstance(single, SingleBlock)
    assert isinstance(single.attn, Qkv)
    image, text = _random(3, TOKENS, WIDTH, seed=1), _random(3, 4, WIDTH, seed=2)
    six, other_six, three = (_random(3, parts, WIDTH, seed=parts + 1) for parts in (6, 6, 3))
    rope = Rope(table=_angles())

    def run(these: slice) -> Tensor:
        pair = double(image[these], text[these], six[these], other_six[these], rope, model.attend)
        tokens = torch.cat(pair, dim=1)
        out: Tensor = single(tokens, three[these], rope.with_text(4), model.attend)
        return out

    batch = run(slice(None))
    for number in range(3):
        assert relative_error(run(slice(number, number + 1)), batch[number : number + 1]) < 1e-5

    for block in (double, single):
        block.requires_grad_()
    run(slice(None)).square().sum().backward()
    unreached = {
        name
        for block in (double, single)
        for name, parameter in block.named_parameters()
        if parameter.grad is None or not bool(parameter.grad.any())
    }
    assert {name.partition(".")[0] for name in unreached} == {"norm1", "norm1_context", "norm"}


@pytest.mark.parametrize("kept", [slice(0, 3), slice(2, 6), slice(TOKENS - 1, TOKENS), slice(0, TOKENS + 4)])
def test_rows_that_are_kept(kept: slice) -> None:
    """The last block computes only the rows that are looked at, and these are the rows of the whole."""
    model = random_transformer()
    single = model.single_transformer_blocks[0]
    tokens, three = _random(1, TOKENS + 4, WIDTH, seed=1), _random(1, 3, WIDTH, seed=2)
    rope = Rope(table=_angles()).with_text(4)
    whole = single(tokens, three, rope, model.attend)
    wanted = Kept(tokens=tokens[:, kept], rope=rope.rows(kept))
    rows = model.calls.single(single, tokens, three, rope, model.attend, wanted)
    assert rows.shape == whole[:, kept].shape
    assert relative_error(rows, whole[:, kept]) < 1e-5
