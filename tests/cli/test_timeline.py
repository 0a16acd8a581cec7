"""Commands on a job whose timeline changes LoRAs: what it will be, how it stands, what was baked."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Goan
from tests.conftest import write_jobs, write_lora

JOB = {
    "model": "tiny-f1",
    "image": "start.png",
    "prompt": "a",
    "size": [16, 16],
    "sections": 4,
    "fps": 8,
    "window": 2,
    "steps": 2,
    "timeline": [
        {"at": "1s", "prompt": "a blue square grows", "loras": ["style.safetensors"]},
        {"at": "3s", "loras": [{"path": "other.safetensors", "weight": 0.5}]},
    ],
    "output": {"dir": "out"},
    "seed": 1,
}


def test_plan_status_and_report(folder: Path, goan: Goan) -> None:
    """`goan plan`, `status` and `lora report` know the job, its results and its sidecar's settings as a job."""
    write_lora(folder / "other.safetensors", target="lora_unet_transformer_blocks_1_attn_to_q")
    file = write_jobs(folder / "job.yaml", JOB)
    run = goan("render", file, "--device", "cpu")
    assert (run.code, run.err) == (0, "")
    run = goan("plan", file)
    assert (run.code, run.err) == (0, "")
    assert "a blue square grows" in run.out
    assert "up to date" in run.out
    run = goan("status", folder / "out")
    assert (run.code, run.err) == (0, "")
    content: dict[str, Any] = json.loads((folder / "out" / "job.json").read_text(encoding="utf-8"))
    again = write_jobs(folder / "again.yaml", {**content["settings"], "name": "job"})
    assert "up to date" in goan("plan", again).out
    run = goan("lora", "report", folder / "out" / "job.json", "--plot", folder / "bars.png")
    assert (run.code, run.err) == (0, "")
    assert "sections 2, 3, in sampling order" in run.out
    assert "section 4, in sampling order" in run.out
    assert [run.out.count(f"transformer_blocks.{block}") for block in (0, 1)] == [1, 1]
    assert (folder / "bars.png").is_file()


@pytest.mark.parametrize("bake", [None, {"sets": []}, {"sets": [{"recipe": None, "sections": [1], "report": None}]}])
def test_report_of_sets_without_loras(tmp_path: Path, goan: Goan, bake: dict[str, Any] | None) -> None:
    """Where no section had a LoRA, the report says so."""
    (tmp_path / "a.json").write_text(json.dumps({"bake": bake}), encoding="utf-8")
    run = goan("lora", "report", tmp_path / "a.json")
    assert run.code == 2
    assert "that render had no LoRA" in run.err


@pytest.mark.parametrize(
    "bake", [{"sets": 3}, {"sets": [3]}, {"sets": [{"report": 3}]}, {"sets": [{"sections": [1]}]}, []]
)
def test_report_of_what_is_no_bake(tmp_path: Path, goan: Goan, bake: object) -> None:
    """A bake that is none of goan's is refused by its path."""
    (tmp_path / "a.json").write_text(json.dumps({"bake": bake}), encoding="utf-8")
    run = goan("lora", "report", tmp_path / "a.json")
    assert run.code == 2
    assert "not a sidecar" in run.err
