"""The packaged configurations, which single files are read with, build the published models."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, LlamaModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from goan_cli.model.config import TransformerConfig, read_config
from goan_cli.packs.find import FULL_SIZE, expected_size, survey_pack
from goan_cli.packs.manifest import WEIGHTED
from goan_cli.render.loading import expected_shapes, read_configuration
from tests.helpers import GOLDEN


def _config(part: str) -> Any:
    return read_configuration(part, FULL_SIZE / f"{part}.json")


def _shapes(part: str) -> dict[str, tuple[int, ...]]:
    if part == "transformer":
        listed = json.loads((GOLDEN / "full_size_keys.json").read_text())
        return {name: tuple(shape) for name, shape in listed.items()}
    return expected_shapes(part, FULL_SIZE / f"{part}.json")


@pytest.mark.parametrize("part", WEIGHTED)
def test_sizes(part: str) -> None:
    """Two bytes for each parameter are what the shipped manifest says is to be downloaded, within a hundredth."""
    (found,) = (each for each in survey_pack("framepack-i2v").parts if each.part == part)
    size = 2 * sum(math.prod(shape) for shape in _shapes(part).values())
    assert abs(expected_size(found) - size) < 0.01 * size


def test_transformer() -> None:
    """The transformer's configuration says what a single file is taken for without one."""
    assert read_config(FULL_SIZE / "transformer.json") == TransformerConfig()


def test_llama() -> None:
    """Llama 3 of 8 B parameters with LLaVA's vocabulary, and its own base of rotary frequencies."""
    config, shapes = _config("text_encoder"), _shapes("text_encoder")
    assert shapes["embed_tokens.weight"] == (128320, 4096)
    assert shapes["layers.31.mlp.down_proj.weight"] == (4096, 14336)
    assert shapes["layers.0.self_attn.q_proj.weight"] == (32 * 128, 4096)
    assert shapes["layers.0.self_attn.k_proj.weight"] == (8 * 128, 4096)
    assert "layers.0.self_attn.q_proj.bias" not in shapes
    assert "layers.32.input_layernorm.weight" not in shapes
    assert sum(math.prod(shape) for shape in shapes.values()) == 7_505_186_816
    assert (config.hidden_act, config.rms_norm_eps, config.max_position_embeddings) == ("silu", 1e-5, 8192)


def test_llama_frequencies() -> None:
    """The base 500000 arrives where the class makes its frequencies from."""
    config = _config("text_encoder")
    config.num_hidden_layers = 1
    config.vocab_size = 128
    config.intermediate_size = 16
    config.pad_token_id = None
    rotary = LlamaModel(config).rotary_emb
    expected = 1 / 500_000 ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    torch.testing.assert_close(rotary.inv_freq.double(), expected, rtol=1e-6, atol=0)
    assert rotary.attention_scaling == 1.0


def test_clip() -> None:
    """CLIP-L: width 768, twelve layers, 77 positions."""
    config, shapes = _config("text_encoder_2"), _shapes("text_encoder_2")
    assert shapes["embeddings.token_embedding.weight"] == (49408, 768)
    assert shapes["embeddings.position_embedding.weight"] == (77, 768)
    assert shapes["encoder.layers.11.mlp.fc1.weight"] == (3072, 768)
    assert "encoder.layers.12.mlp.fc1.weight" not in shapes
    assert (config.num_attention_heads, config.hidden_act, config.layer_norm_eps) == (12, "quick_gelu", 1e-5)


@torch.inference_mode()
def test_clip_pooling() -> None:
    """The pooled vector is the one at the highest token number, which is CLIP-L's end of text."""
    config = _config("text_encoder_2")
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 24, 8, 1
    model = CLIPTextModel(config).eval()
    ids = torch.tensor([[49406, 320, 1125, 539, 49407, 49407, 49407]])
    made = model(ids)
    assert torch.equal(made.pooler_output, made.last_hidden_state[:, 4])
    assert not torch.equal(made.last_hidden_state[:, 4], made.last_hidden_state[:, 5])


def test_siglip() -> None:
    """SigLIP-SO400M: 729 tokens of width 1152 from a picture of 384 pixels."""
    config, shapes = _config("image_encoder"), _shapes("image_encoder")
    assert shapes["embeddings.position_embedding.weight"] == (729, 1152)
    assert shapes["embeddings.patch_embedding.weight"] == (1152, 3, 14, 14)
    assert shapes["encoder.layers.26.mlp.fc1.weight"] == (4304, 1152)
    assert "encoder.layers.27.mlp.fc1.weight" not in shapes
    assert shapes["head.probe"] == (1, 1, 1152)
    assert (config.num_attention_heads, config.hidden_act, config.layer_norm_eps) == (16, "gelu_pytorch_tanh", 1e-6)


def test_vae() -> None:
    """HunyuanVideo's VAE: 16 channels, 8 x 8 pixels and 4 frames a latent, scaled by 0.476986."""
    config, shapes = _config("vae"), _shapes("vae")
    assert config["scaling_factor"] == 0.476986
    assert shapes["quant_conv.weight"] == (32, 32, 1, 1, 1)
    assert shapes["decoder.conv_in.conv.weight"] == (512, 16, 3, 3, 3)
    assert shapes["decoder.up_blocks.3.resnets.2.conv2.conv.weight"] == (128, 128, 3, 3, 3)
    assert shapes["encoder.down_blocks.0.resnets.1.conv1.conv.weight"] == (128, 128, 3, 3, 3)
    assert "encoder.down_blocks.3.downsamplers.0.conv.conv.weight" not in shapes
    assert (config["spatial_compression_ratio"], config["temporal_compression_ratio"]) == (8, 4)


def test_feature_extractor() -> None:
    """The packaged processor makes 384 x 384 pixels, bicubic, in [-1, 1]."""
    processor = SiglipImageProcessorPil.from_pretrained(str(FULL_SIZE / "feature_extractor"), local_files_only=True)
    assert processor.resample == 3
    levels = np.zeros((48, 64, 3), dtype=np.uint8)
    levels[:, 32:] = 255
    values = processor(images=levels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert values.shape == (1, 3, 384, 384)
    assert (float(values.min()), float(values.max())) == (-1.0, 1.0)
