"""Facts about the machine, on machines that are not this one."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from goan_cli.cli import machine
from goan_cli.cli.machine import (
    Backend,
    Disk,
    Driver,
    Gpu,
    MainMemory,
    attention_backends,
    automatic_attention,
    disks,
    gpus,
    library_versions,
    main_memory,
    no_gpu_reason,
    nvidia_driver,
)
from tests.helpers import CPU

GB = 10**9
CARD = torch.device("cuda", 0)
DRIVER = Driver(version="580.65.06", cards=("NVIDIA GeForce RTX 4090",))


def put_in_cards(
    monkeypatch: pytest.MonkeyPatch,
    *,
    free: int = 23 * GB,
    total: int = 24 * GB,
    capability: tuple[int, int] = (8, 9),
    count: int = 1,
    broken: Sequence[int] = (),
) -> None:
    """Have CUDA see `count` equal cards, of which the `broken` ones fail when something runs on them."""

    def try_out(index: int) -> None:
        if index in broken:
            raise RuntimeError("CUDA error: no kernel image is available for execution\nCUDA kernel errors might be …")

    for name, value in (
        ("is_available", lambda: True),
        ("device_count", lambda: count),
        ("get_device_name", lambda *_: "NVIDIA GeForce RTX 4090"),
        ("get_device_capability", lambda *_: capability),
        ("mem_get_info", lambda *_: (free, total)),
        ("get_device_properties", lambda *_: SimpleNamespace(total_memory=total)),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(machine, "_try_out", try_out)
    monkeypatch.setattr(machine, "attention_fault", lambda *_: None)
    monkeypatch.setattr(machine, "nvidia_driver", lambda: DRIVER)


def put_in_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An `nvidia-smi` that is this shell script, and nothing else on the path but a shell's own words."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_versions() -> None:
    """What is installed has its version, what is not is left out."""
    found = library_versions()
    assert found["torch"] == torch.__version__
    assert {"diffusers", "transformers", "safetensors", "huggingface-hub"} <= set(found)
    assert all(number for number in found.values())


def test_memory_of_this_machine() -> None:
    """There is some memory, and no more of it is free than there is."""
    found = main_memory()
    assert found is not None
    assert 0 < found.free <= found.total


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max", MainMemory(total=64 * GB, free=40_000_000 * 1024)),
        (str(8 * GB), MainMemory(total=8 * GB, free=8 * GB - 3 * GB + 2 * GB)),
        (str(2 * GB), MainMemory(total=2 * GB, free=1 * GB)),
        (str(GB // 2), MainMemory(total=GB // 2, free=0)),
        (str(900 * GB), MainMemory(total=64 * GB, free=40_000_000 * 1024)),
    ],
)
def test_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: MainMemory
) -> None:
    """What a container may have counts, less what it uses; cached files can be given up, within it and without."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GB // 4096, "SC_AVPHYS_PAGES": GB // 4096}
    monkeypatch.setattr("os.sysconf", sizes.__getitem__)
    (tmp_path / "meminfo").write_text("MemTotal:  99 kB\nMemFree:  1000 kB\nMemAvailable:   40000000 kB\n")
    monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GB}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\nfile 7\ninactive_file {2 * GB}\nodd\n")
    assert main_memory() == expected


