"""Files for other models, and the one model whose files look the same."""

import pytest

from goan_cli.errors import LoraRefused
from goan_cli.lora.foreign import refuse_flux, refuse_foreign, trained_for
from goan_cli.tensorfile import TensorEntry

FULL = (20, 40)
DOUBLE, SINGLE = (
    "lora_unet_double_blocks_{}_img_attn_qkv.lora_down.weight",
    "lora_unet_single_blocks_{}_linear1.lora_down.weight",
)
DIFFUSERS = "transformer.transformer_blocks.{}.attn.to_q.lora_A.weight"


def blocks(pattern: str, count: int) -> list[str]:
    """Keys of the first `count` blocks."""
    return [pattern.format(number) for number in range(count)]


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(blocks(DOUBLE, 20), id="double block 19"),
        pytest.param(blocks(SINGLE, 39), id="single block 38"),
        pytest.param(blocks(SINGLE, 40), id="single block 39"),
        pytest.param([*blocks(DOUBLE, 3), "lora_unet_double_blocks_0_img_mlp_fc1.lora_down.weight"], id="fc1"),
        pytest.param([*blocks(DOUBLE, 3), "transformer.double_blocks.0.img_mod.linear.lora_A.weight"], id="mod.linear"),
        pytest.param([*blocks(SINGLE, 3), "x.single_blocks.0.modulation.linear.lora_A.weight"], id="modulation.linear"),
        pytest.param(["transformer.x_embedder.proj.lora_A.weight"], id="no blocks at all"),
        pytest.param(blocks("transformer.double_blocks.{}.img_attn_qkv.lora_A.weight", 9), id="diffusion-pipe"),
        pytest.param([*blocks(DIFFUSERS, 9), "image_projection.up.lora_A.weight"], id="FramePack's own modules"),
        pytest.param([*blocks(DIFFUSERS, 9), "transformer.context_embedder.proj_in.lora_A.weight"], id="refiner"),
    ],
)
def test_not_flux(keys: list[str]) -> None:
    """Blocks that FLUX.1 does not have, and spellings that its writers do not use, are HunyuanVideo's."""
    refuse_flux(keys, {}, blocks=FULL)


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(blocks(DOUBLE, 19) + blocks(SINGLE, 38), id="kohya"),
        pytest.param(blocks(DIFFUSERS, 19), id="diffusers, double blocks alone"),
        pytest.param(blocks(SINGLE, 38), id="single blocks alone"),
    ],
)
def test_flux(keys: list[str]) -> None:
    """A file whose last blocks are FLUX.1's last is refused as FLUX.1."""
    with pytest.raises(LoraRefused, match=r"trained for FLUX\.1"):
        refuse_flux(keys, {}, blocks=FULL)


def test_trust_has_its_limit() -> None:
    """`trusted` accepts what cannot be told, and never what is FLUX.1's to the last block."""
    refuse_flux(blocks(DOUBLE, 5), {}, blocks=FULL, trusted=True)
    with pytest.raises(LoraRefused, match=r"trained for FLUX\.1"):
        refuse_flux(blocks(DOUBLE, 19) + blocks(SINGLE, 38), {}, blocks=FULL, trusted=True)


def test_some_blocks_are_ambiguous() -> None:
    """A few blocks could be either model's: refused with the way to say so."""
    with pytest.raises(LoraRefused, match="cannot be told") as caught:
        refuse_flux(blocks(DOUBLE, 5), {}, blocks=FULL)
    assert caught.value.hint is not None
    assert "trusted: true" in caught.value.hint


@pytest.mark.parametrize(
    "metadata",
    [
        {"ss_base_model_version": "hunyuan_video"},
        {"modelspec.architecture": "framepack"},
        {"ss_network_module": "networks.lora_framepack"},
    ],
)
def test_metadata_decides(metadata: dict[str, str]) -> None:
    """Metadata that names HunyuanVideo or FramePack settles it, even for FLUX.1's block numbers."""
    refuse_flux(blocks(DOUBLE, 19), metadata, blocks=FULL)
    assert trained_for(metadata) == next(iter(metadata.values()))


def test_other_depths_leave_no_room_for_flux() -> None:
    """Where the base is not FramePack's depth, shapes and names decide alone."""
    refuse_flux(blocks(DOUBLE, 2), {}, blocks=(2, 4))


@pytest.mark.parametrize(
    "key",
    [
        "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight",
        "lora_unet_txt_in_individual_token_refiner_blocks_0_self_attn_qkv.lora_down.weight",
        "diffusion_model.txt_in.individual_token_refiner.blocks.0.self_attn.qkv.lora_down.weight",
        "Hunyuan_video_I2V_lora_double_blocks_0_img_mod_linear.lora_down.weight",
        "transformer.transformer_blocks.0.ff_context.net.0.proj.lora_A.weight",
        "lycoris_single_transformer_blocks_0_proj_mlp.lokr_w1",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.lora_A.weight",
    ],
)
def test_own_names_are_nobody_else_s(key: str) -> None:
    """No signature of another model matches a name of ours."""
    refuse_foreign({key: TensorEntry(dtype="F32", shape=(2, 2))}, {})
