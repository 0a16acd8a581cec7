"""Loading the transformer: strictly by name and shape, mapped where it can be, and pristine on disk for ever."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from goan_cli.errors import InvalidInput
from goan_cli.files import sha256_of
from goan_cli.model.weights import empty_transformer, load_transformer, parameters_of
from goan_cli.packs.find import find_pack
from tests.helpers import CPU, SMALL, random_transformer, write_config, write_transformer

MAPS = Path("/proc/self/maps")


def _tensors() -> dict[str, Tensor]:
    return dict(random_transformer().state_dict())


def _assert_holds(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    assert parameters.keys() == tensors.keys()
    assert all(torch.equal(parameters[name], tensors[name]) for name in tensors)


def _mapped_ranges(file: Path) -> list[tuple[int, int]]:
    """The addresses at which this process has mapped a file."""
    lines = [line.split() for line in MAPS.read_text().splitlines() if line.endswith(f" {file}")]
    spans = [line[0].split("-") for line in lines]
    return [(int(start, 16), int(stop, 16)) for start, stop in spans]


def test_single_file_in_a_folder(tmp_path: Path) -> None:
    """A folder with one weight file and its configuration loads bit for bit, ready for inference."""
    tensors = _tensors()
    write_transformer(tmp_path, tensors)
    model, store = load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    _assert_holds(parameters_of(model), tensors)
    assert store.part == tmp_path
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_shards_with_an_index(tmp_path: Path) -> None:
    """Shards that an index names load like one file, whichever file a tensor lies in."""
    tensors = _tensors()
    write_config(tmp_path)
    names = sorted(tensors)
    parts = {f"diffusion_pytorch_model-0000{n + 1}-of-00003.safetensors": names[n::3] for n in range(3)}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    model, store = load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    _assert_holds(parameters_of(model), tensors)
    with store.opened() as pristine:
        _assert_holds({name: pristine(name) for name in names}, tensors)


def test_a_file_alone_is_taken_for_full_size(tmp_path: Path) -> None:
    """A weight file given by itself is the full-size model; a smaller one is refused by its shapes."""
    file = write_transformer(tmp_path, _tensors())
    with pytest.raises(InvalidInput, match=r"of another shape: x_embedder\.proj\.weight is \[32, "):
        load_transformer(file, device=CPU, dtype=torch.float32)


def test_wrong_names_and_shapes_are_named(tmp_path: Path) -> None:
    """Missing, surplus and wrongly shaped tensors are all told at once, by name."""
    tensors = _tensors()
    del tensors["norm_out.linear.bias"]
    tensors["transformer_blocks.2.attn.to_q.weight"] = torch.zeros(32, 32)
    tensors["proj_out.weight"] = torch.zeros(64, 31)
    write_transformer(tmp_path, tensors)
    with pytest.raises(InvalidInput) as caught:
        load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    message = caught.value.message
    assert str(tmp_path) in message
    assert "1 missing: norm_out.linear.bias" in message
    assert "1 not of this architecture: transformer_blocks.2.attn.to_q.weight" in message
    assert "1 of another shape: proj_out.weight is [64, 31] instead of [64, 32]" in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    """Many missing tensors are counted, and the first few named."""
    tensors = {name: tensor for name, tensor in _tensors().items() if not name.startswith("transformer_blocks.1.")}
    write_transformer(tmp_path, tensors)
    with pytest.raises(InvalidInput, match=r"\d\d missing: transformer_blocks\.1\.[^,]*(, [^,]*){4}, …") as caught:
        load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    assert caught.value.message.count("transformer_blocks.1.") == 5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_quantised_checkpoints_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """A checkpoint with an fp8 or integer tensor is refused, with the tensor, its dtype and what is needed."""
    tensors = _tensors()
    name = "single_transformer_blocks.1.proj_mlp.weight"
    tensors[name] = tensors[name].to(dtype)
    file = write_transformer(tmp_path, tensors)
    shown = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int8: "I8"}[dtype]
    with pytest.raises(InvalidInput) as caught:
        load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    assert caught.value.message.startswith(f"{file}: {name} is {shown};")
    assert "bf16, fp16 or fp32" in caught.value.message


@pytest.mark.skipif(not MAPS.exists(), reason="tells of mappings on Linux only")
def test_float32_on_the_cpu_is_the_mapped_file(tmp_path: Path) -> None:
    """Loaded on the CPU in its own dtype, every parameter is the mapped file itself and no copy."""
    file = write_transformer(tmp_path, _tensors())
    model, _ = load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    ranges = _mapped_ranges(file.resolve())
    for name, parameter in parameters_of(model).items():
        assert any(start <= parameter.data_ptr() < stop for start, stop in ranges), name


def test_writing_in_place_never_reaches_the_disk(tmp_path: Path) -> None:
    """Overwritten parameters leave the file, an open reader and every later reader as they were."""
    tensors = _tensors()
    file = write_transformer(tmp_path, tensors)
    before = sha256_of(file)
    model, store = load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    with store.opened() as already_open:
        for parameter in model.parameters():
            parameter.fill_(7.0)
        _assert_holds({name: already_open(name) for name in tensors}, tensors)
    with store.opened() as opened_later:
        _assert_holds({name: opened_later(name) for name in tensors}, tensors)
    assert sha256_of(file) == before
    assert all(bool((parameter == 7.0).all()) for parameter in model.parameters())


def test_two_models_of_one_file_are_apart(tmp_path: Path) -> None:
    """Two loads of one checkpoint share no writable memory."""
    tensors = _tensors()
    write_transformer(tmp_path, tensors)
    first, _ = load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    second, _ = load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    for parameter in first.parameters():
        parameter.fill_(7.0)
    _assert_holds(parameters_of(second), tensors)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_load_in_float32(tmp_path: Path, stored: torch.dtype) -> None:
    """A checkpoint in another float dtype loads in float32 with its values, and is re-read in its own dtype."""
    tensors = {name: tensor.to(stored) for name, tensor in _tensors().items()}
    write_transformer(tmp_path, tensors)
    model, store = load_transformer(tmp_path, device=CPU, dtype=torch.float32)
    _assert_holds(parameters_of(model), {name: tensor.float() for name, tensor in tensors.items()})
    with store.opened() as pristine:
        assert pristine("proj_out.weight").dtype == stored


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_final_projection_is_float32(tmp_path: Path, dtype: torch.dtype, stored: torch.dtype) -> None:
    """In half precision every parameter has that dtype but the final projection, which is exact in float32."""
    tensors = {name: tensor.to(stored) for name, tensor in _tensors().items()}
    write_transformer(tmp_path, tensors)
    model, _ = load_transformer(tmp_path, device=CPU, dtype=dtype)
    assert model.dtype == dtype
    for name, parameter in parameters_of(model).items():
        final = name in ("proj_out.weight", "proj_out.bias")
        expected = tensors[name].to(torch.float32 if final else dtype)
        assert parameter.dtype == expected.dtype, name
        assert torch.equal(parameter, expected), name


def test_tiny_pack_fits() -> None:
    """The embedded packs' transformers load in float32, with the very values of their half precision files."""
    for name in ("tiny", "tiny-f1"):
        model, store = load_transformer(find_pack(name).transformer, device=CPU, dtype=torch.float32)
        stored = load_file(store.checkpoint.files[0])
        _assert_holds(parameters_of(model), {name: tensor.float() for name, tensor in stored.items()})


def test_meta_model_takes_no_memory() -> None:
    """The empty architecture lies on the meta device, parameters only: no buffers that a load could miss."""
    model = empty_transformer(SMALL)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert list(model.buffers()) == []
    assert model.state_dict().keys() == parameters_of(model).keys()
