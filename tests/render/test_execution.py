"""How a job is carried out: what its wishes come to on a device, and that it is gone on with as it was begun."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import goan_cli.render.engine as engine_module
import goan_cli.render.execution as execution_module
import goan_cli.render.transformers as transformers_module
from goan_cli.batch.run import render_jobs
from goan_cli.batch.stop import Stop
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.job import AttentionBackend, Compile, Execution, WantedPrecision
from goan_cli.model.attention import sdpa
from goan_cli.model.calls import BlockCalls, compiled_calls
from goan_cli.render.checkpoint import checkpoint_files, read_record
from goan_cli.render.device import Precision
from goan_cli.render.engine import Engine
from goan_cli.render.events import CheckpointWritten, Event
from goan_cli.render.execution import (
    COMPILED,
    ResolvedExecution,
    attention_function,
    block_calls,
    keep_compiled_code,
    lacking_compiler,
    resolve_execution,
)
from tests.helpers import CPU, relative_error, tiny_plan

CARD = torch.device("cuda", 0)
FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = {WantedPrecision.FP32: FP32, WantedPrecision.FP16: FP16, WantedPrecision.BF16: BF16}
PAYS = 100.0  # steps


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends a GPU of a compute capability, with triton or without."""

    def pretend(capability: tuple[int, int] = (9, 0), *, triton: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr("torch.utils._triton.has_triton", lambda: triton)

    return pretend


@contextmanager
def _cpp_compiler(name: str) -> Iterator[None]:
    """This program in the place of the C++ compiler: any that is there serves, so long as nothing is compiled."""
    with torch._inductor.config.patch({"cpp.cxx": (name,)}):
        yield


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """A machine without a C++ compiler."""
    with _cpp_compiler("no-such-compiler"):
        yield


def _resolved(device: torch.device, own: torch.dtype, *, steps: float = 0.0, **wanted: object) -> ResolvedExecution:
    return resolve_execution(Execution(**wanted), device, own, steps_ahead=steps)  # type: ignore[arg-type]


# Precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [FP32, FP16, BF16], ids=str)
@pytest.mark.parametrize("device", [CPU, CARD], ids=str)
@pytest.mark.parametrize("wanted", list(WantedPrecision))
def test_precision(wanted: WantedPrecision, device: torch.device, own: torch.dtype, card: Callable[..., None]) -> None:
    """What is named is taken; auto is the device's own, and fp8 is for linears, amid the device's own.

    Only a card whose own is fp32 has fp8 amid fp16: who wants weights in eight bits has no room for 32.
    """
    card()
    resolved = _resolved(device, own, precision=wanted)
    narrow = wanted is WantedPrecision.FP8 and device == CARD and own == FP32
    assert resolved.dtype == (FP16 if narrow else DTYPES.get(wanted, own))
    assert resolved.fp8 == (wanted is WantedPrecision.FP8)


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5)])
def test_bf16_on_older_gpus(capability: tuple[int, int], card: Callable[..., None]) -> None:
    """Below compute capability 8.0 bf16 is refused, and nothing else is."""
    card(capability)
    with pytest.raises(EnvironmentFault, match="bf16 needs compute capability 8") as caught:
        _resolved(CARD, FP16, precision=WantedPrecision.BF16)
    assert caught.value.exit_code == 3
    assert "auto" in str(caught.value.hint)
    for other in set(WantedPrecision) - {WantedPrecision.BF16}:
        assert _resolved(CARD, FP16, precision=other).dtype == DTYPES.get(other, FP16)


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_bf16_on_newer_gpus(capability: tuple[int, int], card: Callable[..., None]) -> None:
    """From 8.0 on it is there."""
    card(capability)
    assert _resolved(CARD, BF16, precision=WantedPrecision.BF16).dtype == BF16


# Compilation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0.0, PAYS - 1, PAYS, 1e6])
@pytest.mark.parametrize(("device", "triton"), [(CPU, True), (CARD, True), (CARD, False)])
@pytest.mark.parametrize("wanted", list(Compile))
def test_compilation(
    wanted: Compile, device: torch.device, triton: bool, steps: float, card: Callable[..., None]
) -> None:
    """on and off are obeyed; auto compiles on a GPU that has triton, when the run has the steps to pay for it."""
    card(triton=triton)
    pays = device == CARD and triton and steps >= PAYS
    expected = {Compile.ON: True, Compile.OFF: False, Compile.AUTO: pays}[wanted]
    assert _resolved(device, FP32, steps=steps, compile=wanted).compiled == expected


def test_what_decides_for_auto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, card: Callable[..., None]) -> None:
    """An engine goes by the steps that are ahead of its run; a checkpoint, where there is one, decides before them."""
    card()
    engine = Engine(device="cpu", precision=Precision(transformer=FP32, encoders=FP32))
    plans = {each: tiny_plan(tmp_path, each, compile=each) for each in Compile}
    monkeypatch.setattr(engine, "device", CARD)
    for ahead, compiled in product((0.0, PAYS), (None, False, True)):
        engine.steps_ahead = ahead
        found = {each: engine.execution_of(plan, compiled=compiled).compiled for each, plan in plans.items()}
        auto = ahead >= PAYS if compiled is None else compiled
        assert found == {Compile.AUTO: auto, Compile.ON: True, Compile.OFF: False}


