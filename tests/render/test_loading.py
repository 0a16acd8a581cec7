"""Encoders and VAE load strictly: a weight that is missing is an error and never a random number."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from goan_cli.errors import InvalidInput
from goan_cli.packs.find import find_pack
from goan_cli.render.engine import Engine
from goan_cli.render.loading import load_encoder, load_vae
from tests.helpers import CPU, tiny_plan

PACK = find_pack("tiny")


def _altered(part: Path, folder: Path, *, drop: bool) -> Path:
    """A copy of a part whose last tensor is left out, or has another shape."""
    shutil.copytree(part, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name] = torch.zeros(3, 3)
    if drop:
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_encoder_is_ready() -> None:
    """An encoder comes in the dtype asked for, without dropout and without gradients."""
    model = load_encoder(CLIPTextModel, PACK.text_encoder_2, torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_vae_is_ready() -> None:
    """The VAE comes in the dtype asked for, without gradients, and untiled."""
    vae = load_vae(PACK.vae, CPU, torch.float32)
    assert vae.dtype == torch.float32
    assert not vae.training
    assert not vae.use_tiling
    assert not any(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.parametrize("drop", [True, False], ids=["missing", "another shape"])
def test_incomplete_encoder(tmp_path: Path, drop: bool) -> None:
    """An encoder with a weight missing or of another shape is refused."""
    folder = _altered(PACK.text_encoder_2, tmp_path / "clip", drop=drop)
    with pytest.raises(InvalidInput, match=str(folder)):
        load_encoder(CLIPTextModel, folder, torch.float32)


@pytest.mark.parametrize("drop", [True, False], ids=["missing", "another shape"])
def test_incomplete_vae(tmp_path: Path, drop: bool) -> None:
    """A VAE with a weight missing or of another shape is refused."""
    folder = _altered(PACK.vae, tmp_path / "vae", drop=drop)
    with pytest.raises(InvalidInput, match=str(folder)):
        load_vae(folder, CPU, torch.float32)


def test_folders_without_weights(tmp_path: Path) -> None:
    """An empty folder is refused as what was looked for, and nothing is looked up elsewhere."""
    with pytest.raises(InvalidInput, match="CLIPTextModel"):
        load_encoder(CLIPTextModel, tmp_path, torch.float32)
    with pytest.raises(InvalidInput, match="VAE"):
        load_vae(tmp_path, CPU, torch.float32)


_FIRST_STEP = """
import json, sys
from pathlib import Path
from goan_cli.render.engine import Engine
from goan_cli.render.events import StepFinished
from tests.helpers import tiny_plan

folder = Path(sys.argv[1])

def hear(event):
    if isinstance(event, StepFinished):
        heavy = "diffusers", "transformers", "torch._dynamo"
        print(json.dumps([name for name in heavy if name in sys.modules]))
        sys.exit()

engine = Engine(device="cpu", listener=hear, cache=folder / "cache")
plan = tiny_plan(folder)
engine.sample(plan, engine.conditioning_for(plan))
"""


def test_a_warm_start_imports_neither_library(tmp_path: Path) -> None:
    """Where prompts and image are cached, the first step comes without diffusers, transformers and torch's compiler.

    They take longer to import than torch itself.
    """
    Engine(device="cpu", cache=tmp_path / "cache").encode(tiny_plan(tmp_path))
    command = [sys.executable, "-c", _FIRST_STEP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert json.loads(done.stdout) == []
