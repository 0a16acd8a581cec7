"""The header of a safetensors file, without torch; whatever is not one is named for what it is."""

import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from goan_cli.errors import InvalidInput, OtherFormat

_PICKLE = "a Python pickle; goan never opens pickles"
_TORCH_PICKLE = "a torch pickle by its name; goan never opens pickles"
_ZIP = "a zip archive, probably a torch pickle; goan never opens pickles"
_GGUF = "a GGUF file, whose weights are quantised; goan reads safetensors with bf16, fp16 or fp32 weights"
_PAGE = "an HTML page: the download saved a web page instead of the file"
# The end of a name -> what such a file is, unless its bytes say otherwise.
OTHER_SUFFIXES: Mapping[str, str] = {
    ".gguf": _GGUF,
    **dict.fromkeys((".bin", ".ckpt", ".pkl", ".pt", ".pth"), _TORCH_PICKLE),
}
# The first bytes of a file, in lower case -> what it is.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"pk\x03\x04", _ZIP),
    *((bytes((0x80, protocol)), _PICKLE) for protocol in range(2, 6)),
    (b"gguf", _GGUF),
    (b"version https://git-lfs", "a Git LFS pointer: the real file was not downloaded (git lfs pull)"),
    (b"<!doctype", _PAGE),
    (b"<html", _PAGE),
    (b"\x89png", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)
_OTHER_FORMATS = {_ZIP, *OTHER_SUFFIXES.values(), _PICKLE}
_BF16 = "<2s"
_SCALARS = {"F64": "<d", "F32": "<f", "F16": "<e", "BF16": _BF16, "I64": "<q", "I32": "<i", "I16": "<h", "U8": "<B"}

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

    Raises InvalidInput for a missing, truncated or mislabelled file, saying what the file really is; OtherFormat
    when it is weights all the same.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is not a file" if path.exists() else "no such file"
        raise InvalidInput(f"{path}: {what}")
    try:
        with safe_open(path, framework="numpy") as file:
            entries = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping: safe_open has keys() and no iteration
                view = file.get_slice(name)
                entries[name] = TensorEntry(dtype=str(view.get_dtype()), shape=tuple(view.get_shape()))
            return TensorHeader(path=path, entries=entries, metadata=dict(file.metadata() or {}))
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        what = _what_it_is(path, error)
        refusal = OtherFormat if what in _OTHER_FORMATS else InvalidInput
        raise refusal(f"{path}: not a usable safetensors file: {what}") from error


def read_scalars(path: Path, names: Collection[str]) -> dict[str, float]:
    """Single values by name, such as alphas, straight from the file's bytes: numpy has no bfloat16.

    The file must have passed `read_header`; names of tensors with another number of values are left out.
    """
    values: dict[str, float] = {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for name in names:
            entry = header[name]
            start, stop = entry["data_offsets"]
            layout = _SCALARS.get(entry["dtype"])
            if layout is None or stop - start != struct.calcsize(layout):
                continue
            file.seek(8 + length + start)
            data = file.read(stop - start)
            # bfloat16 is the upper half of a float32.
            values[name] = float(
                struct.unpack("<f", b"\0\0" + data)[0] if layout == _BF16 else struct.unpack(layout, data)[0]
            )
    return values


def _what_it_is(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as unreadable:
        return str(unreadable.strerror or unreadable)
    if not start:
        return "the file is empty"
    for signature, description in _SIGNATURES:
        if start.lstrip().lower().startswith(signature):
            return description
    if path.suffix.lower() in OTHER_SUFFIXES:
        return OTHER_SUFFIXES[path.suffix.lower()]
    if _is_text(start):
        return "it holds plain text"
    reason = str(error).removeprefix("Error while deserializing header: ")
    return next((meaning for words, meaning in _REASONS if words in reason), f"its header is damaged ({reason})")


def _is_text(start: bytes) -> bool:
    """Whether bytes are UTF-8 text; the last letter may be cut."""
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:
            return False
        text = start[: error.start].decode("utf-8")
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)
