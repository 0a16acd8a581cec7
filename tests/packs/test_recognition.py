"""What a checkpoint is told to be from its header, and how what cannot be used is refused."""

import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import pytest
import torch
import transformers

from goan_cli.errors import InvalidInput, InvalidJobs, OtherFormat
from goan_cli.model.checkpoint import Checkpoint, read_checkpoint
from goan_cli.packs.find import find_pack
from goan_cli.packs.manifest import WEIGHTED
from goan_cli.packs.recognition import (
    KINDS,
    NEEDED,
    QUANTISED,
    USE,
    read_part,
    recognised,
    refuse_unusable,
)
from goan_cli.tensorfile import TensorEntry
from tests.conftest import GOLDEN
from tests.headers import full_size_tensors, write_weights

FILE = Path("given.safetensors")
LORAS = sorted(file for file in (GOLDEN / "lora").glob("*.safetensors") if ".expected" not in file.name)

Shapes = Mapping[str, tuple[int, ...]]


def recognised_part(found: Checkpoint) -> str | None:
    """The part that goan would use a checkpoint as, quantised or not."""
    kind = recognised(found)
    return None if kind is None else kind.part


def checkpoint(shapes: Shapes, dtype: str = "BF16", others: Mapping[str, str] = MappingProxyType({})) -> Checkpoint:
    """A checkpoint of one file; `others` are dtypes of tensors beside those."""
    entries = {name: TensorEntry(dtype=dtype, shape=shape) for name, shape in shapes.items()}
    entries |= {name: TensorEntry(dtype=kind, shape=(1,)) for name, kind in others.items()}
    return Checkpoint(files=(FILE,), entries=entries, file_of=dict.fromkeys(entries, FILE))


def names(*given: str) -> Callable[[], Shapes]:
    """Tensors of these names, of whatever shape."""
    return lambda: dict.fromkeys(given, (2, 2))


def module(library: Any, name: str, config: Any = None, **settings: Any) -> Callable[[], Shapes]:
    """The tensors of a class of diffusers or transformers."""

    @cache
    def shapes() -> Shapes:
        given = [getattr(library, config)(**settings)] if config else []
        with torch.device("meta"):
            model = getattr(library, name)(*given, **({} if config else settings))
        return {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}

    return shapes


def dit(name: str, **settings: int) -> Callable[[], Shapes]:
    """A transformer of diffusers with one block of each kind."""
    return module(diffusers, name, num_layers=1, **settings)


@cache
def part(name: str) -> Shapes:
    """The tensors of a full-size part as its repository has them."""
    return {tensor: entry.shape for tensor, entry in full_size_tensors(name).items()}


def below(prefix: str, shapes: Shapes) -> Shapes:
    """The tensors with a prefix before each name."""
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def ldm_vae() -> Shapes:
    """HunyuanVideo's VAE as ComfyUI has it."""
    halves = ("encoder", "decoder")
    tensors = [f"{half}.{name}" for half in halves for name in ("conv_in.conv", "conv_out.conv", "mid.block_1.norm1")]
    tensors += ["encoder.down.0.block.0.conv1.conv", "decoder.up.0.block.0.conv1.conv", "encoder.mid.attn_1.q"]
    return {f"{name}.weight": (2, 2) for name in (*tensors, "quant_conv", "post_quant_conv")}


def original(channels: int, prefix: str = "") -> Shapes:
    """HunyuanVideo's transformer in its own layout."""
    blocks = ("double_blocks.0.img_attn_qkv", "double_blocks.19.txt_mlp.fc1", "single_blocks.39.linear1")
    others = ("txt_in.individual_token_refiner.blocks.0.norm1", "final_layer.linear", "vector_in.in_layer")
    shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": (2, 2) for name in (*blocks, *others)}
    return below(prefix, {**shapes, "img_in.proj.weight": (3072, channels, 1, 2, 2)})


SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
HUNYUAN = {"num_single_layers": 1, "num_refiner_layers": 1}
FLUX = {"num_single_layers": 1}
T5 = {"d_model": 8, "d_ff": 8, "num_layers": 1}

