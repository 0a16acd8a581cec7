"""What the shipped packs can do: the recorded figures meet the targets, and a sample measured now agrees."""

import json
from pathlib import Path

import pytest

from goan_cli.render.engine import Engine
from goan_cli.tiny.autoencoder import CLIPS, PICTURES
from goan_cli.tiny.evaluate import (
    autoencoder_figures,
    baked_against_peft,
    central_scene,
    lora_clip,
    lora_effect,
    prompt_result,
    weights_digest,
)
from goan_cli.tiny.loras import DUSK_LESSON, SWAY_LESSON
from goan_cli.tiny.palette import DIRECTIONS
from goan_cli.tiny.parts import PACK
from goan_cli.tiny.report import DRIFT_BOUND, report
from goan_cli.tiny.transformer import SCHEDULES

FIGURES = json.loads((PACK / "evaluation.json").read_text(encoding="utf-8"))
TRAINING = json.loads((PACK / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One engine, so that the models load once."""
    return Engine(device="cpu")


@pytest.mark.slow
def test_recorded_autoencoder_meets_its_target() -> None:
    """Held-out clips came back at the goal of 30 dB, each of them, and come back so now."""
    assert FIGURES["autoencoder"]["clips_worst"] > 30
    assert autoencoder_figures() == pytest.approx(FIGURES["autoencoder"], abs=0.2)


def test_figures_are_of_these_weights() -> None:
    """What was measured is what ships, and it was trained by the schedules that are there to read."""
    assert FIGURES["weights"] == weights_digest()
    schedules = [PICTURES, CLIPS, *SCHEDULES.values(), DUSK_LESSON.schedule, SWAY_LESSON.schedule]
    trained = [(stage["name"], stage["steps"]) for stage in TRAINING["stages"]]
    assert trained == [(schedule.name, schedule.steps) for schedule in schedules]


def test_recorded_step_caches_trade_error_for_speed() -> None:
    """With the threshold fewer steps are computed; every row skips some, and stays near the exact render."""
    rows = FIGURES["step_caches"]["teacache"]
    computed = [row["computed"] for row in rows]
    assert computed == sorted(computed, reverse=True)
    assert computed[0] < 1
    assert min(row["psnr"] for row in rows) > 20


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_recorded_prompts_meet_their_targets(model: str) -> None:
    """Over 100 prompts x seeds and more: direction and colour in 95 %, every first frame at 24 dB, a calm ground."""
    figures = FIGURES[model]
    assert figures["prompts"] >= 100
    assert figures["direction"] >= 0.95
    assert figures["colour"] >= 0.95
    assert figures["first_frame_worst"] >= 24
    assert figures["shape_present"] >= 0.9
    assert figures["drift_worst"] <= DRIFT_BOUND
    assert min(figures["motions"].values()) >= 0.5


def test_recorded_loras_act_by_weight() -> None:
    """Both effects grow with every weight, baked is PEFT's own result, and the base comes back."""
    loras = FIGURES["loras"]
    assert loras["weights"] == [0.0, 0.25, 0.5, 1.0]
    for name in ("dusk", "sway"):
        assert loras[name] == sorted(set(loras[name]))
        assert loras["baked_against_peft"][name] < 1e-4
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
    assert result.drift < DRIFT_BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dusk", "sway"])
def test_loras_act_now(engine: Engine, tmp_path: Path, name: str) -> None:
    """The effect grows with the weight, and the base model's frames come back bit for bit."""
    base = lora_clip(engine, tmp_path, name, None, 1)
    effects = [lora_effect(name, base, lora_clip(engine, tmp_path, name, weight, 1)) for weight in (0.0, 0.5, 1.0)]
    assert effects == sorted(set(effects))
    assert (lora_clip(engine, tmp_path, name, None, 1) == base).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dusk", "sway"])
def test_baked_is_peft_s_result_now(engine: Engine, tmp_path: Path, name: str) -> None:
    """A whole render from baked weights is that of PEFT's dynamic layers, in float32."""
    assert baked_against_peft(engine, tmp_path, name) < 1e-4
