"""Trains the tiny pack from nothing, stage by stage: `python -m goan_cli.tiny.train BUILD_FOLDER` (`make tiny`).

Each stage keeps its state in BUILD_FOLDER, so a run that was stopped goes on where it was.
"""

import hashlib
import json
import logging
import os
import sys
from importlib.metadata import version
from pathlib import Path
from shutil import copytree

import torch

from goan_cli.files import write_text
from goan_cli.jobs.sections import Family
from goan_cli.tiny import autoencoder, loras, transformer
from goan_cli.tiny.clips import encode_captions, load_clips, training_scenes
from goan_cli.tiny.parts import PACK, write_autoencoder, write_encoders, write_transformer
from goan_cli.tiny.training import SAFE_ISA, SEED, Schedule

# What decides the weights, beside the model and the sampler themselves.
_CODE = ("autoencoder", "clips", "loras", "palette", "parts", "tokenizers", "train", "training", "transformer", "world")
_LIBRARIES = ("goan-cli", "torch", "diffusers", "transformers", "peft")

log = logging.getLogger(__name__)


def train_pack(build: Path, pack: Path = PACK) -> None:
    """Train everything, in the order in which one part needs the other; `pack` is replaced when all of it is done.

    What is measured while training is recorded in `training.json`, with seed, steps, versions and code.
    """
    code, made = code_digest(), build / "pack"
    write_encoders(made)
    vae, figures = autoencoder.train_autoencoder(build)
    write_autoencoder(made, vae)
    stages = [_stage(autoencoder.PICTURES, figures["pictures"]), _stage(autoencoder.CLIPS, figures["clips"])]
    torch.set_num_threads(1)  # see training.train
    clips, texts = load_clips(made, training_scenes(), build), encode_captions(made)
    origin = None
    for family in (Family.INVERTED, Family.F1):
        origin, held_out = transformer.train_transformer(family, clips, texts, build, origin=origin)
        write_transformer(made, origin, family)
        stages.append(_stage(transformer.SCHEDULES[family], held_out))
    lessons = loras.train_loras(made, texts, build)
    stages += [_stage(loras.DUSK_LESSON.schedule, lessons["dusk"]), _stage(loras.SWAY_LESSON.schedule, lessons["sway"])]
    versions = {name: version(name) for name in _LIBRARIES}
    record = {"seed": SEED, "versions": versions, "code": code, "stages": stages}
    write_text(made / "training.json", json.dumps(record, indent=2) + "\n")
    copytree(made, pack, dirs_exist_ok=True)


def code_digest() -> str:
    """SHA-256 of the files that decide the weights."""
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()


def _stage(schedule: Schedule, figures: dict[str, float]) -> dict[str, object]:
    log.info("%s: %s", schedule.name, figures)
    return {"name": schedule.name, "steps": schedule.steps, "held_out": figures}


if __name__ == "__main__":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", SAFE_ISA)  # before oneDNN is first used
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    train_pack(Path(sys.argv[1]))