# What goan has no use for: id -> its tensors, and what it is called.
OTHERS: dict[str, tuple[Callable[[], Shapes], str]] = {
    "whole checkpoint": (
        names("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"),
        "a whole checkpoint",
    ),
    "SDXL": (
        names("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.transformer.x.weight"),
        "a whole checkpoint",
    ),
    "HunyuanVideo": (lambda: original(16), "a HunyuanVideo transformer"),
    "HunyuanVideo, ComfyUI": (lambda: original(16, "model.model."), "a HunyuanVideo transformer"),
    "HunyuanVideo I2V": (
        lambda: original(33, "model.diffusion_model."),
        "a HunyuanVideo image-to-video transformer",
    ),
    "HunyuanVideo, diffusers": (dit("HunyuanVideoTransformer3DModel", **HUNYUAN), "a HunyuanVideo transformer"),
    "HunyuanVideo I2V, diffusers": (
        dit("HunyuanVideoTransformer3DModel", in_channels=33, **HUNYUAN),
        "a HunyuanVideo image-to-video transformer",
    ),
    "HunyuanVideo 1.5": (
        names("double_blocks.0.img_attn_q.weight", "byt5_in.fc1.weight", "vision_in.proj.0.weight"),
        "a HunyuanVideo 1.5 or HunyuanImage transformer",
    ),
    "HunyuanVideo 1.5, diffusers": (
        dit("HunyuanVideo15Transformer3DModel", num_refiner_layers=1),
        "a HunyuanVideo 1.5 transformer",
    ),
    "HunyuanImage": (dit("HunyuanImageTransformer2DModel", **HUNYUAN), "a HunyuanImage transformer"),
    "Chroma": (dit("ChromaTransformer2DModel", **FLUX), "a Chroma transformer"),
    "FLUX.2": (dit("Flux2Transformer2DModel", **FLUX), "a FLUX.2 transformer"),
    "FLUX.2, own": (names("double_stream_modulation_img.lin.weight", "img_in.weight"), "a FLUX.2 transformer"),
    "Qwen-Image": (dit("QwenImageTransformer2DModel"), "a Qwen-Image transformer"),
    "FLUX.1": (names("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), "a FLUX.1 transformer"),
    "FLUX.1, ComfyUI": (
        names("model.diffusion_model.double_blocks.18.img_attn.qkv.weight", "model.diffusion_model.img_in.weight"),
        "a FLUX.1 transformer",
    ),
    "FLUX.1, diffusers": (dit("FluxTransformer2DModel", **FLUX), "a FLUX.1 transformer"),
    "Wan": (names("blocks.0.self_attn.q.weight", "patch_embedding.weight", "head.modulation"), "a Wan transformer"),
    "Wan, diffusers": (dit("WanTransformer3DModel"), "a Wan transformer"),
    "LTX-Video": (
        names("diffusion_model.patchify_proj.weight", "diffusion_model.transformer_blocks.0.attn1.to_q.weight"),
        "an LTX-Video transformer",
    ),
    "LTX-Video, diffusers": (dit("LTXVideoTransformer3DModel"), "an LTX-Video transformer"),
    "PixArt": (dit("PixArtTransformer2DModel"), "a PixArt transformer"),
    "CogVideoX": (dit("CogVideoXTransformer3DModel"), "a CogVideoX transformer"),
    "Mochi": (dit("MochiTransformer3DModel"), "a Mochi transformer"),
    "SD3": (names("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"), "a Stable Diffusion 3 transformer"),
    "SD3, diffusers": (dit("SD3Transformer2DModel"), "a Stable Diffusion 3 transformer"),
    "Z-Image": (module(diffusers, "ZImageTransformer2DModel", n_layers=1), "a Z-Image or Lumina transformer"),
    "Lumina": (dit("Lumina2Transformer2DModel"), "a Z-Image or Lumina transformer"),
    "HiDream": (names("double_stream_blocks.0.block.adaLN_modulation.1.bias"), "a HiDream transformer"),
    "Cosmos": (dit("CosmosTransformer3DModel"), "a Cosmos transformer"),
    "Cosmos, own": (names("net.x_embedder.proj.1.weight", "net.blocks.0.self_attn.q.weight"), "a Cosmos transformer"),
    "Kandinsky": (
        module(diffusers, "Kandinsky5Transformer3DModel", num_text_blocks=1, num_visual_blocks=1),
        "a Kandinsky transformer",
    ),
    "ControlNet": (names("controlnet_blocks.0.weight", "transformer_blocks.0.attn.to_q.weight"), "a ControlNet"),
    "U-Net": (names("input_blocks.0.0.weight", "output_blocks.0.0.in_layers.0.weight"), "a Stable Diffusion U-Net"),
    "U-Net, diffusers": (
        module(diffusers, "UNet2DConditionModel", cross_attention_dim=32),
        "a Stable Diffusion U-Net",
    ),
    "Redux": (names("redux_up.weight", "redux_up.bias", "redux_down.weight"), "a FLUX.1 Redux adapter"),
    "T5": (module(transformers, "T5EncoderModel", "T5Config", **T5), "a T5 text encoder"),
    "T5, Wan's": (names("blocks.0.pos_embedding.embedding.weight", "token_embedding.weight"), "a T5 text encoder"),
    "OpenCLIP": (names("transformer.resblocks.0.attn.in_proj_weight", "token_embedding.weight"), "an OpenCLIP model"),
    "Gemma": (
        module(transformers, "Gemma3TextModel", "Gemma3TextConfig", **SMALL, num_key_value_heads=1),
        "a Gemma text encoder",
    ),
    "Qwen2": (
        module(transformers, "Qwen2Model", "Qwen2Config", **SMALL, num_key_value_heads=1),
        "a Qwen text encoder",
    ),
    "Qwen3": (
        module(transformers, "Qwen3ForCausalLM", "Qwen3Config", **SMALL, num_key_value_heads=1),
        "a Qwen text encoder",
    ),
    "CLIP-G": (
        module(transformers, "CLIPTextModelWithProjection", "CLIPTextConfig", **{**SMALL, "hidden_size": 1280}),
        "a CLIP-G text encoder",
    ),
    "SigLIP's text": (
        module(transformers, "SiglipTextModel", "SiglipTextConfig", **SMALL, projection_size=8),
        "a SigLIP text encoder",
    ),
    "CLIP vision": (
        module(transformers, "CLIPVisionModelWithProjection", "CLIPVisionConfig", **SMALL),
        "a CLIP image encoder",
    ),
    "DINOv2": (module(transformers, "Dinov2Model", "Dinov2Config"), "a DINOv2 image encoder"),
    "BERT": (module(transformers, "BertModel", "BertConfig", **SMALL), "a BERT text encoder"),
    "Wan VAE": (names("encoder.middle.0.residual.0.gamma", "conv1.weight"), "a Wan or Qwen-Image VAE"),
    "Wan VAE, diffusers": (module(diffusers, "AutoencoderKLWan"), "a Wan or Qwen-Image VAE"),
    "Qwen-Image VAE": (module(diffusers, "AutoencoderKLQwenImage"), "a Wan or Qwen-Image VAE"),
    "HunyuanVideo 1.5 VAE": (module(diffusers, "AutoencoderKLHunyuanVideo15"), "a HunyuanVideo 1.5 VAE"),
    "HunyuanVideo 1.5 VAE, ComfyUI": (
        names("decoder.conv_in.conv.weight", "decoder.mid.block_1.norm1.gamma"),
        "a HunyuanVideo 1.5 VAE",
    ),
    "LTX VAE": (module(diffusers, "AutoencoderKLLTXVideo"), "an LTX-Video VAE"),
    "LTX VAE, own": (
        names("vae.encoder.conv_in.conv.weight", "vae.per_channel_statistics.mean-of-means"),
        "an LTX-Video VAE",
    ),
    "CogVideoX VAE": (module(diffusers, "AutoencoderKLCogVideoX"), "a CogVideoX VAE"),
    "Mochi VAE": (module(diffusers, "AutoencoderKLMochi"), "a Mochi VAE"),
    "TAESD": (module(diffusers, "AutoencoderTiny"), "a tiny autoencoder"),
    "TAEHV": (names("encoder.0.weight", "encoder.2.conv.0.weight", "decoder.1.weight"), "a tiny autoencoder"),
    "SD VAE": (module(diffusers, "AutoencoderKL"), "a VAE for pictures"),
    "FLUX VAE": (
        names("first_stage_model.decoder.conv_in.weight", "first_stage_model.decoder.mid.block_1.norm1.weight"),
        "a VAE for pictures",
    ),
    "SVD VAE": (module(diffusers, "AutoencoderKLTemporalDecoder"), "a VAE for pictures"),
}  # fmt: skip

LLAMA = {**SMALL, "num_key_value_heads": 1}
# What goan uses, in every packaging: id -> the part and its tensors.
OURS: dict[str, tuple[str, Callable[[], Shapes]]] = {
    **{f"full-size {name}": (name, partial(part, name)) for name in WEIGHTED},
    "diffusers' FramePack": (
        "transformer",
        dit(
            "HunyuanVideoFramepackTransformer3DModel",
            has_image_proj=True,
            has_clean_x_embedder=True,
            **HUNYUAN,
        ),
    ),
    "blocks alone": ("transformer", names("transformer_blocks.3.attn.to_q.weight", "norm_out.linear.bias")),
    "Llama": ("text_encoder", module(transformers, "LlamaModel", "LlamaConfig", **LLAMA)),
    "Llama with its head": ("text_encoder", module(transformers, "LlamaForCausalLM", "LlamaConfig", **LLAMA)),
    "LLaVA": ("text_encoder", module(transformers, "LlavaForConditionalGeneration", "LlavaConfig")),
    "LLaVA, transformers 4": (
        "text_encoder",
        lambda: {
            **below("language_model.model.", part("text_encoder")),
            **below("vision_tower.vision_model.", OTHERS["CLIP vision"][0]()),
            "multi_modal_projector.linear_1.weight": (2, 2),
        },
    ),
    "CLIP": ("text_encoder_2", module(transformers, "CLIPTextModel", "CLIPTextConfig", **SMALL)),
    "CLIP with projection": (
        "text_encoder_2",
        module(transformers, "CLIPTextModelWithProjection", "CLIPTextConfig", **SMALL),
    ),
    "CLIP whole": ("text_encoder_2", module(transformers, "CLIPModel", "CLIPConfig")),
    "SigLIP": ("image_encoder", module(transformers, "SiglipVisionModel", "SiglipVisionConfig", **SMALL)),
    "SigLIP whole": ("image_encoder", module(transformers, "SiglipModel", "SiglipConfig")),
    "VAE, LDM's names": ("vae", ldm_vae),
    "VAE, LDM's names and prefix": ("vae", lambda: below("first_stage_model.", ldm_vae())),
    "VAE, Tencent's": ("vae", lambda: below("vae.", part("vae"))),
}  # fmt: skip


def refused(name: str, given: Checkpoint, path: Path = FILE) -> InvalidInput:
    """What is raised when a checkpoint is given as a part."""
    with pytest.raises(InvalidInput) as caught:
        refuse_unusable(name, path, given)
    return caught.value


@pytest.mark.parametrize("given", OTHERS)
@pytest.mark.parametrize("name", WEIGHTED)
def test_other_models(given: str, name: str) -> None:
    """A model that goan has no use for is called by its name, whatever part it is given as, with what to use."""
    shapes, called = OTHERS[given]
    error = refused(name, checkpoint(shapes()))
    assert re.match(rf"given\.safetensors: is {re.escape(called)}\b.*, not {NEEDED[name]}", error.message)
    assert error.hint == USE[name]
    assert recognised_part(checkpoint(shapes())) is None


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("given", OURS)
def test_right_parts(given: str, dtype: str) -> None:
    """A part is known in every packaging and width, and accepted as no other part."""
    name, shapes = OURS[given]
    found = checkpoint(shapes(), dtype)
    assert recognised_part(found) == name
    refuse_unusable(name, FILE, found)
    for other in set(WEIGHTED) - {name}:
        error = refused(other, found)
        assert error.message == f"given.safetensors: is {NEEDED[name]}, not {NEEDED[other]}"
        assert error.hint == USE[other]


def test_every_kind_has_an_example() -> None:
    """No row of the table is without a file that it decides."""
    examples = [shapes for shapes, _ in OTHERS.values()] + [shapes for _, shapes in OURS.values()]
    decided = [recognised(checkpoint(shapes())) for shapes in examples]
    assert [kind for kind in KINDS if kind not in decided] == []


@pytest.mark.parametrize("pack", [GOLDEN / "packed", find_pack("tiny").manifest.parent])
@pytest.mark.parametrize("name", WEIGHTED)
def test_small_packs(pack: Path, name: str) -> None:
    """The parts of the small packs are what they are, on disk."""
    assert recognised_part(read_part(name, pack / name)) == name


@pytest.mark.parametrize("given", ["HunyuanVideo", "HunyuanVideo I2V", "HunyuanVideo, diffusers"])
def test_hunyuan_is_not_framepack(given: str) -> None:
    """It is said how a HunyuanVideo transformer differs from FramePack's."""
    error = refused("transformer", checkpoint(OTHERS[given][0]()))
    assert error.message.endswith("not FramePack's transformer: it has no clean_x_embedder and no image_projection")
    assert "goan models pull framepack-i2v" in str(error.hint)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "model."])
