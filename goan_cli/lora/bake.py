"""The static bake: LoRA changes summed in fp32 on the pristine weights, rounded once, written in place.

Nothing is ever subtracted again: `restore` and every new bake start from the checkpoint's own bytes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from safetensors import safe_open
from torch import Tensor

from goan_cli.errors import LoraRefused
from goan_cli.lora.adapter import Adapter, AdapterModule
from goan_cli.lora.keys import Role
from goan_cli.lora.report import BakeRecipe, BakeReport, FileReport, LoraSource, ParameterReport

ReadTensor = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A matched file with its content's identity and weight."""

    adapter: Adapter
    source: LoraSource


@dataclass(frozen=True, kw_only=True)
class _Share:
    """One file's part in one target: the module that it comes from, and the target's rows in it."""

    file: LoraFile
    module: AdapterModule
    rows: tuple[int, int]
    read: ReadTensor


def recipe_of(loras: Sequence[LoraFile]) -> BakeRecipe:
    """The recipe that these files make."""
    return BakeRecipe(loras=tuple(lora.source for lora in loras))


def bake(
    parameters: Mapping[str, Tensor], pristine: ReadTensor, loras: Sequence[LoraFile], *, touched: set[str]
) -> BakeReport:
    """Write base + changes into `parameters`, in place, and report what changed.

    `pristine` reads a base weight as it is on disk. Names are added to `touched` before they are written, so
    that a bake which fails can be undone with `restore`. Raises LoraRefused for values that are not finite,
    and when nothing changes at all.
    """
    started = time.perf_counter()
    reports: list[ParameterReport] = []
    change_energy = weight_energy = moved = count = 0.0
    with _opened(loras) as shares, torch.no_grad():
        for name in sorted(shares):
            resident = parameters[name]
            base = pristine(name).to(resident.device, torch.float32)
            merged = base.clone()
            for share in shares[name]:
                merged += _change(share, resident.device).reshape(base.shape)
            touched.add(name)
            resident.copy_(merged)
            if not resident.isfinite().all():
                raise LoraRefused(f"the merged {name} is not finite in {str(resident.dtype).removeprefix('torch.')}")
            energy, base_energy = float((merged - base).norm()) ** 2, float(base.norm()) ** 2
            differing = int((resident != base.to(resident.dtype)).sum())
            change_energy, weight_energy = change_energy + energy, weight_energy + base_energy
            moved, count = moved + differing, count + resident.numel()
            reports.append(
                ParameterReport(name=name, relative_change=_ratio(energy, base_energy), moved=differing / base.numel())
            )
    if not moved:
        names = ", ".join(lora.source.path.name for lora in loras)
        raise LoraRefused(f"{names}: changes no weight at all", hint="every change is zero, or rounds to zero")
    return BakeReport(
        recipe=recipe_of(loras).identity,
        files=tuple(_file_report(lora) for lora in loras),
        parameters=tuple(reports),
        relative_change=_ratio(change_energy, weight_energy),
        moved=moved / count,
        dtype=str(next(iter(parameters.values())).dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )


def restore(parameters: Mapping[str, Tensor], pristine: ReadTensor, names: set[str]) -> None:
    """Write the checkpoint's own values back, bit for bit, in place."""
    with torch.no_grad():
        for name in sorted(names):
            parameters[name].copy_(pristine(name))


@contextmanager
def _opened(loras: Sequence[LoraFile]) -> Iterator[dict[str, list[_Share]]]:
    """Map the files and sort their modules by the parameter they change."""
    with ExitStack() as stack:
        shares: dict[str, list[_Share]] = {}
        # In the order of content, so that sums do not depend on the order in the job.
        for file in sorted(loras, key=lambda lora: (lora.source.sha256, lora.source.weight)):
            handle = stack.enter_context(safe_open(file.adapter.path, framework="pt"))
            for module in file.adapter.modules:
                for target, rows in zip(module.alias.targets, module.rows, strict=True):
                    share = _Share(file=file, module=module, rows=rows, read=handle.get_tensor)
                    shares.setdefault(f"{target}.weight", []).append(share)
        yield shares


def _change(share: _Share, device: torch.device) -> Tensor:
    """weight x scale x up @ down for the target's rows, `(rows, inputs)` in fp32."""
    up = _factor(share, Role.UP, device).flatten(1)
    down = _factor(share, Role.DOWN, device).flatten(1)
    if share.module.alias.swap_halves:
        first, second = up.chunk(2)
        up = torch.cat((second, first))
    factor = share.file.source.weight * _scale(share)
    return (up[slice(*share.rows)] * factor) @ down


def _factor(share: _Share, role: Role, device: torch.device) -> Tensor:
    key = share.module.keys[role]
    tensor = share.read(key).to(device, torch.float32)
    if not tensor.isfinite().all():
        raise LoraRefused(f"{share.file.adapter.path}: {key} holds NaN or infinite values")
    return tensor


def _scale(share: _Share) -> float:
    """By the file's alpha tensor, else its metadata, else 1 (alpha = rank)."""
    module, adapter = share.module, share.file.adapter
    if key := module.keys.get(Role.ALPHA):
        alpha = float(share.read(key).float())
        if not math.isfinite(alpha):
            raise LoraRefused(f"{adapter.path}: {key} is not finite")
        return alpha / module.rank
    if adapter.peft_scale is not None:
        return adapter.peft_scale.scale(module.alias.targets[0], module.rank)
    return 1.0


def _ratio(change_energy: float, weight_energy: float) -> float:
    return math.sqrt(change_energy / weight_energy) if weight_energy else math.inf


def _file_report(lora: LoraFile) -> FileReport:
    adapter, ranks = lora.adapter, [module.rank for module in lora.adapter.modules]
    return FileReport(
        path=lora.source.path,
        sha256=lora.source.sha256,
        weight=lora.source.weight,
        keys=adapter.keys,
        matched_keys=adapter.matched_keys,
        modules=len(adapter.targets),
        ranks=(min(ranks), max(ranks)),
        skipped=dict(adapter.skipped),
    )
