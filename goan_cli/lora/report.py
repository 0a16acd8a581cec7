"""What a bake did, to be shown and kept: plain data, no torch."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class LoraSource:
    """A LoRA file by content, and the weight it is baked with."""

    path: Path
    sha256: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class BakeRecipe:
    """Which LoRAs are in the weights, and how strongly; equal recipes give equal weights in any order."""

    loras: tuple[LoraSource, ...] = ()

    @property
    def identity(self) -> str:
        """A hex digest of the files' contents and weights; the empty recipe's is that of the base model."""
        parts = sorted((lora.sha256, lora.weight) for lora in self.loras)
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
    ranks: tuple[int, int]
    skipped: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ParameterReport:
    """One changed parameter: norm of the change over norm of the weight, and the share of values that moved."""

    name: str
    relative_change: float
    moved: float


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
