"""Trains the two demonstration LoRAs with PEFT, and saves each with a tool's own writer in that tool's layout.

`dusk` lets night fall on the background (a style), as diffusers writes it; `sway` makes a shape that stands still
swing from side to side (a motion), as PEFT writes it.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from diffusers.loaders import HunyuanVideoLoraLoaderMixin
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from goan_cli.jobs.sections import LATENT_FRAME, Family
from goan_cli.model.weights import load_transformer
from goan_cli.tiny.clips import load_clips
from goan_cli.tiny.parts import LORAS, TRANSFORMERS, WINDOW
from goan_cli.tiny.training import SEED, Schedule, seeded, train
from goan_cli.tiny.transformer import Texts, held_out_loss, loss_parts
from goan_cli.tiny.world import Scene, choice, draw_scene

RANK = 4
# The linears of the blocks' image stream, and both streams' MLPs; everything else stays as it is.
_TARGETS = r".*transformer_blocks\.\d+\..*(to_q|to_k|to_v|to_out\.0|net\.0\.proj|net\.2|proj_mlp|proj_out)"
_CLIPS, _HELD_OUT, _BATCH = 112, 16, 16
_LENGTHS = (2, 4, 4, 7)  # in sections


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one LoRA learns: its schedule, and its number in the streams of random numbers."""

    schedule: Schedule
    number: int


_DUSK = Schedule(name="lora-dusk", steps=250, matrix_rate=3e-3, vector_rate=3e-3, warm_up=20)
_SWAY = Schedule(name="lora-sway", steps=350, matrix_rate=3e-3, vector_rate=3e-3, warm_up=20)
DUSK_LESSON = Lesson(schedule=_DUSK, number=1)
SWAY_LESSON = Lesson(schedule=_SWAY, number=2)


def train_loras(pack: Path, texts: Texts, build: Path) -> dict[str, dict[str, float]]:
    """Train both on the inverted transformer in `pack`, and write them there; their figures by name."""
    figures = {}
    for name, lesson in (("dusk", DUSK_LESSON), ("sway", SWAY_LESSON)):
        scenes = [_scene(lesson, number) for number in range(_CLIPS)]
        clips = load_clips(pack, scenes, build)
        model = wrapped_transformer(pack / TRANSFORMERS[Family.INVERTED])
        parts = partial(loss_parts, model, Family.INVERTED, clips[_HELD_OUT:], texts, 20 + lesson.number, _BATCH)
        validate = partial(held_out_loss, model, Family.INVERTED, clips[:_HELD_OUT], texts, 30, 4, _BATCH)
        figures[name] = train(model, lesson.schedule, parts, validate, build)
        write = _write_as_diffusers if lesson is DUSK_LESSON else _write_as_peft
        write(model, pack / LORAS[name])
    return figures


def wrapped_with(part: Path, file: Path) -> Any:  # noqa: ANN401 - PEFT is untyped here
    """A transformer under PEFT's dynamic layers with the factors of one of these LoRAs, whichever wrote it."""
    factors = {
        "base_model.model." + name.removeprefix("base_model.model.").removeprefix("transformer."): tensor.float()
        for name, tensor in load_file(file).items()
    }
    model = wrapped_transformer(part)
    set_peft_model_state_dict(model, factors)
    return model.eval()


def wrapped_transformer(part: Path) -> Any:  # noqa: ANN401
    """A transformer with fresh PEFT layers over its blocks' linears; only those are trained."""
    model, _ = load_transformer(part, device=torch.device("cpu"), dtype=torch.float32)
    torch.manual_seed(SEED)
    return peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=_TARGETS))


def _scene(lesson: Lesson, number: int) -> Scene:
    generator = seeded(number, stream=10 + lesson.number)
    sections = choice(generator, _LENGTHS)
    duration = sections * WINDOW * LATENT_FRAME
    if lesson is SWAY_LESSON:
        return replace(draw_scene(generator, duration=duration, motion="still"), sways=True)
    return replace(draw_scene(generator, duration=duration), dusk=True)


def _write_as_diffusers(model: Any, file: Path) -> None:  # noqa: ANN401
    layers = {
        name.removeprefix("base_model.model."): tensor.half().contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    HunyuanVideoLoraLoaderMixin.save_lora_weights(
        save_directory=str(file.parent), transformer_lora_layers=layers, weight_name=file.name
    )


def _write_as_peft(model: Any, file: Path) -> None:  # noqa: ANN401
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            copyfile(Path(folder) / name, file.parent / name)
