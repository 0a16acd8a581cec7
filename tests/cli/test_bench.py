"""`goan bench`: what it prints, what it refuses, and the calibration that it writes."""

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from goan_cli.bench.measure import BenchResult
from goan_cli.cli import bench as command
from goan_cli.jobs.resolve import DEFAULT_THRESHOLDS
from goan_cli.packs.find import find_pack
from goan_cli.packs.magnitudes import magnitudes_file, ratios_for, steps_to_compute
from tests.cli.conftest import Goan, content_of
from tests.helpers import TINY_CONFIG, random_transformer, write_tiny_manifest, write_transformer

KEYS = {
    "version",
    "goan",
    "torch",
    "date",
    "machine",
    "device",
    "model",
    "parameters",
    "size",
    "window",
    "tokens",
    "precision",
    "compiled",
    "attention",
    "memory",
    "steps",
    "seconds_per_step",
    "fastest_step",
    "slowest_step",
    "first_step_seconds",
    "tables_steps",
    "tables_seconds",
    "context_seconds",
    "tflop_per_step",
    "tflops",
    "matmul_dtype",
    "matmul_tflops",
    "matmul_share",
    "peak_bytes",
    "resident_weight_bytes",
    "streamed_weight_bytes",
    "load_seconds",
    "load_gb_per_second",
    "bake_million_parameters_per_second",
    "fp8_error",
}
# What a CPU has not: nothing is streamed, and there is no fp8 unless asked for.
NOTHING = {"streamed_weight_bytes": 0, "fp8_error": None}
CALIBRATION = ("bench", "--calibrate", "--device", "cpu", "--image", "start.png", "--prompt", "a ball")


def measured(goan: Goan, *arguments: str) -> dict[str, Any]:
    """The JSON object of a run that must succeed."""
    run = goan("bench", "--json", "--steps", "2", "--device", "cpu", *arguments)
    assert (run.code, run.err) == (0, "")
    assert run.out.count("\n") == 1
    found: dict[str, Any] = json.loads(run.out)
    return found


def assert_figures(found: dict[str, Any], absent: dict[str, int | None]) -> None:
    """Every number is finite and more than nothing, but those that are absent."""
    assert {key: found[key] for key in absent} == absent
    for key, value in found.items():
        if key not in absent and isinstance(value, int | float):
            assert value is False or (math.isfinite(value) and value > 0), key


# Figures --------------------------------------------------------------------------------------------------


def test_json(goan: Goan) -> None:
    """One object with the documented keys, every figure finite; the tiny pack is what is measured by default."""
    found = measured(goan)
    assert set(found) == KEYS
    assert_figures(found, NOTHING)
    assert found["version"] == 1
    assert (found["model"], found["device"], found["size"], found["steps"]) == ("tiny", "cpu", [64, 64], 2)
    assert set(found["tokens"]) == {"noisy", "clean", "image", "text"}


def test_every_key_is_explained() -> None:
    """Keys that do not explain themselves are in the result's docstring."""
    plain = {"version", "goan", "torch", "date", "machine", "device", "model", "parameters", "size", "window", "tokens"}
    plain |= {"precision", "compiled", "attention", "memory", "tflop_per_step", "tflops", "load_seconds"}
    plain |= {"bake_million_parameters_per_second"}
    assert {each.name for each in fields(BenchResult)} == KEYS
    assert [key for key in KEYS - plain if f"`{key}`" not in (BenchResult.__doc__ or "")] == []


def test_settings(goan: Goan) -> None:
    """Model, size, precision and attention are those asked for; in fp8 the error is measured."""
    asked = ("--model", "tiny-f1", "--size", "96x80", "--precision", "fp8", "--attention", "sdpa")
    found = measured(goan, *asked)
    assert_figures(found, {"streamed_weight_bytes": 0})
    assert (found["model"], found["size"], found["attention"]) == ("tiny-f1", [96, 80], "sdpa")
    assert found["precision"] == "fp8 linears, float32"
    assert found["resident_weight_bytes"] < measured(goan, "--model", "tiny-f1")["resident_weight_bytes"]


