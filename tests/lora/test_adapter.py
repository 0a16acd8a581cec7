"""LoRA files matched with a model: every layout with its targets and rows, every refusal with its reason."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from goan_cli.errors import InvalidInput, LoraRefused
from goan_cli.lora.adapter import TEXT_ENCODER_RULE, Adapter, read_adapter
from goan_cli.lora.keys import REFUSED, Role, flattened
from goan_cli.lora.scale import METADATA_KEY
from goan_cli.model.checkpoint import read_checkpoint
from tests.helpers import GOLDEN, factors, write_lora

# The golden base: width H = 32, two blocks of each kind.
H = 32
BASE = {name: entry.shape for name, entry in read_checkpoint(GOLDEN / "lora" / "base").entries.items()}
FULL: dict[str, tuple[int, ...]] = {
    name: tuple(shape) for name, shape in json.loads((GOLDEN / "full_size_keys.json").read_text()).items()
}
TO_Q = "transformer_blocks.0.attn.to_q"
KOHYA_TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
QKV = tuple(f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv")
QKV_ROWS = ((0, H), (H, 2 * H), (2 * H, 3 * H))
LINEAR1 = tuple(f"single_transformer_blocks.0.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
LINEAR1_ROWS = (*QKV_ROWS, (3 * H, 7 * H))
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
A_B = (".lora_A.weight", ".lora_B.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")


class Row(NamedTuple):
    """A writer's key for one module, the shape (outputs, *inputs) it has, and where its change must go."""

    writer: str
    module: str
    endings: tuple[str, str]
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]


