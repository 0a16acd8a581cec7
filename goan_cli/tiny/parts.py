"""Writes the tiny pack's parts in the real repositories' layout: trained weights, and frozen random encoders."""

import json
import shutil
from dataclasses import asdict
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

from goan_cli.jobs.sections import Family
from goan_cli.model.config import TransformerConfig
from goan_cli.model.transformer import PackedTransformer
from goan_cli.tiny.tokenizers import write_clip_tokenizer, write_llama_tokenizer
from goan_cli.tiny.training import SEED

PACK = Path(__file__).parent / "pack"
CONFIG = TransformerConfig(
    num_attention_heads=4,
    attention_head_dim=24,
    num_layers=2,
    num_single_layers=4,
    num_refiner_layers=2,
    mlp_ratio=2.0,
    text_embed_dim=48,
    pooled_projection_dim=32,
    image_proj_dim=32,
    rope_axes_dim=(8, 8, 8),
)
WINDOW = 3
TRANSFORMERS = {Family.INVERTED: "transformer", Family.F1: "transformer_f1"}
LORAS = {"dusk": "loras/dusk.safetensors", "sway": "loras/sway/adapter_model.safetensors"}
_MANIFESTS = {Family.INVERTED: "pack.yaml", Family.F1: "tiny-f1.yaml"}
_NAMES = {Family.INVERTED: "tiny", Family.F1: "tiny-f1"}


def write_encoders(folder: Path) -> None:
    """Write manifests, tokenizers and the frozen encoders into `folder`, from a seed."""
    torch.manual_seed(SEED)
    for part in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / part, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_llama_tokenizer(folder / "tokenizer")
    clip_vocabulary = write_clip_tokenizer(folder / "tokenizer_2")
    _write_text_encoders(folder, vocabulary, clip_vocabulary)
    _write_image_encoder(folder)
    for family, manifest in _MANIFESTS.items():
        _write_manifest(folder / manifest, family)


def write_autoencoder(folder: Path, vae: AutoencoderKLHunyuanVideo) -> None:
    """Write a trained autoencoder, in half precision, as the pack's `vae`; its own weights are rounded so too."""
    vae.half().save_pretrained(str(folder / "vae"))
    vae.float()


def write_transformer(folder: Path, model: PackedTransformer, family: Family) -> None:
    """Write a trained transformer, in half precision, as the pack's part of its family."""
    part = folder / TRANSFORMERS[family]
    part.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = {
        "_class_name": "HunyuanVideoTransformer3DModelPacked",
        **asdict(CONFIG),
        "patch_size": 2,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "guidance_embeds": True,
        "has_image_proj": True,
        "has_clean_x_embedder": True,
    }
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _write_manifest(file: Path, family: Family) -> None:
    manifest = {
        "version": 1,
        "name": _NAMES[family],
        "family": family.value,
        "transformer": TRANSFORMERS[family],
        "defaults": {"window": WINDOW, "steps": 8, "resolution": 64},
    }
    note = "# An embedded tiny pack: FramePack's parts at small widths. Written by goan_cli/tiny/parts.py.\n"
    file.write_text(note + yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")


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
    # Each row stays near its own token's embedding, stirred a little by the words before it: captions stay apart.
    _spread(llama, 0.05)
    nn.init.normal_(llama.embed_tokens.weight, std=1.0)
    llama.half().save_pretrained(str(folder / "text_encoder"))
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
    clip.half().save_pretrained(str(folder / "text_encoder_2"))


def _write_image_encoder(folder: Path) -> None:
    size = {"height": 64, "width": 64}
    siglip = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=CONFIG.image_proj_dim,
            intermediate_size=2 * CONFIG.image_proj_dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=size["height"],
            patch_size=32,
            vision_use_head=False,
        )
    )
    siglip.half().save_pretrained(str(folder / "image_encoder"))
    half = [0.5, 0.5, 0.5]
    processor = SiglipImageProcessorPil(size=size, image_mean=half, image_std=half, resample=3)
    processor.save_pretrained(str(folder / "feature_extractor"))


def _spread(model: nn.Module, deviation: float) -> None:
    """Normal weights of one deviation in every matrix, scaled down by fan-in as usual."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=max(deviation, 1.0 / fan_in**0.5))
