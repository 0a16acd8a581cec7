"""Encoders and VAE load strictly: a weight that is missing is an error and never a random number."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, LlamaConfig, LlamaModel, SiglipVisionModel

import goan_cli.render.loading as loading_module
from goan_cli.errors import InvalidInput
from goan_cli.model.mapped import mapped_tensors
from goan_cli.packs.find import find_pack
from goan_cli.render.engine import Engine
from goan_cli.render.loading import expected_shapes, load_clip, load_llama, load_siglip, load_vae
from tests.helpers import CPU, tiny_plan
from tests.packagings import PACKED, golden_tensors, single_file

PACK = find_pack("tiny")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Load = Callable[..., Any]
# How each part is loaded from a path, described by a configuration.
LOADS: dict[str, Load] = {
    "text_encoder": lambda path, dtype, config=None: load_llama(path, dtype, config=config),
    "text_encoder_2": lambda path, dtype, config=None: load_clip(path, PACKED / "tokenizer_2", dtype, config=config)[0],
    "image_encoder": lambda path, dtype, config=None: load_siglip(
        path, PACKED / "feature_extractor", dtype, config=config
    )[0],
    "vae": lambda path, dtype, config=None: load_vae(path, CPU, dtype, config=config),
}


def _altered(part: Path, folder: Path, *, drop: bool) -> Path:
    """A copy of a part whose last tensor is left out, or has another shape."""
    shutil.copytree(part, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name] = torch.zeros(3, 3)
    if drop:
        del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def test_encoder_is_ready() -> None:
    """An encoder comes in the dtype asked for, without dropout and without gradients."""
    model = LOADS["text_encoder_2"](PACK.text_encoder_2, torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_vae_is_ready() -> None:
    """The VAE comes in the dtype asked for, without gradients, and untiled."""
    vae = load_vae(PACK.vae, CPU, torch.float32)
    assert vae.dtype == torch.float32
    assert not vae.training
    assert not vae.use_tiling
    assert not any(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.parametrize("drop", [True, False], ids=["missing", "another shape"])
def test_incomplete_encoder(tmp_path: Path, drop: bool) -> None:
    """An encoder with a weight missing or of another shape is refused."""
    folder = _altered(PACK.text_encoder_2, tmp_path / "clip", drop=drop)
    with pytest.raises(InvalidInput, match=str(folder)):
        LOADS["text_encoder_2"](folder, torch.float32)


@pytest.mark.parametrize("drop", [True, False], ids=["missing", "another shape"])
def test_incomplete_vae(tmp_path: Path, drop: bool) -> None:
    """A VAE with a weight missing or of another shape is refused."""
    folder = _altered(PACK.vae, tmp_path / "vae", drop=drop)
    with pytest.raises(InvalidInput, match=str(folder)):
        load_vae(folder, CPU, torch.float32)


def test_folders_without_weights(tmp_path: Path) -> None:
    """An empty folder is refused as what was looked for, and nothing is looked up elsewhere."""
    with pytest.raises(InvalidInput, match="CLIPTextModel"):
        LOADS["text_encoder_2"](tmp_path, torch.float32)
    with pytest.raises(InvalidInput, match="VAE"):
        load_vae(tmp_path, CPU, torch.float32)


# As the libraries' own loaders -------------------------------------------------------------------------------------


def _theirs(part: str, dtype: torch.dtype) -> Any:
    """The golden part as its library loads it."""
    folder = str(PACKED / part)
    if part == "vae":
        return AutoencoderKLHunyuanVideo.from_pretrained(folder, torch_dtype=dtype).eval()
    if part == "text_encoder":
        config = LlamaConfig.from_pretrained(folder)
        config.num_hidden_layers -= 2
        llama = LlamaModel.from_pretrained(folder, config=config, dtype=dtype)
        llama.norm = torch.nn.Identity()
        return llama
    return {"text_encoder_2": CLIPTextModel, "image_encoder": SiglipVisionModel}[part].from_pretrained(
        folder, dtype=dtype
    )


@torch.inference_mode()
def _output(part: str, model: Any, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 400, (1, 77), generator=generator)
    picture = torch.randn(1, 3, 64, 64, generator=generator).to(dtype)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator).to(dtype)
    out: Tensor
    if part == "vae":
        moments = model.encode(picture[:, :, None]).latent_dist.parameters
        out = torch.cat((moments.flatten(), model.decode(latents, return_dict=False)[0].flatten()))
    elif part == "image_encoder":
        out = model(pixel_values=picture).last_hidden_state
    elif part == "text_encoder_2":
        ids[:, 40] = model.config.eos_token_id
        out = model(ids).pooler_output
    else:
        out = model(input_ids=ids, use_cache=False).last_hidden_state
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", LOADS)
def test_as_the_library_loads_it(part: str, dtype: torch.dtype) -> None:
    """Parameters, buffers that no file holds, and outputs are those of `from_pretrained`, bit for bit."""
    ours, theirs = LOADS[part](PACKED / part, dtype), _theirs(part, dtype)
    parameters = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, parameters.pop(name)), name
    assert all("head." in name for name in parameters)
    buffers = dict(theirs.named_buffers())
    assert buffers.keys() == dict(ours.named_buffers()).keys()
    for name, buffer in ours.named_buffers():
        assert (buffer.dtype, buffer.device) == (buffers[name].dtype, CPU)
        assert torch.equal(buffer, buffers[name]), name
    assert torch.equal(_output(part, ours, dtype), _output(part, theirs, dtype))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "image_encoder"])
def test_attention(part: str) -> None:
    """The attention is the one that `from_pretrained` picks."""
    chosen = LOADS[part](PACKED / part, torch.float32).config._attn_implementation
    assert chosen == _theirs(part, torch.float32).config._attn_implementation == "sdpa"


def test_loading_leaves_the_random_state_alone() -> None:
    """Building a class draws no random numbers: every weight comes from the file."""
    before = torch.get_rng_state()
    for part, load in LOADS.items():
        load(PACKED / part, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


# Strictness --------------------------------------------------------------------------------------------------------


def _file(folder: Path, part: str, tensors: dict[str, Tensor]) -> tuple[Path, Path]:
    file = folder / "part.safetensors"
    save_file(tensors, file)
    return file, PACKED / part / "config.json"


_NAMES = {
    "text_encoder": "layers.3.mlp.up_proj.weight",
    "text_encoder_2": "encoder.layers.1.mlp.fc1.bias",
    "image_encoder": "encoder.layers.1.self_attn.v_proj.weight",
    "vae": "decoder.up_blocks.2.resnets.1.norm1.weight",
}


@pytest.mark.parametrize("part", LOADS)
def test_wrong_weights_are_named(tmp_path: Path, part: str) -> None:
    """A weight that is missing, of another shape or of no use is named, all three at once."""
    tensors, name = golden_tensors(part), _NAMES[part]
    stem = name.rsplit(".", 1)[0]
    shape = list(tensors[name].shape)
    tensors[f"{stem}.surplus"] = tensors.pop(name)
    other = sorted(each for each in tensors if each.startswith(name.split(".", maxsplit=1)[0]))[0]
    wanted = list(tensors[other].shape)
    tensors[other] = torch.zeros(3, 5)
    file, config = _file(tmp_path, part, tensors)
    with pytest.raises(InvalidInput) as caught:
        LOADS[part](file, torch.float32, config)
    message = caught.value.message
    assert message.startswith(f"{file}: does not fit a ")
    assert f"1 missing: {name}" in message
    assert f"1 not of this architecture: {stem}.surplus" in message
    assert f"1 of another shape: {other} is [3, 5] instead of {wanted}" in message
    tensors[name] = tensors.pop(f"{stem}.surplus")
    tensors[other] = torch.zeros(wanted)
    assert list(tensors[name].shape) == shape
    LOADS[part](*(_file(tmp_path, part, tensors)[0], torch.float32, config))


def test_surplus_is_called_as_in_the_file(tmp_path: Path) -> None:
    """A tensor of no use is named as it stands in the file, prefix and all."""
    tensors = {f"model.{name}": tensor for name, tensor in golden_tensors("text_encoder").items()}
    file, config = _file(tmp_path, "text_encoder", {**tensors, "model.layers.6.new.weight": torch.zeros(1)})
    with pytest.raises(InvalidInput, match=r"1 not of this architecture: model\.layers\.6\.new\.weight$"):
        load_llama(file, torch.float32, config=config)


def test_integers_are_refused(tmp_path: Path) -> None:
    """A quantised weight is refused; bytes beside the weights, such as ComfyUI's tokenizer, are not."""
    entry = single_file(tmp_path, "Llama: ComfyUI")
    file, config = Path(entry["path"]), Path(entry["config"])
    load_llama(file, torch.float32, config=config)
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    with pytest.raises(InvalidInput, match=r"layers\.0\.mlp\.up_proj\.weight is F8_E4M3"):
        load_llama(file, torch.float32, config=config)