def test_synthetic(goan: Goan) -> None:
    """Random weights need no checkpoint, and so have no load rate."""
    found = measured(goan, "--synthetic", "mid", "--size", "32x32")
    assert set(found) == KEYS
    assert_figures(found, {**NOTHING, "load_seconds": None, "load_gb_per_second": None})
    assert found["model"] == "synthetic mid"


def test_table(goan: Goan) -> None:
    """Without --json it is a table for people, with a line for each thing measured."""
    run = goan("bench", "--steps", "1", "--device", "cpu", "--precision", "fp8")
    assert (run.code, run.err) == (0, "")
    for label in ("model", "machine", "section", "a step", "rate", "memory", "weights", "load", "bake", "fp8"):
        assert f"│ {label} " in run.out
    assert "TFLOP/s" in run.out


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--size", "640"), 2, "--size 640: no such size (like 640x608"),
        (("--size", "640x600"), 2, "multiples of 16"),
        (("--size", "0x64"), 2, "--size 0x64"),
        (("--size", "64x999999"), 2, "up to 4096"),
        (("--size", "-64x64"), 2, "--size -64x64"),
        (("--size", "६४x64"), 2, "no such size"),
        (("--memory", "much"), 2, "--memory: must be auto or a size such as 12GB, not 'much'"),
        (("--memory", "12GB"), 2, "--memory is a budget on a GPU"),
        (("--steps", "0"), 2, "--steps"),
        (("--steps", "many"), 2, "--steps"),
        (("--precision", "int8"), 2, "int8"),
        (("--compile", "maybe"), 2, "maybe"),
        (("--attention", "slow"), 2, "slow"),
        (("--synthetic", "huge"), 2, "huge"),
        (("--model", "nothing-of-this-name"), 2, "no model pack named nothing-of-this-name"),
        (("--model", "tiny", "--synthetic", "mid"), 2, "give one of the two"),
        (("--image", "start.png"), 2, "--image and --prompt are for --calibrate"),
        (("--prompt", "a ball"), 2, "--image and --prompt are for --calibrate"),
        (("--device", "tpu"), 2, "--device tpu: no such device"),
        (("--attention", "cudnn"), 3, "attention cudnn needs a CUDA device"),
        (("--synthetic", "full"), 3, "--synthetic full needs a CUDA device: on a CPU it would take 5"),
        (("--synthetic", "full", "--precision", "bf16"), 3, "it would take 2"),
        (("--calibrate", "--synthetic", "mid"), 2, "--calibrate is for a pack"),
        (("--calibrate", "--image", "start.png"), 2, "--calibrate needs both --image and --prompt"),
        (("--calibrate", "--prompt", "a ball"), 2, "--calibrate needs both --image and --prompt"),
        (("--calibrate", "--size", "64x64"), 2, "the pack's own scenes have one size"),
        (("--calibrate", "--image", "gone.png", "--prompt", "a ball"), 2, "gone.png"),
    ],
)
def test_one_clear_error(goan: Goan, folder: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    """What cannot be measured is refused with the reason, the exit code of its kind, and nothing on standard output."""
    shipped = {name: magnitudes_file(find_pack(name)).read_bytes() for name in ("tiny", "tiny-f1")}
    device = () if "--device" in arguments else ("--device", "cpu")
    run = goan("bench", *device, *arguments)
    assert (run.code, run.out) == (code, "")
    assert said in " ".join(run.err.replace("│", " ").split())
    assert "Traceback" not in run.err
    assert shipped == {name: magnitudes_file(find_pack(name)).read_bytes() for name in shipped}


# Calibration ----------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(folder: Path) -> Path:
    """The tiny pack under a manifest of the test's own, in a folder without calibrations."""
    (folder / "packs").mkdir()
    return write_tiny_manifest(folder / "packs" / "mine.yaml")


def test_calibration_is_written(goan: Goan, manifest: Path) -> None:
    """It lies beside the manifest, is for the steps asked for, and magcache then uses it as was told."""
    run = goan(*CALIBRATION, "--model", manifest, "--steps", "6")
    assert (run.code, run.err) == (0, "")
    pack = find_pack(str(manifest))
    assert set(content_of(manifest.parent)) == {"mine.yaml", "mine.magcache.json"}
    made = ratios_for(pack, 6)
    assert made.samples == 4  # the sections of one video
    computed = steps_to_compute(made.ratios, threshold=DEFAULT_THRESHOLDS["magcache"])  # type: ignore[index]
    assert f"{manifest.with_name('mine.magcache.json')}: MagCache for 6 steps" in run.out
    assert f"computes {len(computed)} of 6 steps: {', '.join(str(step + 1) for step in computed)}\n" in run.out
    job = ("--image", "start.png", "--prompt", "a ball", "--model", manifest, "--set", "steps=6")
    planned = goan("plan", *job, "--set", "step_cache=magcache")
    assert f"computes {len(computed)} of 6 steps" in planned.out


def test_calibration_as_json(goan: Goan, manifest: Path) -> None:
    """Every image is rendered with every prompt, in the pack's own steps; calibrations for other steps stay."""
    goan(*CALIBRATION, "--model", manifest, "--steps", "3")
    run = goan(*CALIBRATION, "--prompt", "a box", "--model", manifest, "--size", "32x48", "--json")
    assert (run.code, run.err) == (0, "")
    told = json.loads(run.out)
    made = ratios_for(find_pack(str(manifest)), 2)
    assert told["samples"] == made.samples == 2 * 4
    assert told["ratios"] == list(made.ratios)
    assert told["file"] == str(manifest.with_name("mine.magcache.json"))
    assert (told["threshold"], told["computed_steps"], told["version"]) == (0.1, [0, 1], 1)
    assert ratios_for(find_pack(str(manifest)), 3).samples == 4


def test_scenes_of_the_tiny_packs(goan: Goan, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack with a tiny pack's transformer is calibrated without an image, with scenes of its own world."""
    monkeypatch.setattr("goan_cli.tiny.calibration.CLIPS", 2)
    run = goan("bench", "--calibrate", "--device", "cpu", "--model", manifest, "--steps", "2", "--json")
    assert (run.code, run.err) == (0, "")
    assert json.loads(run.out)["samples"] == 2 * command._SECTIONS


def test_pack_without_scenes(goan: Goan, folder: Path) -> None:
    """Any other pack needs an image and a prompt, and is told so."""
    write_transformer(folder / "transformer", random_transformer(TINY_CONFIG).state_dict(), TINY_CONFIG)
    manifest = write_tiny_manifest(folder / "other.yaml", parts={"transformer": folder / "transformer"})
    run = goan("bench", "--calibrate", "--device", "cpu", "--model", manifest)
    assert (run.code, run.out) == (2, "")
    assert "other has no scenes of its own (give --image and --prompt" in run.err


def test_read_only_folder(folder: Path, manifest: Path) -> None:
    """Where the calibration could not be kept, that is told before anything is sampled, and nothing is written."""
    script = f"""
        mount --bind packs packs && mount -o remount,bind,ro packs || exit 99
        {sys.executable} -m goan_cli {" ".join(CALIBRATION[:-1])} ball --model packs/mine.yaml --steps 1000
        echo $? > code
    """
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to make a folder read-only with")
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    ran = subprocess.run(
        ["unshare", *own, "--mount", "sh", "-c", textwrap.dedent(script)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if not (folder / "code").exists():
        pytest.skip(f"no folder can be made read-only here: {ran.stderr.strip()}")
    assert (folder / "code").read_text() == "3\n"
    assert f"{manifest.with_name('mine.magcache.json')}: cannot be written: Read-only file system" in ran.stderr
    assert set(content_of(manifest.parent)) == {"mine.yaml"}
