"""Which files make up a part of a model, and what they hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from goan_cli.errors import InvalidInput, OtherFormat
from goan_cli.model.checkpoint import Checkpoint, checkpoint_files, read_checkpoint, refuse_quantised
from goan_cli.tensorfile import TensorEntry


def shard(path: Path, *names: str) -> Path:
    """A weight file of small tensors."""
    save_file({name: np.zeros((2, 3), dtype=np.float32) for name in names}, path)
    return path


def index(folder: Path, content: Any) -> Path:
    """An index of shards, of data or of text as it is."""
    path = folder / "model.safetensors.index.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_single_file(tmp_path: Path) -> None:
    """A part may be a file, whatever its name."""
    path = shard(tmp_path / "FramePackI2V_HY_bf16.safetensors", "a")
    assert checkpoint_files(path) == (path,)
    assert read_checkpoint(path).entries == {"a": TensorEntry(dtype="F32", shape=(2, 3))}


def test_the_one_file_of_a_folder(tmp_path: Path) -> None:
    """A folder's only weight file is the part; other files beside it do not matter."""
    path = shard(tmp_path / "diffusion_pytorch_model.safetensors", "a")
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_files(tmp_path) == (path,)


def test_shards(tmp_path: Path) -> None:
    """An index names the shards; files that it does not name are no part of the checkpoint."""
    first, second = shard(tmp_path / "m-1.safetensors", "a", "b"), shard(tmp_path / "m-2.safetensors", "c")
    shard(tmp_path / "other.safetensors", "d")
    index(tmp_path, {"metadata": {}, "weight_map": {"a": first.name, "b": first.name, "c": second.name}})
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.files == (first, second)
    assert checkpoint.file_of == {"a": first, "b": first, "c": second}
    assert set(checkpoint.entries) == {"a", "b", "c"}


def test_missing_part(tmp_path: Path) -> None:
    """A part that is not there is refused by its path."""
    with pytest.raises(InvalidInput, match="gone: no such file or folder"):
        read_checkpoint(tmp_path / "gone")


def test_no_weights(tmp_path: Path) -> None:
    """A folder without weights is refused."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"holds no safetensors weights$"):
        read_checkpoint(tmp_path)


PICKLE = "a torch pickle by its name; goan never opens pickles"
GGUF = "a GGUF file, whose weights are quantised; goan reads safetensors with bf16, fp16 or fp32 weights"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", PICKLE),
        ("model.CKPT", PICKLE),
        ("model.pt", PICKLE),
        ("model.pth", PICKLE),
        ("model-Q8_0.gguf", GGUF),
    ],
)
def test_other_formats_alone(tmp_path: Path, name: str, said: str) -> None:
    """A folder whose weights are all in another format is refused with their names and what they are."""
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(OtherFormat) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.message == f"{tmp_path}: holds no safetensors weights, only {name}: {said}"


def test_other_formats_beside_the_weights(tmp_path: Path) -> None:
    """Pickles beside the safetensors do not matter, and are not opened."""
    (tmp_path / "pytorch_model.bin").mkdir()
    path = shard(tmp_path / "model.safetensors", "a")
    assert checkpoint_files(tmp_path) == (path,)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U8", "I8", "I64", "BOOL"])
def test_no_plain_floats(dtype: str) -> None:
    """Whatever recognition says, weights that are no plain floats are refused where they are loaded."""
    path = Path("given.safetensors")
    entries = {"a": TensorEntry(dtype="BF16", shape=(1,)), "b": TensorEntry(dtype=dtype, shape=(1,))}
    with pytest.raises(InvalidInput) as caught:
        refuse_quantised(Checkpoint(files=(path,), entries=entries, file_of=dict.fromkeys(entries, path)))
    assert caught.value.message == f"given.safetensors: b is {dtype}; a render needs bf16, fp16 or fp32 weights"
    assert caught.value.hint is not None
    assert "0 to 31%" in caught.value.hint


def test_several_files_without_index(tmp_path: Path) -> None:
    """Several weight files without an index are refused, each by name."""
    shard(tmp_path / "a.safetensors", "a")
    shard(tmp_path / "b.safetensors", "b")
    with pytest.raises(InvalidInput, match=r"a\.safetensors, b\.safetensors"):
        read_checkpoint(tmp_path)


def test_missing_shards(tmp_path: Path) -> None:
    """Shards that were not downloaded are counted and named."""
    shard(tmp_path / "m-1.safetensors", "a")
    index(tmp_path, {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-3.safetensors"}})
    with pytest.raises(InvalidInput, match=r"2 of 3 shards are missing: m-2\.safetensors, m-3\.safetensors"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        {"weight_map": None},
        {"weight_map": ["a"]},
        {"weight_map": {"a": ["x"]}},
        {"weight_map": {"a": 5, "b": "x"}},
        {"weight_map": {"a": 5}},
        {"weight_map": {"a": None}},
        {"weight_map": {}},
        "[" * 100_000,
    ],
    ids=[
        "empty", "open", "list", "no-map", "none", "map-list", "name-list",
        "mixed", "number", "null", "no-names", "deep",
    ],
)  # fmt: skip
def test_unusable_index(tmp_path: Path, content: Any) -> None:
    """An index that is not one, or names no files, is refused by its path."""
    shard(tmp_path / "m.safetensors", "a")
    path = index(tmp_path, content)
    with pytest.raises(InvalidInput) as caught:
        read_checkpoint(tmp_path)
    assert str(path) in str(caught.value)


def test_a_tensor_twice(tmp_path: Path) -> None:
    """A tensor that stands in two shards is refused by its name and both files."""
    shard(tmp_path / "m-1.safetensors", "a", "b")
    shard(tmp_path / "m-2.safetensors", "b")
    index(tmp_path, {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}})
    with pytest.raises(InvalidInput, match=r"m-2\.safetensors: b stands in m-1\.safetensors too"):
        read_checkpoint(tmp_path)


def test_a_shard_without_its_tensors(tmp_path: Path) -> None:
    """A tensor that the index promises and no shard holds is told."""
    shard(tmp_path / "m-1.safetensors", "a")
    index(tmp_path, {"weight_map": {"a": "m-1.safetensors", "lost.weight": "m-1.safetensors"}})
    with pytest.raises(InvalidInput, match=r"lost\.weight"):
        read_checkpoint(tmp_path)


def test_truncated_shard(tmp_path: Path) -> None:
    """A shard whose download broke off is refused by its path."""
    path = shard(tmp_path / "m-1.safetensors", "a")
    path.write_bytes(path.read_bytes()[:-1])
    index(tmp_path, {"weight_map": {"a": path.name}})
    with pytest.raises(InvalidInput, match=r"m-1\.safetensors: .*truncated"):
        read_checkpoint(tmp_path)
