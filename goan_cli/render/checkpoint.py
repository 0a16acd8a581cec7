"""What a checkpoint says of itself: read from its header alone, without torch.

A checkpoint is one safetensors file, written whole or not at all: the tensors that sampling goes on from (see
`render.progress`), and this record as JSON in its metadata.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from goan_cli.errors import InvalidInput
from goan_cli.tensorfile import read_header

CHECKPOINT_VERSION = 1
METADATA_KEY = "goan"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """How far a job's sampling is, and of what.

    `identity` is that of the latents; `seed` the one in use and `asked_seed` the job's; `section_state` is what
    a section in its middle needs besides tensors; `timings` are seconds by stage so far; `machines` are where it
    was sampled; `bake` the bake report as plain data.
    """

    name: str
    identity: str
    seed: int
    asked_seed: int
    seed_drawn: bool
    sections: int
    total: int
    steps: int
    computed_steps: tuple[tuple[int, ...], ...]
    machines: tuple[str, ...]
    section_state: Mapping[str, Any] | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    bake: Mapping[str, Any] | None = None
    version: int = CHECKPOINT_VERSION

    @property
    def complete(self) -> bool:
        """Whether every section is sampled, so that only the decode is left."""
        return self.sections >= self.total

    @property
    def share(self) -> float:
        """How much of the sampling is done, 0 to 1."""
        steps = self.section_state["done"] if self.section_state else 0
        return (self.sections + steps / self.steps) / self.total

    def as_text(self) -> str:
        """The record as JSON."""
        return json.dumps(asdict(self), default=str)


_RECORD = TypeAdapter(CheckpointRecord)
_KEYS = {each.name for each in fields(CheckpointRecord)}


def checkpoint_files(folder: Path, name: str | None = None) -> list[Path]:
    """The checkpoints in a folder of states, all of them or those of one job, of whatever recipe."""
    found = (path for path in folder.glob("*.safetensors") if not path.name.startswith(".goan-"))
    return [path for path in found if name is None or job_name(path) == name]


def job_name(checkpoint: Path) -> str:
    """The job that a checkpoint's file name belongs to: NAME.IDENTITY.safetensors."""
    return checkpoint.name.rsplit(".", maxsplit=2)[0]


def read_record(path: Path) -> CheckpointRecord:
    """The record of a checkpoint file. Raises InvalidInput for a missing, damaged or newer file."""
    text = read_header(path).metadata.get(METADATA_KEY, "")
    try:
        content = json.loads(text or "null")
        if isinstance(content, dict) and content.get("version", 0) != CHECKPOINT_VERSION:
            raise InvalidInput(f"{path}: a checkpoint of version {content['version']}, which this goan cannot read")
        record = _RECORD.validate_json(text, strict=True)
        if content.keys() != _KEYS or min(record.total, record.steps) < 1 or not 0 <= record.share <= 1:
            raise InvalidInput(f"{path}: not a checkpoint")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path}: not a checkpoint") from error
    return record
