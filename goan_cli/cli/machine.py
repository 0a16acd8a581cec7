"""Facts about this machine, as text for `goan doctor`."""

import os

import torch

from goan_cli.errors import GoanError
from goan_cli.packs.find import find_pack
from goan_cli.packs.manifest import SHIPPED
from goan_cli.render.device import precision_for


def memory_text() -> str:
    """Main memory, where the system tells it."""
    try:
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    return f"{pages * page / 1e9:.1f} GB, {free * page / 1e9:.1f} GB free"


def gpu_rows() -> list[tuple[str, str]]:
    """One row a CUDA device: name, memory, compute capability, and the precision that follows from it."""
    if not torch.cuda.is_available():
        return [("gpu", "none that CUDA can see")]
    rows = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        dtype = str(precision_for(torch.device("cuda", index)).transformer).removeprefix("torch.")
        name = torch.cuda.get_device_name(index)
        rows.append(
            (
                f"cuda:{index}",
                f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, capability {major}.{minor}, {dtype}",
            )
        )
    return rows


def pack_rows() -> list[tuple[bool, str]]:
    """For each shipped pack: whether it is complete, and where it lies or what is wrong."""
    rows = []
    for name in SHIPPED:
        try:
            pack = find_pack(name)
            rows.append((True, f"{name} ({pack.family}), complete, {pack.manifest.parent}"))
        except GoanError as error:
            rows.append((False, f"{name}: {error}"))
    return rows
