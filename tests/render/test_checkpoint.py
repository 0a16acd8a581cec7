"""What checkpoints say of themselves, read from their headers, and files that say nothing."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from goan_cli.errors import InvalidInput
from goan_cli.render.checkpoint import CHECKPOINT_VERSION, METADATA_KEY, CheckpointRecord, read_record

RECORD = CheckpointRecord(
    name="größe v1.2",
    identity="ab" * 32,
    seed=8,
    asked_seed=7,
    seed_drawn=True,
    sections=2,
    total=4,
    steps=5,
    computed_steps=((0, 2, 4), (0, 4)),
    machines=("cpu, float32, torch 2", "a card, bfloat16, torch 2"),
    section_state={"done": 3, "caches": [{"computed": [0, 1], "step": 3, "accumulated": 0.1}]},
    timings={"load": 0.1, "sample": 2.5},
    bake={"recipe": "cd", "files": [{"path": "/a.safetensors", "ranks": [2, 3]}]},
)


def _write(path: Path, text: str | None) -> Path:
    """A safetensors file with this text where a checkpoint has its record."""
    metadata = None if text is None else {METADATA_KEY: text}
    save_file({"history": np.zeros((1, 2), dtype=np.float32)}, path, metadata=metadata)
    return path


def _changed(**changes: Any) -> str:
    return json.dumps({**asdict(RECORD), **changes})


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, section_state=None, bake=None, timings={}, computed_steps=((), ())),
        replace(RECORD, sections=0, computed_steps=(), asked_seed=2**63 - 1, seed=0, seed_drawn=False),
    ],
    ids=["whole", "between sections", "at the start"],
)
def test_record_comes_back(tmp_path: Path, record: CheckpointRecord) -> None:
    """A record that was written is read as it was."""
    assert read_record(_write(tmp_path / "a.safetensors", record.as_text())) == record


def test_bake_of_paths_and_infinities(tmp_path: Path) -> None:
    """A bake report with paths, and with a change to zeros that has no finite ratio, can be kept."""
    record = replace(RECORD, bake={"path": Path("/a/b.safetensors"), "relative_change": math.inf})
    found = read_record(_write(tmp_path / "a.safetensors", record.as_text()))
    assert found.bake == {"path": "/a/b.safetensors", "relative_change": math.inf}


@pytest.mark.parametrize(
    ("sections", "done", "share", "complete"),
    [(0, None, 0.0, False), (0, 1, 0.05, False), (2, None, 0.5, False), (3, 4, 0.95, False), (4, None, 1.0, True)],
)
def test_share(sections: int, done: int | None, share: float, complete: bool) -> None:
    """The share counts finished sections, and the steps of the one that was begun."""
    state = None if done is None else {"done": done, "caches": []}
    record = replace(RECORD, sections=sections, section_state=state)
    assert record.share == pytest.approx(share)
    assert record.complete is complete


def _truncated(path: Path) -> None:
    content = _write(path, RECORD.as_text()).read_bytes()
    path.write_bytes(content[:40])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(lambda _: None, "no such file", id="missing"),
        pytest.param(lambda path: path.mkdir(), "is a folder", id="a folder"),
        pytest.param(lambda path: path.write_bytes(b""), "the file is empty", id="empty"),
        pytest.param(_truncated, "truncated", id="cut off"),
        pytest.param(lambda path: path.write_bytes(b"\0" * 64), "not a usable safetensors", id="zeros"),
        pytest.param(lambda path: _write(path, None), "not a checkpoint", id="another safetensors file"),
        pytest.param(lambda path: _write(path, ""), "not a checkpoint", id="no text"),
        pytest.param(lambda path: _write(path, "{"), "not a checkpoint", id="no JSON"),
        pytest.param(lambda path: _write(path, "[1]"), "not a checkpoint", id="a list"),
        pytest.param(lambda path: _write(path, "{}"), "not a checkpoint", id="an empty object"),
        pytest.param(lambda path: _write(path, _changed(sections_=1)), "not a checkpoint", id="unknown key"),
        pytest.param(lambda path: _write(path, _changed(computed_steps=3)), "not a checkpoint", id="no lists"),
        pytest.param(lambda path: _write(path, _changed(machines=None)), "not a checkpoint", id="no machines"),
        pytest.param(
            lambda path: _write(path, _changed(version=CHECKPOINT_VERSION + 1)),
            f"version {CHECKPOINT_VERSION + 1}, which this goan cannot read",
            id="newer",
        ),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    """A missing, damaged, foreign or newer file is refused by its path, with what is wrong with it."""
    path = tmp_path / "a.safetensors"
    damage(path)
    with pytest.raises(InvalidInput, match=said) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
