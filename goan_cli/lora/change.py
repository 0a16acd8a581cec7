"""The change that one source module makes, in fp32: every algorithm, from its factors.

Shapes: a weight is `(out, in)` or `(out, in, frames, rows, columns)`; a change is returned flat, `(out, rest)`.
Sources: LoRA (arXiv 2106.09685), rsLoRA (2312.03732), DoRA (2402.09353), LoHa (FedPara, 2108.06098), LoKr and
the Tucker forms (LyCORIS, 2309.14859).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from goan_cli.errors import LoraRefused
from goan_cli.lora.adapter import AdapterModule
from goan_cli.lora.algorithms import Algorithm
from goan_cli.lora.keys import Role
from goan_cli.lora.scale import PeftScale

ReadTensor = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A module's tensors in fp32 on one device, and its scale s = alpha / rank (by the file's own rules)."""

    tensors: Mapping[Role, Tensor]
    scale: float


def read_factors(module: AdapterModule, read: ReadTensor, peft: PeftScale | None, device: torch.device) -> Factors:
    """Read a module's tensors. Raises LoraRefused for NaN or infinite values."""
    tensors: dict[Role, Tensor] = {}
    for role, key in module.keys.items():
        tensor = read(key).to(device, torch.float32)
        if not tensor.isfinite().all():
            raise LoraRefused(f"{key} holds NaN or infinite values")
        tensors[role] = tensor
    return Factors(tensors=tensors, scale=_scale(module, tensors, peft))


def _scale(module: AdapterModule, tensors: Mapping[Role, Tensor], peft: PeftScale | None) -> float:
    """By the alpha tensor, else the metadata, else 1; two whole LoKr factors are never scaled."""
    rank = module.form.rank
    if rank is None:
        return 1.0
    if Role.ALPHA in tensors:
        scale = float(tensors[Role.ALPHA].flatten()[0]) / rank
        return scale * scale if module.squares_scale else scale
    return peft.scale((module.name, module.alias.targets[0]), rank) if peft is not None else 1.0


def low_rank(module: AdapterModule, factors: Factors) -> tuple[Tensor, Tensor] | None:
    """`up` `(out, r)` (scaled) and `down` `(r, in)` where the change is their plain product, else None."""
    if module.form.algorithm is not Algorithm.LORA or module.form.dora or Role.MID in factors.tensors:
        return None
    up, down = factors.tensors[Role.UP].flatten(1), factors.tensors[Role.DOWN].flatten(1)
    return _rows_in_place(module, up * factors.scale), down


def weight_change(module: AdapterModule, factors: Factors, base: Callable[[], Tensor]) -> Tensor:
    """The change of all targets' weights one below the other, `(out, in)`, at user weight 1.

    `base` reads the targets' pristine weights, concatenated the same way; only DoRA calls it.
    """
    change = _rows_in_place(module, _BY_ALGORITHM[module.form.algorithm](factors.tensors) * factors.scale)
    if not module.form.dora:
        return change
    weight = base()
    adapted = weight + change
    return adapted * (_dora_ratio(module, factors.tensors, adapted, len(weight))) - weight


def bias_change(module: AdapterModule, factors: Factors) -> Tensor | None:
    """The change of all targets' biases, `(out,)`, at user weight 1, or None where the file has none."""
    tensors = factors.tensors
    parts = []
    if Role.DIFF_BIAS in tensors:
        parts.append(tensors[Role.DIFF_BIAS].flatten())
    if Role.UP_BIAS in tensors:
        parts.append(tensors[Role.UP_BIAS].flatten() * factors.scale)
    return _rows_in_place(module, sum(parts[1:], parts[0])) if parts else None


def _rows_in_place(module: AdapterModule, rows: Tensor) -> Tensor:
    """Exchange the halves of the rows where the source has [shift, scale] and the target [scale, shift]."""
    if not module.alias.swap_halves:
        return rows
    first, second = rows.chunk(2)
    return torch.cat((second, first))


