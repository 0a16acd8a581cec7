"""Identities as they were: a change of goan that alters one makes every result of before count as outdated.

Where that is meant (the same job comes to make other pixels), RENDER_VERSION counts up and the digests here are
written anew; where only a key was added, an old job's identity stays.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import goan_cli.packs.pack as pack_module
from goan_cli.jobs.load import request_from_settings, settings_document
from goan_cli.render.identity import RENDER_VERSION, job_identity, latents_identity
from goan_cli.render.plan import plan_renders
from tests.helpers import TINY_SQUARE

_VERSION = 2
_PINNED: tuple[tuple[str, Mapping[str, Any], str, str], ...] = (
    # name, keys besides the base job's, latents' identity, job's identity; the first 16 digits
    ("plain", {}, "fa2c0fd00b3c882c", "7887e585725d6cac"),
    ("forward", {"model": "tiny-f1"}, "ad5d2f6f01c4111c", "3c0208dc6214b425"),
    (
        "true CFG",
        {"true_cfg_scale": 2.0, "negative_prompt": "blurry", "guidance_rescale": 0.5},
        "e87733eb0b5694fd",
        "1a4b087456c7696a",
    ),
    ("guidance and shift", {"guidance_scale": 6.0, "shift": 3.0}, "efb280f2666bd004", "c89217100430892a"),
    ("lora", {"loras": [{"path": "LORA", "weight": 0.5}]}, "10070bd765a4ee1f", "2ed8c9e210afdabb"),
    ("step cache", {"step_cache": {"kind": "teacache", "threshold": 0.2}}, "9e9502224d00bf11", "303da575236d64c4"),
    ("precision", {"precision": "bf16"}, "245e47db3646d07d", "dfcc35bb0d4dd791"),
    ("end image", {"end_image": "IMAGE", "end_strength": 0.5}, "c6d95487251bb1d1", "e007535cb9f8cbbb"),
    ("paddings", {"paddings": [2, 0]}, "f6b8033ae2eefea5", "f573c4fafb0f19bb"),
    (
        "timeline",
        {"timeline": [{"at": 0.4, "prompt": "a red ball moves to the right", "loras": ["LORA"]}]},
        "dbb82f1f6aa35f86",
        "25552132419fe3bb",
    ),
    ("schedule", {"guidance_schedule": {"shape": "linear", "end": 2.0}}, "94f1b570245b83ed", "4e22e5cea1e7d967"),
    ("from nothing", {"image": None, "start": "grey"}, "bd8fda980d042c88", "e919f0450f688459"),
    ("one frame", {"sections": None, "one_frame": {"target": 1}}, "cae270683a740618", "6981d1d77397fd98"),
    ("coding", {"output": {"format": "mp4", "codec": "hevc", "crf": 20}}, "fa2c0fd00b3c882c", "a53f810c81171d9e"),
    ("webm", {"output": {"format": "webm"}}, "fa2c0fd00b3c882c", "65a6419ad11862d4"),
    ("interpolated", {"post": {"interpolate": 60}}, "fa2c0fd00b3c882c", "6ad4aaf59ef0b34b"),
    ("single decode", {"decode": "single"}, "fa2c0fd00b3c882c", "b999b524e52ca805"),
)


def _identities(folder: Path, keys: Mapping[str, Any]) -> tuple[str, str]:
    """The identities of a job whose files have the same bytes wherever and by whichever library they are written."""
    image, later, lora = folder / "start.ppm", folder / "later.ppm", folder / "lora.safetensors"
    for number, path in enumerate((image, later)):
        levels = (np.arange(48 * 64 * 3).reshape(48, 64, 3) % (97 + number)).astype(np.uint8)
        Image.fromarray(levels).save(path)
    name = "transformer.transformer_blocks.0.attn.to_q.lora_{}.weight"
    down, up = torch.arange(2.0 * TINY_SQUARE[1]).view(2, -1), torch.arange(2.0 * TINY_SQUARE[0]).view(-1, 2)
    save_file({name.format("A"): down / 100, name.format("B"): up / 100}, lora)
    files = {"IMAGE": str(later), "LORA": str(lora)}
    settings = {
        "model": "tiny",
        "image": str(image),
        "prompt": "a red ball moves to the left",
        "size": [64, 64],
        "sections": 2,
        "steps": 3,
        "seed": 7,
        "output": {"dir": str(folder / "out")},
        **_with_files(keys, files),
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    requests, problems = request_from_settings(settings_document((), settings), name="job")
    (plan,) = plan_renders(requests, problems)
    return latents_identity(plan)[:16], job_identity(plan)[:16]


def _with_files(value: Any, files: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_files(each, files) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_files(each, files) for each in value]
    return files.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize(("keys", "latents", "job"), [pytest.param(*row[1:], id=row[0]) for row in _PINNED])
def test_identities_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: Mapping[str, Any], latents: str, job: str
) -> None:
    """A job of an earlier goan has the identity that it had, so that its results stay up to date.

    Of the pack only the names of its parts count here: trained anew, it makes other videos.
    """
    monkeypatch.setattr(pack_module, "part_identity", lambda part, *_: part)
    assert RENDER_VERSION == _VERSION
    assert _identities(tmp_path, keys) == (latents, job)
