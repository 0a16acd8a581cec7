"""What a checkpoint is, from the names, shapes and dtypes of its tensors; what cannot be used is refused by name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from goan_cli.errors import InvalidInput, OtherFormat
from goan_cli.model.checkpoint import FLOATS, LOST_LORA, NEEDED_FLOATS, Checkpoint, read_checkpoint, refuse_quantised

# What each part of a pack has to be.
NEEDED: Mapping[str, str] = {
    "transformer": "FramePack's transformer",
    "text_encoder": "the Llama text encoder",
    "text_encoder_2": "the CLIP-L text encoder",
    "vae": "HunyuanVideo's VAE",
    "image_encoder": "the SigLIP image encoder",
}
_PULL = "goan models pull framepack-i2v"
# What to use instead.
USE: Mapping[str, str] = {
    "transformer": f"use FramePackI2V_HY_bf16.safetensors, or {_PULL} (or framepack-f1)",
    "text_encoder": f"use llava_llama3_fp16.safetensors, or {_PULL}",
    "text_encoder_2": f"use clip_l.safetensors, or {_PULL}",
    "vae": f"use hunyuan_video_vae_bf16.safetensors, or {_PULL}",
    "image_encoder": f"use sigclip_vision_patch14_384.safetensors, or {_PULL}",
}
_LESS_MEMORY = f"for less memory: precision: fp8 in the job; {LOST_LORA}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of model, and what its tensors are called.

    Every pattern of `has` is found in some tensor's name, from the start of a component on, and none of `lacks` is;
    numbers between dots read 0. `width` is a tensor's name and the size of its second axis, where names do not
    tell. `part` is what goan uses it for, if anything; `why` says more.
    """

    name: str
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    width: tuple[str, int] | None = None
    part: str | None = None
    why: str = ""


_OURS = r"clean_x_embedder\.|image_projection\."
_NOT_OURS = (
    r"^(?!(x_embedder\.proj|context_embedder\.\w+|time_text_embed|(single_)?transformer_blocks|norm_out|proj_out)\.)."
)
_NOT_PACKED = "it has no clean_x_embedder and no image_projection"
_HALF = r"(encoder|decoder)\."  # of a VAE