def test_prefixed_framepack(prefix: str) -> None:
    """FramePack's transformer with a prefix, which goan does not load, is told by the prefix."""
    found = checkpoint(below(prefix, part("transformer")))
    assert recognised_part(found) == "transformer"
    assert refused("transformer", found).message == (
        f"given.safetensors: is FramePack's transformer with {prefix} before each name, which goan does not read"
    )


@pytest.mark.parametrize("file", LORAS, ids=lambda file: file.stem)
@pytest.mark.parametrize("name", WEIGHTED)
def test_loras(file: Path, name: str) -> None:
    """A LoRA of any kind is told to belong to the job's list."""
    error = refused(name, read_checkpoint(file), file)
    assert error.message == f"{file}: is a LoRA, not {NEEDED[name]}"
    assert str(error.hint).startswith("list it under loras in the job; ")


WEIGHT = "proj_out.weight"
# Tensors beside a part's own, by dtype -> what the part is said to be in.
RE_PACKS: dict[str, tuple[dict[str, str], str]] = {
    "NF4": ({WEIGHT: "U8", f"{WEIGHT}.quant_state.bitsandbytes__nf4": "U8"}, "NF4 (bitsandbytes)"),
    "FP4": ({WEIGHT: "U8", f"{WEIGHT}.quant_state.bitsandbytes__fp4": "U8"}, "FP4 (bitsandbytes)"),
    "absmax": ({f"{WEIGHT}.absmax": "F32", f"{WEIGHT}.quant_map": "F32"}, "8 bits or fewer (bitsandbytes)"),
    "SCB": ({WEIGHT: "I8", "proj_out.SCB": "F32"}, "int8 (bitsandbytes)"),
    "Nunchaku": ({"proj_out.qweight": "I8", "proj_out.wscales": "BF16"}, "SVDQuant (Nunchaku)"),
    "Nunchaku's smooth": ({"proj_out.qweight": "I32", "proj_out.smooth": "BF16"}, "SVDQuant (Nunchaku)"),
    "GPTQ": ({"proj_out.qweight": "I32", "proj_out.qzeros": "I32"}, "4 bits (GPTQ or AWQ)"),
    "NVFP4": ({WEIGHT: "U8", f"{WEIGHT}_scale": "F8_E4M3", f"{WEIGHT}_scale_2": "F32"}, "NVFP4"),
    "fp8 e4m3": ({WEIGHT: "F8_E4M3"}, "fp8"),
    "fp8 e5m2": ({WEIGHT: "F8_E5M2"}, "fp8"),
    "fp8 and scales": ({WEIGHT: "F8_E4M3", "scaled_fp8": "F8_E4M3", "proj_out.scale_weight": "F32"}, "fp8"),
    "fp4": ({WEIGHT: "F4"}, "fp4"),
    "int8": ({WEIGHT: "I8", f"{WEIGHT}_scale": "F32"}, "int8"),
    "marker": ({"scaled_fp8": "F32"}, "scaled fp8"),
    "scales": ({"proj_out.scale_weight": "F32"}, "scaled fp8"),
    "weight scales": ({f"{WEIGHT}_scale": "F32"}, "scaled 8 bits or fewer"),
    "integers": ({WEIGHT: "I16"}, "integers"),
}


