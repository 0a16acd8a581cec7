"""What `goan lora inspect` finds in a header."""

from pathlib import Path

import pytest
import torch

from goan_cli.lora.inspection import inspect_lora
from tests.helpers import GOLDEN, factors, write_lora

LORA = GOLDEN / "lora"


@pytest.mark.parametrize(
    ("name", "layout", "algorithm", "alphas"),
    [
        ("kohya_framepack", "A", "LoRA", (1.0, 1.0)),
        ("kohya_hunyuan", "B", "LoRA", (2.0, 2.0)),
        ("kohya_hunyuan_all_linears", "B", "LoRA", (3.0, 3.0)),
        ("diffusion_pipe", "C", "LoRA", None),
        ("musubi_converted_comfy", "D", "LoRA", None),
        ("peft_framepack_metadata", "E", "LoRA", None),
        ("peft_framepack_dora", "E", "LoRA with DoRA", None),
        ("tencent_i2v_fp16", "F", "LoRA", (3.0, 3.0)),
        ("musubi_loha", "I", "LoHa", (2.0, 2.0)),
        ("musubi_lokr", "I", "LoKr", (2.0, 4.0)),
        ("lycoris_full", "I", "full difference", None),
        ("lycoris_dora", "I", "LoRA with DoRA", (2.0, 2.0)),
    ],
)
def test_recorded_files(name: str, layout: str, algorithm: str, alphas: tuple[float, float] | None) -> None:
    """The layouts, algorithms and alphas of files that the real tools wrote are told right."""
    found = inspect_lora(LORA / f"{name}.safetensors")
    assert (found.layout, found.algorithms, found.alphas) == (layout, (algorithm,), alphas)
    assert found.refusal is None
    assert found.targets is None
    assert sum(family.modules for family in found.families) > 0


def test_families_gather_blocks(tmp_path: Path) -> None:
    """Modules of one name are one family, with the range of its blocks and ranks."""
    tensors = factors("lora_unet_double_blocks_0_img_attn_proj", (8, 8), rank=2, alpha=1.0)
    tensors |= factors("lora_unet_double_blocks_7_img_attn_proj", (8, 8), rank=4, alpha=16.0)
    found = inspect_lora(write_lora(tmp_path / "a.safetensors", tensors, {"ss_base_model_version": "hunyuan"}))
    (family,) = found.families
    assert (family.name, family.modules, family.blocks, family.ranks) == (
        "double_blocks_N_img_attn_proj",
        2,
        (0, 7),
        (2, 4),
    )
    assert (found.alphas, found.ranks, found.trained_for) == ((1.0, 16.0), (2, 4), "hunyuan")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_alpha_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    """Alphas are read whatever their dtype."""
    tensors = factors("lora_unet_proj_out", (8, 8)) | {"lora_unet_proj_out.alpha": torch.tensor(5, dtype=dtype)}
    assert inspect_lora(write_lora(tmp_path / "a.safetensors", tensors)).alphas == (5.0, 5.0)


def test_against_a_model(tmp_path: Path) -> None:
    """With a model, the modules that change are counted, or the refusal is told."""
    base = {"proj_out.weight": (8, 8)}
    good = write_lora(tmp_path / "good.safetensors", factors("lora_unet_proj_out", (8, 8)))
    assert inspect_lora(good, base).targets == 1
    wide = inspect_lora(write_lora(tmp_path / "wide.safetensors", factors("lora_unet_proj_out", (9, 8))), base)
    assert wide.refusal is not None
    assert "proj_out is 8 x 8" in wide.refusal