# The first row that fits decides.
KINDS: tuple[Kind, ...] = (
    Kind(
        name="a whole checkpoint: a diffusion model, its text encoders and VAE in one file",
        has=(r"^model\.diffusion_model\.", r"^(first_stage_model|cond_stage_model|conditioner|text_encoders|vae)\."),
    ),
    # Transformers
    Kind(name=NEEDED["transformer"], has=(_OURS, r"(single_)?transformer_blocks\.0\."), part="transformer"),
    Kind(name="a HunyuanVideo 1.5 or HunyuanImage transformer", has=(r"double_blocks\.0\.", r"byt5_in\.")),
    Kind(name="a HunyuanVideo 1.5 transformer", has=(r"context_embedder\.token_refiner\.", r"cond_type_embed\.")),
    Kind(name="a HunyuanImage transformer", has=(r"context_embedder\.token_refiner\.", r"time_guidance_embed\.")),
    Kind(
        name="a HunyuanVideo image-to-video transformer",
        has=(r"double_blocks\.0\.img_attn_qkv\.", r"txt_in\.individual_token_refiner\."),
        lacks=(_OURS,),
        width=(r"img_in\.proj\.weight$", 33),
        why=_NOT_PACKED,
    ),
    Kind(
        name="a HunyuanVideo image-to-video transformer",
        has=(r"context_embedder\.token_refiner\.", r"transformer_blocks\.0\."),
        lacks=(_OURS,),
        width=(r"x_embedder\.proj\.weight$", 33),
        why=_NOT_PACKED,
    ),
    Kind(
        name="a HunyuanVideo transformer",
        has=(r"double_blocks\.0\.img_attn_qkv\.", r"txt_in\.individual_token_refiner\."),
        lacks=(_OURS,),
        why=_NOT_PACKED,
    ),
    Kind(
        name="a HunyuanVideo transformer",
        has=(r"context_embedder\.token_refiner\.", r"transformer_blocks\.0\."),
        lacks=(_OURS,),
        why=_NOT_PACKED,
    ),
    # Without some of its shards; what is missing is told by whoever compares all names.
    Kind(
        name=NEEDED["transformer"], has=(r"(single_)?transformer_blocks\.0\.",), lacks=(_NOT_OURS,), part="transformer"
    ),
    Kind(name="a Chroma transformer", has=(r"distilled_guidance_layer\.",)),
    Kind(name="a FLUX.2 transformer", has=(r"(double|single)_stream_modulation",)),
    Kind(name="a Qwen-Image transformer", has=(r"transformer_blocks\.0\.img_mod\.0\.",)),
    Kind(name="a FLUX.1 transformer", has=(r"double_blocks\.0\.img_attn\.", r"img_in\.(weight|bias)")),
    Kind(name="a FLUX.1 transformer", has=(r"single_transformer_blocks\.0\.", r"x_embedder\.(weight|bias)")),
    Kind(name="a Wan transformer", has=(r"blocks\.0\.(self_attn|attn1)\.", r"patch_embedding\.")),
    Kind(name="an LTX-Video transformer", has=(r"transformer_blocks\.0\.", r"(patchify_proj|time_embed\.emb)\.")),
    Kind(name="a PixArt transformer", has=(r"transformer_blocks\.0\.", r"adaln_single\.")),
    Kind(name="a CogVideoX transformer", has=(r"transformer_blocks\.0\.", r"patch_embed\.text_proj\.")),
    Kind(name="a Mochi transformer", has=(r"pos_frequencies$",)),
    Kind(name="a Stable Diffusion 3 transformer", has=(r"joint_blocks\.0\.",)),
    Kind(name="a Stable Diffusion 3 transformer", has=(r"transformer_blocks\.0\.", r"pos_embed\.pos_embed$")),
    Kind(name="a Z-Image or Lumina transformer", has=(r"(cap_embedder|time_caption_embed)\.", r"layers\.0\.")),
    Kind(name="a HiDream transformer", has=(r"double_stream_blocks\.0\.",)),
    Kind(name="a Cosmos transformer", has=(r"(learnable_pos_embed|x_embedder\.proj\.0)\.",)),
    Kind(name="a Kandinsky transformer", has=(r"visual_transformer_blocks\.0\.",)),
    Kind(name="a ControlNet", has=(r"(control_model|controlnet_\w+)\.",)),
    Kind(name="a Stable Diffusion U-Net", has=(r"input_blocks\.0\.0\.|down_blocks\.0\.resnets\.0\.time_emb_proj\.",)),
    Kind(name="a FLUX.1 Redux adapter", has=(r"redux_(up|down)\.",)),
    # Text and image encoders
    Kind(name="a T5 text encoder", has=(r"encoder\.block\.0\.layer\.0\.SelfAttention\.",)),
    Kind(name="a T5 text encoder", has=(r"blocks\.0\.pos_embedding\.embedding\.",)),
    Kind(name="an OpenCLIP model", has=(r"transformer\.resblocks\.0\.",)),
    Kind(name="a Gemma text encoder", has=(r"layers\.0\.pre_feedforward_layernorm\.",)),
    # A vision tower's layers have biases, Llama's have none.
    Kind(
        name="a Qwen text encoder",
        has=(r"(?<!encoder\.)layers\.0\.self_attn\.(q_proj\.bias|q_norm\.)", r"layers\.0\.input_layernorm\."),
    ),
    Kind(
        name=NEEDED["text_encoder"],
        has=(r"layers\.0\.(input|post_attention)_layernorm\.", r"layers\.0\.mlp\.(gate|up|down)_proj\."),
        part="text_encoder",
    ),
    Kind(
        name=NEEDED["image_encoder"],
        has=(r"embeddings\.patch_embedding\.bias|head\.(probe$|attention\.)", r"encoder\.layers\.0\."),
        part="image_encoder",
    ),
    Kind(name="a CLIP-G text encoder", has=(), width=(r"embeddings\.token_embedding\.weight$", 1280)),
    Kind(
        name="a SigLIP text encoder",
        has=(r"(embeddings\.token_embedding|final_layer_norm)\.", r"^(text_model\.)?head\.(weight|bias)$"),
    ),
    Kind(
        name=NEEDED["text_encoder_2"],
        has=(r"(embeddings\.token_embedding|final_layer_norm)\.", r"encoder\.layers\.0\."),
        part="text_encoder_2",
    ),
    Kind(name="a CLIP image encoder", has=(r"embeddings\.class_embedding|pre_layrnorm\.", r"encoder\.layers\.0\.")),
    Kind(name="a DINOv2 image encoder", has=(r"embeddings\.mask_token",)),
    Kind(name="a BERT text encoder", has=(r"embeddings\.word_embeddings\.",)),
    # VAEs
    Kind(name="a Wan or Qwen-Image VAE", has=(_HALF + r"(middle\.0\.|mid_block\.attentions\.0\.to_qkv\.)",)),
    Kind(name="a HunyuanVideo 1.5 VAE", has=(_HALF + r"(mid_block\.resnets\.0|mid\.block_1)\.norm1\.gamma$",)),
    Kind(name="an LTX-Video VAE", has=(_HALF, r"per_channel_statistics\.|latents_mean$")),
    Kind(name="a CogVideoX VAE", has=(_HALF + r"mid_block\.resnets\.0\.norm1\.conv_y\.",)),
    Kind(name="a Mochi VAE", has=(_HALF + r"block_(in|out)\.resnets\.0\.",)),
    Kind(name="a tiny autoencoder", has=(r"(taesd_)?(encoder|decoder)\.(layers\.0\.conv\.0|0|0\.conv\.0)\.weight$",)),
    Kind(
        name=NEEDED["vae"],
        has=(_HALF + r"conv_(in|out)\.conv\.", _HALF + r"(mid_block\.resnets\.0|mid\.block_1)\.norm1\.(weight|bias)$"),
        part="vae",
    ),
    Kind(
        name="a VAE for pictures, Stable Diffusion's or FLUX's",
        has=(_HALF + r"conv_in\.(weight|bias)$", _HALF + r"(mid_block\.resnets\.0|mid\.block_1)\."),
    ),
)
LORA = Kind(name="a LoRA", has=())
# Names of an adapter's tensors; a file of mostly such is one.
_ADAPTER = re.compile(
    r"(^|[._])lora_(A|B|up|down|mid|E)\b|lora\.(up|down)\.|hada_[wt]\d|lokr_[wt]\d|\.(alpha|dora_scale|diff|diff_b)$"
)

