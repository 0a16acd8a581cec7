"""Keys of LoRA files taken apart: every prefix, every parameter ending, every kind that is refused by name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goan_cli.lora.keys import (
    PARAMETERS,
    PREFIXES,
    REFUSED,
    TEXT_ENCODER_PREFIXES,
    WRAPPERS,
    Role,
    flattened,
    is_text_encoder,
    parse_key,
    refused_as,
)

# Layout and writer, the key, and the module that it names (flattened).
LAYOUTS = (
    ("A musubi", "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight", "transformer_blocks_0_attn_to_q"),
    (
        "A musubi",
        "lora_unet_single_transformer_blocks_0_proj_mlp.lora_up.weight",
        "single_transformer_blocks_0_proj_mlp",
    ),
    ("B kohya", "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "double_blocks_0_img_attn_qkv"),
    ("B kohya", "lora_unet_single_blocks_0_linear1.alpha", "single_blocks_0_linear1"),
    ("C diffusion-pipe", "transformer.double_blocks.0.img_attn_qkv.lora_A.weight", "double_blocks_0_img_attn_qkv"),
    ("C diffusion-pipe", "transformer.single_blocks.0.linear1.lora_B.weight", "single_blocks_0_linear1"),
    (
        "C diffusion-pipe",
        "diffusion_model.single_blocks.3.modulation.linear.lora_A.weight",
        "single_blocks_3_modulation_linear",
    ),
    ("D converter", "diffusion_model.double_blocks.0.img_mlp.fc1.lora_A.weight", "double_blocks_0_img_mlp_fc1"),
    ("E diffusers", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "transformer_blocks_0_attn_to_q"),
    (
        "E diffusers",
        "transformer.single_transformer_blocks.0.proj_out.lora_B.weight",
        "single_transformer_blocks_0_proj_out",
    ),
    ("E diffusers", "transformer.x_embedder.proj.lora_A.weight", "x_embedder_proj"),
    ("E bare", "transformer_blocks.0.attn.to_q.lora_A.weight", "transformer_blocks_0_attn_to_q"),
    ("E PEFT", "base_model.model.transformer_blocks.0.attn.to_q.lora_B.weight", "transformer_blocks_0_attn_to_q"),
    (
        "E PEFT",
        "base_model.model.transformer_blocks.0.ff.net.2.lora_A.default.weight",
        "transformer_blocks_0_ff_net_2",
    ),
    (
        "E PEFT on a pipeline",
        "base_model.model.transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "transformer_blocks_0_attn_to_q",
    ),
    (
        "F Tencent",
        "Hunyuan_video_I2V_lora_txt_in_individual_token_refiner_blocks_0_mlp_fc1.lora_down.weight",
        "txt_in_individual_token_refiner_blocks_0_mlp_fc1",
    ),
    ("F Tencent", "Hunyuan_video_I2V_lora_final_layer_linear.alpha", "final_layer_linear"),
    ("G ComfyUI", "diffusion_model.double_blocks.0.img_attn.qkv.lora_up.weight", "double_blocks_0_img_attn_qkv"),
    ("G ComfyUI", "diffusion_model.time_in.in_layer.lora_down.weight", "time_in_in_layer"),
    (
        "H OneTrainer legacy",
        "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
        "transformer_blocks_0_attn_to_q",
    ),
    ("H OneTrainer original", "double_blocks.0.img_attn.qkv.lora_A.weight", "double_blocks_0_img_attn_qkv"),
    ("H OneTrainer original", "double_blocks.0.img_attn.qkv.alpha", "double_blocks_0_img_attn_qkv"),
    ("I LyCORIS", "lycoris_transformer_blocks_0_attn_to_q.lora_down.weight", "transformer_blocks_0_attn_to_q"),
    ("compiled", "_orig_mod.transformer_blocks.0.attn.to_q.lora_A.weight", "transformer_blocks_0_attn_to_q"),
    (
        "compiled inside",
        "transformer.transformer_blocks.0._orig_mod.attn.to_q.lora_A.weight",
        "transformer_blocks_0_attn_to_q",
    ),
    ("DDP", "module.transformer_blocks.0.attn.to_q.lora_A.weight", "transformer_blocks_0_attn_to_q"),
    (
        "all wrappers",
        "module._orig_mod.base_model.model.transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "transformer_blocks_0_attn_to_q",
    ),
)

ENDINGS = (
    (".lora_down.weight", Role.DOWN),
    (".lora_up.weight", Role.UP),
    (".lora_A.weight", Role.DOWN),
    (".lora_B.weight", Role.UP),
    (".lora_A.default.weight", Role.DOWN),
    (".lora_B.default.weight", Role.UP),
    (".lora.down.weight", Role.DOWN),
    (".lora.up.weight", Role.UP),
    ("_lora.down.weight", Role.DOWN),
    ("_lora.up.weight", Role.UP),
    (".lora_linear_layer.down.weight", Role.DOWN),
    (".lora_linear_layer.up.weight", Role.UP),
    (".lora_A", Role.DOWN),
    (".lora_B", Role.UP),
    (".alpha", Role.ALPHA),
    (".lora_mid.weight", Role.MID),
    (".lora_B.bias", Role.UP_BIAS),
    (".lora_B.default.bias", Role.UP_BIAS),
    (".lora_magnitude_vector", Role.MAGNITUDE),
    (".lora_magnitude_vector.weight", Role.MAGNITUDE),
    (".lora_magnitude_vector.default.weight", Role.MAGNITUDE),
    (".dora_scale", Role.DORA_SCALE),
    (".hada_w1_a", Role.HADA_W1_A),
    (".hada_w1_b", Role.HADA_W1_B),
    (".hada_w2_a", Role.HADA_W2_A),
    (".hada_w2_b", Role.HADA_W2_B),
    (".hada_t1", Role.HADA_T1),
    (".hada_t2", Role.HADA_T2),
    (".lokr_w1", Role.LOKR_W1),
    (".lokr_w1_a", Role.LOKR_W1_A),
    (".lokr_w1_b", Role.LOKR_W1_B),
    (".lokr_w2", Role.LOKR_W2),
    (".lokr_w2_a", Role.LOKR_W2_A),
    (".lokr_w2_b", Role.LOKR_W2_B),
    (".lokr_t2", Role.LOKR_T2),
    (".diff", Role.DIFF),
    (".diff_b", Role.DIFF_BIAS),
    (".w_norm", Role.DIFF),
    (".b_norm", Role.DIFF_BIAS),
)

PREFIXED = (
    ("", "transformer_blocks.0.attn.to_q"),
    ("transformer.", "transformer_blocks.0.attn.to_q"),
    ("model.diffusion_model.", "double_blocks.0.img_attn.qkv"),
    ("diffusion_model.", "double_blocks.0.img_attn.qkv"),
    ("lora_unet_", "double_blocks_0_img_attn_qkv"),
    ("lora_transformer_", "transformer_blocks_0_attn_to_q"),
    ("lycoris_", "transformer_blocks_0_attn_to_q"),
    ("Hunyuan_video_I2V_lora_", "double_blocks_0_img_attn_qkv"),
)

KINDS = (
    ("x.lora_E", "AdaLoRA"),
    ("lora_unet_x.a1.weight", "GLoRA"),
    ("lora_unet_x.b2.weight", "GLoRA"),
    ("x.oft_blocks", "OFT or BOFT"),
    ("x.oft_diag", "OFT or BOFT"),
    ("x.oft_R.weight", "OFT or BOFT"),
    ("x.boft_R", "OFT or BOFT"),
    ("x.ia3_l", "(IA)3"),
    ("x.on_input", "(IA)3"),
    ("x.set_weight", "replaced weights"),
    ("x.reshape_weight", "replaced weights"),
    ("lora_unet_x.lora_down.0.weight", "LoRA with split dimensions"),
    ("lora_unet_x.lora_up.2.weight", "LoRA with split dimensions"),
)

TEXT = (
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    "lora_te2_layers_0_self_attn_q_proj.lora_up.weight",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight",
    "text_encoders.llama.transformer.model.layers.0.mlp.up_proj.lora_up.weight",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight",
    "base_model.model.text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
    "bundle_emb.token.string_to_param.*",
)


@pytest.mark.parametrize(("writer", "key", "module"), LAYOUTS, ids=[f"{row[0]}-{row[1]}" for row in LAYOUTS])
def test_layouts(writer: str, key: str, module: str) -> None:
    """The keys that each tool writes give the module's flattened name."""
    parsed = parse_key(key)
    assert parsed is not None
    assert parsed.module == module
    assert refused_as(key) is None
    assert not is_text_encoder(key)


