"""Names of tensors in every packaging of a part, and their names in the class that is loaded. No torch.

A repository's folder, ComfyUI's single file and an original release hold the same tensors by other names, some beside
a whole model that the part was taken from. The tables below were written down from files of each kind.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from goan_cli.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """How one checkpoint's tensors become a part's.

    `names`: in the checkpoint -> in the class; a name that no table knows stays as it is. The classes of transformers
    have a prefix (`text_model.`, `vision_model.`) in some releases: it is never in these names.
    `left_out`: what belongs to other models. `shapes`: by name in the class, as a tensor is to be reshaped.
    """

    names: Mapping[str, str]
    left_out: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class PrefixRow:
    """A prefix of all names of a part in some packaging."""

    part: str
    prefix: str
    source: str


@dataclass(frozen=True, kw_only=True)
class LeftOutRow:
    """Names, as a pattern of the whole name in the checkpoint, that are not the part's."""

    part: str
    pattern: str
    what: str


@dataclass(frozen=True, kw_only=True)
class RenameRow:
    """How a name begins in LDM's layout, and in diffusers'."""

    pattern: str
    name: str


# The first of a part's that fits is taken off.
PREFIXES: tuple[PrefixRow, ...] = (
    PrefixRow(part="text_encoder", prefix="language_model.model.", source="LLaVA of transformers before 4.52"),
    PrefixRow(part="text_encoder", prefix="model.language_model.", source="LLaVA of transformers since"),
    PrefixRow(part="text_encoder", prefix="language_model.", source="the same without its language head"),
    PrefixRow(part="text_encoder", prefix="model.", source="ComfyUI's llava_llama3, LlamaForCausalLM"),
    PrefixRow(part="text_encoder_2", prefix="text_model.", source="transformers 4, ComfyUI's clip_l"),
    PrefixRow(part="image_encoder", prefix="vision_model.", source="transformers 4, ComfyUI's sigclip_vision"),
    PrefixRow(part="vae", prefix="vae.", source="Tencent's training checkpoint"),
    PrefixRow(part="vae", prefix="first_stage_model.", source="a whole checkpoint in LDM's layout"),
)

LEFT_OUT: tuple[LeftOutRow, ...] = (
    LeftOutRow(part="text_encoder", pattern=r"(language_model\.|model\.)?lm_head\.weight", what="the language head"),
    LeftOutRow(part="text_encoder", pattern=r"tokenizer", what="the tokenizer that ComfyUI packs as bytes"),
    LeftOutRow(part="text_encoder", pattern=r"(model\.)?vision_tower\..+", what="LLaVA's image encoder"),
    LeftOutRow(part="text_encoder", pattern=r"(model\.)?multi_modal_projector\..+", what="LLaVA's projector"),
    LeftOutRow(part="text_encoder", pattern=r"(.+\.)?rotary_emb\.inv_freq", what="made from the configuration"),
    LeftOutRow(part="text_encoder_2", pattern=r"(text_model\.)?embeddings\.position_ids", what="0, 1, 2, ..."),
    LeftOutRow(part="text_encoder_2", pattern=r"text_projection(\.weight)?", what="CLIP's projection"),
    LeftOutRow(part="text_encoder_2", pattern=r"logit_scale", what="CLIP's temperature"),
    LeftOutRow(part="text_encoder_2", pattern=r"vision_model\..+", what="CLIP's image encoder"),
    LeftOutRow(part="text_encoder_2", pattern=r"visual_projection\.weight", what="CLIP's image projection"),
    LeftOutRow(part="image_encoder", pattern=r"(vision_model\.)?embeddings\.position_ids", what="0, 1, 2, ..."),
    LeftOutRow(part="image_encoder", pattern=r"text_model\..+", what="SigLIP's text encoder"),
    LeftOutRow(part="image_encoder", pattern=r"logit_(scale|bias)", what="SigLIP's temperature"),
)