LAYOUTS = (
    Row("A", KOHYA_TO_Q, DOWN_UP, (H, H), (TO_Q,), ((0, H),)),
    Row("A", "lora_unet_single_transformer_blocks_0_proj_mlp", DOWN_UP, (4 * H, H), LINEAR1[3:], ((0, 4 * H),)),
    Row("B", "lora_unet_double_blocks_0_img_attn_qkv", DOWN_UP, (3 * H, H), QKV, QKV_ROWS),
    Row("B", "lora_unet_single_blocks_0_linear1", DOWN_UP, (7 * H, H), LINEAR1, LINEAR1_ROWS),
    Row("C", "transformer.double_blocks.0.img_attn_qkv", A_B, (3 * H, H), QKV, QKV_ROWS),
    Row("C", "transformer.single_blocks.0.linear1", A_B, (7 * H, H), LINEAR1, LINEAR1_ROWS),
    Row(
        "C",
        "diffusion_model.double_blocks.1.img_mod.linear",
        A_B,
        (6 * H, H),
        ("transformer_blocks.1.norm1.linear",),
        ((0, 6 * H),),
    ),
    Row(
        "C",
        "transformer.single_blocks.1.modulation.linear",
        A_B,
        (3 * H, H),
        ("single_transformer_blocks.1.norm.linear",),
        ((0, 3 * H),),
    ),
    Row(
        "D",
        "diffusion_model.double_blocks.0.img_mlp.fc1",
        A_B,
        (4 * H, H),
        ("transformer_blocks.0.ff.net.0.proj",),
        ((0, 4 * H),),
    ),
    Row("E", f"transformer.{TO_Q}", A_B, (H, H), (TO_Q,), ((0, H),)),
    Row("E", TO_Q, A_B, (H, H), (TO_Q,), ((0, H),)),
    Row("E", f"base_model.model.{TO_Q}", A_B, (H, H), (TO_Q,), ((0, H),)),
    Row(
        "E",
        f"base_model.model.{TO_Q}",
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (H, H),
        (TO_Q,),
        ((0, H),),
    ),
    Row(
        "E",
        "transformer.single_transformer_blocks.0.proj_out",
        A_B,
        (H, 5 * H),
        ("single_transformer_blocks.0.proj_out",),
        ((0, H),),
    ),
    Row("E", "transformer.x_embedder.proj", A_B, (H, 16, 1, 2, 2), ("x_embedder.proj",), ((0, H),)),
    Row("E", "transformer.clean_x_embedder.proj_4x", A_B, (H, 16, 4, 8, 8), ("clean_x_embedder.proj_4x",), ((0, H),)),
    Row("E", "transformer.image_projection.up", A_B, (3 * H, 20), ("image_projection.up",), ((0, 3 * H),)),
    Row("F", "Hunyuan_video_I2V_lora_double_blocks_0_img_attn_qkv", DOWN_UP, (3 * H, H), QKV, QKV_ROWS),
    Row(
        "F",
        "Hunyuan_video_I2V_lora_txt_in_individual_token_refiner_blocks_0_mlp_fc1",
        DOWN_UP,
        (4 * H, H),
        ("context_embedder.token_refiner.refiner_blocks.0.ff.net.0.proj",),
        ((0, 4 * H),),
    ),
    Row("F", "Hunyuan_video_I2V_lora_final_layer_linear", DOWN_UP, (64, H), ("proj_out",), ((0, 64),)),
    Row("G", "diffusion_model.double_blocks.0.img_attn.qkv", DOWN_UP, (3 * H, H), QKV, QKV_ROWS),
    Row(
        "G",
        "diffusion_model.txt_in.individual_token_refiner.blocks.1.self_attn.qkv",
        DOWN_UP,
        (3 * H, H),
        tuple(f"context_embedder.token_refiner.refiner_blocks.1.attn.to_{letter}" for letter in "qkv"),
        QKV_ROWS,
    ),
    Row(
        "G",
        "diffusion_model.time_in.in_layer",
        DOWN_UP,
        (H, 256),
        ("time_text_embed.timestep_embedder.linear_1",),
        ((0, H),),
    ),
    Row("H", "lora_transformer_transformer_blocks_0_attn_to_q", DOWN_UP, (H, H), (TO_Q,), ((0, H),)),
    Row("H", "double_blocks.0.img_attn.qkv", A_B, (3 * H, H), QKV, QKV_ROWS),
    Row("I", "lycoris_transformer_blocks_0_attn_to_q", DOWN_UP, (H, H), (TO_Q,), ((0, H),)),
    Row("diffusers, old", f"transformer.{TO_Q}", (".lora.down.weight", ".lora.up.weight"), (H, H), (TO_Q,), ((0, H),)),
    Row("diffusers, older", TO_Q, ("_lora.down.weight", "_lora.up.weight"), (H, H), (TO_Q,), ((0, H),)),
    Row(
        "diffusers, oldest",
        TO_Q,
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        (H, H),
        (TO_Q,),
        ((0, H),),
    ),
    Row("bare", TO_Q, (".lora_A", ".lora_B"), (H, H), (TO_Q,), ((0, H),)),
)


def _pair(module: str, shape: tuple[int, ...], endings: tuple[str, str] = DOWN_UP, rank: int = 2) -> dict[str, Tensor]:
    down, up = factors("x", shape, rank=rank).values()
    return {module + endings[0]: down, module + endings[1]: up}


