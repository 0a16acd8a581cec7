"""Tensors that are a mapped file: its values, and neither its memory nor its safety."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from goan_cli.errors import EnvironmentFault
from goan_cli.files import sha256_of
from goan_cli.model.mapped import mapped_tensors
from goan_cli.tensorfile import TensorEntry
from tests.headers import write_headers


def test_values(tmp_path: Path) -> None:
    """Tensors of every float dtype and shape are those that safetensors reads; what is no float is left out."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{dtype}{list(shape)}": torch.randn(shape, generator=generator).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        for shape in ((), (1,), (0,), (3, 0), (5, 7), (2, 3, 1, 4))
    }
    file = tmp_path / "all.safetensors"
    save_file({**tensors, "count": torch.arange(3)}, file, metadata={"format": "pt"})
    mapped, read = mapped_tensors(file), load_file(file)
    assert mapped.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (mapped[name].dtype, mapped[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(mapped[name], read[name]), name


def test_what_is_written_stays_in_memory(tmp_path: Path) -> None:
    """A write reaches neither the file nor another mapping of it, and outlives the file's removal."""
    file = tmp_path / "one.safetensors"
    save_file({"a": torch.ones(1000)}, file)
    before = sha256_of(file)
    tensor, other = mapped_tensors(file)["a"], mapped_tensors(file)["a"]
    tensor.fill_(7.0)
    assert sha256_of(file) == before
    assert bool((other == 1).all())
    file.unlink()
    assert bool((tensor == 7).all())


def test_larger_than_the_memory(tmp_path: Path) -> None:
    """Nothing is reserved for a file: one of a fifth of a terabyte is mapped."""
    entry = TensorEntry(dtype="BF16", shape=(100_000, 1_000_000))
    file = write_headers(tmp_path / "huge.safetensors", {"huge": entry})
    assert float(mapped_tensors(file)["huge"][-1, -1]) == 0


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    """A file that was removed since its header was read is an error with its name."""
    with pytest.raises(EnvironmentFault, match=r"gone\.safetensors: cannot be mapped: No such file"):
        mapped_tensors(tmp_path / "gone.safetensors")
