"""Builds the embedded tiny pack: the real repositories' layout and classes at small widths, seeded weights.

Run as `python -m goan_cli.tiny.build` (`make tiny`); the result lies in `goan_cli/tiny/pack` and ships in the wheel.
"""

import json
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from goan_cli.model.config import TransformerConfig
from goan_cli.model.transformer import PackedTransformer
from goan_cli.tiny.tokenizers import write_clip_tokenizer, write_llama_tokenizer

SEED = 20_26_11
PACK = Path(__file__).parent / "pack"
CONFIG = TransformerConfig(
    num_attention_heads=4,
    attention_head_dim=16,
    num_layers=2,
    num_single_layers=4,
    num_refiner_layers=2,
    text_embed_dim=48,
    pooled_projection_dim=32,
    image_proj_dim=32,
    rope_axes_dim=(4, 6, 6),
)
_VAE_WIDTHS = (8, 16, 16, 16)


def build(folder: Path = PACK) -> None:
    """Write the whole pack into `folder`, replacing what is there."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    torch.manual_seed(SEED)
    vocabulary = write_llama_tokenizer(folder / "tokenizer")
    clip_vocabulary = write_clip_tokenizer(folder / "tokenizer_2")
    _write_transformer(folder / "transformer")
    _write_vae(folder / "vae")
    _write_text_encoders(folder, vocabulary, clip_vocabulary)
    _write_image_encoder(folder)
    manifest = {
        "version": 1,
        "name": "tiny",
        "family": "inverted",
        "defaults": {"window": 3, "steps": 8, "resolution": 64},
    }
    note = "# The embedded tiny pack: FramePack's parts at small widths. Written by goan_cli/tiny/build.py.\n"
    (folder / "pack.yaml").write_text(note + yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")


def _write_transformer(folder: Path) -> None:
    folder.mkdir()
    model = PackedTransformer(CONFIG)
    _spread(model, 0.12)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = {
        "_class_name": "HunyuanVideoTransformer3DModelPacked",
        "in_channels": CONFIG.in_channels,
        "out_channels": CONFIG.out_channels,
        "num_attention_heads": CONFIG.num_attention_heads,
        "attention_head_dim": CONFIG.attention_head_dim,
        "num_layers": CONFIG.num_layers,
        "num_single_layers": CONFIG.num_single_layers,
        "num_refiner_layers": CONFIG.num_refiner_layers,
        "mlp_ratio": CONFIG.mlp_ratio,
        "patch_size": 2,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "guidance_embeds": True,
        "text_embed_dim": CONFIG.text_embed_dim,
        "pooled_projection_dim": CONFIG.pooled_projection_dim,
        "rope_theta": CONFIG.rope_theta,
        "rope_axes_dim": list(CONFIG.rope_axes_dim),
        "has_image_proj": True,
        "image_proj_dim": CONFIG.image_proj_dim,
        "has_clean_x_embedder": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_vae(folder: Path) -> None:
    vae = AutoencoderKLHunyuanVideo(block_out_channels=_VAE_WIDTHS, layers_per_block=1, norm_num_groups=4)
    vae.save_pretrained(str(folder))


def _write_text_encoders(folder: Path, vocabulary: int, clip_vocabulary: int) -> None:
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=CONFIG.text_embed_dim,
            intermediate_size=2 * CONFIG.text_embed_dim,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=5,
        )
    )
    # Strong enough weights that different prompts give clearly different features.
    _spread(llama, 0.3)
    llama.save_pretrained(str(folder / "text_encoder"))
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip_vocabulary,
            hidden_size=CONFIG.pooled_projection_dim,
            intermediate_size=2 * CONFIG.pooled_projection_dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=clip_vocabulary - 2,
            eos_token_id=clip_vocabulary - 1,
            pad_token_id=clip_vocabulary - 1,
        )
    )
    _spread(clip, 0.3)
    clip.save_pretrained(str(folder / "text_encoder_2"))


def _write_image_encoder(folder: Path) -> None:
    size = {"height": 64, "width": 64}
    siglip = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=CONFIG.image_proj_dim,
            intermediate_size=2 * CONFIG.image_proj_dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=size["height"],
            patch_size=16,
            vision_use_head=False,
        )
    )
    siglip.save_pretrained(str(folder / "image_encoder"))
    half = [0.5, 0.5, 0.5]
    processor = SiglipImageProcessorPil(size=size, image_mean=half, image_std=half, resample=3)
    processor.save_pretrained(str(folder / "feature_extractor"))


def _spread(model: nn.Module, deviation: float) -> None:
    """Normal weights of one deviation in every matrix, scaled down by fan-in as usual."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=max(deviation, 1.0 / fan_in**0.5))


if __name__ == "__main__":
    build()