def _read(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Adapter:
    return read_adapter(write_lora(folder / "lora.safetensors", tensors, metadata), BASE)


def _refusal(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """Why a file of these tensors is refused; every refusal begins with the file's path."""
    with pytest.raises(LoraRefused) as caught:
        _read(folder, tensors, metadata)
    path, message = caught.value.message.split(": ", maxsplit=1)
    assert path == str(folder / "lora.safetensors")
    return message


@pytest.mark.parametrize("row", LAYOUTS, ids=[f"{row.writer}-{row.module}{row.endings[0]}" for row in LAYOUTS])
def test_layouts(tmp_path: Path, row: Row) -> None:
    """Each writer's keys for a module go to their targets, each to its rows of the change."""
    adapter = _read(tmp_path, _pair(row.module, row.shape, row.endings, rank=3))
    (module,) = adapter.modules
    assert module.alias.targets == row.targets
    assert tuple(part.rows for part in module.parts) == row.rows
    assert module.form.rank == 3
    assert dict(module.keys) == {Role.DOWN: row.module + row.endings[0], Role.UP: row.module + row.endings[1]}
    assert adapter.targets == set(row.targets)
    assert (adapter.keys, adapter.matched_keys, adapter.skipped) == (2, 2, {})


def test_full_size_rows(tmp_path: Path) -> None:
    """In the full-size model a single block's fused module has 3 x 3072 rows of attention and 12288 of MLP."""
    path = write_lora(tmp_path / "lora.safetensors", _pair("lora_unet_single_blocks_39_linear1", (21504, 3072), rank=1))
    (module,) = read_adapter(path, FULL).modules
    assert module.alias.targets == tuple(target.replace(".0.", ".39.", 1) for target in LINEAR1)
    assert tuple(part.rows for part in module.parts) == ((0, 3072), (3072, 6144), (6144, 9216), (9216, 21504))


@settings(max_examples=25, deadline=None)
@given(widths=st.lists(st.integers(1, 9), min_size=4, max_size=4), inputs=st.integers(1, 9), rank=st.integers(1, 4))
def test_any_widths(tmp_path_factory: pytest.TempPathFactory, widths: list[int], inputs: int, rank: int) -> None:
    """A fused module is split at the model's own heights, whatever they are."""
    base = {f"{target}.weight": (width, inputs) for target, width in zip(LINEAR1, widths, strict=True)}
    path = tmp_path_factory.mktemp("widths") / "lora.safetensors"
    write_lora(path, _pair("lora_unet_single_blocks_0_linear1", (sum(widths), inputs), rank=rank))
    (module,) = read_adapter(path, base).modules
    assert [stop - start for start, stop in (part.rows for part in module.parts)] == widths
    assert module.parts[0].rows[0] == 0
    assert all(first[1] == second[0] for first, second in pairwise([part.rows for part in module.parts]))


def test_whole_file(tmp_path: Path) -> None:
    """Several modules, alphas and ranks of one file are all matched, and counted."""
    tensors = {
        **factors(KOHYA_TO_Q, (H, H), rank=2, alpha=2.0),
        **factors("lora_unet_single_blocks_1_linear1", (7 * H, H), rank=5, alpha=1.0),
    }
    adapter = _read(tmp_path, tensors)
    assert sorted(module.form.rank or 0 for module in adapter.modules) == [2, 5]
    assert (adapter.keys, adapter.matched_keys) == (6, 6)
    assert len(adapter.targets) == 5


def test_split_modules_may_have_different_ranks(tmp_path: Path) -> None:
    """Query, key and value may come with ranks of their own, or not at all."""
    tensors = _pair(f"transformer.{QKV[0]}", (H, H), A_B, rank=1) | _pair(f"transformer.{QKV[2]}", (H, H), A_B, rank=4)
    assert {module.alias.targets: module.form.rank for module in _read(tmp_path, tensors).modules} == {
        (QKV[0],): 1,
        (QKV[2],): 4,
    }


def test_one_by_one_convolutions(tmp_path: Path) -> None:
    """Factors written as 1x1 convolutions fit a linear."""
    tensors = {
        f"{KOHYA_TO_Q}.lora_down.weight": torch.ones(2, H, 1, 1),
        f"{KOHYA_TO_Q}.lora_up.weight": torch.ones(H, 2, 1, 1),
    }
    assert _read(tmp_path, tensors).modules[0].form.rank == 2


def test_text_encoder_tensors_are_skipped_and_counted(tmp_path: Path) -> None:
    """Text-encoder tensors beside the transformer's are left out under one rule, with their number."""
    tensors = {
        **_pair(KOHYA_TO_Q, (H, H)),
        "lora_te1_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 8),
        "lora_te1_layers_0_mlp_fc1.lora_up.weight": torch.ones(8, 2),
        "lora_te1_layers_0_mlp_fc1.alpha": torch.tensor(1.0),
    }
    adapter = _read(tmp_path, tensors)
    assert adapter.skipped == {TEXT_ENCODER_RULE: 3}
    assert (adapter.keys, adapter.matched_keys) == (5, 2)


def test_metadata_scale(tmp_path: Path) -> None:
    """PEFT's metadata comes with the file; other metadata does not matter."""
    assert _read(tmp_path, _pair(TO_Q, (H, H), A_B), {"ss_network_alpha": "1"}).peft_scale is None
    scale = _read(tmp_path, _pair(TO_Q, (H, H), A_B), {METADATA_KEY: json.dumps({"lora_alpha": 4})}).peft_scale
    assert scale is not None
    assert scale.lora_alpha == 4.0


# Refusals -------------------------------------------------------------------------------------------------


def test_unknown_keys_are_listed(tmp_path: Path) -> None:
    """Keys of modules that the model lacks are refused by name, even beside others that fit."""
    tensors = {**_pair(KOHYA_TO_Q, (H, H)), **_pair("lora_unet_transformer_blocks_2_attn_to_q", (H, H))}
    message = _refusal(tmp_path, tensors)
    assert message.startswith("2 keys name modules that this model does not have: ")
    assert "lora_unet_transformer_blocks_2_attn_to_q.lora_down.weight" in message


def test_another_model_is_told_as_such(tmp_path: Path) -> None:
    """A file of another model is refused by that model's name."""
    tensors: dict[str, Tensor] = {}
    for block in range(4):
        tensors |= _pair(f"diffusion_model.blocks.{block}.self_attn.q", (H, H), A_B)
    message = _refusal(tmp_path, tensors)
    assert message == "trained for Wan, not for FramePack or HunyuanVideo: blocks.0.self_attn.q.lora_A.weight"


def test_keys_not_understood_are_listed(tmp_path: Path) -> None:
    """A key whose ending means nothing known is refused by name, not skipped."""
    message = _refusal(tmp_path, {**_pair(KOHYA_TO_Q, (H, H)), f"{KOHYA_TO_Q}.mystery": torch.ones(1)})
    assert message == f"1 keys are not understood: {KOHYA_TO_Q}.mystery"


@pytest.mark.parametrize("kept", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_half_pairs(tmp_path: Path, kept: str) -> None:
    """A factor or an alpha without its counterpart is refused by its module."""
    tensors = factors(KOHYA_TO_Q, (H, H), alpha=1.0)
    lonely = f"{KOHYA_TO_Q}.{kept}"
    told = {"lora_down.weight": "down without up", "lora_up.weight": "up without down", "alpha": "only alpha"}[kept]
    message = _refusal(tmp_path, {lonely: tensors[lonely], **_pair("lora_unet_proj_out", (64, H))})
    assert message == f"{flattened(TO_Q)}: half a module: {told}"


@pytest.mark.parametrize(
    ("down", "up", "told"),
    [
        pytest.param((2, H), (H, 3), "do not multiply", id="different ranks"),
        pytest.param((2,), (H, 2), "do not multiply", id="down of one axis"),
        pytest.param((2, H), (H,), "do not multiply", id="up of one axis"),
        pytest.param((0, H), (H, 0), "a tensor without values", id="rank 0"),
        pytest.param((2, H), (H, 2, 3), "do not multiply", id="up with a kernel"),
        pytest.param((2, H + 1), (H, 2), f"but {TO_Q} is 32 x 32", id="other inputs"),
        pytest.param((2, H), (H + 1, 2), f"but {TO_Q} is 32 x 32", id="other outputs"),
        pytest.param((2, 4, 8), (H, 2), f"but {TO_Q} is 32 x 32", id="inputs as a kernel"),
        pytest.param((H, 2), (2, H), f"but {TO_Q} is 32 x 32", id="exchanged"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, down: tuple[int, ...], up: tuple[int, ...], told: str) -> None:
    """Factors that do not multiply, or make another shape than the weight's, are refused with the reason."""
    tensors = {f"{KOHYA_TO_Q}.lora_down.weight": torch.ones(down), f"{KOHYA_TO_Q}.lora_up.weight": torch.ones(up)}
    message = _refusal(tmp_path, tensors)
    assert told in message


def test_fused_shape_that_does_not_fit(tmp_path: Path) -> None:
    """A fused change of another height is refused with the targets and the height that they need."""
    message = _refusal(tmp_path, _pair("lora_unet_double_blocks_0_img_attn_qkv", (2 * H, H)))
    assert message.endswith(f"makes a change of 64 x 32, but {' + '.join(QKV)} is 96 x 32")


def test_kernel_of_a_convolution_must_match(tmp_path: Path) -> None:
    """As many inputs in another kernel shape do not fit a convolution."""
    assert "but x_embedder.proj is 32 x 64" in _refusal(tmp_path, _pair("lora_unet_x_embedder_proj", (H, 16, 2, 2, 1)))


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        pytest.param(
            _pair(f"transformer.{TO_Q}", (H, H), A_B),
            _pair(f"transformer.{TO_Q}", (H, H), DEFAULT),
            "mean the same tensor",
            id="plain and default",
        ),
        pytest.param(
            _pair(f"transformer.{TO_Q}", (H, H), A_B), _pair(KOHYA_TO_Q, (H, H)), "mean the same tensor", id="prefixes"
        ),
        pytest.param(
            _pair("lora_unet_double_blocks_0_img_attn_qkv", (3 * H, H)),
            _pair("lora_unet_transformer_blocks_0_attn_to_k", (H, H)),
            f"both change {QKV[1]}",
            id="fused and split",
        ),
        pytest.param(
            _pair("lora_unet_double_blocks_0_img_mlp_fc1", (4 * H, H)),
            _pair("lora_unet_double_blocks_0_img_mlp_0", (4 * H, H)),
            "both change transformer_blocks.0.ff.net.0.proj",
            id="two spellings",
        ),
    ],
)
def test_duplicates(tmp_path: Path, first: dict[str, Tensor], second: dict[str, Tensor], told: str) -> None:
    """Two keys for one tensor, or two modules for one target, are refused: which one counts is a guess."""
    assert told in _refusal(tmp_path, first | second)


def test_alpha_of_several_values(tmp_path: Path) -> None:
    """An alpha must be one number."""
    message = _refusal(tmp_path, {**_pair(KOHYA_TO_Q, (H, H)), f"{KOHYA_TO_Q}.alpha": torch.ones(2)})
    assert message == f"{flattened(TO_Q)}: alpha holds 2 values instead of one"


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.uint8])
@pytest.mark.parametrize("factor", ["lora_down", "lora_up"])
def test_factors_that_are_no_floats(tmp_path: Path, dtype: torch.dtype, factor: str) -> None:
    """Quantised factors are refused with the key and its dtype."""
    tensors = _pair(KOHYA_TO_Q, (H, H))
    key = f"{KOHYA_TO_Q}.{factor}.weight"
    message = _refusal(tmp_path, {**tensors, key: tensors[key].to(dtype)})
    assert message.startswith(f"{key} is ")
    assert message.endswith("not floating point")


REFUSED_KEYS = {
    "AdaLoRA": "lora_E",
    "GLoRA": "a1.weight",
    "OFT or BOFT": "oft_blocks",
    "(IA)3": "ia3_l",
    "replaced weights": "set_weight",
    "LoRA with split dimensions": "lora_down.0.weight",
}


@pytest.mark.parametrize("kind", [kind for _, kind in REFUSED])
def test_unsupported_kinds(tmp_path: Path, kind: str) -> None:
    """A file with a single tensor of an unsupported kind is refused by the kind's name and that key."""
    key = f"{KOHYA_TO_Q}.{REFUSED_KEYS[kind]}"
    message = _refusal(tmp_path, {**_pair("lora_unet_proj_out", (64, H)), key: torch.ones(2, 2)})
    assert message == f"of a kind that is not supported: {kind} (1 keys, {key})"


def test_full_checkpoint() -> None:
    """A checkpoint of whole weights is refused as what it is."""
    with pytest.raises(LoraRefused, match="a checkpoint of whole weights, not a LoRA"):
        read_adapter(GOLDEN / "lora" / "base" / "diffusion_pytorch_model.safetensors", BASE)


def test_file_without_lora_keys(tmp_path: Path) -> None:
    """A safetensors file with nothing of a LoRA in it is refused with the names that are in it."""
    assert _refusal(tmp_path, {"latents": torch.ones(2)}) == "no LoRA keys in it: latents"


def test_empty_file(tmp_path: Path) -> None:
    """A safetensors file without tensors is refused."""
    assert _refusal(tmp_path, {}) == "nothing in it acts on the transformer: it holds no tensors"


def test_text_encoder_only(tmp_path: Path) -> None:
    """A file with nothing but text-encoder tensors is refused with their count and the rule."""
    tensors = _pair("lora_te_text_model_encoder_layers_0_mlp_fc1", (8, 8))
    message = _refusal(tmp_path, tensors)
    assert message == f"nothing in it acts on the transformer: 2 {TEXT_ENCODER_RULE}"


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (json.dumps({"lora_alpha": 4, "init_lora_weights": "pissa"}), "init_lora_weights=pissa"),
        (json.dumps({"transformer.lora_alpha": 4, "transformer.init_lora_weights": "olora"}), "olora"),
        ("{", METADATA_KEY),
    ],
)
def test_metadata_that_cannot_be_trusted(tmp_path: Path, metadata: str, told: str) -> None:
    """PiSSA, OLoRA and broken metadata are refused with the reason."""
    assert told in _refusal(tmp_path, _pair(TO_Q, (H, H), A_B), {METADATA_KEY: metadata})


