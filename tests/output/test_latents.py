"""Kept latents: bit for bit, with what it takes to decode them, and everything else refused by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from goan_cli.errors import InvalidInput
from goan_cli.jobs.formats import Codec, Coding, Format
from goan_cli.jobs.job import DecodeMode, Post
from goan_cli.jobs.sections import Family
from goan_cli.output.latents import LatentsRecord, read_latents, record_of, write_latents
from goan_cli.tensorfile import read_header
from tests.conftest import MINIMAL, plan_files, write_jobs

LATENTS = np.random.default_rng(0).normal(size=(1, 16, 4, 6, 8)).astype(np.float32)
RECORD = LatentsRecord(
    name="shot",
    model="tiny",
    vae="abc",
    family=Family.INVERTED,
    window=3,
    sections=1,
    size=(64, 48),
    fps=24.0,
    decode=DecodeMode.SINGLE,
    coding=Coding(format=Format.WEBM, codec=Codec.VP9, crf=30),
    post=Post(interpolate=60.0, upscale=Path("/models/x2.safetensors")),
    recipe='{"tool": "goan"}',
)


def test_latents(tmp_path: Path) -> None:
    """Latents are kept bit for bit, from any memory layout, under one name."""
    write_latents(tmp_path / "a.latents.safetensors", LATENTS.transpose(0, 1, 2, 4, 3))
    kept = load_file(tmp_path / "a.latents.safetensors")
    assert list(kept) == ["latents"]
    assert np.array_equal(kept["latents"], LATENTS.transpose(0, 1, 2, 4, 3))


@pytest.mark.parametrize("record", [RECORD, replace(RECORD, post=None, recipe=None, goes_on=True)])
def test_record_comes_back(tmp_path: Path, record: LatentsRecord) -> None:
    """What was kept with latents is read as it was."""
    write_latents(tmp_path / "shot.latents.safetensors", LATENTS, record)
    kept = read_latents(tmp_path / "shot.latents.safetensors")
    assert (kept.name, kept.record) == ("shot", record)
    assert np.array_equal(kept.latents, LATENTS)


def test_record_of_a_job(folder: Path) -> None:
    """A job's record says what its decode goes by."""
    job = {**MINIMAL, "sections": 2, "size": [64, 48], "fps": 25, "decode": "single", "output": {"crf": 20}}
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**job, "post": {"interpolate": 50}}))
    record = record_of(plan.job, "abc", None)
    assert (record.name, record.model, record.vae, record.family) == ("shot", "tiny", "abc", "inverted")
    assert (record.sections, record.window) == (2, plan.job.sections.window)
    assert (record.size, record.fps, record.decode) == ((64, 48), 25.0, "single")
    assert (record.coding, record.post) == (Coding(crf=20), Post(interpolate=50.0))


def test_old_file_without_anything(tmp_path: Path) -> None:
    """A file of an earlier goan alone has no record."""
    write_latents(tmp_path / "a.latents.safetensors", LATENTS)
    assert read_latents(tmp_path / "a.latents.safetensors").record is None


BROKEN: dict[str, Any] = {
    "channels": np.zeros((1, 4, 4, 6, 8), np.float32),
    "batch": np.zeros((2, 16, 4, 6, 8), np.float32),
    "dimensions": np.zeros((16, 4, 6, 8), np.float32),
    "dtype": np.zeros((1, 16, 4, 6, 8), np.float16),
    "empty": np.zeros((1, 16, 0, 6, 8), np.float32),
}


@pytest.mark.parametrize("case", BROKEN)
def test_other_shapes(tmp_path: Path, case: str) -> None:
    """Latents of other channels, shapes or types are refused with what was found."""
    path = tmp_path / "a.latents.safetensors"
    save_file({"latents": BROKEN[case]}, path)
    shape = "x".join(map(str, BROKEN[case].shape))
    with pytest.raises(InvalidInput, match=f"latents are 1x16xFRAMESxHEIGHTxWIDTH in F32, not {shape} in"):
        read_latents(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    """A single value that is no finite number refuses the file."""
    bad = LATENTS.copy()
    bad[0, 3, 1, 2, 2] = value
    write_latents(tmp_path / "a.latents.safetensors", bad, RECORD)
    with pytest.raises(InvalidInput, match="no finite numbers"):
        read_latents(tmp_path / "a.latents.safetensors")


@pytest.mark.parametrize("what", ["missing", "text", "pickle", "lora", "more"])
def test_other_files(tmp_path: Path, what: str) -> None:
    """What holds no kept latents is refused by name."""
    path = tmp_path / "a.safetensors"
    if what == "text":
        path.write_text("latents")
    if what == "pickle":
        torch.save({"latents": torch.zeros(1)}, path)
    if what == "lora":
        save_file({"lora_down": LATENTS}, path)
    if what == "more":
        save_file({"latents": LATENTS, "other": LATENTS}, path)
    with pytest.raises(InvalidInput, match=r"a\.safetensors: "):
        read_latents(path)


@pytest.mark.parametrize("change", [{"version": 2}, {"window": "nine"}, {"family": "other"}, None])
def test_metadata_that_cannot_be_read(tmp_path: Path, change: dict[str, Any] | None) -> None:
    """Damaged metadata, or a newer goan's, is one clear error and not a guess."""
    path = tmp_path / "a.latents.safetensors"
    write_latents(path, LATENTS, RECORD)
    text = read_header(path).metadata["goan"]
    changed = "{" if change is None else json.dumps({**json.loads(text), **change})
    save_file({"latents": LATENTS}, path, metadata={"goan": changed})
    with pytest.raises(InvalidInput, match="its metadata cannot be read"):
        read_latents(path)
