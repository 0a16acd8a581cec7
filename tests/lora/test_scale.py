"""PEFT's metadata: how strong a module is, and what cannot be trusted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goan_cli.errors import LoraRefused
from goan_cli.lora.adapter import read_adapter
from goan_cli.lora.scale import METADATA_KEY, PeftScale, read_peft_scale
from goan_cli.render.lora_files import bake_in_memory
from tests.helpers import TINY_SQUARE, factors, write_lora

KEY = "lora_unet_transformer_blocks_0_attn_to_q"


def _read(**config: Any) -> PeftScale | None:
    return read_peft_scale(Path("a.safetensors"), {METADATA_KEY: json.dumps(config)})


def _scale(module: str, rank: int, **config: Any) -> float:
    scale = _read(**config)
    assert scale is not None
    return scale.scale((module,), rank)


@pytest.mark.parametrize(
    ("config", "module", "rank", "expected"),
    [
        pytest.param({"lora_alpha": 8}, "x", 4, 2.0, id="alpha over rank"),
        pytest.param({"lora_alpha": 8, "r": 999}, "x", 4, 2.0, id="the rank is the tensors'"),
        pytest.param({"lora_alpha": 8, "use_rslora": False}, "x", 4, 2.0, id="rslora off"),
        pytest.param({"lora_alpha": 8, "use_rslora": True}, "x", 4, 4.0, id="rslora: over the root"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": {}}, "x", 4, 2.0, id="no exceptions"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": None}, "x", 4, 2.0, id="null exceptions"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, "b.0.attn.to_q", 4, 0.5, id="by last name"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": {"b.0.attn.to_q": 2}}, "b.0.attn.to_q", 4, 0.5, id="whole"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": {"o_q": 2}}, "b.0.attn.to_q", 4, 2.0, id="not by a part"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": {"to_q": 2}}, "b.0.attn.to_q.x", 4, 2.0, id="not inside"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": {r"b\.\d+\.k": 2}}, "b.12.k", 4, 0.5, id="expression"),
        pytest.param({"lora_alpha": 8, "alpha_pattern": {"^b.0.k": 2}}, "b.0.k", 4, 0.5, id="anchored expression"),
        pytest.param(
            {"lora_alpha": 8, "alpha_pattern": {"k": 2, "b.0.k": 4}}, "b.0.k", 4, 0.5, id="the first that fits"
        ),
        pytest.param(
            {"lora_alpha": 8, "alpha_pattern": {"to_q": 2}, "use_rslora": True}, "a.to_q", 4, 1.0, id="with rslora"
        ),
        pytest.param(
            {"transformer.lora_alpha": 8, "text_encoder.lora_alpha": 99}, "x", 4, 2.0, id="written by a pipeline"
        ),
    ],
)
def test_scale(config: dict[str, Any], module: str, rank: int, expected: float) -> None:
    """The scale is PEFT's own for lora_alpha, rsLoRA and the patterns."""
    assert _scale(module, rank, **config) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.01, 1000), rank=st.integers(1, 512), rslora=st.booleans())
def test_any_alpha_and_rank(alpha: float, rank: int, rslora: bool) -> None:
    """The scale is alpha over rank, or over its root with rsLoRA."""
    expected = alpha / (math.sqrt(rank) if rslora else rank)
    assert _scale("x", rank, lora_alpha=alpha, use_rslora=rslora) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"format": "pt", "ss_network_alpha": "4"},
        {METADATA_KEY: "{}"},
        {METADATA_KEY: json.dumps({"text_encoder.lora_alpha": 4})},
    ],
)
def test_silent_metadata(metadata: dict[str, str]) -> None:
    """Metadata that says nothing of the transformer's alpha leaves the scale to the tensors."""
    assert read_peft_scale(Path("a.safetensors"), metadata) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not JSON",
        '{"lora_alpha": 8',
        "[1, 2]",
        "7",
        "null",
        '{"lora_alpha": null}',
        '{"lora_alpha": "much"}',
        '{"lora_alpha": [8]}',
        '{"lora_alpha": 8, "alpha_pattern": [1]}',
        '{"lora_alpha": 8, "alpha_pattern": {"to_q": null}}',
        '{"lora_alpha": 8, "alpha_pattern": {"(": 4}}',
    ],
)
def test_broken_metadata_is_refused(text: str) -> None:
    """Metadata that cannot be read is refused by its key, since the strength would be a guess."""
    with pytest.raises(LoraRefused, match=METADATA_KEY):
        read_peft_scale(Path("a.safetensors"), {METADATA_KEY: text})