def test_no_safetensors_file(tmp_path: Path) -> None:
    """A file of another format is refused by what it really is."""
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(InvalidInput, match="a zip archive, probably a torch pickle"):
        read_adapter(path, BASE)


def test_truncated_file(tmp_path: Path) -> None:
    """A file cut short is refused when its header is read."""
    path = write_lora(tmp_path / "lora.safetensors", _pair(KOHYA_TO_Q, (H, H)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidInput, match="truncated or damaged"):
        read_adapter(path, BASE)


def test_flux_file_is_refused(tmp_path: Path) -> None:
    """A LoRA of all of FLUX.1's 19 + 38 blocks is refused, though every name and shape fits FramePack."""
    width = FULL["transformer_blocks.0.attn.to_q.weight"][0]
    tensors: dict[str, Tensor] = {}
    for prefix, count, suffix, outputs, inputs in (
        ("double_blocks", 19, "img_attn_proj", width, width),
        ("single_blocks", 38, "linear2", width, 5 * width),
    ):
        for block in range(count):
            module = f"lora_unet_{prefix}_{block}_{suffix}"
            tensors[f"{module}.lora_down.weight"] = torch.zeros((1, inputs), dtype=torch.bfloat16)
            tensors[f"{module}.lora_up.weight"] = torch.zeros((outputs, 1), dtype=torch.bfloat16)
    path = write_lora(tmp_path / "flux.safetensors", tensors, {"ss_base_model_version": "flux1"})
    with pytest.raises(LoraRefused, match="FLUX"):
        read_adapter(path, FULL)


def test_tensors_are_not_read(tmp_path: Path) -> None:
    """Matching needs the header alone: values, NaN among them, are the bake's business."""
    tensors = {key: torch.full_like(tensor, torch.nan) for key, tensor in _pair(KOHYA_TO_Q, (H, H)).items()}
    assert _read(tmp_path, tensors).matched_keys == 2


def test_path_is_kept(tmp_path: Path) -> None:
    """The adapter names the file that it was read from."""
    source = GOLDEN / "lora" / "kohya_hunyuan.safetensors"
    copy = tmp_path / "renamed by a user.safetensors"
    shutil.copy(source, copy)
    adapter = read_adapter(copy, BASE)
    assert adapter.path == copy
    assert adapter.matched_keys == adapter.keys == len(load_file(source))
