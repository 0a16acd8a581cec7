"""Files made for other models, told by their keys and metadata before they can do harm. No torch.

FLUX.1 is the dangerous one: its names and shapes are FramePack's (diffusers) or HunyuanVideo's (kohya), and only
the number of blocks differs: 19 and 38 instead of 20 and 40.
"""

import re
from collections.abc import Iterable, Mapping

from goan_cli.errors import LoraRefused
from goan_cli.lora.keys import key_prefix, unwrapped
from goan_cli.tensorfile import TensorEntry

# Keys without their prefix -> the model they were trained for. The first row that matches any key decides.
SIGNATURES: tuple[tuple[str, str], ...] = (
    (r"^distilled_guidance_layer", "Chroma"),
    (r"processor\.qkv_lora|^(double|single)_blocks\.\d+\.processor\.", "FLUX.1 (xlabs)"),
    (r"to_qkv_mlp_proj|^(double|single)_stream_modulation", "FLUX.2"),
    (r"img_mlp[._]net[._]|img_mod[._]1\b|img_mod_1", "Qwen-Image"),
    (
        r"^(down_blocks|up_blocks|mid_block|input_blocks|middle_block|output_blocks)[._]",
        "Stable Diffusion (SDXL, SD 1.5)",
    ),
    (r"^double_stream_blocks", "HiDream"),
    (r"^layers[._]\d+[._](attention|self_attn)", "Z-Image or Lumina"),
    (r"^blocks[._]\d+[._](self_attn|cross_attn|ffn[._]0)", "Wan"),
    (r"^transformer_blocks[._]\d+[._]attn2[._]", "LTX-Video"),
    (r"^transformer_blocks[._]\d+[._]attn1[._]", "CogVideoX, LTX-Video or Mochi"),
    (r"^joint_blocks[._]\d+", "Stable Diffusion 3"),
)
# Widths of models that share FramePack's names but not its shapes.
WIDTHS: Mapping[int, str] = {
    1536: "Stable Diffusion 3",
    2048: "HunyuanVideo 1.5",
    2432: "Stable Diffusion 3.5",
    3584: "HunyuanImage 2.1",
    4096: "FLUX.2",
    6144: "FLUX.2",
}
FLUX_WIDTH = 3072
_FLUX_LAST = {"double": 18, "single": 37}
_STACKS = (
    ("double", re.compile(r"(?:double_blocks|(?<!single_)transformer_blocks)[._](\d+)[._]")),
    ("single", re.compile(r"(?:single_blocks|single_transformer_blocks)[._](\d+)[._]")),
)
# Spellings that HunyuanVideo's writers use and FLUX's do not.
# Names that FLUX's files never have: other spellings, and modules that only HunyuanVideo or FramePack has.
_NOT_FLUX = re.compile(
    r"(img|txt)_mlp[._]fc[12]|(img|txt)_mod[._]linear|modulation[._]linear|individual_token_refiner"
    r"|blocks\.\d+\.(img|txt)_attn_(qkv|proj)|clean_x_embedder|image_projection|(context_embedder|txt_in)[._](?!lora|alpha)\w"
)
METADATA_KEYS = ("ss_base_model_version", "modelspec.architecture", "ss_network_module")
_OURS = ("framepack", "hunyuan")
_THEIRS = (("flux", "FLUX.1"), ("chroma", "Chroma"), ("sd3", "Stable Diffusion 3"), ("sdxl", "SDXL"), ("wan", "Wan"))


def trained_for(metadata: Mapping[str, str]) -> str | None:
    """What a file's metadata says it was trained for, in its own words."""
    said = [metadata[key] for key in METADATA_KEYS if metadata.get(key)]
    return ", ".join(said) or None


def refuse_foreign(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> None:
    """Raise LoraRefused naming the model when the keys can only be another model's."""
    names = [_bare(key) for key in entries]
    for pattern, model in SIGNATURES:
        if found := next((name for name in names if re.search(pattern, name)), None):
            raise LoraRefused(f"trained for {model}, not for FramePack or HunyuanVideo: {found}")
    said = (trained_for(metadata) or "").lower()
    if said and not any(word in said for word in _OURS):
        for word, model in _THEIRS:
            if word in said:
                raise LoraRefused(f"its metadata says that it was trained for {model}: {said}")


def refuse_flux(
    keys: Iterable[str], metadata: Mapping[str, str], *, blocks: tuple[int, int], trusted: bool = False
) -> None:
    """Raise LoraRefused when a file with FramePack's names and width is FLUX.1's, or cannot be told from it.

    `blocks` are the base's numbers of double and single blocks; where they leave no room for FLUX, nothing is
    refused. `trusted` accepts what cannot be told, not what surely is FLUX.1's.
    """
    names = [_bare(key) for key in keys]
    if blocks != (20, 40) or any(_NOT_FLUX.search(name) for name in names):
        return
    said = (trained_for(metadata) or "").lower()
    if any(word in said for word in _OURS):
        return
    last = {
        stack: max(numbers)
        for stack, pattern in _STACKS
        if (numbers := [int(found[1]) for name in names if (found := pattern.search(name))])
    }
    if not last or any(number > _FLUX_LAST[stack] for stack, number in last.items()):
        return
    shown = ", ".join(f"{stack} blocks to {number}" for stack, number in last.items())
    if all(number == _FLUX_LAST[stack] for stack, number in last.items()):
        raise LoraRefused(f"trained for FLUX.1 (or Chroma), by its {shown}")
    if trusted:
        return
    raise LoraRefused(
        f"cannot be told from a FLUX.1 file, whose names and shapes are the same: {shown}",
        hint="if it is FramePack's or HunyuanVideo's: trusted: true in the job, or --trusted",
    )


def model_of_width(width: int) -> str | None:
    """A model known to have this width, for the message about shapes that do not fit."""
    return WIDTHS.get(width)


def _bare(key: str) -> str:
    """A key without wrappers and prefix."""
    return unwrapped(key).removeprefix(key_prefix(key))