def _lora(tensors: Mapping[Role, Tensor]) -> Tensor:
    up, down = tensors[Role.UP].flatten(1), tensors[Role.DOWN]
    if Role.MID not in tensors:
        return up @ down.flatten(1)
    whole = torch.einsum("m n ..., i m, n j -> i j ...", tensors[Role.MID], up, down.flatten(1))
    return whole.flatten(1)


def _loha(tensors: Mapping[Role, Tensor]) -> Tensor:
    first = _product(tensors, Role.HADA_W1_A, Role.HADA_W1_B, Role.HADA_T1)
    second = _product(tensors, Role.HADA_W2_A, Role.HADA_W2_B, Role.HADA_T2)
    return (first * second).flatten(1)


def _product(tensors: Mapping[Role, Tensor], a: Role, b: Role, core: Role) -> Tensor:
    """`a @ b`, or the Tucker form around `core`."""
    if core in tensors:
        return torch.einsum("i j ..., j r, i p -> p r ...", tensors[core], tensors[b], tensors[a])
    return tensors[a] @ tensors[b]


def _lokr(tensors: Mapping[Role, Tensor]) -> Tensor:
    left = tensors.get(Role.LOKR_W1)
    if left is None:
        left = tensors[Role.LOKR_W1_A] @ tensors[Role.LOKR_W1_B]
    right = tensors.get(Role.LOKR_W2)
    if right is None:
        right = _product(tensors, Role.LOKR_W2_A, Role.LOKR_W2_B, Role.LOKR_T2)
    left = left.reshape(*left.shape, *(1,) * (right.dim() - left.dim()))
    return torch.kron(left, right.contiguous()).flatten(1)


def _full(tensors: Mapping[Role, Tensor]) -> Tensor:
    diff = tensors[Role.DIFF]
    # A norm's weight has one axis; its change is a column.
    return diff.flatten(1) if diff.dim() > 1 else diff.reshape(-1, 1)


_BY_ALGORITHM: Mapping[Algorithm, Callable[[Mapping[Role, Tensor]], Tensor]] = {
    Algorithm.LORA: _lora,
    Algorithm.LOHA: _loha,
    Algorithm.LOKR: _lokr,
    Algorithm.FULL: _full,
}


def _dora_ratio(module: AdapterModule, tensors: Mapping[Role, Tensor], adapted: Tensor, rows: int) -> Tensor:
    """magnitude / norm of the adapted weight, per output row or, in older files, per input column."""
    magnitude = tensors.get(Role.MAGNITUDE, tensors.get(Role.DORA_SCALE))
    if magnitude is None:
        raise LoraRefused(f"{module.source}: DoRA without its magnitudes")
    if magnitude.numel() == rows and (Role.MAGNITUDE in tensors or magnitude.shape[0] == rows):
        magnitude = _rows_in_place(module, magnitude.reshape(rows, 1))
        norm: Tensor = torch.linalg.vector_norm(adapted, dim=1, keepdim=True)
    else:
        # One magnitude an input channel: a convolution's kernel shares its channel's.
        channels = magnitude.numel()
        if adapted.shape[1] % channels or magnitude.shape[0] != 1:
            raise LoraRefused(f"{module.source}: {channels} DoRA magnitudes fit neither rows nor columns")
        per_channel = adapted.reshape(rows, channels, -1)
        kernel = adapted.shape[1] // channels
        norm = per_channel.square().sum(dim=(0, 2)).sqrt().repeat_interleave(kernel).unsqueeze(0)
        magnitude = magnitude.flatten().repeat_interleave(kernel).unsqueeze(0)
    if not bool((norm > 0).all()) or not math.isfinite(float(magnitude.abs().max())):
        raise LoraRefused(f"{module.source}: a DoRA norm is zero")
    return magnitude / norm
