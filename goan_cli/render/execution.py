"""How a job's wish for precision, compilation and attention comes out on a device."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.job import AttentionBackend, Compile, Execution, WantedPrecision
from goan_cli.model.attention import Attend, attention
from goan_cli.model.calls import BlockCalls, compiled_calls

COMPILED = ", compiled"  # as records of an execution say it
# An estimate, from published figures: compiling takes up to a minute, and saves a tenth of a second to one a step.
_STEPS_THAT_PAY = 100
_C_COMPILERS = ("gcc", "clang", "cc")  # as triton looks for them
_DTYPES = {
    WantedPrecision.FP32: torch.float32,
    WantedPrecision.FP16: torch.float16,
    WantedPrecision.BF16: torch.bfloat16,
}
_HALF_ONLY = (AttentionBackend.CUDNN, AttentionBackend.FLASH, AttentionBackend.SAGE)
_BF16_FROM = 8  # major compute capability


@dataclass(frozen=True, kw_only=True)
class ResolvedExecution:
    """What runs: the dtype of activations and most weights, fp8 for the blocks' linears, compiled blocks, attention."""

    dtype: torch.dtype
    fp8: bool
    compiled: bool
    attention: AttentionBackend

    @property
    def precision(self) -> str:
        """As a record names it: `bfloat16`, or `fp8 linears, bfloat16`."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"fp8 linears, {dtype}" if self.fp8 else dtype

    @property
    def short_precision(self) -> str:
        """As a memory plan names it: fp32, fp16, bf16 or fp8."""
        return "fp8" if self.fp8 else {kept: str(name) for name, kept in _DTYPES.items()}[self.dtype]

    def __str__(self) -> str:
        attending = "" if self.attention is AttentionBackend.AUTO else f", {self.attention} attention"
        return self.precision + (COMPILED if self.compiled else "") + attending


def resolve_execution(
    wanted: Execution, device: torch.device, own_dtype: torch.dtype, *, steps_ahead: float
) -> ResolvedExecution:
    """What a job asked for, on `device`, whose own precision is `own_dtype`, in a run of so many steps.

    Raises EnvironmentFault for a precision that the device has not.
    """
    fp8 = wanted.precision is WantedPrecision.FP8
    dtype = _DTYPES.get(wanted.precision, own_dtype)
    if fp8 and device.type == "cuda" and dtype is torch.float32:
        dtype = torch.float16  # who keeps weights in eight bits has no room for activations in 32
    if dtype is torch.bfloat16 and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < _BF16_FROM:
        raise EnvironmentFault("precision bf16 needs compute capability 8.0", hint="precision: auto suits the device")
    compiled = wanted.compile is Compile.ON or (
        wanted.compile is Compile.AUTO
        and device.type == "cuda"
        and steps_ahead >= _STEPS_THAT_PAY
        and lacking_compiler(device) is None
    )
    return ResolvedExecution(dtype=dtype, fp8=fp8, compiled=compiled, attention=wanted.attention)


def keep_compiled_code(cache: Path) -> None:
    """Have torch keep what it compiles in the folder `cache`, for later runs, unless the user has said where.

    Its own place is emptied when the machine starts. Only before the compiler is imported, which sets it itself.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))


def block_calls(execution: ResolvedExecution, device: torch.device) -> BlockCalls:
    """The functions that run blocks. Raises EnvironmentFault where nothing can compile."""
    if not execution.compiled:
        return BlockCalls()
    if lacking := lacking_compiler(device):
        raise EnvironmentFault(f"compile: on needs {lacking}", hint="install it, or set compile: off")
    return compiled_calls()


def attention_function(execution: ResolvedExecution, device: torch.device) -> Attend:
    """The attention that blocks run. Raises EnvironmentFault where it is not to be had."""
    if execution.dtype is torch.float32 and execution.attention in _HALF_ONLY and device.type == "cuda":
        raise EnvironmentFault(f"attention {execution.attention} takes 16-bit values only", hint="attention: sdpa")
    return attention(str(execution.attention), device)


def lacking_compiler(device: torch.device) -> str | None:
    """What torch would need to compile for a device and does not find, None where nothing is lacking."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton  # noqa: PLC0415 - only who compiles pays for the import

        if not has_triton():
            return "triton"
        return None if os.environ.get("CC") or any(map(shutil.which, _C_COMPILERS)) else "a C compiler such as gcc"
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415

    try:
        get_cpp_compiler()
    except RuntimeError:
        return "a C++ compiler such as g++"
    return None
