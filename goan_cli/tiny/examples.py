"""Builds what the quick start needs beside the pack: a start image and a small LoRA for the tiny model.

Run as `python -m goan_cli.tiny.examples FOLDER` (`make tiny` does).
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.tiny.build import PACK, SEED

_RANK = 4
_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "proj_mlp",
    "proj_out",
)


def write_start_image(path: Path) -> None:
    """A red ball on a blue gradient, 160 x 120, so that the quick start shows a crop."""
    width, height, scale = 160, 120, 4
    image = Image.new("RGB", (width * scale, height * scale))
    draw = ImageDraw.Draw(image)
    for y in range(height * scale):
        share = y / (height * scale)
        draw.line(
            [(0, y), (width * scale, y)],
            fill=(round(40 + 50 * share), round(70 + 70 * share), round(150 + 60 * share)),
        )
    centre, radius = (62 * scale, 62 * scale), 24 * scale
    draw.ellipse([centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius], fill=(214, 48, 40))
    image.resize((width, height), Image.Resampling.LANCZOS).save(path, optimize=True)


def write_demo_lora(path: Path) -> None:
    """A rank-4 LoRA in musubi-tuner's layout on the tiny transformer's block linears, seeded noise for now."""
    generator = torch.Generator().manual_seed(SEED + 1)
    tensors = {}
    for name, entry in read_checkpoint(PACK / "transformer").entries.items():
        module = name.removesuffix(".weight")
        if "transformer_blocks." not in name or module == name or not module.endswith(_TARGETS):
            continue
        key = "lora_unet_" + module.replace(".", "_")
        outputs, inputs = entry.shape
        tensors[f"{key}.lora_down.weight"] = torch.randn((_RANK, inputs), generator=generator) / inputs**0.5
        tensors[f"{key}.lora_up.weight"] = torch.randn((outputs, _RANK), generator=generator) * 0.02
        tensors[f"{key}.alpha"] = torch.tensor(float(_RANK))
    save_file(tensors, path, metadata={"ss_network_module": "networks.lora", "ss_base_model_version": "framepack"})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_start_image(folder / "start.png")
    write_demo_lora(folder / "demo-lora.safetensors")
