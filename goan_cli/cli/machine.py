"""Facts about this machine for `goan doctor`. torch is imported where it is asked: what needs none comes first."""

import os
import shutil
import subprocess
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from goan_cli.errors import GoanError

if TYPE_CHECKING:
    import torch

    from goan_cli.model.attention import Attend

_LIBRARIES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "huggingface-hub",
    "flash-attn",
    "sageattention",
)
HERE, HUB_CACHE, OWN_CACHE = "here", "hub cache", "goan cache"  # whose disks are looked at
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_SMI = ("--query-gpu=name,driver_version", "--format=csv,noheader")
_SMI_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class MainMemory:
    """Main memory in bytes: what there is, and what programs may still take."""

    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that are free where a folder is or would be, None where that cannot be told."""

    what: str
    folder: str
    free: int | None


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What nvidia-smi says: the driver's version, and the cards that it drives."""

    version: str
    cards: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A device that torch sees; memory is in bytes. `fault` says why it cannot be used."""

    index: int
    name: str = ""
    capability: tuple[int, int] | None = None
    free: int | None = None
    total: int | None = None
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """An attention backend; `problem` says why a job cannot use it here."""

    name: str
    problem: str | None


def library_versions() -> dict[str, str]:
    """The installed versions of what renders."""
    found = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def main_memory() -> MainMemory | None:
    """Main memory, within the limit of the container if there is one; None where the system does not tell."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    except (ValueError, OSError, AttributeError):
        return None
    free = _numbers(_MEMINFO).get("MemAvailable:", free // 1024) * 1024  # what files are cached in can be had, too
    with suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text(encoding="utf-8"))  # `max` is no number, and no limit
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        left = limit - used + _numbers(_CGROUP / "memory.stat").get("inactive_file", 0)
        total, free = min(total, limit), max(0, min(free, left))
    return MainMemory(total=total, free=free)


def _numbers(file: Path) -> dict[str, int]:
    """The first number after each word that begins a line, none of a file that is not there."""
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def disks() -> list[Disk]:
    """What is free here, where models are downloaded to, and where goan keeps what it has computed."""
    from goan_cli.files import cache_folder
    from goan_cli.packs.places import hub_cache

    found = [_disk(HERE, Path())]
    with suppress(RuntimeError):  # a user without a home folder
        found.append(_disk(HUB_CACHE, hub_cache()))
    if (cache := cache_folder()) is not None:
        found.append(_disk(OWN_CACHE, cache))
    return found


def _disk(what: str, folder: Path) -> Disk:
    with suppress(OSError):
        place = folder.absolute()
        there = next(above for above in (place, *place.parents) if above.exists())
        return Disk(what=what, folder=str(place), free=shutil.disk_usage(there).free)
    return Disk(what=what, folder=str(folder), free=None)


def nvidia_driver() -> Driver | None:
    """By nvidia-smi: torch does not tell. None where there is none, or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        said = subprocess.run([program, *_SMI], capture_output=True, text=True, check=True, timeout=_SMI_SECONDS)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    cards = [line.rsplit(",", 1) for line in said.stdout.splitlines() if "," in line]
    if not cards:
        return None
    return Driver(version=cards[0][1].strip(), cards=tuple(name.strip() for name, _ in cards))


def torch_fault() -> str | None:
    """Why torch cannot be imported."""
    try:
        import torch  # noqa: F401 - whether it can be
    except (ImportError, OSError) as error:  # a library that it needs may be missing
        return _first_line(error)
    return None


def torch_build() -> str:
    """What torch is built for: `CUDA 13.0`, `ROCm 6.4`, or `no CUDA`."""
    import torch

    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    return f"ROCm {torch.version.hip}" if torch.version.hip else "no CUDA"


def cpu_text() -> str:
    """The processor, its cores, and the threads that torch uses."""
    from goan_cli.bench.machine import machine

    return f"{os.cpu_count()} cores, {machine()} for torch"


def gpus() -> list[Gpu]:
    """Every device that CUDA sees, each tried out."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [_gpu(index) for index in range(torch.cuda.device_count())]


def _gpu(index: int) -> Gpu:
    import torch

    name, capability = "", None
    try:
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        _try_out(index)
        free, total = torch.cuda.mem_get_info(index)
    except (RuntimeError, AssertionError) as error:
        return Gpu(index=index, name=name, capability=capability, fault=_first_line(error))
    return Gpu(index=index, name=name, capability=capability, free=free, total=total)


def _try_out(index: int) -> None:
    """Run something: a torch without kernels for the card, and a card in a bad state, are told by nothing else."""
    import torch

    torch.ones(2, device=torch.device("cuda", index)).sum().item()


def no_gpu_reason(driver: Driver | None) -> str:
    """Why CUDA sees no device."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.is_available()
    if driver is None:
        return _first_line(said[0].message) if said else "none that CUDA can see"
    cards = f"{', '.join(driver.cards)} with driver {driver.version}"
    if torch.version.cuda is None:
        return f"this torch is built without CUDA, and there is {cards}: install a torch with CUDA (pytorch.org)"
    why = _first_line(said[0].message) if said else "CUDA_VISIBLE_DEVICES may hide it"
    return f"none that CUDA can see, and there is {cards}: {why}"


def attention_backends(device: "torch.device", dtype: "torch.dtype") -> list[Backend]:
    """Which attention backends a job can use on the device in its own precision; on a GPU each is tried out."""
    from goan_cli.jobs.job import AttentionBackend
    from goan_cli.render.execution import ResolvedExecution, attention_function

    found = []
    for backend in AttentionBackend:
        if backend is AttentionBackend.AUTO:
            continue
        execution = ResolvedExecution(dtype=dtype, fp8=False, compiled=False, attention=backend)
        try:
            attend = attention_function(execution, device)
            problem = attention_fault(attend, device, dtype) if device.type == "cuda" else None
        except GoanError as error:
            installs = f" ({error.hint})" if error.hint and error.hint.startswith("pip") else ""
            problem = error.message.removeprefix(f"attention {backend} ") + installs
        found.append(Backend(name=str(backend), problem=problem))
    return found


def automatic_attention(device: "torch.device") -> str:
    """What `auto` comes to on the device."""
    from goan_cli.model.attention import attention, sdpa

    return "sdpa" if attention("auto", device) is sdpa else "cudnn where it can, else sdpa"


def attention_fault(attend: "Attend", device: "torch.device", dtype: "torch.dtype") -> str | None:
    """Why a backend fails on the device: a library may be built for another card or torch."""
    import torch

    query = torch.zeros((1, 128, 2, 128), device=device, dtype=dtype)
    try:
        attend(query, query, query)
        torch.cuda.synchronize(device)
    except Exception as error:  # libraries raise what they like
        return _first_line(error)
    return None


def _first_line(error: object) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
