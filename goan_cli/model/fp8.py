"""Weights of the blocks' linears in fp8: e4m3 codes with one fp32 scale an output row.

A row is divided by its scale, its largest magnitude over 448, and rounded to four significant bits. The largest value
thus lands on e4m3's largest, 448, and everything from 1/28672 of it up is within a 17th part (2^-4 / (1 + 2^-4)) of
what it was, 2.6 % in the mean square for normally distributed values; smaller ones are within 2^-10 of a scale.
Nothing exceeds 448 by more than the division's rounding, so that no cast overflows, whether it saturates or not.

Exact: the codes are the nearest to the quotients, products of codes are exact, and a code times its scale is rounded
once. Approximate: the weights and, where the device multiplies in fp8, the activations; each rounded as above.
"""

import math
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.errors import InvalidInput

E4M3 = torch.float8_e4m3fn
_LARGEST = torch.finfo(E4M3).max
# Smaller scales are subnormal in fp32, which GPUs may flush to zero.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
# Values that are widened at once: on a CPU what stays in the cache, elsewhere 64 MiB.
_CACHED_VALUES, _DEVICE_VALUES = 1 << 16, 1 << 24
_STACKS = ("transformer_blocks", "single_transformer_blocks")
_MODULATION = ("norm1", "norm1_context", "norm")
# What the tensor cores' operands must be multiples of.
_TILE = 16


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes `(out, in)` in e4m3 and scales `(out, 1)` in fp32 of a weight of any wider dtype, row by row.

    A row of zeros has codes of zero. Raises InvalidInput for NaN and infinite values, which no code stands for.
    Extra memory is one block of rows in fp32.
    """
    codes, scale = _row_codes_in_blocks(weight)
    # The scale of a row is finite only when all its values are.
    if not bool(scale.isfinite().all()):
        raise InvalidInput("a weight has values that are not finite", hint="the checkpoint is spoilt: fetch it again")
    return codes, scale


def widened(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight `(out, in)` that codes and scales stand for, multiplied in fp32 and rounded to `dtype` once."""
    return weight.to(torch.float32).mul_(scale).to(dtype)


def scaled_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """The linear on fp8 tensor cores: `(..., in)` to `(..., out)` in x's dtype, by way of bfloat16.

    Every token is quantised as the weights' rows are, by its own largest value. Both widths must be multiples of 16.
    Sums are kept in the tensor core's fast accumulator, whose rounding is far below that of the operands. A token
    with a value that is not finite gives NaN.
    """
    tokens = x.reshape(-1, x.shape[-1])
    # A compiler makes no copy of all tokens in fp32; without one, a block of them at a time is widened.
    codes, token_scale = _row_codes(tokens) if torch.compiler.is_compiling() else _row_codes_in_blocks(tokens)
    # Row-wise scales have bfloat16 results and biases only, and want the second operand in columns: a view.
    out = torch._scaled_mm(  # noqa: SLF001 - torch 2.9 has no public name for it
        codes,
        weight.t(),
        scale_a=token_scale,
        scale_b=scale.t(),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return out.view(*x.shape[:-1], len(weight)).to(x.dtype)


def multiplies_in_fp8(device: torch.device) -> bool:
    """Whether torch has products with row-wise scales there: NVIDIA from compute capability 8.9 on."""
    # torch builds them for neither ROCm's e4m3fn nor Windows.
    if device.type != "cuda" or torch.version.cuda is None or sys.platform == "win32":
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


class Fp8Linear(nn.Module):
    """A linear whose weight is kept in fp8; names as of `nn.Linear`, and `scale`.

    Where the device multiplies in fp8, `scaled_linear` does; elsewhere fp8 is for storage only, and the weight is
    widened to x's dtype for every call, which takes the weight's size in fp32 and in that dtype meanwhile.
    Casting the module would cast its codes: move it between devices, never between dtypes.
    """

    weight: Tensor
    scale: Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty((outputs, inputs), dtype=E4M3, device=device))
        self.register_buffer("scale", torch.empty((outputs, 1), dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype, device=device)) if bias else None
        self._fits_tiles = inputs % _TILE == 0 and outputs % _TILE == 0

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)` in x's dtype, which is the bias's."""
        if self._fits_tiles and multiplies_in_fp8(x.device):
            return scaled_linear(x, self.weight, self.scale, self.bias)
        return F.linear(x, widened(self.weight, self.scale, x.dtype), self.bias)


def fp8_linear_names(model: nn.Module) -> list[str]:
    """Paths of the linears that fp8 is for: all in the blocks but their modulation."""
    return list(_linears(model))


def use_fp8(model: nn.Module) -> None:
    """Replace the linears of `fp8_linear_names`, each under its path, on its device and with its own bias.

    On the meta device the new ones have no values either; elsewhere the weights are quantised one by one.
    """
    for name, linear in _linears(model).items():
        weight = linear.weight.detach()
        made = Fp8Linear(linear.in_features, linear.out_features, bias=False, device=weight.device)
        if not weight.is_meta:
            made.weight, made.scale = quantised(weight)
        made.bias = linear.bias
        model.set_submodule(name, made.train(linear.training))


def _linears(model: nn.Module) -> dict[str, nn.Linear]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    paths = {name: name.split(".") for name in linears}
    return {name: linears[name] for name, path in paths.items() if path[0] in _STACKS and path[2] not in _MODULATION}


def _row_codes_in_blocks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """As `_row_codes`, with one block of rows in fp32 at a time."""
    codes = torch.empty(rows.shape, dtype=E4M3, device=rows.device)
    scale = torch.empty((len(rows), 1), dtype=torch.float32, device=rows.device)
    step = max(1, (_CACHED_VALUES if rows.device.type == "cpu" else _DEVICE_VALUES) // rows.shape[1])
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        codes[block], scale[block] = _row_codes(rows[block])
    return codes, scale


def _row_codes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of `(n, values)` and scales `(n, 1)` in fp32."""
    # The norm of infinite order: the largest magnitude, in one pass and without a copy of the magnitudes.
    largest = torch.linalg.vector_norm(rows, math.inf, dim=-1, keepdim=True)
    # By a tensor: a GPU would multiply by the reciprocal of a number, and differ from a CPU in the last place.
    scale = (largest.float() / largest.new_full((), _LARGEST, dtype=torch.float32)).clamp_min(_SMALLEST_SCALE)
    return (rows / scale).to(E4M3), scale
