"""The static bake: LoRA changes summed in fp32 on the pristine weights, rounded once, written in place.

Nothing is ever subtracted again: `restore` and every new bake start from the checkpoint's own bytes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from goan_cli.errors import LoraRefused
from goan_cli.lora.adapter import Adapter, AdapterModule, Part, changed_kinds
from goan_cli.lora.change import Factors, ReadTensor, bias_change, low_rank, read_factors, weight_change
from goan_cli.lora.report import BakeRecipe, BakeReport, FileReport, LoraSource, ParameterReport, SourceKey

# Is given each parameter's name and value once it is written, and puts the value where it is kept.
Store = Callable[[str, Tensor], None]

# On a CPU a block of this many values stays in the cache through all passes over it.
_CACHED_VALUES = 1 << 18


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """A matched file with its content's identity and weight."""

    adapter: Adapter
    source: LoraSource


@dataclass(frozen=True, kw_only=True)
class _Share:
    """One file's part in one parameter: the source module, and the parameter's rows in its change."""

    file: LoraFile
    module: AdapterModule
    part: Part
    read: ReadTensor

    @property
    def rows(self) -> slice:
        return slice(*self.part.rows)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What a parameter was before and after: squared norms of base and change, and how many values differ."""

    name: str
    values: int
    base: float
    change: float
    moved: int


def _in_place(name: str, value: Tensor) -> None:
    """What was written is where it is kept."""


def recipe_of(base: str, loras: Sequence[LoraFile]) -> BakeRecipe:
    """The recipe that these files make on a base of this identity."""
    return BakeRecipe(base=base, loras=tuple(lora.source for lora in loras))


def bake(
    parameters: Mapping[str, Tensor],
    pristine: ReadTensor,
    loras: Sequence[LoraFile],
    *,
    base: str = "",
    touched: set[str] | None = None,
    store: Store = _in_place,
) -> BakeReport:
    """Write base + changes into `parameters`, in place, and report what changed.

    `pristine` reads a base weight as it is on disk; `base` is that checkpoint's identity. Names are added to
    `touched` before they are written, so that a bake which fails can be undone with `restore`. Extra memory is
    one source module in fp32. Raises LoraRefused for values that are not finite, and when nothing changes at all.

    Weights that are kept in another form, such as fp8, are read from `parameters` as scratch tensors in a wide dtype,
    one at a time, and `store` brings each into its own form. The report is then of the wide values: its norms, its
    dtype and the share that moved say nothing of the rounding after that.
    """
    started = time.perf_counter()
    touched = set() if touched is None else touched
    written: list[_Written] = []
    acting: set[SourceKey] = set()
    with _opened(loras) as shares, torch.no_grad():
        for group in _together(shares):
            made = _Changes(pristine, acting)
            for name in group:
                touched.add(name)
                written.append(_write(name, parameters[name], pristine, shares[name], made, store))
    moved, values = sum(each.moved for each in written), sum(each.values for each in written)
    idle = [lora.source.path.name for lora in loras if lora.source.key not in acting]
    if idle or not moved:
        names = ", ".join(idle or (lora.source.path.name for lora in loras))
        raise LoraRefused(f"{names}: changes no weight at all", hint="every change is zero, or rounds to zero")
    return BakeReport(
        recipe=recipe_of(base, loras).identity,
        files=file_reports(loras),
        parameters=tuple(
            ParameterReport(
                name=each.name,
                values=each.values,
                weight_norm=math.sqrt(each.base),
                change_norm=math.sqrt(max(each.change, 0.0)),
                moved=each.moved / each.values,
            )
            for each in sorted(written, key=lambda each: each.name)
        ),
        relative_change=_ratio(sum(each.change for each in written), sum(each.base for each in written)),
        moved=moved / values,
        dtype=str(next(iter(parameters.values())).dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )


def restore(
    parameters: Mapping[str, Tensor], pristine: ReadTensor, names: set[str], *, store: Store = _in_place
) -> None:
    """Write the checkpoint's own values back, bit for bit, in place; `store` as in `bake`."""
    with torch.no_grad():
        for name in sorted(names):
            resident = parameters[name]
            resident.copy_(pristine(name))
            store(name, resident)
            del resident  # before the next one is made


