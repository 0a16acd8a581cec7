"""Keys of LoRA files: prefix, module, parameter. Tables, parsed anchored at both ends; no torch.

Every writer's file is a row of `PREFIXES` times a row of `PARAMETERS`; which model module a name means is the
alias table's business (`goan_cli.lora.aliases`).
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a tensor is to its module. Values are the names that files use, LoRA's two factors apart."""

    DOWN = "down"
    UP = "up"
    MID = "lora_mid"
    UP_BIAS = "lora_B.bias"
    ALPHA = "alpha"
    DORA_SCALE = "dora_scale"
    MAGNITUDE = "lora_magnitude_vector"
    HADA_W1_A = "hada_w1_a"
    HADA_W1_B = "hada_w1_b"
    HADA_W2_A = "hada_w2_a"
    HADA_W2_B = "hada_w2_b"
    HADA_T1 = "hada_t1"
    HADA_T2 = "hada_t2"
    LOKR_W1 = "lokr_w1"
    LOKR_W1_A = "lokr_w1_a"
    LOKR_W1_B = "lokr_w1_b"
    LOKR_W2 = "lokr_w2"
    LOKR_W2_A = "lokr_w2_a"
    LOKR_W2_B = "lokr_w2_b"
    LOKR_T2 = "lokr_t2"
    DIFF = "diff"
    DIFF_BIAS = "diff_b"


@dataclass(frozen=True, kw_only=True)
class ParsedKey:
    """A key taken apart: its prefix, the module's name as written and flattened (`.` to `_`), the tensor's role."""

    prefix: str
    name: str
    module: str
    role: Role


# Longest first where one begins another. A key is stripped of the wrappers, then of one prefix.
WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")
PREFIXES = (
    "Hunyuan_video_I2V_lora_",  # Tencent
    "lora_transformer_",  # OneTrainer, legacy
    "lora_unet_",  # kohya, musubi-tuner
    "lycoris_",  # LyCORIS
    "model.diffusion_model.",  # whole ComfyUI checkpoints
    "diffusion_model.",  # ComfyUI, musubi's converter
    "transformer.",  # diffusers, diffusion-pipe
    "",  # bare: diffusers' save_lora_adapter
)

# The end of a key -> role. Bare `.lora_A` is written by some PEFT exports.
PARAMETERS: tuple[tuple[str, Role], ...] = (
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
    (".lora_mid.weight", Role.MID),
    (".lora_B.bias", Role.UP_BIAS),
    (".lora_B.default.bias", Role.UP_BIAS),
    (".lora_magnitude_vector", Role.MAGNITUDE),
    (".lora_magnitude_vector.weight", Role.MAGNITUDE),
    (".lora_magnitude_vector.default.weight", Role.MAGNITUDE),
    (".w_norm", Role.DIFF),
    (".b_norm", Role.DIFF_BIAS),
    *(
        (f".{role}", role)
        for role in Role
        if role in ("alpha", "dora_scale", "diff", "diff_b") or role.startswith(("hada_", "lokr_"))
    ),
)

# Tensors of the text encoders, which a render does not train: skipped with a count.
TEXT_ENCODER_PREFIXES = (
    "lora_te",
    "text_encoder.",
    "text_encoder_2.",
    "text_encoders.",
    "bundle_emb.",
)

# The end of a key -> what it belongs to, for files that are refused by name.
REFUSED: tuple[tuple[str, str], ...] = (
    (r"\.lora_E$", "AdaLoRA"),
    (r"\.(a1|a2|b1|b2)\.weight$", "GLoRA"),
    (r"\.(oft_blocks|oft_diag|oft_R\.weight|boft_[a-zA-Z_]+)$", "OFT or BOFT"),
    (r"\.(ia3_l|on_input)$", "(IA)3"),
    (r"\.(set_weight|reshape_weight)$", "replaced weights"),
    (r"\.lora_(down|up)\.\d+\.weight$", "LoRA with split dimensions"),
)


def is_text_encoder(key: str) -> bool:
    """Whether the key belongs to a text encoder."""
    return unwrapped(key).startswith(TEXT_ENCODER_PREFIXES)


def refused_as(key: str) -> str | None:
    """The name of the unsupported kind of adapter that the key belongs to, if it does."""
    return next((kind for pattern, kind in REFUSED if re.search(pattern, key)), None)


def parse_key(key: str) -> ParsedKey | None:
    """Take a key apart, or None when its end names no known parameter."""
    inner = unwrapped(key)
    for suffix, role in PARAMETERS:
        if inner.endswith(suffix):
            name = inner.removesuffix(suffix)
            prefix = key_prefix(name)
            module = name.removeprefix(prefix).replace("_orig_mod.", "")
            module = re.sub(r"\.processor(?=\.to_\w+$)", "", module)  # diffusers before it used PEFT
            return ParsedKey(prefix=prefix, name=module, module=flattened(module), role=role) if module else None
    return None


def key_prefix(key: str) -> str:
    """The writer's prefix of a key, wrappers apart; empty where it has none."""
    inner = unwrapped(key)
    return next(prefix for prefix in PREFIXES if inner.startswith(prefix))


def flattened(module: str) -> str:
    """A module name with `_` for `.`, in which kohya's and dotted spellings agree."""
    return module.replace(".", "_")


def unwrapped(key: str) -> str:
    """A key without what frameworks wrap around a model's names."""
    while wrapper := next((wrapper for wrapper in WRAPPERS if key.startswith(wrapper)), None):
        key = key.removeprefix(wrapper)
    return key