# LDM's layout of the VAE (ComfyUI): each row that fits is applied, in this order. Both number the encoder's blocks
# alike, and the decoder's from opposite ends; see `_from_the_other_end`.
LDM_VAE: tuple[RenameRow, ...] = (
    RenameRow(pattern=r"encoder\.down\.(\d+)\.block\.", name=r"encoder.down_blocks.\1.resnets."),
    RenameRow(pattern=r"encoder\.down\.(\d+)\.downsample\.", name=r"encoder.down_blocks.\1.downsamplers.0."),
    RenameRow(pattern=r"decoder\.up\.(\d+)\.block\.", name=r"decoder.up_blocks.\1.resnets."),
    RenameRow(pattern=r"decoder\.up\.(\d+)\.upsample\.", name=r"decoder.up_blocks.\1.upsamplers.0."),
    RenameRow(pattern=r"(..coder)\.mid\.block_1\.", name=r"\1.mid_block.resnets.0."),
    RenameRow(pattern=r"(..coder)\.mid\.block_2\.", name=r"\1.mid_block.resnets.1."),
    RenameRow(pattern=r"(..coder)\.mid\.attn_1\.norm\.", name=r"\1.mid_block.attentions.0.group_norm."),
    RenameRow(pattern=r"(..coder)\.mid\.attn_1\.([qkv])\.", name=r"\1.mid_block.attentions.0.to_\2."),
    RenameRow(pattern=r"(..coder)\.mid\.attn_1\.proj_out\.", name=r"\1.mid_block.attentions.0.to_out.0."),
    RenameRow(pattern=r"(..coder)\.norm_out\.", name=r"\1.conv_norm_out."),
    RenameRow(pattern=r"(.+\.resnets\.\d+)\.nin_shortcut\.", name=r"\1.conv_shortcut."),
)
_LDM_UP = re.compile(r"decoder\.up\.(\d+)\.")
# Linear layers that LDM's layout has as convolutions of one pixel.
_ATTENTION_LINEAR = re.compile(r".+\.attentions\.\d+\.to_(q|k|v|out\.0)\.weight")


def key_map(part: str, shapes: Mapping[str, tuple[int, ...]]) -> KeyMap:
    """What to do with a checkpoint of a part, whatever its packaging, from the names and shapes of its tensors.

    Raises InvalidInput when two tensors have the same name in the class.
    """
    patterns = [re.compile(row.pattern) for row in LEFT_OUT if row.part == part]
    left_out = tuple(name for name in shapes if any(pattern.fullmatch(name) for pattern in patterns))
    names = dict(_renamed(part, [name for name in shapes if name not in set(left_out)]))
    known: dict[str, str] = {}
    for name, own in names.items():
        if own in known:
            raise InvalidInput(f"{known[own]} and {name} are the same tensor of the {part}")
        known[own] = name
    return KeyMap(
        names=names,
        left_out=left_out,
        shapes={own: _without_pixel(own, tuple(shapes[name])) for name, own in names.items()},
    )


def _renamed(part: str, names: list[str]) -> Iterator[tuple[str, str]]:
    """Names in the checkpoint and in the class."""
    prefixes = [row.prefix for row in PREFIXES if row.part == part]
    bare = {name: _without_prefix(name, prefixes) for name in names}
    last = max((int(found[1]) for name in bare.values() if (found := _LDM_UP.match(name))), default=0)
    for name, own in bare.items():
        yield name, _from_ldm(_from_the_other_end(own, last)) if part == "vae" else own


def _without_prefix(name: str, prefixes: list[str]) -> str:
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _from_the_other_end(name: str, last: int) -> str:
    """LDM's decoder counts its blocks from the pixels, diffusers' from the latents."""
    return _LDM_UP.sub(lambda found: f"decoder.up.{last - int(found[1])}.", name, count=1)


def _from_ldm(name: str) -> str:
    for row in LDM_VAE:
        found = re.match(row.pattern, name)
        if found:
            name = found.expand(row.name) + name[found.end() :]
    return name


def _without_pixel(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) > 2 and set(shape[2:]) == {1} and _ATTENTION_LINEAR.fullmatch(name):
        return shape[:2]
    return shape
