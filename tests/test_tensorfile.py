"""Headers of safetensors files, and what everything else is called."""

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from goan_cli.errors import InvalidInput, OtherFormat
from goan_cli.tensorfile import TensorEntry, read_header

TENSORS: dict[str, NDArray[Any]] = {
    "a.weight": np.zeros((4, 3), dtype=np.float16),
    "b": np.array(2.0, dtype=np.float32),
    "c": np.zeros((2, 0), dtype=np.int64),
}
WHOLE = save(TENSORS, metadata={"made_by": "a test"})
HEADER = 8 + struct.unpack("<Q", WHOLE[:8])[0]


def with_header(header: Any, body: bytes = b"") -> bytes:
    """A file of some header and bytes after it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def told(folder: Path, content: bytes) -> str:
    """What is said of a file of this content, after the file's name."""
    path = folder / "lora.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_header(tmp_path: Path) -> None:
    """A header gives each tensor's dtype and shape, and the metadata."""
    path = tmp_path / "lora.safetensors"
    path.write_bytes(WHOLE)
    header = read_header(path)
    assert header.path == path
    assert header.metadata == {"made_by": "a test"}
    assert header.entries == {
        "a.weight": TensorEntry(dtype="F16", shape=(4, 3)),
        "b": TensorEntry(dtype="F32", shape=()),
        "c": TensorEntry(dtype="I64", shape=(2, 0)),
    }
    assert [entry.count for entry in header.entries.values()] == [12, 1, 0]


def test_no_metadata(tmp_path: Path) -> None:
    """A file without metadata has none."""
    path = tmp_path / "lora.safetensors"
    path.write_bytes(save({"a": np.zeros(1, dtype=np.float32)}))
    assert read_header(path).metadata == {}


def test_dtypes_that_numpy_lacks(tmp_path: Path) -> None:
    """bf16 and fp8 tensors are named though numpy has no such dtypes."""
    path = tmp_path / "lora.safetensors"
    entries = {
        "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        "b": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [4, 8]},
    }
    path.write_bytes(with_header(entries, b"\0" * 8))
    assert {name: entry.dtype for name, entry in read_header(path).entries.items()} == {"a": "BF16", "b": "F8_E4M3"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"this is a text that somebody renamed\n" * 9, "plain text"),
        (b"short", "plain text"),
        (b'{"lora": 1}', "plain text"),
        ("Größe, und noch mehr Text\n".encode() * 9, "text"),
        (b"<!DOCTYPE html>\n<html></html>", "HTML"),
        (b"\n <!doctype html>", "HTML"),
        (b"<html lang='en'>", "HTML"),
        (b"<HTML><BODY>", "HTML"),
        (b"<!Doctype html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (b"GGUF\3\0\0\0" + b"\0" * 64, "GGUF"),
        (b"PK\3\4" + b"\0" * 64, "pickle"),
        (pickle.dumps({"a": [1, 2]}, protocol=2), "pickle"),
        (pickle.dumps({"a": [1, 2]}, protocol=3), "pickle"),
        (pickle.dumps({"a": [1, 2]}, protocol=4), "pickle"),
        (pickle.dumps({"a": [1, 2]}, protocol=5), "pickle"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "PNG"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 64, "JPEG"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, said: str) -> None:
    """A file that is no safetensors is called what it is."""
    assert said in told(tmp_path, content)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("style.gguf", b"\0" * 100, "GGUF"),
        ("style.GGUF", b"GGUF\3\0\0\0" + b"\0" * 64, "GGUF"),
        ("style.safetensors", b"GGUF\3\0\0\0" + b"\0" * 64, "GGUF"),
        ("style.pt", b"\0" * 100, "pickle"),
        ("style.ckpt", b"\xff" * 100, "pickle"),
        ("style.pth", b"ustar", "pickle"),
        ("style.bin", b"PK\3\4" + b"\0" * 64, "pickle"),
        ("style.pkl", b"\x80\x02}q\0.", "pickle"),
    ],
)
def test_weights_in_other_formats(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """GGUF and pickles are told by their first bytes or, failing that, by their names, as weights all the same."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(OtherFormat, match=said) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: not a usable safetensors file: ")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"<html></html>", "HTML"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")],
)
def test_bytes_go_before_names(tmp_path: Path, content: bytes, said: str) -> None:
    """What was never downloaded is told as that, whatever its name."""
    path = tmp_path / "style.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=said) as caught:
        read_header(path)
    assert not isinstance(caught.value, OtherFormat)


def test_names_alone_refuse_nothing(tmp_path: Path) -> None:
    """A safetensors file is read, whatever its name."""
    path = tmp_path / "style.ckpt"
    path.write_bytes(WHOLE)
    assert set(read_header(path).entries) == set(TENSORS)


@pytest.mark.parametrize("length", [1, 7, 8, 9, HEADER - 1, HEADER, len(WHOLE) - 1])
def test_truncated(tmp_path: Path, length: int) -> None:
    """A file cut off anywhere is called truncated."""
    assert "truncated" in told(tmp_path, WHOLE[:length])


@pytest.mark.parametrize(
    "content",
    [
        WHOLE + b"\0",
        b"\xff" * 100,
        b"\0" * 100,
        with_header(b"{]"),
        with_header(b"\xff\xff"),
        with_header({"a": {"dtype": "F33", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4),
        with_header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
        with_header({"__metadata__": {"a": 1}}),
    ],
)
def test_damaged(tmp_path: Path, content: bytes) -> None:
    """Broken headers and wrong lengths are refused with a reason on one line."""
    message = told(tmp_path, content)
    assert "damaged" in message
    assert "\n" not in message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(InvalidInput, match="no such file"):
        read_header(tmp_path / "gone.safetensors")
    with pytest.raises(InvalidInput, match="is a folder"):
        read_header(tmp_path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.integers(0, HEADER + 3), st.integers(0, 255), max_size=5),
    length=st.integers(0, len(WHOLE)) | st.just(len(WHOLE)),
)
def test_any_damage(tmp_path: Path, changes: dict[int, int], length: int) -> None:
    """Whatever bytes of a file change or are missing, it is read or refused as invalid input."""
    content = bytearray(WHOLE)
    for place, value in changes.items():
        content[place] = value
    path = tmp_path / "lora.safetensors"
    path.write_bytes(bytes(content[:length]))
    try:
        said = str(read_header(path).path)
    except InvalidInput as error:
        said = error.message
    assert str(path) in said
