"""Small builders that several test modules share: random models, LoRA files, plans of the tiny pack."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from goan_cli.files import sha256_of
from goan_cli.jobs.load import request_from_settings, settings_document
from goan_cli.lora.adapter import Shapes, read_adapter
from goan_cli.lora.bake import LoraFile
from goan_cli.lora.report import LoraSource
from goan_cli.model.config import TransformerConfig, read_config
from goan_cli.model.transformer import PackedTransformer
from goan_cli.packs.find import find_pack
from goan_cli.render.plan import RenderPlan, plan_renders

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "data" / "golden"
PARTS = (
    "transformer",
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "vae",
    "image_encoder",
    "feature_extractor",
)
# Two blocks of each kind at width 32: every module of the architecture is there.
SMALL = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=2,
    text_embed_dim=24,
    pooled_projection_dim=16,
    image_proj_dim=20,
    rope_axes_dim=(4, 6, 6),
)

# The embedded pack's architecture, and shapes of its blocks' linears, alone and fused.
TINY_CONFIG = read_config(find_pack("tiny").transformer)
TINY_SQUARE = (TINY_CONFIG.width, TINY_CONFIG.width)
TINY_MLP = (TINY_CONFIG.mlp_width, TINY_CONFIG.width)
TINY_QKV = (3 * TINY_CONFIG.width, TINY_CONFIG.width)
TINY_QKV_MLP = (3 * TINY_CONFIG.width + TINY_CONFIG.mlp_width, TINY_CONFIG.width)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in float64."""
    actual, expected = actual.detach(), expected.detach()
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def random_transformer(config: TransformerConfig = SMALL, seed: int = 0) -> PackedTransformer:
    """A transformer in float32 whose every parameter is random and not small."""
    generator = torch.Generator().manual_seed(seed)
    model = PackedTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model.eval().requires_grad_(requires_grad=False)


def write_config(folder: Path, config: TransformerConfig = SMALL) -> None:
    """The `config.json` of a transformer."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"_class_name": "HunyuanVideoTransformer3DModelPacked", **asdict(config)}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


def write_transformer(folder: Path, tensors: Mapping[str, Tensor], config: TransformerConfig = SMALL) -> Path:
    """A transformer part of one file with its configuration."""
    write_config(folder, config)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def factors(
    module: str, shape: Sequence[int], *, rank: int = 2, seed: int = 0, size: float = 0.1, alpha: float | None = None
) -> dict[str, Tensor]:
    """Random kohya-style factors of a module whose weight has this shape; `size` scales the change."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{module}.lora_down.weight": torch.randn((rank, *shape[1:]), generator=generator),
        f"{module}.lora_up.weight": torch.randn((shape[0], rank), generator=generator) * size,
    }
    if alpha is not None:
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """A LoRA file of these tensors."""
    written = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(written, path, metadata=dict(metadata) if metadata else None)
    return path


def lora_file(path: Path, shapes: Shapes, weight: float = 1.0) -> LoraFile:
    """A file matched with a base and hashed, as the engine does it."""
    return LoraFile(
        adapter=read_adapter(path, shapes), source=LoraSource(path=path, sha256=sha256_of(path), weight=weight)
    )


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name to shape."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def tiny_plan(folder: Path, name: str = "job", loras: Sequence[tuple[Path, float]] = (), **settings: Any) -> RenderPlan:
    """The plan of one small job (32 x 32, one section, two steps unless said otherwise) that writes to `folder`.

    Without the recipe in its files, in which paths stand: so the same job makes the same bytes in any folder.
    """
    image = folder / "start.png"
    if not image.exists():
        gradient = torch.arange(48 * 40 * 3, dtype=torch.float32).view(48, 40, 3) % 251
        Image.fromarray(gradient.to(torch.uint8).numpy()).save(image)
    keys = {
        "image": str(image),
        "prompt": "a red ball moves to the left",
        "size": [32, 32],
        "sections": 1,
        "steps": 2,
        "window": 2,
        "seed": 7,
        "output": {"dir": str(folder / "out"), "keep_latents": True},
        "loras": [{"path": str(path), "weight": weight} for path, weight in loras],
        **settings,
    }
    keys["output"] = {"metadata": False, **keys["output"]}
    requests, problems = request_from_settings(settings_document((), keys), name=name)
    (plan,) = plan_renders(requests, problems)
    return plan


def write_tiny_manifest(
    path: Path, *, family: str = "inverted", parts: Mapping[str, Path] = MappingProxyType({})
) -> Path:
    """A manifest of the tiny pack's parts, in another family or with some parts from elsewhere."""
    tiny = find_pack("tiny")
    where = {part: str(parts.get(part, getattr(tiny, part))) for part in PARTS}
    defaults = {"window": 2, "steps": 2, "resolution": 64}
    # JSON is YAML.
    path.write_text(json.dumps({"name": path.stem, "family": family, **where, "defaults": defaults}), encoding="utf-8")
    return path