# What is not read --------------------------------------------------------------------------------------------------


def test_what_influences_nothing_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Llama's last two layers and final norm nor SigLIP's pooling head are read from the file."""
    read: list[str] = []

    class Watched(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            read.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr(loading_module, "mapped_tensors", lambda file: Watched(mapped_tensors(file)))
    for part, unread in (("text_encoder", ("layers.4.", "layers.5.", "norm.")), ("image_encoder", ("head.",))):
        read.clear()
        LOADS[part](PACKED / part, torch.float32)
        assert set(read) == {name for name in golden_tensors(part) if not name.startswith(unread)}


@pytest.mark.parametrize(
    ("part", "unread"), [("text_encoder", ("layers.4.", "layers.5.", "norm.")), ("image_encoder", ("head.",))]
)
def test_what_influences_nothing_may_be_missing(tmp_path: Path, part: str, unread: tuple[str, ...]) -> None:
    """A file without it loads, and makes the same."""
    kept = {name: tensor for name, tensor in golden_tensors(part).items() if not name.startswith(unread)}
    assert len(kept) < len(golden_tensors(part))
    file, config = _file(tmp_path, part, kept)
    made = LOADS[part](file, torch.float32, config)
    whole = LOADS[part](PACKED / part, torch.float32)
    assert torch.equal(_output(part, made, torch.float32), _output(part, whole, torch.float32))


class _Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("part", LOADS)
def test_pickles_are_never_opened(tmp_path: Path, part: str) -> None:
    """A pickle beside the weights is not looked at, and one in their place is refused and not opened."""
    folder, mark = tmp_path / part, tmp_path / "opened"
    shutil.copytree(PACKED / part, folder)
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(_Trap(mark)))
    LOADS[part](folder, torch.float32)
    (weights,) = folder.glob("*.safetensors")
    weights.unlink()
    with pytest.raises(InvalidInput, match="holds no safetensors weights"):
        LOADS[part](folder, torch.float32)
    with pytest.raises(InvalidInput, match="pickle"):
        LOADS[part](folder / "pytorch_model.bin", torch.float32, folder / "config.json")
    assert not mark.exists()


# Configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "key"), [("text_encoder", "text_config"), ("image_encoder", "vision_config")])
def test_configuration_of_a_whole_model(tmp_path: Path, part: str, key: str) -> None:
    """A part of a larger model is described by its section of that model's configuration."""
    config = tmp_path / "config.json"
    own = json.loads((PACKED / part / "config.json").read_text())
    config.write_text(json.dumps({"model_type": "a whole", key: own}))
    made = LOADS[part](PACKED / part, torch.float32, config)
    plain = LOADS[part](PACKED / part, torch.float32)
    assert torch.equal(_output(part, made, torch.float32), _output(part, plain, torch.float32))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_encoder", {"model_type": "qwen2"}, 'not a Llama text encoder: "qwen2"'),
        ("text_encoder_2", {"model_type": "t5"}, 'not a CLIP text encoder: "t5"'),
        ("text_encoder_2", {"model_type": None}, "not a CLIP text encoder: null"),
        ("image_encoder", {"model_type": "siglip2_vision_model"}, 'not a SigLIP image encoder: "siglip2_vision_model"'),
        ("vae", {"_class_name": "AutoencoderKL"}, 'not a HunyuanVideo VAE: "AutoencoderKL"'),
        ("vae", {"block_out_channels": 3}, "not a usable configuration of a HunyuanVideo VAE"),
        ("text_encoder", {"hidden_size": "wide"}, "not a usable configuration of a Llama text encoder"),
        ("text_encoder", {"num_attention_heads": 0}, "not a usable configuration of a Llama text encoder"),
        ("text_encoder", {"num_hidden_layers": 2}, "not a usable configuration of a Llama text encoder"),
        ("image_encoder", {"hidden_act": "nothing"}, "not a usable configuration of a SigLIP image encoder"),
    ],
)
def test_wrong_configuration(tmp_path: Path, part: str, changes: dict[str, Any], message: str) -> None:
    """A configuration of another class, or with values that build none, is refused by its own path."""
    config = tmp_path / "other.json"
    config.write_text(json.dumps(json.loads((PACKED / part / "config.json").read_text()) | changes))
    with pytest.raises(InvalidInput) as caught:
        LOADS[part](PACKED / part, torch.float32, config)
    assert caught.value.message.startswith(f"{config}: {message}")
    with pytest.raises(InvalidInput):
        expected_shapes(part, config)


