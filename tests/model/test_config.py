"""Transformer configurations: FramePack's are read, all others refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from goan_cli.errors import InvalidInput
from goan_cli.model.config import TransformerConfig, read_config
from tests.helpers import SMALL, write_config


def _with(folder: Path, **changes: Any) -> Path:
    write_config(folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}), encoding="utf-8")
    return folder


def test_reads_what_is_written(tmp_path: Path) -> None:
    """Every setting of a configuration comes back, the tuple among them."""
    write_config(tmp_path)
    assert read_config(tmp_path) == SMALL


def test_widths() -> None:
    """The token's width is heads times head size, and the feed-forward's four times that."""
    assert (TransformerConfig().width, TransformerConfig().mlp_width) == (3072, 12288)


@pytest.mark.parametrize("name", ["HunyuanVideoTransformer3DModelPacked", "HunyuanVideoFramepackTransformer3DModel"])
def test_both_class_names(tmp_path: Path, name: str) -> None:
    """Checkpoints name upstream's class or diffusers'; both are this architecture."""
    assert read_config(_with(tmp_path, _class_name=name, _diffusers_version="0.33.0.dev0")) == SMALL


def test_public_configuration(tmp_path: Path) -> None:
    """The fixed settings that public configurations spell out are accepted at FramePack's values."""
    fixed = {
        "patch_size": 2,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "guidance_embeds": True,
        "has_image_proj": True,
        "has_clean_x_embedder": True,
        "image_condition_type": None,
    }
    assert read_config(_with(tmp_path, **fixed)) == SMALL


def test_single_file_is_full_size(tmp_path: Path) -> None:
    """A single weight file carries no configuration: it is the full-size architecture."""
    file = tmp_path / "FramePackI2V_HY_bf16.safetensors"
    file.touch()
    assert read_config(file) == TransformerConfig()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
        ({"patch_size": 1}, "patch_size = 1"),
        ({"patch_size_t": 2}, "patch_size_t = 2"),
        ({"qk_norm": None}, "qk_norm = None"),
        ({"guidance_embeds": False}, "guidance_embeds = False"),
        ({"has_image_proj": False}, "has_image_proj = False"),
        ({"has_clean_x_embedder": False}, "has_clean_x_embedder = False"),
        ({"image_condition_type": "token_replace"}, "image_condition_type = 'token_replace'"),
        ({"attention_window": 7, "rotary": 1}, "unknown settings: attention_window, rotary"),
    ],
)
def test_other_models_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    """Another class, another value of a fixed setting or an unknown setting is refused by name."""
    with pytest.raises(InvalidInput) as caught:
        read_config(_with(tmp_path, **changes))
    assert told in caught.value.message
    assert str(tmp_path / "config.json") in caught.value.message


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7"])
def test_unreadable(tmp_path: Path, text: str | None) -> None:
    """A folder without a configuration, or with something else in its place, is refused by path."""
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"config\.json"):
        read_config(tmp_path)