@pytest.mark.parametrize("re_pack", RE_PACKS)
@pytest.mark.parametrize("name", WEIGHTED)
def test_quantised(re_pack: str, name: str) -> None:
    """A quantised re-pack of any part is told by its form and one of its tensors, with what to use instead."""
    tensors, form = RE_PACKS[re_pack]
    found = checkpoint(part(name), others=tensors)
    error = refused(name, found)
    assert error.message.startswith(f"given.safetensors: is {NEEDED[name]} in {form} (")
    assert error.message.endswith("; a render needs bf16, fp16 or fp32 weights")
    assert any(f"({tensor}: {dtype})" in error.message for tensor, dtype in tensors.items())
    assert str(error.hint).startswith(USE[name])
    assert recognised_part(found) == name


def test_every_form_has_an_example() -> None:
    """Each row of the table decides one of the re-packs."""
    assert {form for _, form in QUANTISED} == {form for _, form in RE_PACKS.values()}


def test_less_memory() -> None:
    """Who has an fp8 transformer for want of memory is told of the job's own fp8, and what the re-pack loses."""
    hint = str(refused("transformer", checkpoint(part("transformer"), others={WEIGHT: "F8_E4M3"})).hint)
    assert "precision: fp8" in hint
    assert "0 to 31%" in hint