@contextmanager
def _opened(loras: Sequence[LoraFile]) -> Iterator[dict[str, list[_Share]]]:
    """Map the files and sort their modules by the parameter they change."""
    with ExitStack() as stack:
        shares: dict[str, list[_Share]] = {}
        # In the order of content, so that sums do not depend on the order in the job.
        for file in sorted(loras, key=lambda lora: lora.source.key):
            handle = stack.enter_context(safe_open(file.adapter.path, framework="pt"))
            for module in file.adapter.modules:
                for part in module.admitted:
                    for kind in changed_kinds(module):
                        share = _Share(file=file, module=module, part=part, read=handle.get_tensor)
                        shares.setdefault(f"{part.target}.{kind}", []).append(share)
        yield shares


def _together(shares: Mapping[str, Sequence[_Share]]) -> list[list[str]]:
    """Parameters grouped so that every fused source module is computed once, and then let go."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for name, parts in shares.items():
        for share in parts:
            first = f"{share.module.parts[0].target}.weight"
            leader[find(name)] = find(first)
    groups: dict[str, list[str]] = {}
    for name in shares:
        groups.setdefault(find(name), []).append(name)
    return list(groups.values())


class _Changes:
    """The changes of a group's source modules, each computed once, at user weight 1.

    Files of which any change is not zero are noted in `acting`.
    """

    def __init__(self, pristine: ReadTensor, acting: set[SourceKey]) -> None:
        self._pristine = pristine
        self._acting = acting
        self._factors: dict[tuple[SourceKey, str], Factors] = {}
        self._weights: dict[tuple[SourceKey, str], Tensor] = {}

    def note(self, share: _Share, *changes: Tensor) -> None:
        """A share acts when none of these, multiplied, is all zero."""
        if all(bool(change.any()) for change in changes):
            self._acting.add(share.file.source.key)

    def factors(self, share: _Share, device: torch.device) -> Factors:
        key = (share.file.source.key, share.module.source)
        if key not in self._factors:
            try:
                found = read_factors(share.module, share.read, share.file.adapter.peft_scale, device)
            except LoraRefused as error:
                raise LoraRefused(f"{share.file.adapter.path}: {error.message}") from error
            self._factors[key] = found
        return self._factors[key]

    def weight(self, share: _Share, device: torch.device) -> Tensor:
        """The share's rows of its module's change, `(rows, in)`."""
        key = (share.file.source.key, share.module.source)
        if key not in self._weights:

            def base() -> Tensor:
                rows = [self._pristine(f"{part.target}.weight") for part in share.module.parts]
                return torch.cat([row.to(device, torch.float32).flatten(1) for row in rows])

            self._weights[key] = weight_change(share.module, self.factors(share, device), base)
            self.note(share, self._weights[key])
        return self._weights[key][share.rows]


def _write(
    name: str,
    resident: Tensor,
    pristine: ReadTensor,
    shares: Sequence[_Share],
    made: _Changes,
    store: Store,
) -> _Written:
    """Write one parameter: in one pass over cache-sized blocks where all its changes are low-rank."""
    base, device = pristine(name), resident.device
    if name.endswith(".bias"):
        written = _write_sum(name, resident, base, _bias_sum(shares, made, device))
    else:
        pairs = [(share, low_rank(share.module, made.factors(share, device))) for share in shares]
        factors = [(share, pair) for share, pair in pairs if pair is not None]
        for share, pair in factors:
            made.note(share, pair[0][share.rows], pair[1])
        if len(factors) == len(pairs):
            up = torch.cat([pair[0][share.rows] * share.file.source.weight for share, pair in factors], dim=1)
            down = torch.cat([pair[1] for _, pair in factors])
            written = _write_low_rank(name, resident, base, up, down)
        else:
            total = torch.zeros(base.shape, dtype=torch.float32, device=device)
            for share in shares:
                total += made.weight(share, device).reshape(base.shape) * share.file.source.weight
            written = _write_sum(name, resident, base, total)
    _refuse_overflow(written, resident)
    store(name, resident)
    return written


def _bias_sum(shares: Sequence[_Share], made: _Changes, device: torch.device) -> Tensor:
    total: Tensor | None = None
    for share in shares:
        change = bias_change(share.module, made.factors(share, device))
        if change is not None:
            weighted = change[share.rows] * share.file.source.weight
            made.note(share, weighted)
            total = weighted if total is None else total + weighted
    if total is None:
        raise LoraRefused("a bias without a change")
    return total


def _write_sum(name: str, resident: Tensor, base: Tensor, change: Tensor) -> _Written:
    weight = base.to(resident.device, torch.float32)
    merged = weight + change.reshape(weight.shape)
    resident.copy_(merged)
    return _Written(
        name=name,
        values=resident.numel(),
        base=float(weight.double().square().sum()),
        change=float((merged - weight).double().square().sum()),
        moved=_differing(resident, base.to(resident.device, resident.dtype)),
    )


def _write_low_rank(name: str, resident: Tensor, base: Tensor, up: Tensor, down: Tensor) -> _Written:
    """`base + up @ down`, block by block: each is widened, added to, rounded and compared while in the cache."""
    source, target = base.flatten(1), resident.flatten(1)
    step = max(1, _CACHED_VALUES // down.shape[1]) if resident.device.type == "cpu" else len(target)
    buffer = torch.empty((min(step, len(target)), down.shape[1]), dtype=torch.float32, device=resident.device)
    energy, moved = 0.0, 0
    for start in range(0, len(target), step):
        rows = slice(start, start + step)
        stored = source[rows].to(resident.device)
        block = buffer[: len(stored)].copy_(stored)
        flat = block.view(-1)
        energy += float(torch.dot(flat, flat))
        target[rows] = block.addmm_(up[rows], down)
        moved += _differing(target[rows], stored.to(target.dtype))
    # ||up @ down||^2 without making the product.
    up, down = up.double(), down.double()
    change = float(((up.T @ up) * (down @ down.T)).sum())
    return _Written(name=name, values=resident.numel(), base=energy, change=change, moved=moved)


_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _differing(after: Tensor, before: Tensor) -> int:
    """How many values differ in any bit, both of one floating dtype."""
    bits = _BITS[after.element_size()]
    after, before = after.contiguous().view(bits), before.contiguous().view(bits)
    if after.device.type == "cpu":
        # numpy counts four times as fast as torch, and this is done for every value of a model.
        return int(np.count_nonzero(after.numpy() != before.numpy()))
    return int(torch.count_nonzero(after != before))


def _refuse_overflow(written: _Written, resident: Tensor) -> None:
    """No value exceeds the norms' sum, so only where that nears the dtype's range must the values be looked at."""
    bound = math.sqrt(written.base) + math.sqrt(max(written.change, 0.0))
    if not bound < torch.finfo(resident.dtype).max / 2 and not bool(resident.isfinite().all()):
        dtype = str(resident.dtype).removeprefix("torch.")
        raise LoraRefused(f"the merged {written.name} is not finite in {dtype}")


def _ratio(change: float, base: float) -> float:
    return math.sqrt(max(change, 0.0) / base) if base else math.inf


def file_reports(loras: Sequence[LoraFile]) -> tuple[FileReport, ...]:
    """What becomes of each file's keys, by the header alone."""
    return tuple(_file_report(lora) for lora in loras)


def _file_report(lora: LoraFile) -> FileReport:
    adapter = lora.adapter
    ranks = [module.form.rank for module in adapter.modules if module.form.rank is not None]
    return FileReport(
        path=lora.source.path,
        sha256=lora.source.sha256,
        weight=lora.source.weight,
        keys=adapter.keys,
        matched_keys=adapter.matched_keys,
        modules=len(adapter.targets),
        algorithms=tuple(
            sorted({str(module.form.algorithm) + (" (DoRA)" if module.form.dora else "") for module in adapter.modules})
        ),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        skipped=dict(adapter.skipped),
    )
