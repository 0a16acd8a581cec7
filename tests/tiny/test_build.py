"""The embedded pack: small, complete, and of the very classes and names of the real one."""

import json

import pytest

from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.model.config import read_config
from goan_cli.model.pack import WEIGHTED, find_pack
from goan_cli.tiny.build import CONFIG, PACK
from tests.helpers import GOLDEN

PACKED = GOLDEN / "packed"


def test_pack_is_small() -> None:
    """The whole pack that ships in the wheel stays under 10 MB."""
    assert sum(file.stat().st_size for file in PACK.rglob("*") if file.is_file()) < 10e6


def test_configuration_is_the_builder_s() -> None:
    """The configuration beside the weights is the one that the builder wrote."""
    assert read_config(find_pack("tiny").transformer) == CONFIG


def test_names_are_the_full_size_model_s() -> None:
    """Every parameter of the tiny transformer is one of the full-size model's, and no kind of module is missing."""
    full = set(json.loads((GOLDEN / "full_size_keys.json").read_text()))
    tiny = set(read_checkpoint(PACK / "transformer").entries)

    def kinds(names: set[str]) -> set[str]:
        return {".".join("N" if part.isdigit() else part for part in name.split(".")) for name in names}

    assert tiny < full
    assert kinds(tiny) == kinds(full)


@pytest.mark.parametrize("part", WEIGHTED)
def test_weights_are_not_constant(part: str) -> None:
    """No part was saved empty or full of zeros."""
    checkpoint = read_checkpoint(PACK / part)
    assert len(checkpoint.files) == 1
    assert sum(entry.count for entry in checkpoint.entries.values()) > 10_000
    assert {entry.dtype for entry in checkpoint.entries.values()} <= {"F32", "I64"}


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae", "image_encoder"])
def test_classes_are_the_recorded_pack_s(part: str) -> None:
    """The other parts are of the same model classes as the recorded pack's."""
    tiny, golden = (json.loads((root / part / "config.json").read_text()) for root in (PACK, PACKED))
    for key in ("_class_name", "model_type", "architectures"):
        assert tiny.get(key) == golden.get(key)


def test_widths_fit_together() -> None:
    """What the encoders give is as wide as what the transformer takes."""
    text, clip, siglip = (
        json.loads((PACK / part / "config.json").read_text())
        for part in ("text_encoder", "text_encoder_2", "image_encoder")
    )
    assert text["hidden_size"] == CONFIG.text_embed_dim
    assert clip["hidden_size"] == CONFIG.pooled_projection_dim
    assert siglip["hidden_size"] == CONFIG.image_proj_dim
    assert sum(CONFIG.rope_axes_dim) == CONFIG.attention_head_dim


def test_transformer_is_in_float32() -> None:
    """The tiny transformer is stored in float32, so that the CPU maps it instead of copying."""
    assert {entry.dtype for entry in read_checkpoint(PACK / "transformer").entries.values()} == {"F32"}
