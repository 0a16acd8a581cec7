"""What a bake did, to be shown and kept: plain data, no torch."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SourceKey = tuple[str, str, float, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class LoraSource:
    """A LoRA file by content, the weight it is baked with, and the modules that it may change."""

    path: Path
    sha256: str
    weight: float
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    config_sha256: str | None = None  # of the adapter_config.json that states its scale

    @property
    def key(self) -> SourceKey:
        """What decides the change that this file makes; also the order in which changes are summed."""
        return (
            self.sha256,
            self.config_sha256 or "",
            self.weight,
            tuple(sorted(self.include)),
            tuple(sorted(self.exclude)),
        )


@dataclass(frozen=True, kw_only=True)
class BakeRecipe:
    """Which LoRAs are in which base's weights; equal recipes give equal weights, in any order of the files."""

    base: str = ""
    loras: tuple[LoraSource, ...] = ()

    @property
    def identity(self) -> str:
        """A hex digest of the base and of the files' contents, weights and patterns."""
        parts = [self.base, sorted(lora.key for lora in self.loras)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """What became of one file's keys. `skipped` maps a rule to a count."""

    path: Path
    sha256: str
    weight: float
    keys: int
    matched_keys: int
    modules: int
    algorithms: tuple[str, ...]
    ranks: tuple[int, int] | None
    skipped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """One changed parameter: norms of the weight and of its change, its size, and the share of values that moved."""

    name: str
    values: int
    weight_norm: float
    change_norm: float
    moved: float

    @property
    def relative_change(self) -> float:
        """Norm of the change over norm of the weight."""
        return _ratio(self.change_norm, self.weight_norm)


@dataclass(frozen=True, kw_only=True)
class BakeReport:
    """The whole bake: files, changed parameters, and how much of the change survived rounding.

    `relative_change` is over all changed parameters together; `moved` the share of their values that differ
    from the base after rounding to the weights' dtype.
    """

    recipe: str
    files: tuple[FileReport, ...]
    parameters: tuple[ParameterReport, ...]
    relative_change: float
    moved: float
    dtype: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """All changed parameters of one block (or of one embedder) together."""

    block: str
    parameters: int
    relative_change: float
    moved: float


def by_block(parameters: Sequence[ParameterReport]) -> list[BlockReport]:
    """Parameters gathered by block, in the order of the model: double blocks, single blocks, then the rest."""
    blocks: dict[str, list[ParameterReport]] = {}
    for parameter in parameters:
        blocks.setdefault(block_of(parameter.name), []).append(parameter)
    return [
        BlockReport(
            block=block,
            parameters=len(each),
            relative_change=_ratio(_norm(one.change_norm for one in each), _norm(one.weight_norm for one in each)),
            moved=sum(one.moved * one.values for one in each) / sum(one.values for one in each),
        )
        for block, each in sorted(blocks.items(), key=lambda item: _place(item[0]))
    ]


def block_of(name: str) -> str:
    """`transformer_blocks.3` of a parameter in a block, else the first part of its name."""
    found = re.match(r"(single_)?transformer_blocks\.\d+", name)
    return found[0] if found else name.split(".", maxsplit=1)[0]


def _ratio(change: float, weight: float) -> float:
    return change / weight if weight else math.inf


def _norm(norms: Iterable[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms))


def _place(block: str) -> tuple[int, int, str]:
    stack, _, number = block.partition(".")
    order = {"transformer_blocks": 0, "single_transformer_blocks": 1}
    return (order.get(stack, 2), int(number or 0), stack)
