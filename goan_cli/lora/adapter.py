"""A LoRA file understood from its header alone: what each key is, and what it will change. No torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from goan_cli.errors import LoraRefused
from goan_cli.lora.aliases import Alias, alias_table
from goan_cli.lora.keys import ParsedKey, Role, is_text_encoder, parse_key, refused_as
from goan_cli.lora.scale import PeftScale, read_peft_scale
from goan_cli.tensorfile import TensorEntry, TensorHeader, read_header

Shapes = Mapping[str, tuple[int, ...]]
TEXT_ENCODER_RULE = "text encoder tensors (goan trains none and renders with the pack's own)"
_SHOWN = 6
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True, kw_only=True)
class AdapterModule:
    """One source module of a file: its tensors by role, its rank, and where its change goes.

    `rows` gives each target's (start, stop) in the rows of the source's change.
    """

    source: str
    keys: Mapping[Role, str]
    rank: int
    alias: Alias
    rows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA file that fits a base model; every key is in a module or in `skipped` (rule -> count)."""

    path: Path
    modules: tuple[AdapterModule, ...]
    peft_scale: PeftScale | None
    keys: int
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def matched_keys(self) -> int:
        """Number of keys that act."""
        return sum(len(module.keys) for module in self.modules)

    @property
    def targets(self) -> frozenset[str]:
        """The modules of the base model that change."""
        return frozenset(target for module in self.modules for target in module.alias.targets)


def read_adapter(path: Path, base: Shapes) -> Adapter:
    """Match a LoRA file with a base model's parameter shapes (`name.weight` -> shape).

    Raises InvalidInput for a damaged file and LoraRefused, with the reason, for whatever cannot be applied
    exactly: unknown keys, unsupported kinds, half pairs, wrong shapes, two keys for one target.
    """
    header = read_header(path)
    try:
        return _matched(header, base)
    except LoraRefused as error:
        raise LoraRefused(f"{path}: {error.message}", hint=error.hint) from error


def _matched(header: TensorHeader, base: Shapes) -> Adapter:
    groups, skipped = _grouped(header)
    table = alias_table(name.removesuffix(".weight") for name in base if name.endswith(".weight"))
    unknown = [key for source, keys in groups.items() if source not in table for key in keys.values()]
    if unknown and len(unknown) == sum(len(keys) for keys in groups.values()):
        raise LoraRefused(f"none of its {len(unknown)} keys belongs to this model: {_some(unknown)}")
    if unknown:
        raise LoraRefused(f"{len(unknown)} keys name modules that this model does not have: {_some(unknown)}")
    if not groups:
        why = "; ".join(f"{count} {rule}" for rule, count in skipped.items()) or "it holds no tensors"
        raise LoraRefused(f"nothing in it acts on the transformer: {why}")

    modules = [_module(source, keys, table[source], header.entries, base) for source, keys in groups.items()]
    owners: dict[str, str] = {}
    for module in modules:
        for target in module.alias.targets:
            if target in owners:
                raise LoraRefused(f"{owners[target]} and {module.source} both change {target}")
            owners[target] = module.source
    return Adapter(
        path=header.path,
        modules=tuple(modules),
        peft_scale=read_peft_scale(header.metadata),
        keys=len(header.entries),
        skipped=skipped,
    )


def _grouped(header: TensorHeader) -> tuple[dict[str, dict[Role, str]], dict[str, int]]:
    """Keys by flattened source module and role, and the counts of what a rule skips."""
    groups: dict[str, dict[Role, str]] = {}
    skipped: Counter[str] = Counter()
    refused: dict[str, list[str]] = {}
    strange: list[str] = []
    for key, entry in header.entries.items():
        if is_text_encoder(key):
            skipped[TEXT_ENCODER_RULE] += 1
            continue
        if kind := refused_as(key):
            refused.setdefault(kind, []).append(key)
            continue
        parsed = parse_key(key)
        if parsed is None:
            strange.append(key)
        else:
            _add(groups, parsed, key, entry)
    if refused:
        kinds = "; ".join(f"{kind} ({len(keys)} keys, {keys[0]})" for kind, keys in refused.items())
        raise LoraRefused(f"of a kind that is not supported yet: {kinds}")
    if strange and len(strange) + sum(skipped.values()) == len(header.entries):
        if all(key.endswith((".weight", ".bias")) for key in strange):
            raise LoraRefused(f"a checkpoint of whole weights, not a LoRA: {_some(strange)}")
        raise LoraRefused(f"no LoRA keys in it: {_some(strange)}")
    if strange:
        raise LoraRefused(f"{len(strange)} keys are not understood: {_some(strange)}")
    return groups, dict(skipped)


def _add(groups: dict[str, dict[Role, str]], parsed: ParsedKey, key: str, entry: TensorEntry) -> None:
    if entry.dtype not in _FLOATS and parsed.role is not Role.ALPHA:
        raise LoraRefused(f"{key} is {entry.dtype}, not floating point")
    roles = groups.setdefault(parsed.module, {})
    if parsed.role in roles:
        raise LoraRefused(f"{roles[parsed.role]} and {key} mean the same tensor")
    roles[parsed.role] = key


def _module(
    source: str, keys: dict[Role, str], alias: Alias, entries: Mapping[str, TensorEntry], base: Shapes
) -> AdapterModule:
    down_key, up_key = keys.get(Role.DOWN), keys.get(Role.UP)
    if down_key is None or up_key is None:
        present = down_key or up_key or keys[Role.ALPHA]
        raise LoraRefused(f"half a pair: {present} stands without its counterpart")
    if Role.ALPHA in keys and entries[keys[Role.ALPHA]].count != 1:
        raise LoraRefused(f"{keys[Role.ALPHA]} holds {entries[keys[Role.ALPHA]].count} values instead of one")
    down, up = entries[down_key].shape, entries[up_key].shape
    if min(len(down), len(up)) < 2 or up[1] != down[0] or prod(up[2:]) != 1 or min(down) == 0 or min(up) == 0:
        raise LoraRefused(f"{down_key} {list(down)} and {up_key} {list(up)} do not multiply")
    shapes = [base[f"{target}.weight"] for target in alias.targets]
    rows, start = [], 0
    for shape in shapes:
        rows.append((start, start + shape[0]))
        start += shape[0]
    if up[0] != start or any(prod(down[1:]) != prod(shape[1:]) or not _same_kernel(down, shape) for shape in shapes):
        raise LoraRefused(
            f"{down_key} {list(down)} and {up_key} {list(up)} do not fit "
            f"{' + '.join(alias.targets)} {list(shapes[0]) if len(shapes) == 1 else [start, *shapes[0][1:]]}",
            hint="trained for a model of another width?",
        )
    return AdapterModule(source=source, keys=keys, rank=down[0], alias=alias, rows=tuple(rows))


def _same_kernel(down: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether a factor's input axes are the weight's, trailing ones apart (1x1 convolutions for linears)."""
    trimmed = down[1:]
    while len(trimmed) > len(weight) - 1 and trimmed[-1] == 1:
        trimmed = trimmed[:-1]
    return trimmed == weight[1:]


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return f"{shown}, and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown
