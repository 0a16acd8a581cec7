"""Which safetensors files make up one part of a model, and what tensors they hold. No torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goan_cli.errors import InvalidInput, OtherFormat
from goan_cli.tensorfile import OTHER_SUFFIXES, TensorEntry, TensorHeader, read_header

INDEX = "*.safetensors.index.json"
_SHARD = re.compile(r"-\d{5}-of-(?P<count>(?!00001)\d{5})\.safetensors$")
FLOATS = {"F64", "F32", "F16", "BF16"}
NEEDED_FLOATS = "a render needs bf16, fp16 or fp32 weights"
LOST_LORA = "fp8 and quantised re-packs lose a LoRA: of a 1% change they keep 0 to 31%"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The tensors of one part, by name, and the file that each lies in."""

    files: tuple[Path, ...]
    entries: Mapping[str, TensorEntry]
    file_of: Mapping[str, Path]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape."""
        return {name: entry.shape for name, entry in self.entries.items()}


def checkpoint_files(part: Path) -> tuple[Path, ...]:
    """The weight files of a part: itself, the shards of its index, or the one file in its folder.

    Raises InvalidInput when there are none, or when shards are missing.
    """
    if part.is_file():
        return (part,)
    if not part.is_dir():
        raise InvalidInput(f"{part}: no such file or folder")
    indexes = sorted(part.glob(INDEX))
    if len(indexes) > 1:
        raise InvalidInput(f"{part}: several indexes: {', '.join(index.name for index in indexes)}")
    if indexes:
        return _shards(indexes[0])
    files = sorted(part.glob("*.safetensors"))
    if len(files) == 1 and (shard := _SHARD.search(files[0].name)) is not None:
        raise InvalidInput(f"{files[0]}: is one of {int(shard['count'])} shards, and their index is missing")
    if len(files) == 1:
        return (files[0],)
    if files:
        names = ", ".join(file.name for file in files)
        raise InvalidInput(f"{part}: several weight files and no index to say how they belong together: {names}")
    if others := sorted(file for file in part.glob("*") if file.suffix.lower() in OTHER_SUFFIXES):
        names = ", ".join(file.name for file in others)
        raise OtherFormat(
            f"{part}: holds no safetensors weights, only {names}: {OTHER_SUFFIXES[others[0].suffix.lower()]}"
        )
    raise InvalidInput(f"{part}: holds no safetensors weights")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InvalidInput when there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{file}: not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{file}: not a JSON object")
    return value


def weight_map_of(index: Path) -> dict[str, str]:
    """The name of the shard that an index says each tensor is in. Raises InvalidInput for a file that is no index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise InvalidInput(f"{index}: not a usable index of shards")
    return weight_map


def _shards(index: Path) -> tuple[Path, ...]:
    names = sorted(set(weight_map_of(index).values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise InvalidInput(f"{index.parent}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}")
    return tuple(index.parent / name for name in names)


def read_checkpoint(part: Path) -> Checkpoint:
    """Read the headers of all files of a part. Raises InvalidInput for a damaged file or a tensor given twice."""
    entries: dict[str, TensorEntry] = {}
    file_of: dict[str, Path] = {}
    files = checkpoint_files(part)
    headers: list[TensorHeader] = [read_header(file) for file in files]
    for header in headers:
        for name, entry in header.entries.items():
            if name in entries:
                raise InvalidInput(f"{header.path}: {name} stands in {file_of[name].name} too")
            entries[name] = entry
            file_of[name] = header.path
    if not entries:
        raise InvalidInput(f"{part}: holds no tensors")
    for index in sorted(part.glob(INDEX)) if part.is_dir() else ():
        if promised := [name for name in weight_map_of(index) if name not in entries]:
            raise InvalidInput(f"{index}: promises {len(promised)} tensors that no shard holds: {promised[0]}")
    return Checkpoint(files=files, entries=entries, file_of=file_of)


def refuse_quantised(checkpoint: Checkpoint) -> None:
    """Raise InvalidInput for a checkpoint with tensors that are no plain floats, such as an fp8 re-pack."""
    for name, entry in checkpoint.entries.items():
        if entry.dtype not in FLOATS:
            raise InvalidInput(f"{checkpoint.file_of[name]}: {name} is {entry.dtype}; {NEEDED_FLOATS}", hint=LOST_LORA)
