"""What the shipped packs can do: the recorded figures meet the targets, and a sample measured now agrees."""

import json
from pathlib import Path

import pytest
import torch

from goan_cli.render.engine import Engine
from goan_cli.tiny.evaluate import baked_against_peft, central_scene, lora_clip, lora_effect, prompt_result
from goan_cli.tiny.palette import DIRECTIONS
from goan_cli.tiny.parts import PACK
from goan_cli.tiny.report import report

FIGURES = json.loads((PACK / "evaluation.json").read_text(encoding="utf-8"))
TRAINING = json.loads((PACK / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One engine, so that the models load once."""
    return Engine(device="cpu")


def test_recorded_autoencoder_meets_its_target() -> None:
    """Held-out clips came back at 30 dB and more."""
    assert FIGURES["autoencoder"]["clips"] > 30
    assert FIGURES["autoencoder"]["clips_worst"] > 26


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_recorded_prompts_meet_their_targets(model: str) -> None:
    """Over at least 100 prompts x seeds: direction and colour in 95 %, first frames at 24 dB, shapes all there."""
    figures = FIGURES[model]
    assert figures["prompts"] >= 100
    assert figures["direction"] >= 0.95
    assert figures["colour"] >= 0.95
    assert figures["first_frame"] >= 24
    assert figures["shape_present"] >= 0.95
    assert figures["drift_mean"] <= 8


def test_recorded_loras_act_by_weight() -> None:
    """Both effects grow with every weight, baked is PEFT's own result, and the base comes back."""
    loras = FIGURES["loras"]
    assert loras["weights"] == [0.0, 0.25, 0.5, 1.0]
    for name in ("dusk", "sway"):
        assert loras[name] == sorted(set(loras[name]))
        assert loras["baked_against_peft"][name] < 1e-3
    assert loras["base_again_bit_for_bit"] is True


def test_readme_is_the_record_s() -> None:
    """The pack's README says what the two records say."""
    assert (PACK / "README.md").read_text(encoding="utf-8") == report(TRAINING, FIGURES)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
@pytest.mark.parametrize("motion", DIRECTIONS)
def test_prompts_decide_now(engine: Engine, tmp_path: Path, model: str, motion: str) -> None:
    """The same start image goes each of the four ways as told, with its shape, colour and background."""
    result = prompt_result(engine, tmp_path, model, central_scene(3), motion, seed=11, sections=2)
    assert result.seen == motion
    assert result.colour_kept
    assert result.first_frame > 24
    assert result.area > 0.5
    assert result.drift < 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dusk", "sway"])
def test_loras_act_now(engine: Engine, tmp_path: Path, name: str) -> None:
    """The effect grows with the weight, and the base model's frames come back bit for bit."""
    base = lora_clip(engine, tmp_path, name, 0.0, 1)
    effects = [lora_effect(name, base, lora_clip(engine, tmp_path, name, weight, 1)) for weight in (0.0, 0.5, 1.0)]
    assert effects == sorted(set(effects))
    assert (lora_clip(engine, tmp_path, name, 0.0, 1) == base).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dusk", "sway"])
def test_baked_is_peft_s_result_now(engine: Engine, tmp_path: Path, name: str) -> None:
    """A whole render from baked weights is that of PEFT's dynamic layers, in float32."""
    assert baked_against_peft(engine, tmp_path, name) < 1e-3
    assert torch.get_num_threads() == 1