@pytest.mark.parametrize("part", LOADS)
def test_expected_shapes(part: str) -> None:
    """Every tensor of a part is expected by its name and shape, what is not read too."""
    shapes = {name: tuple(tensor.shape) for name, tensor in golden_tensors(part).items()}
    assert expected_shapes(part, PACKED / part / "config.json") == shapes


_FIRST_STEP = """
import json, sys
from pathlib import Path
from goan_cli.render.engine import Engine
from goan_cli.render.events import StepFinished
from tests.helpers import tiny_plan

folder = Path(sys.argv[1])

def hear(event):
    if isinstance(event, StepFinished):
        heavy = "diffusers", "transformers", "torch._dynamo"
        print(json.dumps([name for name in heavy if name in sys.modules]))
        sys.exit()

engine = Engine(device="cpu", listener=hear, cache=folder / "cache")
plan = tiny_plan(folder)
engine.sample(plan, engine.conditioning_for(plan))
"""


def test_a_warm_start_imports_neither_library(tmp_path: Path) -> None:
    """Where prompts and image are cached, the first step comes without diffusers, transformers and torch's compiler.

    They take longer to import than torch itself.
    """
    Engine(device="cpu", cache=tmp_path / "cache").encode(tiny_plan(tmp_path))
    command = [sys.executable, "-c", _FIRST_STEP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert json.loads(done.stdout) == []
