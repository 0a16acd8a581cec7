"""Trains the tiny pack from nothing, stage by stage: `python -m goan_cli.tiny.train BUILD_FOLDER` (`make tiny`).

Each stage keeps its state in BUILD_FOLDER, so a run that was stopped goes on where it was.
"""

import hashlib
import json
import logging
import sys
from pathlib import Path

import torch

from goan_cli.files import write_text
from goan_cli.jobs.sections import Family
from goan_cli.tiny import autoencoder, transformer
from goan_cli.tiny.clips import encode_captions, load_clips, training_scenes
from goan_cli.tiny.loras import DUSK, SWAY, train_loras
from goan_cli.tiny.parts import PACK, write_autoencoder, write_encoders, write_transformer
from goan_cli.tiny.training import SEED, Schedule, log

# What decides the weights; its digest is recorded with them.
_CODE = ("autoencoder", "clips", "loras", "palette", "parts", "tokenizers", "training", "transformer", "world")


def train_pack(build: Path, pack: Path = PACK) -> None:
    """Train everything that `pack` holds, in the order in which one part needs the other, and record it there."""
    write_encoders(pack)
    vae, figures = autoencoder.train_autoencoder(build)
    write_autoencoder(pack, vae)
    stages = [_stage(autoencoder.PICTURES, figures["pictures"]), _stage(autoencoder.CLIPS, figures["clips"])]
    torch.set_num_threads(1)  # see training.train
    clips, texts = load_clips(pack, training_scenes(), build / "clips.safetensors"), encode_captions(pack)
    origin = None
    for family in (Family.INVERTED, Family.F1):
        origin, held_out = transformer.train_transformer(family, clips, texts, build, origin=origin)
        write_transformer(pack, origin, family)
        stages.append(_stage(transformer.SCHEDULES[family], held_out))
    lessons = train_loras(pack, texts, build)
    stages += [_stage(DUSK.schedule, lessons["dusk"]), _stage(SWAY.schedule, lessons["sway"])]
    record = {"seed": SEED, "torch": torch.__version__, "code": code_digest(), "stages": stages}
    write_text(pack / "training.json", json.dumps(record, indent=2) + "\n")


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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    train_pack(Path(sys.argv[1]))
