"""Tensors that are a mapped safetensors file itself, however large it is beside the machine's memory."""

import json
import mmap
import struct
import sys
from pathlib import Path

import torch
from torch import Tensor

from goan_cli.errors import EnvironmentFault

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Linux's value, which not every Python has a name for.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def mapped_tensors(file: Path) -> dict[str, Tensor]:
    """The float tensors of a file by name, mapped and not copied; what is written to them never reaches the disk.

    The file's header must have been read: see `read_header`. Raises EnvironmentFault where the machine cannot map it.
    """
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(length))
            memory = _mapped(opened.fileno())
    except OSError as error:
        raise EnvironmentFault(f"{file}: cannot be mapped: {error.strerror or error}") from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or (dtype := _DTYPES.get(entry["dtype"])) is None:
            continue
        start, stop = entry["data_offsets"]
        count = (stop - start) // dtype.itemsize
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=8 + length + start) if count else torch.empty(0)
        )
        tensors[name] = flat.to(dtype).view(entry["shape"])
    return tensors


def _mapped(descriptor: int) -> mmap.mmap:
    """Memory that is the file until it is written to.

    safetensors and torch map alike, but reserve memory for all of it: Linux refuses that for a file larger than its
    memory and swap together.
    """
    if sys.platform == "win32":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | _NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