@pytest.mark.parametrize(("ending", "role"), ENDINGS)
def test_endings(ending: str, role: Role) -> None:
    """Each ending means its role, under a dotted and under a flattened module name."""
    for start in ("transformer.transformer_blocks.0.attn.to_q", "lora_unet_transformer_blocks_0_attn_to_q"):
        parsed = parse_key(start + ending)
        assert parsed is not None
        assert (parsed.module, parsed.role) == ("transformer_blocks_0_attn_to_q", role)


@pytest.mark.parametrize(("prefix", "module"), PREFIXED)
@pytest.mark.parametrize("wrapper", ["", *WRAPPERS])
def test_prefixes(wrapper: str, prefix: str, module: str) -> None:
    """Each prefix is recognised and removed, inside any wrapper."""
    parsed = parse_key(f"{wrapper}{prefix}{module}.lora_down.weight")
    assert parsed is not None
    assert (parsed.prefix, parsed.module) == (prefix, flattened(module))


def test_every_row_is_tested() -> None:
    """Every row of the tables of prefixes, endings, kinds and text encoders has a row here."""
    assert set(PREFIXES) == {prefix for prefix, _ in PREFIXED}
    assert set(PARAMETERS) == set(ENDINGS)
    assert {kind for _, kind in REFUSED} == {kind for _, kind in KINDS}
    assert all(any(key.startswith(prefix) for key in TEXT) for prefix in TEXT_ENCODER_PREFIXES)