def test_memory_that_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without these numbers, as macOS, has memory that is unknown."""

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", unknown)
    assert main_memory() is None


def test_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of folders that are not there yet the disk counts that they would be on; none of them is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setenv("GOAN_CACHE", str(tmp_path / "nor" / "this"))
    found = disks()
    assert [(disk.what, disk.folder) for disk in found] == [
        ("here", str(tmp_path)),
        ("hub cache", str(tmp_path / "not" / "yet")),
        ("goan cache", str(tmp_path / "nor" / "this")),
    ]
    assert all(disk.free for disk in found)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder that was removed has unknown space."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert disks()[0] == Disk(what="here", folder=".", free=None)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA A100, 80GB, 550.90.07'", Driver(version="550.90.07", cards=("NVIDIA A100, 80GB",))),
        ("echo 'A, 1.2'; echo 'B, 1.2'", Driver(version="1.2", cards=("A", "B"))),
        ("echo 'No devices were found'", None),
        ("echo 'NVIDIA-SMI has failed, see its log'; exit 9", None),
        ("", None),
        (r"printf '\377\376, 1\n'", None),
    ],
)
def test_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: Driver | None) -> None:
    """The driver's version and its cards are nvidia-smi's; where that fails there is none."""
    put_in_smi(tmp_path, monkeypatch, script)
    assert nvidia_driver() == expected


def test_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nvidia-smi nothing is known of a driver; nor with one that cannot be run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_driver() is None
    (tmp_path / "nvidia-smi").write_text("neither a script nor a program")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert nvidia_driver() is None


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every card is told; one on which nothing runs has the reason, in one line."""
    put_in_cards(monkeypatch, count=2, broken=[1])
    name, capability = "NVIDIA GeForce RTX 4090", (8, 9)
    assert gpus() == [
        Gpu(index=0, name=name, capability=capability, free=23 * GB, total=24 * GB),
        Gpu(
            index=1,
            name=name,
            capability=capability,
            fault="CUDA error: no kernel image is available for execution",
        ),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus() == []


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch without CUDA beside a card, and a card that CUDA does not see, are told apart from no card."""

    def too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver is too old.\nPlease update", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert no_gpu_reason(None) == "none that CUDA can see"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert no_gpu_reason(DRIVER) == (
        "this torch is built without CUDA, and there is NVIDIA GeForce RTX 4090 with driver 580.65.06: "
        "install a torch with CUDA (pytorch.org)"
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert no_gpu_reason(DRIVER).endswith("with driver 580.65.06: CUDA_VISIBLE_DEVICES may hide it")
    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert no_gpu_reason(DRIVER).endswith("580.65.06: CUDA initialization: The NVIDIA driver is too old.")


def test_attention_on_a_cpu() -> None:
    """A CPU has torch's own attention alone."""
    cuda = "needs a CUDA device"
    assert attention_backends(CPU, torch.float32) == [
        Backend(name="sdpa", problem=None),
        *(Backend(name=name, problem=cuda) for name in ("cudnn", "flash", "sage")),
    ]
    assert automatic_attention(CPU) == "sdpa"


def test_attention_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is not installed is told with what installs it, one that fails on the card with its error."""
    put_in_cards(monkeypatch)
    found = {backend.name: backend.problem for backend in attention_backends(CARD, torch.bfloat16)}
    assert found == {
        "sdpa": None,
        "cudnn": None,
        "flash": "needs the package flash_attn (pip install 'goan-cli[flash]')",
        "sage": "needs the package sageattention (pip install 'goan-cli[sage]')",
    }
    monkeypatch.setattr(machine, "attention_fault", lambda *_: "built for another torch")
    found = {backend.name: backend.problem for backend in attention_backends(CARD, torch.bfloat16)}
    assert (found["sdpa"], found["cudnn"]) == ("built for another torch", "built for another torch")
    found = {backend.name: backend.problem for backend in attention_backends(CARD, torch.float32)}
    assert found["cudnn"] == "takes 16-bit values only"


@pytest.mark.parametrize(("major", "expected"), [(8, "sdpa"), (9, "cudnn where it can, else sdpa")])
def test_attention_of_itself(monkeypatch: pytest.MonkeyPatch, major: int, expected: str) -> None:
    """From Hopper on, cuDNN's kernel is the automatic choice."""
    put_in_cards(monkeypatch, capability=(major, 0))
    assert automatic_attention(CARD) == expected


def test_a_backend_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library raises when it runs is the reason, in one line; one that runs has none."""

    def fails(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no kernel for sm_75\nand more")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    assert machine.attention_fault(fails, CPU, torch.float32) == "no kernel for sm_75"
    assert machine.attention_fault(lambda query, *_: query, CPU, torch.float32) is None