# `NAME DTYPE` of a tensor -> what a checkpoint with one is in. Integers that are no weights are harmless: CLIP's
# position_ids, ComfyUI's tokenizer.
QUANTISED: tuple[tuple[str, str], ...] = (
    (r"bitsandbytes__nf4 ", "NF4 (bitsandbytes)"),
    (r"bitsandbytes__fp4 ", "FP4 (bitsandbytes)"),
    (r"\.(absmax|quant_map) ", "8 bits or fewer (bitsandbytes)"),
    (r"\.SCB ", "int8 (bitsandbytes)"),
    (r"\.(wscales|wtscale|wcscales|smooth|smooth_orig|smooth_factor|smooth_factor_orig) ", "SVDQuant (Nunchaku)"),
    (r"\.(qweight|qzeros) ", "4 bits (GPTQ or AWQ)"),
    (r"\.weight_scale_2 ", "NVFP4"),
    (r" F8_\w+$", "fp8"),
    (r" F[46]_\w+$| F4$", "fp4"),
    (r"weight I8$", "int8"),
    (r"(^|\.)scaled_fp8 |\.(scale_weight|scale_input) ", "scaled fp8"),
    (r"\.weight_scale ", "scaled 8 bits or fewer"),
    (rf"weight (?!({'|'.join(sorted(FLOATS))})$)\w+$", "integers"),
)
_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_FRAMEPACK_PREFIX = re.compile(r"^(?P<prefix>.+\.)(clean_x_embedder|image_projection)\.", re.MULTILINE)


