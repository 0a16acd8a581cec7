"""The job files in examples/: what they say of themselves is so."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Goan

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_example_can_be_planned(tmp_path: Path, goan: Goan, name: str) -> None:
    """Each example is valid, and shows a plan."""
    run = goan("plan", EXAMPLES / name, "--out", tmp_path)
    assert (run.code, run.err) == (0, "")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("timeline", ["from 0.8 s: a red circle moves left", "from 1.6 s: a red circle stands still, guidance 8"]),
        ("end-image", ["ends on", "stop.png"]),
        ("loop", ["the start image: a loop"]),
        ("section-image", ["from 0.8 s: a red circle moves left, looks at stop.png"]),
        ("guidance", ["distilled 10 to 4, roll-off", "7.73"]),
        ("lora-timeline", ["from 0.8 s: dusk x 0.9"]),
        ("padded", ["nothing cut off, 14% black beside it"]),
    ],
)
def test_plans_of_directed_examples(tmp_path: Path, goan: Goan, name: str, shown: list[str]) -> None:
    """The plan shows what directs the video, in the times of the finished video, as each example says."""
    run = goan("plan", EXAMPLES / f"{name}.yaml", "--out", tmp_path)
    assert (run.code, run.err) == (0, "")
    for text in shown:
        assert text in run.out


@pytest.mark.slow
def test_a_gate_and_further_seeds(tmp_path: Path, goan: Goan) -> None:
    """The gated example's first seed is seen to lose its picture; the next one makes the video, and is up to date."""
    run = goan("render", EXAMPLES / "gates.yaml", "--out", tmp_path, "--device", "cpu")
    assert run.code == 0
    assert "seed 26 is rejected: " in run.out
    content = json.loads((tmp_path / "guarded.json").read_text())
    assert [seed["seed"] for seed in content["rejected_seeds"]] == [26]
    assert (content["asked_seed"], content["settings"]["seed"]) == (26, 27)
    assert content["quality"]["black"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guarded.json", "guarded.mp4"]
    assert "up to date" in goan("render", EXAMPLES / "gates.yaml", "--out", tmp_path).out
