"""Devices by name, and the precision that each kind of card gets."""

from types import SimpleNamespace

import pytest
import torch

from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.render.device import (
    Precision,
    choose_device,
    device_name,
    holds_llama,
    is_roomy,
    precision_for,
    precision_of_capability,
)

BF16 = Precision(transformer=torch.bfloat16, encoders=torch.float16)
FP16 = Precision(transformer=torch.float16, encoders=torch.float16)
FP32 = Precision(transformer=torch.float32, encoders=torch.float32)


def _cards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("major", "precision"), [(3, FP32), (5, FP32), (6, FP32), (7, FP16), (8, BF16), (9, BF16), (10, BF16), (12, BF16)]
)
def test_precision_of_capability(major: int, precision: Precision) -> None:
    """bf16 from capability 8 on, fp16 on 7, fp32 below, where fp16 is slow."""
    assert precision_of_capability(major) == precision


def test_precision_on_the_cpu() -> None:
    """The CPU renders in fp32 throughout."""
    assert precision_for(torch.device("cpu")) == FP32


def test_precision_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device's precision is that of its own capability."""
    capabilities = {0: (7, 5), 1: (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    assert precision_for(torch.device("cuda", 0)) == FP16
    assert precision_for(torch.device("cuda", 1)) == BF16


@pytest.mark.parametrize(
    ("name", "cards", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_choose_device(monkeypatch: pytest.MonkeyPatch, name: str, cards: int, device: str) -> None:
    """`auto` takes the first card or else the CPU; other names mean what they say."""
    _cards(monkeypatch, cards)
    assert choose_device(name) == torch.device(device)


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "cuda:-1", "cuda:0:1", "cpu:0", "mps", "CUDA"])
def test_no_such_device(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Another word is refused with the valid ones."""
    _cards(monkeypatch, 1)
    with pytest.raises(InvalidInput) as caught:
        choose_device(name)
    assert name in caught.value.message
    assert "auto, cpu, cuda" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "cards", "told"), [("cuda", 0, "CUDA"), ("cuda:0", 0, "CUDA"), ("cuda:2", 2, "2 CUDA")]
)
def test_missing_card(monkeypatch: pytest.MonkeyPatch, name: str, cards: int, told: str) -> None:
    """A card that is asked for and missing is a fault of the machine, never a silent CPU render."""
    _cards(monkeypatch, cards)
    with pytest.raises(EnvironmentFault, match=told):
        choose_device(name)


@pytest.mark.parametrize(("gigabytes", "roomy"), [(24, False), (47, False), (48, True), (80, True)])
def test_roomy_cards(monkeypatch: pytest.MonkeyPatch, gigabytes: int, roomy: bool) -> None:
    """Cards from 48 GiB keep all parts; the CPU always does."""

    class Properties:
        total_memory = gigabytes << 30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())
    assert is_roomy(torch.device("cuda", 0)) is roomy
    assert is_roomy(torch.device("cpu"))


def test_device_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card goes into the record by its own name, the CPU as cpu."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert device_name(torch.device("cuda", 0)) == "NVIDIA H200"
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize(("gigabytes", "holds"), [(12, False), (16, False), (24, True), (80, True)])
def test_cards_that_hold_llama(monkeypatch: pytest.MonkeyPatch, gigabytes: int, holds: bool) -> None:
    """A card that Llama alone would fill gets it layer by layer; main memory holds it."""
    properties = SimpleNamespace(total_memory=gigabytes << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert holds_llama(torch.device("cuda", 0)) is holds
    assert holds_llama(torch.device("cpu"))