def read_part(part: str, path: Path) -> Checkpoint:
    """The headers of a part's files, when a render can use them as that part.

    Raises InvalidInput for anything else, saying what it is and what to use instead.
    """
    try:
        checkpoint = read_checkpoint(path)
    except OtherFormat as error:
        raise OtherFormat(error.message, hint=USE[part]) from error
    refuse_unusable(part, path, checkpoint)
    return checkpoint


def refuse_unusable(part: str, path: Path, checkpoint: Checkpoint) -> None:
    """Raise InvalidInput for a checkpoint that is no such part, or is quantised, saying what to use instead."""
    kind = recognised(checkpoint)
    if kind is LORA:
        raise InvalidInput(
            f"{path}: is {kind.name}, not {NEEDED[part]}",
            hint=f"list it under loras in the job; as the {part}: {USE[part]}",
        )
    if kind is not None and kind.part != part:
        why = f": {kind.why}" if kind.why and part == "transformer" else ""
        raise InvalidInput(f"{path}: is {kind.name}, not {NEEDED[part]}{why}", hint=USE[part])
    _refuse_quantised(part, checkpoint, kind)
    if kind is None:
        first = next(iter(checkpoint.entries), "nothing")
        raise InvalidInput(
            f"{path}: is not {NEEDED[part]}: no model that goan knows has its tensors ({first})", hint=USE[part]
        )
    if part == "transformer" and (found := _FRAMEPACK_PREFIX.search(_outline(checkpoint.entries))):
        raise InvalidInput(
            f"{path}: is {kind.name} with {found['prefix']} before each name, which goan does not read", hint=USE[part]
        )


def recognised(checkpoint: Checkpoint) -> Kind | None:
    """What kind of model a checkpoint is, None when no row of the table fits."""
    adapters = sum(1 for name in checkpoint.entries if _ADAPTER.search(name))
    if 2 * adapters > len(checkpoint.entries):
        return LORA
    outline = _outline(checkpoint.entries)
    return next((kind for kind in KINDS if _fits(kind, outline, checkpoint)), None)


def _fits(kind: Kind, outline: str, checkpoint: Checkpoint) -> bool:
    if not all(_found(pattern, outline) for pattern in kind.has):
        return False
    if any(_found(pattern, outline) for pattern in kind.lacks):
        return False
    if kind.width is None:
        return True
    pattern, size = kind.width
    return any(
        entry.shape[1:2] == (size,) for name, entry in checkpoint.entries.items() if _found(pattern, _outline([name]))
    )


def _found(pattern: str, outline: str) -> bool:
    return re.search(rf"(^|\.)(?:{pattern})", outline, re.MULTILINE) is not None


def _outline(names: Iterable[str]) -> str:
    """Names, one a line, with every number between dots as 0 and each once: a model's blocks look alike."""
    return "\n".join(dict.fromkeys(_INDEX.sub("0", name) for name in names))


def _refuse_quantised(part: str, checkpoint: Checkpoint, kind: Kind | None) -> None:
    what = kind.name if kind is not None else f"the pack's {part}"
    hint = f"{USE[part]}; {_LESS_MEMORY}" if part == "transformer" else USE[part]
    lines: dict[str, str] = {}
    for name, entry in checkpoint.entries.items():
        lines.setdefault(f"{_outline([name])} {entry.dtype}", name)
    for pattern, form in QUANTISED:
        first = next((own for line, own in lines.items() if re.search(pattern, line)), None)
        if first is not None:
            raise InvalidInput(
                f"{checkpoint.file_of[first]}: is {what} in {form} ({first}: {checkpoint.entries[first].dtype}); "
                f"{NEEDED_FLOATS}",
                hint=hint,
            )
    if part == "transformer":
        refuse_quantised(checkpoint)
