"""The recorded tensors of the public implementations, through the adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import adapter

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PACKED = GOLDEN / "packed"
LORA = GOLDEN / "lora"
RUNS: dict[str, Any] = json.loads((PACKED / "manifest.json").read_text())["runs"]
LORA_FILES: dict[str, Any] = json.loads((LORA / "manifest.json").read_text())["files"]
ENCODE: dict[str, Any] = json.loads((PACKED / "encode.json").read_text())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def transformer() -> Any:
    """The golden transformer."""
    return adapter.load_transformer(PACKED / "transformer")


@pytest.fixture(scope="module")
def vae() -> Any:
    """The golden VAE."""
    return adapter.load_vae(PACKED / "vae")


@pytest.mark.parametrize("case", ["even", "padded", "bare"])
def test_forward(transformer: Any, case: str) -> None:
    """One forward equals upstream's to 1e-5, with padding, and without any history."""
    tensors = {
        name.removeprefix(f"forward.{case}."): tensor
        for name, tensor in load_file(PACKED / "forward.safetensors").items()
        if name.startswith(f"forward.{case}.")
    }
    expected = tensors.pop("output")
    assert relative_error(adapter.transformer_forward(transformer, tensors), expected) < 1e-5


@pytest.mark.parametrize("name", RUNS)
def test_whole_render(transformer: Any, vae: Any, name: str) -> None:
    """Sections, latents, pixels and the steps that TeaCache computes are upstream's."""
    tensors, settings = load_file(PACKED / f"run_{name}.safetensors"), RUNS[name]
    given = {key: value for key, value in tensors.items() if key.startswith("conditioning.") or key == "start_latent"}
    result = adapter.run_sections(transformer, vae if "pixels" in tensors else None, given, settings)
    for number, section in enumerate(result["sections"]):
        assert relative_error(section, tensors[f"section.{number}"]) < 1e-3
    assert relative_error(result["latents"], tensors["latents"]) < 1e-3
    assert result["computed_steps"] == settings["computed_steps"]
    if "pixels" in tensors:
        # Recorded in half precision, which is what is left of the difference.
        assert result["pixels"].shape == tensors["pixels"].shape
        assert float((result["pixels"] - tensors["pixels"].float()).abs().max()) < 2e-3


@pytest.mark.parametrize("name", RUNS)
def test_sigmas(name: str) -> None:
    """The noise schedule is upstream's for every recorded run."""
    settings = RUNS[name]
    tokens = settings["window"] * (settings["height"] // 8) * (settings["width"] // 8) // 4
    actual = adapter.sigmas(settings["steps"], tokens, settings.get("shift"))
    torch.testing.assert_close(actual, torch.tensor(settings["sigmas"]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("number", range(len(ENCODE["prompts"])))
def test_prompt(number: int) -> None:
    """Prompts, the empty and the overlong one too, encode as upstream encodes them."""
    expected = load_file(PACKED / "encode.safetensors")
    llama, pooled = adapter.encode_prompt(PACKED, ENCODE["prompts"][number])
    assert llama.shape == expected[f"prompt.{number}.llama"].shape
    assert relative_error(llama, expected[f"prompt.{number}.llama"]) < 1e-5
    assert relative_error(pooled, expected[f"prompt.{number}.clip_pooled"]) < 1e-5


@pytest.mark.parametrize("number", range(len(ENCODE["images"])))
def test_image(number: int) -> None:
    """Crop, SigLIP features and VAE posterior are upstream's; the crop to the last pixel."""
    expected = load_file(PACKED / "encode.safetensors")
    result = adapter.encode_image(PACKED, PACKED / ENCODE["images"][number], 96, 64)
    assert torch.equal(result["pixels"], expected[f"image.{number}.cropped_96x64"])
    assert relative_error(result["siglip"], expected[f"image.{number}.siglip"]) < 1e-5
    assert relative_error(result["vae_mean"], expected[f"image.{number}.vae_mean"]) < 1e-5
    assert relative_error(result["vae_logvar"], expected[f"image.{number}.vae_logvar"]) < 1e-5


@pytest.mark.parametrize("name", LORA_FILES)
def test_lora(name: str) -> None:
    """A bake makes the change that the file's own tool makes, and leaves every other parameter alone."""
    base = load_file(LORA / "base" / "diffusion_pytorch_model.safetensors")
    expected = load_file(LORA / f"{name}.expected.safetensors")
    baked = adapter.bake(LORA / "base", [(LORA / f"{name}.safetensors", LORA_FILES[name]["weight"])])
    assert baked.keys() == base.keys()
    for parameter, change in expected.items():
        error = (baked[parameter] - base[parameter] - change).abs().max()
        assert float(error) <= 1e-5 * float(change.abs().max()), parameter
    untouched = base.keys() - expected.keys()
    assert all(torch.equal(baked[parameter], base[parameter]) for parameter in untouched)
