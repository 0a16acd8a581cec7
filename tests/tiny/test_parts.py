"""The embedded pack: small, complete, and of the very classes and names of the real one."""

import json

import pytest

from goan_cli.lora.adapter import read_adapter
from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.model.config import read_config
from goan_cli.packs.find import find_pack
from goan_cli.packs.manifest import WEIGHTED
from goan_cli.tensorfile import read_header
from goan_cli.tiny.parts import CONFIG, LORAS, PACK
from tests.helpers import GOLDEN

PACKED = GOLDEN / "packed"


def test_pack_is_small() -> None:
    """Both packs, with their LoRAs, take less than 12 MB of the wheel."""
    assert sum(file.stat().st_size for file in PACK.rglob("*") if file.is_file()) < 12e6


def test_configuration_is_the_builder_s() -> None:
    """The configuration beside the weights is the one that the builder wrote."""
    for name in ("tiny", "tiny-f1"):
        assert read_config(find_pack(name).transformer) == CONFIG


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
    assert {entry.dtype for entry in checkpoint.entries.values()} <= {"F16", "I64"}


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


def test_families_share_all_but_the_transformer() -> None:
    """The two packs are one set of parts, and two transformers that differ."""
    inverted, forward = find_pack("tiny"), find_pack("tiny-f1")
    assert (inverted.family, forward.family) == ("inverted", "f1")
    assert inverted.identity_of("transformer") != forward.identity_of("transformer")
    for part in WEIGHTED[1:]:
        assert inverted.identity_of(part) == forward.identity_of(part)


@pytest.mark.parametrize("name", LORAS)
def test_demonstration_loras_fit(name: str) -> None:
    """Every key of the LoRAs that ship is matched with the transformer."""
    shapes = {key: entry.shape for key, entry in read_checkpoint(find_pack("tiny").transformer).entries.items()}
    adapter = read_adapter(PACK / LORAS[name], shapes)
    assert adapter.matched_keys == adapter.keys > 0
    assert adapter.skipped == {}


def test_demonstration_loras_are_small_and_of_two_layouts() -> None:
    """The two LoRAs take a few hundred KB together, and their writers named their keys differently."""
    files = [PACK / path for path in LORAS.values()]
    assert sum(file.stat().st_size for file in files) < 400_000
    prefixes = {next(iter(read_header(file).entries)).split(".")[0] for file in files}
    assert prefixes == {"transformer", "base_model"}
