"""Other layouts of one LoRA change the same weights by the same amounts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from goan_cli.errors import LoraRefused
from goan_cli.files import sha256_of
from goan_cli.lora.adapter import read_adapter
from goan_cli.lora.bake import LoraFile, bake
from goan_cli.lora.convert import Layout, convert
from goan_cli.lora.inspection import inspect_lora
from goan_cli.lora.report import LoraSource
from tests.helpers import GOLDEN, shapes_of, write_lora

LORA = GOLDEN / "lora"
BASE = load_file(LORA / "base" / "diffusion_pytorch_model.safetensors")
SHAPES = shapes_of(BASE)
PLAIN = [
    name
    for name in json.loads((LORA / "manifest.json").read_text())["files"]
    if name.startswith(
        ("kohya", "tencent", "musubi_converted", "diffusion_pipe", "peft_framepack_metadata", "peft_framepack_rslora")
    )
]


def baked(path: Path) -> dict[str, Tensor]:
    """The base with a file baked in."""
    weights = {name: tensor.clone() for name, tensor in BASE.items()}
    source = LoraSource(path=path, sha256=sha256_of(path), weight=1.0)
    bake(weights, BASE.__getitem__, [LoraFile(adapter=read_adapter(path, SHAPES), source=source)])
    return weights


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    "layouts", [[Layout.COMFY], [Layout.DIFFUSERS], [Layout.COMFY, Layout.DIFFUSERS, Layout.COMFY]]
)
def test_the_change_stays(tmp_path: Path, name: str, layouts: list[Layout]) -> None:
    """Converted once, or there and back and there again, a file changes every weight as before."""
    path = source = LORA / f"{name}.safetensors"
    for number, layout in enumerate(layouts):
        path = tmp_path / f"{number}.safetensors"
        convert(
            read_adapter(source if number == 0 else tmp_path / f"{number - 1}.safetensors", SHAPES),
            SHAPES,
            layout,
            path,
        )
    first, last = baked(source), baked(path)
    for parameter, weight in first.items():
        scale = float((weight - BASE[parameter]).abs().max())
        assert float((last[parameter] - weight).abs().max()) <= 1e-6 * max(scale, 1.0), parameter
    keys = list(load_file(path))
    prefix = {Layout.COMFY: "diffusion_model.", Layout.DIFFUSERS: "transformer."}[layouts[-1]]
    assert all(key.startswith(prefix) and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)


def test_round_trips_do_not_grow(tmp_path: Path) -> None:
    """Factors put side by side for a fused module are taken apart again, rank for rank."""
    source = LORA / "kohya_framepack.safetensors"
    convert(read_adapter(source, SHAPES), SHAPES, Layout.COMFY, tmp_path / "a.safetensors")
    convert(read_adapter(tmp_path / "a.safetensors", SHAPES), SHAPES, Layout.DIFFUSERS, tmp_path / "b.safetensors")
    down = {key: tensor.shape[0] for key, tensor in load_file(tmp_path / "b.safetensors").items() if "lora_A" in key}
    assert set(down.values()) == {4}


def test_narrow_dtypes_stay_where_they_hold_the_values(tmp_path: Path) -> None:
    """fp16 factors stay fp16 as long as their scale loses nothing."""
    convert(
        read_adapter(LORA / "tencent_i2v_fp16.safetensors", SHAPES),
        SHAPES,
        Layout.DIFFUSERS,
        tmp_path / "a.safetensors",
    )
    assert {tensor.dtype for tensor in load_file(tmp_path / "a.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("name", "layout", "reason"),
    [
        ("lycoris_loha", Layout.COMFY, "LoHa, not plain LoRA"),
        ("lycoris_full", Layout.DIFFUSERS, "not plain LoRA"),
        ("peft_framepack_dora", Layout.DIFFUSERS, "not plain LoRA"),
        ("peft_framepack_bias_weight_0_6", Layout.DIFFUSERS, "not plain LoRA"),
        ("peft_framepack_conv", Layout.COMFY, "convolution"),
    ],
)
def test_what_cannot_be_converted(tmp_path: Path, name: str, layout: Layout, reason: str) -> None:
    """Anything but plain LoRA of linears is refused, and nothing is written."""
    with pytest.raises(LoraRefused, match=reason):
        convert(read_adapter(LORA / f"{name}.safetensors", SHAPES), SHAPES, layout, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_converted_file_is_used_without_asking(tmp_path: Path) -> None:
    """What says which model a file is for stays, and is stated where nothing said it."""
    convert(
        read_adapter(LORA / "kohya_framepack.safetensors", SHAPES), SHAPES, Layout.DIFFUSERS, tmp_path / "a.safetensors"
    )
    assert "hunyuan" in (inspect_lora(tmp_path / "a.safetensors").trained_for or "")


def test_targets_that_do_not_act_are_left_out(tmp_path: Path) -> None:
    """A fused file in which only one target acts becomes a file of that target alone."""
    down, up = torch.randn(2, 32), torch.zeros(96, 2)
    up[:32] = torch.randn(32, 2)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    source = write_lora(tmp_path / "q.safetensors", {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up})
    convert(read_adapter(source, SHAPES), SHAPES, Layout.DIFFUSERS, tmp_path / "out.safetensors")
    assert read_adapter(tmp_path / "out.safetensors", SHAPES).targets == {"transformer_blocks.0.attn.to_q"}
    nothing = write_lora(tmp_path / "0.safetensors", {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": 0 * up})
    with pytest.raises(LoraRefused, match="changes nothing"):
        convert(read_adapter(nothing, SHAPES), SHAPES, Layout.DIFFUSERS, tmp_path / "none.safetensors")
