"""`goan bench`: one section's steps timed as a render runs them, against what this machine's matrix products reach."""

import statistics
import time
from dataclasses import dataclass, replace

import torch

from goan_cli import __version__
from goan_cli.bench.flops import step_flops
from goan_cli.bench.machine import machine, matmul_rate, peak_bytes, reset_peak
from goan_cli.bench.section import (
    TEXT_TOKENS,
    SectionTimes,
    one_forward,
    random_input,
    relative_error,
    section_times,
)
from goan_cli.bench.subjects import SYNTHETIC, Rate, Subject, SubjectShape
from goan_cli.errors import EnvironmentFault, RenderFailed
from goan_cli.jobs.job import Execution
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import empty_transformer
from goan_cli.render.device import device_name, precision_for
from goan_cli.render.execution import ResolvedExecution, attention_function, block_calls, resolve_execution
from goan_cli.render.memory import MemoryPlan, Tokens, automatic_budget, describe, gigabytes, plan_memory, tokens_of
from goan_cli.render.streaming import streamed_tensors

_SECTIONS = 4  # of the job that `compile: auto` is asked for: five seconds of video


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What was measured; as JSON these are the keys. Seconds, bytes, and 10^12 operations a second (TFLOP/s).

    `seconds_per_step` is the median of `steps` counted steps, between `fastest_step` and `slowest_step`.
    `first_step_seconds` is from loaded weights to the end of the first step, tables, context and compilation
    included; `tables_seconds` is what the conditioning of `tables_steps` steps takes, once a job; `context_seconds`
    a section's history and image. `matmul_tflops` is what large square matrix products of `matmul_dtype` reach here,
    `matmul_share` the step's part of it: above 1 is possible where linears are in fp8. `peak_bytes` is the device
    memory given out while sampling, on a CPU the process's largest resident memory (None where the system does not
    tell). `resident_weight_bytes` stay on the device while it samples, `streamed_weight_bytes` are copied to it at
    every step. `load_gb_per_second` (10^9 bytes) is None without a checkpoint, `fp8_error` outside fp8: there it is
    the relative error of one forward against the same weights in `matmul_dtype`.
    """

    version: int
    goan: str
    torch: str
    date: str
    machine: str
    device: str
    model: str
    parameters: int
    size: tuple[int, int]
    window: int
    tokens: Tokens
    precision: str
    compiled: bool
    attention: str
    memory: str
    steps: int
    seconds_per_step: float
    fastest_step: float
    slowest_step: float
    first_step_seconds: float
    tables_steps: int
    tables_seconds: float
    context_seconds: float
    tflop_per_step: float
    tflops: float
    matmul_dtype: str
    matmul_tflops: float
    matmul_share: float
    peak_bytes: int | None
    resident_weight_bytes: int
    streamed_weight_bytes: int
    load_seconds: float | None
    load_gb_per_second: float | None
    bake_million_parameters_per_second: float
    fp8_error: float | None


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How a subject is run: the section's size and tokens, the execution, and the budget on the device."""

    shape: SubjectShape
    size: tuple[int, int]
    tokens: Tokens
    execution: ResolvedExecution
    budget: int | None

    @property
    def memory(self) -> MemoryPlan:
        """Where everything is."""
        return plan_memory(
            self.shape.config,
            precision=self.execution.short_precision,
            tokens=self.tokens,
            steps=self.shape.steps,
            budget=self.budget,
        )


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What the machine did: operations a second of matrix products, times, bytes, rates, and the error of fp8."""

    matmul: float
    times: SectionTimes
    peak: int | None
    resident: int
    loaded: Rate | None
    baked: Rate
    error: float | None


def measure(
    subject: Subject, device: torch.device, *, size: tuple[int, int] | None, wanted: Execution, steps: int
) -> BenchResult:
    """Load a subject, sample `steps` counted steps of a section of `size` (width, height; None for its own), and bake.

    Raises EnvironmentFault for what the device or its memory cannot do, RenderFailed where it runs out of it,
    and QualityFailed for latents that are not finite.
    """
    way = _way(subject.shape, device, size or subject.shape.size, wanted)
    try:
        measured = _measured(subject, device, way, steps)
    except (torch.OutOfMemoryError, MemoryError) as error:
        hint = "a smaller --size or --memory needs less"
        raise RenderFailed(f"{device_name(device)}: out of memory", hint=hint) from error
    return _result(way, device, measured)


def refuse_full_on_cpu(device: torch.device, wanted: Execution) -> None:
    """Raise EnvironmentFault for the full-size model on a CPU, saying what memory it would take there."""
    if device.type == "cuda":
        return
    shape = SYNTHETIC["full"]
    way = _way(shape, device, shape.size, wanted)
    needed = gigabytes(way.memory.weights + way.memory.conditioning + way.memory.work)
    raise EnvironmentFault(
        f"--synthetic full needs a CUDA device: on a CPU it would take {needed} of main memory, and minutes a step",
        hint="--synthetic mid is for CPUs",
    )


def _way(shape: SubjectShape, device: torch.device, size: tuple[int, int], wanted: Execution) -> _Way:
    own = precision_for(device).transformer
    execution = resolve_execution(wanted, device, own, steps_ahead=_SECTIONS * shape.steps)
    # What is lacking is told before anything large is made.
    attention_function(execution, device)
    block_calls(execution, device)
    budget = None
    if device.type == "cuda":
        budget = automatic_budget(torch.cuda.mem_get_info(device)[0])
        budget = budget if wanted.memory is None else min(budget, wanted.memory)
    tokens = tokens_of(size=size, window=shape.window, image=shape.image_tokens, text=TEXT_TOKENS)
    return _Way(shape=shape, size=size, tokens=tokens, execution=execution, budget=budget)


def _measured(subject: Subject, device: torch.device, way: _Way, steps: int) -> _Measured:
    given, execution = random_input(way.shape, way.size), way.execution
    before = matmul_rate(device, execution.dtype)
    exact = None
    if execution.fp8:
        wide = replace(way, execution=replace(execution, fp8=False, compiled=False))
        exact = one_forward(subject.load(wide.execution, wide.memory), given)
    memory = way.memory
    model = subject.load(execution, memory)
    reset_peak(device)
    times = section_times(model, given, steps=steps, tables=way.shape.steps)
    peak = peak_bytes(device)
    error = None if exact is None else relative_error(one_forward(model, given), exact)
    # Once more: what slows a machine down in between slows both.
    matmul = statistics.mean((before, matmul_rate(device, execution.dtype)))
    return _Measured(
        matmul=matmul,
        times=times,
        peak=peak,
        resident=resident_weights(model, memory),
        loaded=subject.loaded,
        baked=subject.bake(),
        error=error,
    )


def _result(way: _Way, device: torch.device, measured: _Measured) -> BenchResult:
    shape, execution, times, loaded = way.shape, way.execution, measured.times, measured.loaded
    work, median = step_flops(shape.config, way.tokens, kept=way.tokens.noisy).total, statistics.median(times.steps)
    return BenchResult(
        version=1,
        goan=__version__,
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
        machine=machine(),
        device=device_name(device),
        model=shape.name,
        parameters=sum(parameter.numel() for parameter in empty_transformer(shape.config).parameters()),
        size=way.size,
        window=shape.window,
        tokens=way.tokens,
        precision=execution.precision,
        compiled=execution.compiled,
        attention=str(execution.attention),
        memory=describe(way.memory),
        steps=len(times.steps),
        seconds_per_step=median,
        fastest_step=min(times.steps),
        slowest_step=max(times.steps),
        first_step_seconds=times.first,
        tables_steps=shape.steps,
        tables_seconds=times.tables,
        context_seconds=times.context,
        tflop_per_step=work / 1e12,
        tflops=work / 1e12 / median,
        matmul_dtype=str(execution.dtype).removeprefix("torch."),
        matmul_tflops=measured.matmul / 1e12,
        matmul_share=work / median / measured.matmul,
        peak_bytes=measured.peak,
        resident_weight_bytes=measured.resident,
        streamed_weight_bytes=way.memory.pinned,
        load_seconds=None if loaded is None else loaded.seconds,
        load_gb_per_second=None if loaded is None else loaded.per_second / 1e9,
        bake_million_parameters_per_second=measured.baked.per_second / 1e6,
        fp8_error=measured.error,
    )


def resident_weights(model: PackedTransformer, memory: MemoryPlan) -> int:
    """Bytes of the weights that stay on the device while it samples, counted from the model's own tensors."""
    fixed = (model.x_embedder, model.clean_x_embedder, model.image_projection, model.proj_out)
    blocks = [
        tensor
        for block, stays in zip(model.own_blocks(), memory.resident, strict=True)
        if stays
        for tensor in streamed_tensors(block).values()
    ]
    return sum(tensor.nbytes for part in fixed for tensor in part.parameters()) + sum(each.nbytes for each in blocks)
