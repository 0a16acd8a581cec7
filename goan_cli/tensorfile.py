"""The header of a safetensors file, without torch; whatever is not one is named for what it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from goan_cli.errors import InvalidInput

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, probably a torch pickle; goan never opens pickles"),
    (b"\x80\x02", "a Python pickle; goan never opens pickles"),
    (b"\x80\x04", "a Python pickle; goan never opens pickles"),
    (b"GGUF", "a GGUF file; goan needs the bf16 safetensors of the checkpoint"),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not downloaded (git lfs pull)"),
    (b"<!DOCTYPE", "an HTML page: the download saved a web page instead of the file"),
    (b"<!doctype", "an HTML page: the download saved a web page instead of the file"),
    (b"<html", "an HTML page: the download saved a web page instead of the file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)

# What the safetensors library says of a damaged file -> what it means to a user.
_REASONS: tuple[tuple[str, str], ...] = (
    ("header length", "it is truncated or damaged; download it again"),
    ("incomplete metadata", "it is truncated or damaged; download it again"),
    ("header too small", "it is truncated or damaged; download it again"),
    ("header too large", "it is some other kind of file, or damaged from its first bytes on"),
)


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """What the header says of one tensor: its dtype name (such as `BF16`) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """Names, dtypes and shapes of a safetensors file, and its metadata."""

    path: Path
    entries: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> TensorHeader:
    """Read and check the header of a safetensors file; the tensors stay on disk.

    Raises InvalidInput for a missing, truncated or mislabelled file, saying what the file really is.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file" if not path.exists() else f"{path}: is a folder, not a file")
    try:
        with safe_open(path, framework="numpy") as file:
            entries = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping: safe_open has keys() and no iteration
                view = file.get_slice(name)
                entries[name] = TensorEntry(dtype=str(view.get_dtype()), shape=tuple(view.get_shape()))
            return TensorHeader(path=path, entries=entries, metadata=dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise InvalidInput(f"{path}: not a usable safetensors file: {_what_it_is(path, error)}") from error


def _what_it_is(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as unreadable:
        return str(unreadable.strerror or unreadable)
    if not start:
        return "the file is empty"
    for signature, description in _SIGNATURES:
        if start.lstrip().startswith(signature):
            return description
    if b"\x00" not in start and start.isascii():
        return "it holds plain text"
    reason = str(error).removeprefix("Error while deserializing header: ")
    return next((meaning for words, meaning in _REASONS if words in reason), f"its header is damaged ({reason})")