def test_without_a_compiler(no_compiler: None, card: Callable[..., None]) -> None:
    """Where nothing can compile, `compile: on` is a fault of the environment that names what is missing."""
    card(triton=False)
    for device, missing in ((CPU, r"C\+\+ compiler"), (CARD, "triton")):
        wanted = _resolved(device, FP32, compile=Compile.ON)
        with pytest.raises(EnvironmentFault, match=f"compile: on needs .*{missing}") as caught:
            block_calls(wanted, device)
        assert caught.value.exit_code == 3
        assert "compile: off" in str(caught.value.hint)
        assert block_calls(replace(wanted, compiled=False), device) == BlockCalls()


@pytest.mark.parametrize("device", [CPU, CARD], ids=str)
def test_with_a_compiler(device: torch.device, card: Callable[..., None]) -> None:
    """Where something can, the calls are the compiled ones."""
    card()
    with _cpp_compiler(sys.executable):
        assert lacking_compiler(device) is None
        assert block_calls(_resolved(device, FP32, compile=Compile.ON), device) is compiled_calls()


_SAY_WHERE = """
import pathlib, sys
from goan_cli.render.engine import Engine
from goan_cli.render.execution import lacking_compiler
engine = Engine(device="cpu", cache=pathlib.Path(sys.argv[1]))
lacking_compiler(engine.device)
from torch._inductor.runtime.cache_dir_utils import cache_dir
print(cache_dir())
"""


