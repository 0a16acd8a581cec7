"""`make tiny`, from nothing to a pack that renders, at a few steps a stage."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from goan_cli.lora.adapter import read_adapter
from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.packs.find import find_pack
from goan_cli.render.engine import Engine
from goan_cli.tiny import autoencoder, clips, loras, transformer
from goan_cli.tiny.parts import LORAS
from goan_cli.tiny.train import train_pack
from tests.helpers import tiny_plan


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage at two steps, on few and short clips."""
    monkeypatch.setattr(autoencoder, "PICTURES", replace(autoencoder.PICTURES, steps=2))
    monkeypatch.setattr(autoencoder, "CLIPS", replace(autoencoder.CLIPS, steps=2))
    monkeypatch.setattr(autoencoder, "_PICTURES_A_STEP", 2)
    monkeypatch.setattr(autoencoder, "_CLIPS_A_STEP", {5: 1, 9: 1, 13: 1})
    monkeypatch.setattr(autoencoder, "_VALIDATION_CLIPS", 2)
    monkeypatch.setattr(clips, "_CLIPS", 24)
    monkeypatch.setattr(clips, "_LENGTHS", (1, 2))
    schedules = {family: replace(schedule, steps=2) for family, schedule in transformer.SCHEDULES.items()}
    monkeypatch.setattr(transformer, "SCHEDULES", schedules)
    monkeypatch.setattr(transformer, "_BATCH", 4)
    monkeypatch.setattr(transformer, "_HELD_OUT", 12)
    for name in ("DUSK_LESSON", "SWAY_LESSON"):
        lesson = getattr(loras, name)
        monkeypatch.setattr(loras, name, replace(lesson, schedule=replace(lesson.schedule, steps=2)))
    monkeypatch.setattr(loras, "_CLIPS", 20)
    monkeypatch.setattr(loras, "_HELD_OUT", 10)
    monkeypatch.setattr(loras, "_LENGTHS", (1, 2))
    monkeypatch.setattr(loras, "_BATCH", 2)


@pytest.mark.slow
def test_from_nothing_to_a_render(short: None, tmp_path: Path) -> None:
    """All stages run in order; the pack is whole, loads, takes its LoRAs and renders; again, nothing is trained."""
    build, pack = tmp_path / "build", tmp_path / "pack"
    train_pack(build, pack)
    record = json.loads((pack / "training.json").read_text())
    assert [stage["steps"] for stage in record["stages"]] == [2] * 6
    assert len(record["code"]) == 64
    for manifest in ("pack.yaml", "tiny-f1.yaml"):
        shapes = read_checkpoint(find_pack(str(pack / manifest)).transformer).shapes
        for name in LORAS.values():
            adapter = read_adapter(pack / name, shapes)
            assert adapter.matched_keys == adapter.keys > 0
        engine = Engine(device="cpu")
        plan = tiny_plan(tmp_path, "one", [(pack / LORAS["sway"], 1.0)], model=str(pack / manifest))
        sampled = engine.sample(plan, engine.conditioning_for(plan))
        assert sampled.bake is not None
        assert sampled.latents.isfinite().all()

    weights = {file.relative_to(pack): file.read_bytes() for file in pack.rglob("*.safetensors")}
    train_pack(build, tmp_path / "again")
    assert {name: (tmp_path / "again" / name).read_bytes() for name in weights} == weights


@pytest.mark.slow
def test_peft_s_layers_take_both_layouts(short: None, tmp_path: Path) -> None:
    """Factors read back from either writer's file are the trained ones: B is no longer zero."""
    pack = find_pack("tiny").manifest.parent
    for name in LORAS.values():
        model = loras.wrapped_with(find_pack("tiny").transformer, pack / name)
        learnt = [value for key, value in model.named_parameters() if "lora_B" in key]
        assert len(learnt) > 30
        assert all(torch.count_nonzero(value) for value in learnt)
