"""What this machine is, how fast it multiplies matrices, and how long things take on it."""

import platform
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch

_MATMUL = {"cuda": 8192, "cpu": 2048}  # rows and columns of the square matrices
_MATMUL_SECONDS, _MATMUL_RUNS = 0.5, 3
_STATUS, _CPUS = Path("/proc/self/status"), Path("/proc/cpuinfo")


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of large square matrix products, the median of half a second of them."""
    size = _MATMUL[device.type]
    first, second = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(first)

    def multiply() -> None:
        torch.mm(first, second, out=out)

    multiply()
    seconds: list[float] = []
    while len(seconds) < _MATMUL_RUNS or sum(seconds) < _MATMUL_SECONDS:
        seconds.append(seconds_of(multiply, device))
    return 2 * size**3 / statistics.median(seconds)


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """How long an action takes on the device."""
    synchronize(device)
    started = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait for all that was given to the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most memory that torch gave out on the device since it was reset; on a CPU, that the process ever had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = [line for line in _lines(_STATUS) if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * 1024 if found else None


def machine() -> str:
    """The processor's name and how many threads torch uses."""
    names = [line.partition(":")[2].strip() for line in _lines(_CPUS) if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def reset_peak(device: torch.device) -> None:
    """Have `peak_bytes` begin anew; on a CPU it cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class Clock:
    """Points in time on a device. On CUDA they are events, so that the host runs ahead as in a render."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []

    def mark(self) -> None:
        """Now, on the device."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next."""
        synchronize(self._device)
        on_device = [earlier.elapsed_time(later) / 1000 for earlier, later in pairwise(self._events)]
        return on_device or [later - earlier for earlier, later in pairwise(self._times)]
