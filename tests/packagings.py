"""The golden pack's parts re-packed in every way that users have them, bit for bit the same numbers.

Each packaging is written down from the side of its tool, without the tables that read it.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers import GOLDEN, PARTS

PACKED = GOLDEN / "packed"
WEIGHTED = ("transformer", "text_encoder", "text_encoder_2", "vae", "image_encoder")
Tensors = dict[str, Tensor]
# A part as a manifest has it.
Entry = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Packaging:
    """A part as one file: `renamed` are its tensors as they are called there, `beside` what else the file holds."""

    part: str
    renamed: Callable[[Tensors], Tensors]
    beside: tuple[tuple[str, Tensor], ...] = ()


def golden_tensors(part: str) -> Tensors:
    """The golden part's tensors, by their names in the classes."""
    (file,) = (PACKED / part).glob("*.safetensors")
    return load_file(file)


def _under(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def _values(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that would be seen if they got where they do not belong."""
    return torch.full(shape, 7).to(dtype)


def _without_head(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: each for name, each in tensors.items() if not name.startswith("head.")}


def _ldm(*, convolutions: bool, prefix: str = "") -> Callable[[Tensors], Tensors]:
    def renamed(tensors: Tensors) -> Tensors:
        blocks = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"decoder\.up_blocks\.(\d+)", name)))
        made = {}
        for name, tensor in tensors.items():
            linear = convolutions and "attentions" in name and tensor.dim() == 2
            made[prefix + ldm_name(name, blocks)] = tensor[..., None, None, None] if linear else tensor
        return made

    return renamed


def ldm_name(name: str, blocks: int) -> str:
    """A tensor of diffusers' HunyuanVideo VAE, of a decoder with so many blocks, as ComfyUI calls it."""
    words = name.split(".")
    if words[1:2] == ["mid_block"]:
        words[1:4] = ["mid", f"block_{int(words[3]) + 1}" if words[2] == "resnets" else "attn_1"]
    elif words[1:2] in (["down_blocks"], ["up_blocks"]):
        number = int(words[2]) if words[1] == "down_blocks" else blocks - 1 - int(words[2])
        kind = {"resnets": "block", "downsamplers": "downsample", "upsamplers": "upsample"}[words[3]]
        words[1:5] = [words[1].removesuffix("_blocks"), str(number), kind, *([words[4]] if kind == "block" else [])]
    text = ".".join(words)
    for diffusers, ldm in (
        ("to_out.0", "proj_out"),
        ("group_norm", "norm"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
        *((f"attn_1.to_{letter}", f"attn_1.{letter}") for letter in "qkv"),
    ):
        text = text.replace(diffusers, ldm)
    return text


_HEAD = ("lm_head.weight", _values(504, 48))
_TOKENIZER = ("tokenizer", _values(4096, dtype=torch.uint8))
_VISION = (
    ("vision_tower.vision_model.embeddings.class_embedding", _values(40)),
    ("vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight", _values(40, 40)),
    ("multi_modal_projector.linear_1.weight", _values(48, 40)),
)
_JOINT_CLIP = (("text_projection.weight", _values(32, 32)), ("logit_scale", _values()))
_WHOLE_CLIP = (
    *_JOINT_CLIP,
    ("vision_model.embeddings.class_embedding", _values(40)),
    ("vision_model.encoder.layers.0.mlp.fc1.weight", _values(64, 40)),
    ("visual_projection.weight", _values(32, 40)),
)
_WHOLE_SIGLIP = (
    ("text_model.embeddings.token_embedding.weight", _values(32, 40)),
    ("text_model.encoder.layers.0.mlp.fc1.weight", _values(80, 40)),
    ("text_model.head.weight", _values(40, 40)),
    ("logit_scale", _values(1)),
    ("logit_bias", _values(1)),
)


def _positions(count: int) -> Tensor:
    return torch.arange(count)[None].flip(1).contiguous()


def _at(prefix: str, tensors: tuple[tuple[str, Tensor], ...]) -> tuple[tuple[str, Tensor], ...]:
    return tuple((prefix + name, tensor) for name, tensor in tensors)


SINGLE_FILES: Mapping[str, Packaging] = {
    "transformer: one file": Packaging(part="transformer", renamed=_under("")),
    "Llama: one file": Packaging(part="text_encoder", renamed=_under("")),
    "Llama: ComfyUI": Packaging(
        part="text_encoder",
        renamed=_under("model."),
        beside=(_HEAD, _TOKENIZER, ("model.layers.0.self_attn.rotary_emb.inv_freq", _values(6))),
    ),
    "Llama: ComfyUI with the image encoder": Packaging(
        part="text_encoder", renamed=_under("model."), beside=(_HEAD, _TOKENIZER, *_VISION)
    ),
    "Llama: LLaVA of transformers before 4.52": Packaging(
        part="text_encoder",
        renamed=_under("language_model.model."),
        beside=(*_at("language_model.", (_HEAD,)), *_VISION),
    ),
    "Llama: LLaVA of transformers since": Packaging(
        part="text_encoder", renamed=_under("model.language_model."), beside=(_HEAD, *_at("model.", _VISION))
    ),
    "Llama: LLaVA without its language head": Packaging(
        part="text_encoder", renamed=_under("language_model."), beside=_VISION
    ),
    "CLIP: one file": Packaging(part="text_encoder_2", renamed=_under("")),
    "CLIP: ComfyUI": Packaging(
        part="text_encoder_2",
        renamed=_under("text_model."),
        beside=(*_JOINT_CLIP, ("text_model.embeddings.position_ids", _positions(77))),
    ),
    "CLIP: the whole model": Packaging(part="text_encoder_2", renamed=_under("text_model."), beside=_WHOLE_CLIP),
    "SigLIP: one file": Packaging(part="image_encoder", renamed=_under("")),
    "SigLIP: one file without head": Packaging(part="image_encoder", renamed=_without_head("")),
    "SigLIP: ComfyUI": Packaging(
        part="image_encoder",
        renamed=_under("vision_model."),
        beside=(("vision_model.embeddings.position_ids", _positions(16)),),
    ),
    "SigLIP: ComfyUI without head": Packaging(part="image_encoder", renamed=_without_head("vision_model.")),
    "SigLIP: the whole model": Packaging(part="image_encoder", renamed=_under("vision_model."), beside=_WHOLE_SIGLIP),
    "VAE: one file": Packaging(part="vae", renamed=_under("")),
    "VAE: Tencent's training": Packaging(part="vae", renamed=_under("vae.")),
    "VAE: LDM, convolutions": Packaging(part="vae", renamed=_ldm(convolutions=True)),
    "VAE: LDM, linear layers": Packaging(part="vae", renamed=_ldm(convolutions=False)),
    "VAE: LDM in a whole checkpoint": Packaging(
        part="vae", renamed=_ldm(convolutions=True, prefix="first_stage_model.")
    ),
}


def single_file(folder: Path, name: str, *, dtype: torch.dtype | None = None) -> Entry:
    """Write one of `SINGLE_FILES` and its configuration into a folder, perhaps in another dtype."""
    packaging = SINGLE_FILES[name]
    folder.mkdir(parents=True, exist_ok=True)
    file, config = folder / f"{packaging.part}.safetensors", folder / f"{packaging.part}.json"
    tensors = packaging.renamed(_cast(golden_tensors(packaging.part), dtype)) | _cast(dict(packaging.beside), dtype)
    # Neither in the order of the class nor at the place in the file that a folder's tensors have.
    mixed = {name: tensors[name].contiguous() for name in sorted(tensors, reverse=True)}
    save_file(mixed, file, metadata={"format": "pt", "note": name})
    shutil.copyfile(PACKED / packaging.part / "config.json", config)
    return {"path": str(file), "config": str(config)}


def plain_folder(folder: Path, part: str, *, dtype: torch.dtype | None = None) -> Entry:
    """Write a part as diffusers does, its tensors in one file, perhaps in another dtype."""
    (source,) = (PACKED / part).glob("*.safetensors")
    folder = folder / part
    folder.mkdir(parents=True)
    save_file(_cast(golden_tensors(part), dtype), folder / source.name, metadata={"format": "pt"})
    shutil.copyfile(PACKED / part / "config.json", folder / "config.json")
    return {"path": str(folder)}


def sharded(folder: Path, part: str, *, shards: int = 3, renamed: Callable[[Tensors], Tensors] | None = None) -> Entry:
    """Write a part as the large repositories do, its tensors in shards with an index."""
    (source,) = (PACKED / part).glob("*.safetensors")
    folder = folder / part
    folder.mkdir(parents=True)
    tensors = (renamed or _under(""))(golden_tensors(part))
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"{source.stem}-{number + 1:05}-of-{shards:05}.safetensors"
        shard = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{source.stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    shutil.copyfile(PACKED / part / "config.json", folder / "config.json")
    return {"path": str(folder)}


def write_golden_manifest(file: Path, parts: Mapping[str, Entry] | None = None, *, family: str = "inverted") -> Path:
    """A manifest of the golden pack, some of whose parts are packed otherwise."""
    entries = {part: {"path": str(PACKED / part)} for part in PARTS} | dict(parts or {})
    defaults = {"window": 2, "steps": 2, "resolution": 64}
    # JSON is YAML.
    file.write_text(
        json.dumps({"name": file.stem, "family": family, **entries, "defaults": defaults}), encoding="utf-8"
    )
    return file


def _cast(tensors: Tensors, dtype: torch.dtype | None) -> Tensors:
    return {
        name: tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)
        for name, tensor in tensors.items()
    }