@pytest.mark.skipif(lacking_compiler(CPU) is not None, reason="no C++ compiler")
def test_compiled_code_is_kept(tmp_path: Path) -> None:
    """What is compiled is kept beside goan's other caches, for later runs."""
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    process = subprocess.run(
        [sys.executable, "-c", _SAY_WHERE, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert Path(process.stdout.strip()) == tmp_path / "inductor"


def test_compiled_code_is_kept_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of the user's own is left alone."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    keep_compiled_code(tmp_path / "goan")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own")


# Attention ----------------------------------------------------------------------------------------------------


def test_attention_of_an_execution(card: Callable[..., None]) -> None:
    """The attention is the wanted one; one that a device has not is refused."""
    card((9, 0))
    plain = _resolved(CPU, FP32)
    assert attention_function(plain, CPU) is sdpa
    assert attention_function(plain, CARD) is not sdpa
    assert attention_function(replace(plain, attention=AttentionBackend.SDPA), CARD) is sdpa
    with pytest.raises(EnvironmentFault, match="sage"):
        attention_function(replace(plain, attention=AttentionBackend.SAGE), CPU)


@pytest.mark.parametrize("wanted", [{"attention": "flash"}, {"attention": "sage"}, {"compile": "on"}])
def test_what_cannot_run_ends_a_run_before_it_begins(wanted: dict[str, Any], tmp_path: Path, no_compiler: None) -> None:
    """One job that cannot run here is told before any other renders for hours."""
    plans = [tiny_plan(tmp_path, "fine"), tiny_plan(tmp_path, "not-here", **wanted)]
    heard: list[object] = []
    with pytest.raises(EnvironmentFault):
        render_jobs(plans, RunSettings(device="cpu"), listener=heard.append)
    assert heard == []
    assert not plans[0].job.video.exists()


# Words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("execution", "precision", "short", "text"),
    [
        ((FP32, False, False, "auto"), "float32", "fp32", "float32"),
        ((FP16, False, True, "auto"), "float16", "fp16", "float16, compiled"),
        ((BF16, False, False, "sage"), "bfloat16", "bf16", "bfloat16, sage attention"),
        (
            (BF16, True, True, "cudnn"),
            "fp8 linears, bfloat16",
            "fp8",
            "fp8 linears, bfloat16, compiled, cudnn attention",
        ),
        ((FP32, True, False, "sdpa"), "fp8 linears, float32", "fp8", "fp8 linears, float32, sdpa attention"),
    ],
)
def test_words(execution: tuple[torch.dtype, bool, bool, str], precision: str, short: str, text: str) -> None:
    """Records and memory plans have their words for it, and a compiled one is told by its record."""
    dtype, fp8, compiled, attention = execution
    resolved = ResolvedExecution(dtype=dtype, fp8=fp8, compiled=compiled, attention=AttentionBackend(attention))
    assert (resolved.precision, resolved.short_precision, str(resolved)) == (precision, short, text)
    assert (COMPILED in str(resolved)) == compiled


# Gone on with -------------------------------------------------------------------------------------------------


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Compiles with a compiler that every machine has; the list says of each job whether it was compiled."""
    asked: list[bool] = []

    def calls(execution: ResolvedExecution, *_: object) -> BlockCalls:
        asked.append(execution.compiled)
        return compiled_calls("eager") if execution.compiled else BlockCalls()

    monkeypatch.setattr(transformers_module, "block_calls", calls)
    monkeypatch.setattr(engine_module, "block_calls", lambda *_: BlockCalls())
    return asked


@pytest.fixture(scope="module", autouse=True)
def graphs_of_its_own() -> Iterator[None]:
    """What is compiled here, once for all tests, is of no use to others."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _stopped(folder: Path, **settings: Any) -> None:
    """Render a job of two sections up to its first checkpoint."""
    stop = Stop()

    def listen(event: object) -> None:
        if isinstance(event, CheckpointWritten):
            stop.ask("enough")

    plan = tiny_plan(folder, sections=2, **settings)
    render_jobs([plan], RunSettings(device="cpu", stop=stop), listener=listen)
    (checkpoint,) = checkpoint_files(plan.job.state_dir)
    assert read_record(checkpoint).sections == 1


def _finished(folder: Path, **settings: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Render it to its end; its latents and its sidecar."""
    plan = tiny_plan(folder, sections=2, **settings)
    (outcome,) = render_jobs([plan], RunSettings(device="cpu"))
    assert outcome.error is None
    return load_file(plan.job.latents)["latents"], json.loads(plan.job.sidecar.read_text(encoding="utf-8"))


def test_gone_on_with_as_it_was_begun(tmp_path: Path, compiling: list[bool]) -> None:
    """A checkpoint of a compiled job is gone on with compiled, though this run would not have, to the same bits."""
    folders = {name: tmp_path / name for name in ("whole", "stopped", "plain")}
    for folder in folders.values():
        folder.mkdir()
    whole, _ = _finished(folders["whole"], compile="on")
    _stopped(folders["stopped"], compile="on")
    compiling.clear()
    latents, sidecar = _finished(folders["stopped"])  # auto: on a CPU never compiled
    assert compiling == [True]
    assert torch.equal(latents, whole)
    assert sidecar["machines"] == [f"cpu, float32, compiled, torch {version('torch')}"]
    assert (sidecar["compiled"], sidecar["settings"]["compile"]) == (True, "on")
    plain, other = _finished(folders["plain"])
    assert (other["compiled"], other["settings"]["compile"]) == (False, "off")
    assert relative_error(plain, latents) < 1e-5


def test_begun_uncompiled(tmp_path: Path, compiling: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of a job that was not compiled is gone on with so, though this run would have compiled it."""
    _stopped(tmp_path)
    own = resolve_execution

    def eager_to_compile(wanted: Execution, *device: Any, steps_ahead: float) -> ResolvedExecution:
        resolved = own(wanted, *device, steps_ahead=steps_ahead)
        return replace(resolved, compiled=True) if wanted.compile is Compile.AUTO else resolved

    monkeypatch.setattr(engine_module, "resolve_execution", eager_to_compile)
    compiling.clear()
    _, sidecar = _finished(tmp_path)
    assert compiling == [False]
    assert not sidecar["compiled"]
    assert len(sidecar["machines"]) == 1


def test_a_wish_stands_above_a_checkpoint(tmp_path: Path, compiling: list[bool]) -> None:
    """Who says `compile: off` now is obeyed; the sidecar has both ways, and the run says that bits are neither's."""
    _stopped(tmp_path, compile="on")
    compiling.clear()
    heard: list[Event | object] = []
    plan = tiny_plan(tmp_path, sections=2, compile="off")
    render_jobs([plan], RunSettings(device="cpu"), listener=heard.append)
    assert compiling == [False]
    sidecar = json.loads(plan.job.sidecar.read_text(encoding="utf-8"))
    assert [COMPILED in machine for machine in sidecar["machines"]] == [True, False]
    assert any("the bits are those of neither alone" in str(event) for event in heard)


def test_only_a_decode_is_left(tmp_path: Path, compiling: list[bool]) -> None:
    """A checkpoint that is complete needs no transformer, compiled or not, and its sidecar tells how it was sampled."""
    stop = Stop()

    def listen(event: object) -> None:
        if isinstance(event, CheckpointWritten) and event.sections == event.total:
            stop.ask("enough")

    plan = tiny_plan(tmp_path, compile="on")
    render_jobs([plan], RunSettings(device="cpu", stop=stop), listener=listen)
    compiling.clear()
    later = tiny_plan(tmp_path)
    render_jobs([later], RunSettings(device="cpu"))
    assert compiling == []
    sidecar = json.loads(later.job.sidecar.read_text(encoding="utf-8"))
    assert sidecar["compiled"]


def test_a_compiled_checkpoint_without_a_compiler(
    tmp_path: Path, compiling: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing compiles any more, a job that leaves it open is gone on with all the same, and says so."""
    _stopped(tmp_path, compile="on")
    monkeypatch.setattr(transformers_module, "block_calls", execution_module.block_calls)
    with _cpp_compiler("no-such-compiler"):
        _, sidecar = _finished(tmp_path)
    assert [COMPILED in machine for machine in sidecar["machines"]] == [True, False]