@pytest.mark.parametrize(("key", "kind"), KINDS)
def test_refused_kinds(key: str, kind: str) -> None:
    """A key of an unsupported kind is known by that kind's name."""
    assert refused_as(key) == kind


@pytest.mark.parametrize("key", TEXT)
def test_text_encoders(key: str) -> None:
    """Tensors of text encoders are known as such."""
    assert is_text_encoder(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".alpha",
        "transformer..alpha",
        "lora_unet_.alpha",
        "transformer_blocks.0.attn.to_q.weight",
        "transformer_blocks.0.attn.to_q.bias",
        "transformer_blocks.0.attn.to_q.lora_A.other.weight",
        "transformer_blocks.0.attn.to_q.lora_C.weight",
        "transformer_blocks.0.attn.to_q.LORA_A.weight",
        "transformer_blocks.0.attn.to_q.alpha_max",
        "alpha.transformer_blocks.0.attn.to_q",
        "scaled_fp8",
    ],
)
def test_not_understood(key: str) -> None:
    """A key without a known ending, or with nothing before it, is not guessed at."""
    assert parse_key(key) is None


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("lora_unet_single_blocks_0_alpha_proj.lora_down.weight", "single_blocks_0_alpha_proj"),
        ("transformer.my.transformer.block.lora_A.weight", "my_transformer_block"),
        ("transformer.block.lora_down.weight.lora_down.weight", "block_lora_down_weight"),
        ("lora_unet_lora_unet_x.alpha", "lora_unet_x"),
    ],
)
def test_parsed_at_the_ends_only(key: str, module: str) -> None:
    """What looks like a prefix or a parameter in the middle of a name stays part of the name."""
    parsed = parse_key(key)
    assert parsed is not None
    assert parsed.module == module


def test_case_matters() -> None:
    """Keys are case-sensitive: Tencent's prefix and adaLN keep their capitals."""
    parsed = parse_key("Hunyuan_video_I2V_lora_final_layer_adaLN_modulation_1.lora_down.weight")
    assert parsed is not None
    assert parsed.module == "final_layer_adaLN_modulation_1"
    lower = parse_key("hunyuan_video_i2v_lora_final_layer_linear.lora_down.weight")
    assert lower is not None
    assert lower.prefix == ""


@settings(max_examples=60, deadline=None)
@given(
    module=st.from_regex(r"[a-z][a-z0-9]{0,6}(\.[a-z0-9]{1,6}){0,4}", fullmatch=True),
    prefix=st.sampled_from([prefix for prefix in PREFIXES if prefix]),
    ending=st.sampled_from(PARAMETERS),
)
def test_a_key_put_together_comes_apart(module: str, prefix: str, ending: tuple[str, Role]) -> None:
    """Prefix, module and ending put together parse to the same module and role; nothing is lost or gained."""
    suffix, role = ending
    parsed = parse_key(f"{prefix}{module}{suffix}")
    assert parsed is not None
    assert (parsed.prefix, parsed.module, parsed.role) == (prefix, flattened(module), role)