def test_unknown_and_quantised() -> None:
    """A re-pack whose names goan does not know is told by its form all the same."""
    error = refused("transformer", checkpoint({}, others={"a.qweight": "I32", "a.wscales": "BF16"}))
    assert "is the pack's transformer in SVDQuant (Nunchaku) (a.wscales: BF16)" in error.message


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("text_encoder", {"tokenizer": "U8"}),
        ("text_encoder", {"tokenizer": "I8"}),
        ("text_encoder", {"model.layers.0.self_attn.rotary_emb.inv_freq": "F32"}),
        ("text_encoder_2", {"text_model.embeddings.position_ids": "I64"}),
        ("image_encoder", {"vision_model.embeddings.position_ids": "I64"}),
        ("vae", {"num_batches_tracked": "I64"}),
    ],
)
def test_integers_that_are_no_weights(name: str, tensors: dict[str, str]) -> None:
    """Indexes and a packed tokenizer beside the weights are no reason to refuse."""
    refuse_unusable(name, FILE, checkpoint(part(name), others=tensors))


def test_integers_in_the_transformer() -> None:
    """FramePack's transformer has no integers, so one that has is refused."""
    error = refused("transformer", checkpoint(part("transformer"), others={"extra": "I64"}))
    assert error.message == "given.safetensors: extra is I64; a render needs bf16, fp16 or fp32 weights"


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"a": (1,)},
        {"": ()},
        {".": (0,)},
        {"weight": (2, 2)},
        {"transformer_blocks": (2, 2)},
        {"transformer_blocks.0.": (2, 2), "nobody.knows.weight": (2, 2)},
        {"clean_x_embedder.proj.weight": (2, 2)},
        {"x\nclean_x_embedder": (2, 2)},
        {"0": (1,), "1.2.3": (1,)},
        {"not_double_blocks.0.img_attn.qkv.weight": (2, 2), "img_in.weight": (2, 2)},
        {"é" * 999: (1,)},
        {f"layer{number}.weight": (2, 2) for number in range(999)},
    ],
    ids=lambda shapes: next(iter(shapes), "none")[:20],
)
def test_unknown(name: str, shapes: Shapes) -> None:
    """Tensors that belong to no known model are refused as what they were given for, with one of them named."""
    error = refused(name, checkpoint(shapes))
    assert error.message == (
        f"given.safetensors: is not {NEEDED[name]}: no model that goan knows has its tensors "
        f"({next(iter(shapes), 'nothing')})"
    )
    assert error.hint == USE[name]
    assert recognised(checkpoint(shapes)) is None