@pytest.mark.parametrize("initialisation", ["pissa", "PiSSA", "pissa_niter_16", "olora", "OLoRA"])
def test_initialisations_that_alter_the_base(initialisation: str) -> None:
    """PiSSA and OLoRA change the base weights at the start, so their factors alone are not the change."""
    with pytest.raises(LoraRefused, match="alters the base weights"):
        _read(lora_alpha=8, init_lora_weights=initialisation)


def test_pissa_is_refused_without_alpha() -> None:
    """The initialisation is judged whether or not the metadata states an alpha."""
    with pytest.raises(LoraRefused, match="alters the base weights"):
        _read(init_lora_weights="pissa")


@pytest.mark.parametrize("initialisation", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_harmless_initialisations(initialisation: object) -> None:
    """Initialisations that leave the base weights alone are accepted."""
    assert _scale("x", 4, lora_alpha=8, init_lora_weights=initialisation) == 2.0


def test_finetrainers_metadata() -> None:
    """finetrainers writes the same under a key of its own."""
    scale = read_peft_scale(Path("a.safetensors"), {"lora_config": json.dumps({"r": 4, "lora_alpha": 64})})
    assert scale is not None
    assert scale.scale(("x",), 4) == 16.0


def test_configuration_beside_the_file(tmp_path: Path) -> None:
    """PEFT's adapter_config.json counts for its own file or an only one; the file's metadata is stronger."""
    path = write_lora(tmp_path / "mine.safetensors", factors(KEY, TINY_SQUARE))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 6}))
    beside = read_peft_scale(path, {})
    assert beside is not None
    assert beside.scale(("x",), 2) == 3.0
    own = read_peft_scale(path, {METADATA_KEY: json.dumps({"lora_alpha": 2})})
    assert own is not None
    assert own.lora_alpha == 2.0
    peft = write_lora(tmp_path / "adapter_model.safetensors", factors(KEY, TINY_SQUARE))
    assert read_peft_scale(path, {}) is None
    assert read_peft_scale(peft, {}) == beside


def test_configuration_is_part_of_the_recipe(tmp_path: Path) -> None:
    """The same factors under another configuration are another recipe, baked with the other scale."""
    path = write_lora(tmp_path / "adapter_model.safetensors", factors(KEY, TINY_SQUARE))
    identities, norms = [], []
    for alpha in (2, 6):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
        report = bake_in_memory("tiny", [{"path": str(path)}])
        identities.append(report.recipe)
        norms.append(report.parameters[0].change_norm)
    assert identities[0] != identities[1]
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-5)


def test_dora_without_magnitudes(tmp_path: Path) -> None:
    """A file that says DoRA and holds none of its magnitudes is not applied as plain LoRA."""
    path = write_lora(
        tmp_path / "a.safetensors",
        factors(KEY, (8, 8)),
        {METADATA_KEY: json.dumps({"lora_alpha": 1, "use_dora": True})},
    )
    with pytest.raises(LoraRefused, match="holds no magnitudes"):
        read_adapter(path, {"transformer_blocks.0.attn.to_q.weight": (8, 8)})


def test_alpha_zero_is_noted(tmp_path: Path) -> None:
    """Alpha 0 switches a module off, which is worth a word."""
    tensors = factors(KEY, (8, 8), alpha=0.0) | factors("lora_unet_proj_out", (8, 8), alpha=1.0)
    base = {"transformer_blocks.0.attn.to_q.weight": (8, 8), "proj_out.weight": (8, 8)}
    (warning,) = read_adapter(write_lora(tmp_path / "a.safetensors", tensors), base).warnings
    assert warning.startswith("alpha is 0 in 1 of its modules")
