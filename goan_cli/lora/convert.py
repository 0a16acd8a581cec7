"""A plain LoRA in another layout: split names for diffusers, or HunyuanVideo's fused ones for ComfyUI; exact."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from goan_cli.errors import LoraRefused
from goan_cli.files import replaced_when_complete
from goan_cli.lora.adapter import Adapter, Shapes
from goan_cli.lora.aliases import source_table
from goan_cli.lora.change import low_rank, read_factors
from goan_cli.lora.foreign import METADATA_KEYS
from goan_cli.lora.keys import Role
from goan_cli.tensorfile import read_header

_Pair = tuple[Tensor, Tensor]


class Layout(StrEnum):
    """The layouts that `convert` writes."""

    COMFY = "comfy"
    DIFFUSERS = "diffusers"


def convert(adapter: Adapter, base: Shapes, to: Layout, out: Path) -> int:
    """Write the adapter's change in another layout, scales folded in; returns the number of modules written.

    Tensors are fp32 where a scale that is no power of two, or the fusing of several modules, needs it. Raises
    LoraRefused for anything but plain LoRA, and for modules without a counterpart.
    """
    pairs = _pairs_by_target(adapter)
    if not pairs:
        raise LoraRefused(f"{adapter.path}: changes nothing, so there is nothing to convert")
    written = (
        _fused(pairs, base) if to is Layout.COMFY else {f"transformer.{name}": pair for name, pair in pairs.items()}
    )
    tensors: dict[str, Tensor] = {}
    for name, (up, down) in written.items():
        # Cloned: targets of one fused module share its `down`, and a file stores every tensor by itself.
        tensors[f"{name}.lora_A.weight"] = down.clone().contiguous()
        tensors[f"{name}.lora_B.weight"] = up.clone().contiguous()
    with replaced_when_complete(out) as temporary:
        save_file(tensors, temporary, metadata=_metadata(adapter.path))
    return len(written)


def _metadata(source: Path) -> dict[str, str]:
    """What says which model a file is for, kept or (since its names say so) stated."""
    said = {key: value for key, value in read_header(source).metadata.items() if key in METADATA_KEYS}
    return {"format": "pt", "converted_by": "goan", "modelspec.architecture": "hunyuan-video/lora", **said}


def _pairs_by_target(adapter: Adapter) -> dict[str, _Pair]:
    """(up, down) of every target, scaled, in the narrowest dtype that holds them exactly."""
    pairs: dict[str, _Pair] = {}
    with safe_open(adapter.path, framework="pt") as file:
        for module in adapter.modules:
            factors = read_factors(module, file.get_tensor, adapter.peft_scale, torch.device("cpu"))
            pair = low_rank(module, factors)
            kind = f"{module.form.algorithm}{' with DoRA' if module.form.dora else ''}"
            if pair is None or factors.tensors.keys() & {Role.DIFF_BIAS, Role.UP_BIAS}:
                raise LoraRefused(f"{adapter.path}: {module.source} is {kind}, not plain LoRA")
            if any(tensor.dim() > 2 and tensor[0, 0].numel() > 1 for tensor in factors.tensors.values()):
                raise LoraRefused(f"{adapter.path}: {module.source} is a convolution, which neither layout names")
            dtype = file.get_tensor(module.keys[Role.DOWN]).dtype
            up, down = pair
            for part in module.admitted:
                rows = up[slice(*part.rows)]
                acting = rows.any(dim=0)  # of factors that were put side by side, this target's own
                if acting.any():
                    pairs[part.target] = (_narrowed(rows[:, acting], dtype), _narrowed(down[acting], dtype))
    return pairs


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.float(), tensor) else tensor


def _fused(pairs: Mapping[str, _Pair], base: Shapes) -> dict[str, _Pair]:
    """HunyuanVideo's modules: those of several targets get their factors side by side, ranks added."""
    left = dict(pairs)
    written: dict[str, _Pair] = {}
    modules = (name.removesuffix(".weight") for name in base if name.endswith(".weight"))
    for source, alias in source_table(modules).items():
        heights = [base[f"{target}.weight"][0] for target in alias.targets]
        starts = [sum(heights[:index]) for index in range(len(heights))]
        taken = [
            (start, left.pop(target)) for start, target in zip(starts, alias.targets, strict=True) if target in left
        ]
        if not taken:
            continue
        up, down = taken[0][1] if len(alias.targets) == 1 else _side_by_side(taken, sum(heights))
        if alias.swap_halves:
            up = torch.cat(tuple(reversed(up.chunk(2))))
        written[f"diffusion_model.{source}"] = (up, down)
    if left:
        raise LoraRefused(f"{len(left)} modules exist in FramePack only: {', '.join(sorted(left)[:6])}")
    return written


def _side_by_side(placed: Sequence[tuple[int, _Pair]], height: int) -> _Pair:
    """Factors of several row ranges as one pair: `up` block by block, `down` stacked; (first row, pair) each."""
    dtypes = {tensor.dtype for _, pair in placed for tensor in pair}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    rank = sum(up.shape[1] for _, (up, _) in placed)
    whole, column = torch.zeros((height, rank), dtype=dtype), 0
    for row, (up, _) in placed:
        whole[row : row + up.shape[0], column : column + up.shape[1]] = up
        column += up.shape[1]
    return whole, torch.cat([down.to(dtype) for _, (_, down) in placed])
