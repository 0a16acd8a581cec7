"""Attention by name: what each name comes to on a device, and what is said where it is not to be had."""

import importlib.util
import math
import re
import tomllib
from collections.abc import Callable
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import goan_cli.model.attention as attention_module
from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.jobs.job import AttentionBackend
from goan_cli.model.attention import Attend, attention, sdpa
from tests.helpers import CPU, relative_error

CARD = torch.device("cuda", 0)
LIBRARIES = {"flash": "flash_attn", "sage": "sageattention"}
PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention by its formula, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends a GPU of a compute capability, and that some libraries can be imported."""

    def pretend(capability: tuple[int, int] = (9, 0), libraries: tuple[str, ...] = ()) -> None:
        find = importlib.util.find_spec

        def found(name: str) -> ModuleSpec | None:
            if name in LIBRARIES.values():
                return ModuleSpec(name, None) if name in libraries else None
            return find(name)

        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(importlib.util, "find_spec", found)

    return pretend


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("queries", [1, 4, 9])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_sdpa(batch: int, queries: int, dtype: torch.dtype, bound: float) -> None:
    """Attention by the formula, heads side by side in the result, with as many queries as are given."""
    query, key, value = (
        _random(batch, tokens, 2, 16, seed=seed).to(dtype) for seed, tokens in enumerate((queries, 9, 9))
    )
    out = sdpa(query, key, value)
    assert (out.shape, out.dtype) == ((batch, queries, 32), dtype)
    assert relative_error(out, _plain(query, key, value)) < bound


@pytest.mark.parametrize("name", ["auto", "sdpa"])
def test_on_a_cpu(name: str) -> None:
    """On a CPU torch chooses the kernel."""
    assert attention(name, CPU) is sdpa


@pytest.mark.parametrize("name", ["cudnn", "flash", "sage"])
def test_kernels_that_a_cpu_has_not(name: str, card: Callable[..., None]) -> None:
    """GPU kernels are a fault of the environment on a CPU, installed or not, and the hint says what runs there."""
    card(libraries=tuple(LIBRARIES.values()))
    with pytest.raises(EnvironmentFault, match=f"attention {name} needs a CUDA device") as caught:
        attention(name, CPU)
    assert caught.value.exit_code == 3
    assert "sdpa" in str(caught.value.hint)


@pytest.mark.parametrize("device", [CPU, CARD], ids=str)
@pytest.mark.parametrize("name", ["", "flex", "SDPA", "cuda"])
def test_other_names(name: str, device: torch.device, card: Callable[..., None]) -> None:
    """A name that is none is invalid input, whatever the device, and the hint has the valid ones."""
    card()
    with pytest.raises(InvalidInput, match="no such backend") as caught:
        attention(name, device)
    assert caught.value.exit_code == 2
    assert re.findall(r"\w+", str(caught.value.hint).removeprefix("valid: ")) == [
        str(each) for each in AttentionBackend
    ]


@pytest.mark.parametrize(
    ("capability", "first"),
    [((7, 5), False), ((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True), ((12, 0), True)],
)
def test_auto_on_a_gpu(capability: tuple[int, int], first: bool, card: Callable[..., None]) -> None:
    """From Hopper on cuDNN's kernel is tried first, before that torch chooses; the job may name either."""
    card(capability)
    assert (attention("auto", CARD) is not sdpa) == first
    assert attention("sdpa", CARD) is sdpa
    assert attention("cudnn", CARD) is not sdpa


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_that_are_missing(name: str, card: Callable[..., None]) -> None:
    """A library that is not installed is named, with the extra of this project that installs it."""
    card(libraries=tuple(other for key, other in LIBRARIES.items() if key != name))
    with pytest.raises(EnvironmentFault, match=f"attention {name} needs the package {LIBRARIES[name]}") as caught:
        attention(name, CARD)
    assert caught.value.exit_code == 3
    assert f"goan-cli[{name}]" in str(caught.value.hint)
    extras = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(wanted.replace("-", "_").startswith(LIBRARIES[name]) for wanted in extras[name])


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_that_are_there(name: str, card: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors go to the library's backend of diffusers' dispatcher as they are, heads come back side by side."""
    dispatch = pytest.importorskip("diffusers.models.attention_dispatch")
    card(libraries=(LIBRARIES[name],))
    asked: list[str] = []

    def dispatched(query: Tensor, key: Tensor, value: Tensor, *, backend: object) -> Tensor:
        asked.append(str(dispatch.AttentionBackendName(backend).value))
        out: Tensor = sdpa(query, key, value).unflatten(2, query.shape[2:])
        return out

    monkeypatch.setattr(dispatch, "dispatch_attention_fn", dispatched)
    query, key, value = (_random(1, tokens, 2, 16, seed=seed) for seed, tokens in enumerate((4, 9, 9)))
    out = attention(name, CARD)(query, key, value)
    assert asked == [name]
    assert torch.equal(out, sdpa(query, key, value))


@pytest.mark.parametrize(
    "attend",
    [
        pytest.param(sdpa, id="sdpa"),
        pytest.param(attention_module._cudnn_first, id="cuDNN first"),
        pytest.param(partial(attention_module._dispatched, "native"), id="diffusers' dispatcher"),
    ],
)
def test_kernels_compile(attend: Attend) -> None:
    """Within a compiled block each is in the one graph, and gives the same where this machine has its kernels."""
    torch._dynamo.reset()
    query, key, value = (_random(1, tokens, 2, 16, seed=seed) for seed, tokens in enumerate((4, 9, 9)))
    compiled = torch.compile(attend, fullgraph=True, backend="eager")
    for inputs in ((query, key, value), (key, key, value)):
        assert relative_error(compiled(*inputs), _plain(*inputs)) < 1e-6
    torch._dynamo.reset()


@pytest.mark.parametrize("device", [CPU, CARD], ids=str)
@pytest.mark.parametrize("name", list(AttentionBackend))
def test_every_name_of_a_job(name: AttentionBackend, device: torch.device, card: Callable[..., None]) -> None:
    """Whatever a job may ask for is a function where everything is installed, or on a CPU an error with a hint."""
    card(libraries=tuple(LIBRARIES.values()))
    if device == CPU and name not in (AttentionBackend.AUTO, AttentionBackend.SDPA):
        with pytest.raises(EnvironmentFault):
            attention(str(name), device)
    else:
        assert callable(attention(str(name), device))