def test_mixed_files() -> None:
    """A few adapter tensors make no LoRA of a model, and two models in one file are called by one of them."""
    transformer = part("transformer")
    with_adapter = checkpoint({**transformer, "proj_out.lora_A.weight": (2, 2), "proj_out.lora_B.weight": (2, 2)})
    assert recognised_part(with_adapter) == "transformer"
    assert recognised_part(checkpoint({**part("vae"), **transformer})) == "transformer"
    assert recognised_part(checkpoint({**transformer, **original(16)})) == "transformer"
    assert recognised(checkpoint({**original(16), "clean_x_embedder.proj.weight": (2, 2)})) is None


@pytest.mark.parametrize("lost", ["clean_x_embedder", "image_projection", "context_embedder.", "single_"])
def test_incomplete_framepack(lost: str) -> None:
    """FramePack's transformer without some of its tensors is still that: what it lacks is told elsewhere."""
    found = {name: shape for name, shape in part("transformer").items() if not name.startswith(lost)}
    assert recognised_part(checkpoint(found)) == "transformer"
    refuse_unusable("transformer", FILE, checkpoint(found))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.gguf", b"GGUF\3\0\0\0" + b"\0" * 64, "a GGUF file, whose weights are quantised"),
        ("model.safetensors", b"GGUF\3\0\0\0" + b"\0" * 64, "a GGUF file, whose weights are quantised"),
        ("model.GGUF", b"\0" * 64, "a GGUF file, whose weights are quantised"),
        ("model.pt", b"PK\3\4" + b"\0" * 64, "goan never opens pickles"),
        ("model.ckpt", b"\x80\x02}" + b"\0" * 64, "goan never opens pickles"),
        ("pytorch_model.bin", b"\0" * 64, "goan never opens pickles"),
    ],
)
@pytest.mark.parametrize("name", WEIGHTED)
def test_other_formats(tmp_path: Path, file: str, content: bytes, said: str, name: str) -> None:
    """GGUF files and torch pickles are told by their bytes or their names, with what to use instead."""
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(OtherFormat) as caught:
        read_part(name, path)
    assert caught.value.message.startswith(f"{path}: not a usable safetensors file: ")
    assert said in caught.value.message
    assert caught.value.hint == USE[name]


