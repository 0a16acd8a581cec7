"""Standalone checkpoints with LoRAs baked in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from goan_cli.errors import InvalidInput
from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.model.weights import load_transformer
from goan_cli.render.export import write_baked
from tests.helpers import (
    CPU,
    GOLDEN,
    SMALL,
    factors,
    lora_file,
    random_transformer,
    shapes_of,
    write_config,
    write_lora,
)

KEY, TARGET = "lora_unet_single_transformer_blocks_1_proj_mlp", "single_transformer_blocks.1.proj_mlp.weight"
HEIGHT, WIDTH = 4 * SMALL.width, SMALL.width


def checkpoint(folder: Path, shards: int, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A small random transformer in so many shards."""
    write_config(folder)
    tensors = {name: parameter.to(dtype) for name, parameter in random_transformer().state_dict().items()}
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
        return folder
    weight_map = {
        name: f"model-{number % shards + 1:05d}-of-{shards:05d}.safetensors" for number, name in enumerate(names)
    }
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
def test_baked_checkpoint(tmp_path: Path, shards: int) -> None:
    """The target is the rounded sum, all else is the source's bytes, in as many shards; the source stays."""
    part = checkpoint(tmp_path / "base", shards)
    before = {file.name: file.read_bytes() for file in part.iterdir()}
    base = {name: tensor for file in read_checkpoint(part).files for name, tensor in load_file(file).items()}
    tensors = factors(KEY, (HEIGHT, WIDTH))
    lora = lora_file(write_lora(tmp_path / "lora.safetensors", tensors), shapes_of(base), weight=0.5)

    report, written = write_baked(part, [lora], tmp_path / "out", base="id")
    assert report.dtype == "bfloat16"
    assert len([path for path in written if path.suffix == ".safetensors"]) == shards
    assert {file.name: file.read_bytes() for file in part.iterdir()} == before
    after = {
        name: tensor for file in read_checkpoint(tmp_path / "out").files for name, tensor in load_file(file).items()
    }
    change = 0.5 * tensors[f"{KEY}.lora_up.weight"] @ tensors[f"{KEY}.lora_down.weight"]
    expected = {**base, TARGET: (base[TARGET].float() + change).bfloat16()}
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items() if name != TARGET)
    # Summed in another order than here, a value on the edge may round to its neighbour.
    assert float((after[TARGET] != expected[TARGET]).float().mean()) < 1e-3
    torch.testing.assert_close(after[TARGET], expected[TARGET], rtol=2**-7, atol=1e-6)
    load_transformer(tmp_path / "out", device=CPU, dtype=torch.float32)
    with safe_open(written[0], framework="pt") as file:
        metadata = file.metadata()
    assert metadata["goan_recipe"] == report.recipe
    assert json.loads(metadata["goan_loras"]) == [
        {"file": "lora.safetensors", "sha256": lora.source.sha256, "weight": 0.5}
    ]


def test_a_file_name_of_one_s_own(tmp_path: Path) -> None:
    """A `.safetensors` name is used as it is, with numbers and an index beside it for shards."""
    part = checkpoint(tmp_path / "base", 2)
    shapes = {name: entry.shape for name, entry in read_checkpoint(part).entries.items()}
    lora = lora_file(write_lora(tmp_path / "lora.safetensors", factors(KEY, (HEIGHT, WIDTH))), shapes)
    _, written = write_baked(part, [lora], tmp_path / "new" / "mine.safetensors", base="id")
    assert [path.name for path in written] == [
        "mine-00001-of-00002.safetensors",
        "mine-00002-of-00002.safetensors",
        "mine.safetensors.index.json",
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [path.name for path in written]


def test_never_over_the_source(tmp_path: Path) -> None:
    """The checkpoint's own folder is no place to write to: the pack would take it for its own."""
    part = checkpoint(tmp_path / "base", 1)
    shapes = {name: entry.shape for name, entry in read_checkpoint(part).entries.items()}
    lora = lora_file(write_lora(tmp_path / "lora.safetensors", factors(KEY, (HEIGHT, WIDTH))), shapes)
    with pytest.raises(InvalidInput, match="own folder"):
        write_baked(part, [lora], part, base="id")
    with pytest.raises(InvalidInput, match="own folder"):
        write_baked(part, [lora], part / "baked.safetensors", base="id")


def test_golden_base_through_the_file(tmp_path: Path) -> None:
    """A recorded LoRA baked into a file makes the change that its own tool makes."""
    lora = GOLDEN / "lora"
    base = load_file(lora / "base" / "diffusion_pytorch_model.safetensors")
    _, written = write_baked(
        lora / "base", [lora_file(lora / "kohya_hunyuan.safetensors", shapes_of(base))], tmp_path / "out", base="id"
    )
    after = load_file(written[0])
    for name, change in load_file(lora / "kohya_hunyuan.expected.safetensors").items():
        assert float((after[name] - base[name] - change).abs().max()) <= 1e-5 * float(change.abs().max())
