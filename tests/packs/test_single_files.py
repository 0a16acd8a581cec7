"""What tensors are called in every packaging of a part, and what they are in the class that is loaded."""

import re

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from goan_cli.errors import InvalidInput
from goan_cli.model.checkpoint import read_json
from goan_cli.packs.single_files import LDM_VAE, LEFT_OUT, PREFIXES, LeftOutRow, PrefixRow, RenameRow, key_map
from tests.packagings import PACKED, SINGLE_FILES, WEIGHTED, golden_tensors, ldm_name

LAYER = "layers.30.self_attn.q_proj.weight"
# One name for each row of a prefix.
PREFIXED = {
    ("text_encoder", "language_model.model."): (f"language_model.model.{LAYER}", LAYER),
    ("text_encoder", "model.language_model."): ("model.language_model.embed_tokens.weight", "embed_tokens.weight"),
    ("text_encoder", "language_model."): (f"language_model.{LAYER}", LAYER),
    ("text_encoder", "model."): ("model.norm.weight", "norm.weight"),
    ("text_encoder_2", "text_model."): ("text_model.final_layer_norm.bias", "final_layer_norm.bias"),
    ("image_encoder", "vision_model."): ("vision_model.head.probe", "head.probe"),
    ("vae", "vae."): ("vae.quant_conv.weight", "quant_conv.weight"),
    ("vae", "first_stage_model."): ("first_stage_model.post_quant_conv.bias", "post_quant_conv.bias"),
}
# Names for each row of what is left out.
LEFT = {
    ("text_encoder", "the language head"): (
        "lm_head.weight",
        "language_model.lm_head.weight",
        "model.lm_head.weight",
    ),
    ("text_encoder", "the tokenizer that ComfyUI packs as bytes"): ("tokenizer",),
    ("text_encoder", "LLaVA's image encoder"): (
        "vision_tower.vision_model.embeddings.class_embedding",
        "model.vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias",
    ),
    ("text_encoder", "LLaVA's projector"): (
        "multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_2.bias",
    ),
    ("text_encoder", "made from the configuration"): (
        "rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ),
    ("text_encoder_2", "0, 1, 2, ..."): ("text_model.embeddings.position_ids", "embeddings.position_ids"),
    ("text_encoder_2", "CLIP's projection"): ("text_projection.weight", "text_projection"),
    ("text_encoder_2", "CLIP's temperature"): ("logit_scale",),
    ("text_encoder_2", "CLIP's image encoder"): ("vision_model.embeddings.class_embedding",),
    ("text_encoder_2", "CLIP's image projection"): ("visual_projection.weight",),
    ("image_encoder", "0, 1, 2, ..."): ("vision_model.embeddings.position_ids", "embeddings.position_ids"),
    ("image_encoder", "SigLIP's text encoder"): ("text_model.head.weight", "text_model.final_layer_norm.bias"),
    ("image_encoder", "SigLIP's temperature"): ("logit_scale", "logit_bias"),
}
# A name for each row of LDM's layout, of a decoder of four blocks.
LDM = {
    r"encoder\.down\.(\d+)\.block\.": (
        "encoder.down.2.block.1.conv1.conv.weight",
        "encoder.down_blocks.2.resnets.1.conv1.conv.weight",
    ),
    r"encoder\.down\.(\d+)\.downsample\.": (
        "encoder.down.0.downsample.conv.conv.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.conv.weight",
    ),
    r"decoder\.up\.(\d+)\.block\.": (
        "decoder.up.0.block.2.norm1.bias",
        "decoder.up_blocks.3.resnets.2.norm1.bias",
    ),
    r"decoder\.up\.(\d+)\.upsample\.": (
        "decoder.up.3.upsample.conv.conv.bias",
        "decoder.up_blocks.0.upsamplers.0.conv.conv.bias",
    ),
    r"(..coder)\.mid\.block_1\.": (
        "encoder.mid.block_1.conv2.conv.bias",
        "encoder.mid_block.resnets.0.conv2.conv.bias",
    ),
    r"(..coder)\.mid\.block_2\.": ("decoder.mid.block_2.norm2.weight", "decoder.mid_block.resnets.1.norm2.weight"),
    r"(..coder)\.mid\.attn_1\.norm\.": (
        "decoder.mid.attn_1.norm.weight",
        "decoder.mid_block.attentions.0.group_norm.weight",
    ),
    r"(..coder)\.mid\.attn_1\.([qkv])\.": (
        "encoder.mid.attn_1.v.weight",
        "encoder.mid_block.attentions.0.to_v.weight",
    ),
    r"(..coder)\.mid\.attn_1\.proj_out\.": (
        "decoder.mid.attn_1.proj_out.bias",
        "decoder.mid_block.attentions.0.to_out.0.bias",
    ),
    r"(..coder)\.norm_out\.": ("encoder.norm_out.weight", "encoder.conv_norm_out.weight"),
    r"(.+\.resnets\.\d+)\.nin_shortcut\.": (
        "encoder.down.1.block.0.nin_shortcut.conv.weight",
        "encoder.down_blocks.1.resnets.0.conv_shortcut.conv.weight",
    ),
}


def _mapped(part: str, *names: str) -> dict[str, str]:
    return dict(key_map(part, dict.fromkeys(names, (1,))).names)


def _shapes(part: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in golden_tensors(part).items()}


@pytest.mark.parametrize("row", PREFIXES, ids=lambda row: f"{row.part} {row.prefix}")
def test_prefix(row: PrefixRow) -> None:
    """A prefix of a packaging is taken off."""
    name, own = PREFIXED[row.part, row.prefix]
    assert name.startswith(row.prefix)
    assert _mapped(row.part, name) == {name: own}


@pytest.mark.parametrize("row", LEFT_OUT, ids=lambda row: f"{row.part} {row.what}")
def test_left_out(row: LeftOutRow) -> None:
    """What belongs to other models is told apart by name, and is nothing to another part."""
    names = LEFT[row.part, row.what]
    assert all(re.fullmatch(row.pattern, name) for name in names)
    keys = key_map(row.part, dict.fromkeys([*names, "norm.weight"], (1,)))
    assert keys.left_out == names
    assert list(keys.names) == ["norm.weight"] == list(keys.shapes)
    assert _mapped("transformer", *names).keys() == set(names)


@pytest.mark.parametrize("row", LDM_VAE, ids=lambda row: row.pattern)
def test_ldm_name(row: RenameRow) -> None:
    """A name of LDM's layout becomes diffusers', under a prefix too."""
    name, own = LDM[row.pattern]
    four_blocks = [f"decoder.up.{number}.block.0.conv1.conv.weight" for number in range(4)]
    assert _mapped("vae", *four_blocks, name)[name] == own
    prefixed = [f"first_stage_model.{each}" for each in (*four_blocks, name)]
    assert _mapped("vae", *prefixed)[prefixed[-1]] == own


def test_rows_are_all_tested() -> None:
    """No test row stands for a row that is not there, and no two rows for the same names."""
    assert PREFIXED.keys() == {(row.part, row.prefix) for row in PREFIXES}
    assert LEFT.keys() == {(row.part, row.what) for row in LEFT_OUT}
    assert LDM.keys() == {row.pattern for row in LDM_VAE}


@pytest.mark.parametrize("part", WEIGHTED)
def test_own_names(part: str) -> None:
    """The names of a repository's own folder are left as they are, and nothing is left out or reshaped."""
    shapes = _shapes(part)
    keys = key_map(part, shapes)
    assert keys.names == {name: name for name in shapes}
    assert keys.left_out == ()
    assert keys.shapes == shapes


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_packagings(name: str) -> None:
    """Every packaging's names and shapes become those of the part's folder, and the rest is left out."""
    packaging = SINGLE_FILES[name]
    tensors = packaging.renamed(golden_tensors(packaging.part))
    beside = dict(packaging.beside)
    shapes = {each: tuple(tensor.shape) for each, tensor in {**beside, **tensors}.items()}
    keys = key_map(packaging.part, shapes)
    expected = _shapes(packaging.part)
    if "without head" in name:
        expected = {each: shape for each, shape in expected.items() if not each.startswith("head.")}
    assert keys.shapes == expected
    assert keys.left_out == tuple(beside)
    assert keys.names.keys() == tensors.keys()


def test_unknown_names_stay() -> None:
    """A name that no table knows is kept for a check of names to find, without a prefix that all names have."""
    assert _mapped("text_encoder", "model.layers.0.new.weight", "else") == {
        "model.layers.0.new.weight": "layers.0.new.weight",
        "else": "else",
    }
    assert _mapped("vae", "encoder.mid.block_3.norm1.weight") == dict.fromkeys(
        ["encoder.mid.block_3.norm1.weight"], "encoder.mid.block_3.norm1.weight"
    )


def test_only_whole_names_are_left_out() -> None:
    """A name that merely begins or ends like one that is left out is not."""
    for part, name in (
        ("text_encoder", "tokenizers"),
        ("text_encoder", "layers.0.lm_head.weight"),
        ("text_encoder", "lm_head.weight.scale"),
        ("text_encoder_2", "logit_scale.bias"),
        ("image_encoder", "head.text_model.bias"),
    ):
        assert _mapped(part, name) == {name: name}


def test_the_same_tensor_twice() -> None:
    """Two tensors with one name in the class are refused by the names that they have in the file."""
    with pytest.raises(InvalidInput, match=r"^norm\.weight and model\.norm\.weight are the same tensor"):
        _mapped("text_encoder", "norm.weight", "model.norm.weight")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("decoder.mid.attn_1.q.weight", (16, 16, 1, 1, 1), (16, 16)),
        ("decoder.mid.attn_1.proj_out.weight", (16, 16, 1, 1), (16, 16)),
        ("encoder.mid_block.attentions.0.to_out.0.weight", (16, 16, 1, 1, 1), (16, 16)),
        ("encoder.mid_block.attentions.0.to_k.weight", (16, 16), (16, 16)),
        ("encoder.mid.attn_1.q.weight", (16, 16, 3, 3, 3), (16, 16, 3, 3, 3)),
        ("encoder.mid.attn_1.q.bias", (16,), (16,)),
        ("encoder.down.1.block.0.nin_shortcut.conv.weight", (16, 8, 1, 1, 1), (16, 8, 1, 1, 1)),
        ("quant_conv.weight", (32, 32, 1, 1, 1), (32, 32, 1, 1, 1)),
    ],
)
def test_convolutions_of_one_pixel(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """The attention's linear layers lose the pixel that LDM gives them; real convolutions keep it."""
    keys = key_map("vae", {name: shape})
    assert keys.shapes == {keys.names[name]: expected}


def test_ldm_names_are_those_of_diffusers() -> None:
    """diffusers' conversion of LDM's picture VAEs gives the blocks the same names, where it knows the layout."""
    names = {ldm_name(name, 4): tensor for name, tensor in golden_tensors("vae").items()}
    known = {name: tensor for name, tensor in names.items() if re.search(r"\.(block|mid)[._]|norm_out|quant", name)}
    theirs = convert_ldm_vae_checkpoint(known, read_json(PACKED / "vae" / "config.json"))
    ours = key_map("vae", {name: tuple(tensor.shape) for name, tensor in known.items()}).names
    assert len(known) > 150
    assert set(theirs) == set(ours.values())
    assert all(torch.equal(theirs[own], known[name]) for name, own in ours.items())