def test_folder_of_pickles(tmp_path: Path) -> None:
    """A folder with nothing but pickles is told so, each by name."""
    for file in ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "config.json"):
        (tmp_path / file).write_bytes(b"PK\3\4")
    with pytest.raises(OtherFormat) as caught:
        read_part("text_encoder", tmp_path)
    assert caught.value.message == (
        f"{tmp_path}: holds no safetensors weights, only pytorch_model-00001-of-00002.bin, "
        "pytorch_model-00002-of-00002.bin: a torch pickle by its name; goan never opens pickles"
    )
    assert caught.value.hint == USE["text_encoder"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!doctype html><html></html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x40\0\0\0\0\0\0\0{", "truncated"),
        (b"\2\0\0\0\0\0\0\0{}", "holds no tensors"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, said: str) -> None:
    """What has to be downloaded again is told by its own message."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=said) as caught:
        read_part("vae", path)
    assert caught.value.hint is None


def test_the_quantised_shard_is_named(tmp_path: Path) -> None:
    """A re-pack in several files is told by the file that holds the quantised tensor."""
    tensors = {**full_size_tensors("vae"), "quant_conv.weight": TensorEntry(dtype="F8_E4M3", shape=(1,))}
    *_, last = write_weights(tmp_path, "model", tensors, largest=200_000_000)
    assert last.name == "model-00003-of-00003.safetensors"
    with pytest.raises(InvalidInput) as caught:
        read_part("vae", tmp_path)
    assert caught.value.message.startswith(f"{last}: is HunyuanVideo's VAE in fp8 (quant_conv.weight: F8_E4M3); ")


def test_pack_of_wrong_parts(tmp_path: Path) -> None:
    """A pack says of each wrong part what it is, at its line of the manifest."""
    lora, given = LORAS[0], GOLDEN / "packed"
    parts = {
        "transformer": lora,
        "vae": given / "image_encoder",
        "image_encoder": tmp_path / "siglip.gguf",
        **{name: given / name for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")},
        "feature_extractor": given / "feature_extractor",
    }
    (tmp_path / "siglip.gguf").write_bytes(b"GGUF\3\0\0\0")
    manifest = tmp_path / "mine.yaml"
    lines = ["name: mine", "family: inverted", *(f"{name}: {path}" for name, path in parts.items())]
    manifest.write_text("\n".join(lines))
    with pytest.raises(InvalidJobs) as caught:
        find_pack(str(manifest))
    first, second, third = map(str, caught.value.problems)
    assert f"mine.yaml:3: transformer: {lora}: is a LoRA, not FramePack's transformer (list it under loras" in first
    assert f"mine.yaml:4: vae: {given / 'image_encoder'}: is the SigLIP image encoder, not HunyuanVideo's VAE" in second
    assert "mine.yaml:5: image_encoder: " in third
    assert "a GGUF file, whose weights are quantised" in third
    assert third.endswith(f"({USE['image_encoder']})")
