"""Speed of sampling against diffusers' FramePack transformer and pipeline: `make bench-peers`.

Both have the same weights, inputs and device, in one run and in turn, and the results are compared. diffusers makes
everything anew at every step, so a step of goan's carries its share of what goan makes once: the tables of a video of
four sections (five seconds), and the context of a section. Whole sections are videos of one, in which nothing is
shared. Text encoders and VAE are left out on both sides. On the CPU a model of 50 M parameters is measured, on CUDA
the full-size one, then also streaming against group offloading (see `tests.bench.streaming`). Nothing here is a test.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import diffusers
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

from goan_cli.bench.machine import machine, matmul_rate, seconds_of
from goan_cli.bench.section import relative_error
from goan_cli.bench.subjects import SYNTHETIC
from goan_cli.bench.weights import synthetic_transformer
from goan_cli.jobs.job import Sampling
from goan_cli.jobs.sections import plan_sections
from goan_cli.model.attention import attention
from goan_cli.model.calls import BlockCalls, compiled_calls
from goan_cli.model.transformer import PackedTransformer, StepConditioning, TextConditioning
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.device import device_name
from goan_cli.render.execution import lacking_compiler
from goan_cli.render.memory import tokens_of
from goan_cli.render.sampling import TIME_SCALE, sample_sections
from goan_cli.render.schedule import noise_sigmas
from tests.bench import streaming
from tests.bench.diffusers_peer import (
    GUIDANCE,
    SEED,
    WORDS,
    Given,
    Setting,
    clean,
    diffusers_transformer,
    given_inputs,
    only_section,
    pipeline_of,
    their_step,
)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to make a step, and what comes before a video's and a section's steps, None where each does it anew."""

    name: str
    step: Callable[[], Tensor]
    tables: Callable[[], object] | None = None
    context: Callable[[], object] | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Median seconds of a step, of a video's tables and of a section's context, and a step's result on the CPU."""

    name: str
    step: float
    tables: float
    context: float
    result: Tensor

    def seconds(self, setting: Setting) -> float:
        """A step with its share of the rest."""
        return self.step + self.context / setting.steps + self.tables / (setting.steps * setting.sections)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", choices=tuple(SYNTHETIC), help="full on CUDA, mid on the CPU")
    parser.add_argument("--size", help="of the video, like 640x608; the model's own")
    parser.add_argument("--precision", choices=tuple(_DTYPES), help="bf16 on CUDA, fp32 on the CPU")
    parser.add_argument("--fp8", action=argparse.BooleanOptionalAction, help="a row with fp8 linears; on CUDA there is")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="rows that compile")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each row")
    parser.add_argument("--steps", type=int, default=25, help="of a section")
    parser.add_argument("--sections", type=int, default=4, help="of a video: they share the tables")
    parser.add_argument("--section-runs", type=int, default=2, help="counted runs of whole sections; 0 leaves them out")
    parser.add_argument("--streaming", action=argparse.BooleanOptionalAction, help="8 GB streaming; on CUDA there is")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_cuda, console = device.type == "cuda", Console(width=120, highlight=False)
    shape = SYNTHETIC[options.model or ("full" if on_cuda else "mid")]
    width, height = (int(each) for each in options.size.split("x")) if options.size else shape.size
    setting = Setting(
        device=device,
        dtype=_DTYPES[options.precision or ("bf16" if on_cuda else "fp32")],
        shape=shape,
        size=(width, height),
        steps=options.steps,
        sections=options.sections,
        runs=options.runs,
        compiled=options.compile and lacking_compiler(device) is None,
        fp8=on_cuda if options.fp8 is None else options.fp8,
    )
    print_setting(setting, console)
    compare(setting, console, section_runs=options.section_runs)
    if on_cuda if options.streaming is None else options.streaming:
        torch.compiler.reset()
        gc.collect()
        compare_streaming(setting, console)


def print_setting(setting: Setting, console: Console) -> None:
    """The machine, the versions, and what is measured."""
    rate = matmul_rate(setting.device, setting.dtype) / 1e12
    tokens = tokens_of(size=setting.size, window=setting.shape.window, image=setting.shape.image_tokens, text=WORDS)
    dtype = str(setting.dtype).removeprefix("torch.")
    console.print(f"{time.strftime('%Y-%m-%d')}, {device_name(setting.device)}, {machine()}")
    console.print(
        f"torch {torch.__version__}, diffusers {diffusers.__version__}, {rate:.3g} TFLOP/s of {dtype} products"
    )
    size = f"{setting.size[0]}x{setting.size[1]}, window {setting.shape.window}"
    console.print(f"{setting.shape.name}, {size}: {tokens.total:,} tokens, {dtype}, sections of {setting.steps} steps")


def compare(setting: Setting, console: Console, *, section_runs: int) -> None:
    """Single steps, then whole sections."""
    model = synthetic_transformer(setting.shape.config, device=setting.device, dtype=setting.dtype)
    model.attend = attention("auto", setting.device)
    # goan's own tensors, and copies of those that it keeps elsewhere or wider.
    tensors = {name: tensor.to(setting.device, setting.dtype) for name, tensor in model.state_dict().items()}
    theirs, given = diffusers_transformer(setting.shape.config, tensors), given_inputs(setting)
    console.print(step_table(in_turn(list(ways(model, theirs, given, setting)), setting), setting))
    if section_runs:
        console.print(section_table(model, theirs, given, setting, runs=section_runs))


def ways(
    model: PackedTransformer, theirs: HunyuanVideoFramepackTransformer3DModel, given: Given, setting: Setting
) -> Iterator[Way]:
    """The rows in the order in which they take turns; the first is what the others are compared with."""
    yield Way(name="diffusers", step=their_step(theirs, given, setting))
    if setting.compiled:
        compiled = diffusers_transformer(setting.shape.config, theirs.state_dict())
        # What its `compile_repeated_blocks` would do, had it a list of FramePack's blocks.
        for block in (*compiled.transformer_blocks, *compiled.single_transformer_blocks):
            block.compile(fullgraph=True)
        yield Way(name="diffusers, blocks compiled", step=their_step(compiled, given, setting))
    yield our_way("goan", model, BlockCalls(), given, setting)
    if setting.compiled:
        yield our_way("goan, compiled", model, compiled_calls(), given, setting)
    if setting.fp8:
        quantised = synthetic_transformer(setting.shape.config, device=setting.device, dtype=setting.dtype, fp8=True)
        quantised.attend = model.attend
        yield our_way("goan, fp8", quantised, BlockCalls(), given, setting)
        if setting.compiled:
            yield our_way("goan, fp8, compiled", quantised, compiled_calls(), given, setting)


def our_way(name: str, model: PackedTransformer, calls: BlockCalls, given: Given, setting: Setting) -> Way:
    """A step, the tables of a video's steps, and the context of a section."""
    sigmas = [0.5] * setting.steps
    (conditioning,), context = tables(model, given, sigmas[:1]), context_of(model, given, setting)

    def step() -> Tensor:
        model.calls = calls
        out: Tensor = model(given.noise.to(setting.dtype), step=conditioning, context=context)
        return out

    return Way(
        name=name,
        step=step,
        tables=lambda: tables(model, given, sigmas),
        context=lambda: context_of(model, given, setting),
    )


@torch.inference_mode()
def tables(model: PackedTransformer, given: Given, sigmas: Sequence[float]) -> list[StepConditioning]:
    """The conditioning of each step, its timestep as the pipeline passes it: not rounded."""
    guidance = torch.tensor([GUIDANCE], dtype=model.dtype, device=model.device) * TIME_SCALE
    timesteps = [torch.tensor([sigma * TIME_SCALE], device=model.device) for sigma in sigmas]
    return model.step_conditionings(
        TextConditioning(embeds=given.text[:, :WORDS], pooled=given.pooled), timesteps, guidance
    )


@torch.inference_mode()
def context_of(model: PackedTransformer, given: Given, setting: Setting) -> Any:
    """The section's history and image."""
    section = only_section(setting)
    return model.context_for(
        latent_indices=torch.tensor(section.latent_indices),
        latent_size=(given.start.shape[-2], given.start.shape[-1]),
        clean=clean(given, setting),
        image_embeds=given.image,
    )


@torch.inference_mode()
def in_turn(rows: Sequence[Way], setting: Setting) -> list[Measured]:
    """Medians of runs in turn, so that a machine that drifts slows them all; the first run is not counted."""
    times: dict[str, list[tuple[float, float, float]]] = {row.name: [] for row in rows}
    results: dict[str, Tensor] = {}
    for run in range(setting.runs + 1):
        for row in rows:
            gc.collect()
            before = [seconds_of(make, setting.device) if make else 0.0 for make in (row.tables, row.context)]
            results[row.name] = row.step().float().cpu()  # what came before has left the caches to itself
            step = seconds_of(row.step, setting.device)
            if run:
                times[row.name].append((step, before[0], before[1]))
    return [
        Measured(
            name=row.name,
            step=statistics.median(step for step, _, _ in times[row.name]),
            tables=statistics.median(made for _, made, _ in times[row.name]),
            context=statistics.median(made for _, _, made in times[row.name]),
            result=results[row.name],
        )
        for row in rows
    ]


def step_table(rows: Sequence[Measured], setting: Setting) -> Table:
    """Seconds a step with the share of what is made once, ratios to the first row, and the results' difference."""
    first = rows[0]
    shares = f"tables divided by {setting.steps * setting.sections} steps, context by {setting.steps}"
    table = Table(title=f"one step, medians of {setting.runs}; {shares}", title_justify="left")
    for column in ("transformer", "step alone", "tables", "context", "s/step", "to diffusers", "difference"):
        table.add_column(column, justify="left" if column == "transformer" else "right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.step:.4f}",
            f"{row.tables:.4f}" if row.tables else "-",
            f"{row.context:.4f}" if row.context else "-",
            f"{row.seconds(setting):.4f}",
            f"{row.seconds(setting) / first.seconds(setting):.3f}x",
            "-" if row is first else f"{relative_error(row.result, first.result):.1e}",
        )
    return table


@torch.inference_mode()
def section_table(
    model: PackedTransformer,
    theirs: HunyuanVideoFramepackTransformer3DModel,
    given: Given,
    setting: Setting,
    *,
    runs: int,
) -> Table:
    """Whole sections from noise to latents: diffusers' pipeline, and what goan renders with.

    The samplers differ, UniPC being goan's and Euler the pipeline's, so what is compared is goan's transformer in
    the pipeline's sampler, which is not timed.
    """
    pipeline = pipeline_of(theirs, given, setting)
    calls = {"goan": BlockCalls()} | ({"goan, compiled": compiled_calls()} if setting.compiled else {})
    expected = pipeline()
    actual = {}
    for name, way in calls.items():
        model.calls = way
        actual[name] = euler(model, given, setting)
    seconds: dict[str, list[float]] = {name: [] for name in ("diffusers", *calls)}
    for _ in range(runs):
        seconds["diffusers"].append(seconds_of(pipeline, setting.device) / setting.steps)
        for name, way in calls.items():
            model.calls = way
            seconds[name].append(seconds_of(lambda: rendered(model, given, setting), setting.device) / setting.steps)
    title = f"a video of one section of {setting.steps} steps, tables and context included, medians of {runs}"
    table = Table(title=title, title_justify="left")
    for column in ("sampled by", "s/step", "to diffusers", "difference in one sampler"):
        table.add_column(column, justify="left" if column == "sampled by" else "right")
    first = statistics.median(seconds["diffusers"])
    for name, each in seconds.items():
        median = statistics.median(each)
        difference = f"{relative_error(actual[name], expected):.1e}" if name in actual else "-"
        what = name if name in actual else "diffusers' pipeline"
        table.add_row(what, f"{median:.4f}", f"{median / first:.3f}x", difference)
    return table


def rendered(model: PackedTransformer, given: Given, setting: Setting) -> Tensor:
    """A section as goan renders it, tables and context included."""
    conditioning = Conditioning(
        positive=TextConditioning(embeds=given.text[:, :WORDS], pooled=given.pooled),
        negative=None,
        image_embeds=given.image,
        start_latent=given.start,
    )
    sampling = Sampling(steps=setting.steps, seed=SEED, guidance_scale=GUIDANCE)
    plan = plan_sections(setting.shape.family, 1, setting.shape.window)
    (section,) = sample_sections(model, conditioning, plan, sampling)
    return section.latents


def euler(model: PackedTransformer, given: Given, setting: Setting) -> Tensor:
    """A section as the pipeline samples it, on the CPU."""
    sigmas = noise_sigmas(setting.steps, tokens=given.noise[0, 0].numel() // 4).tolist()
    context, latents = context_of(model, given, setting), given.noise
    for step, (sigma, after) in zip(tables(model, given, sigmas[:-1]), pairwise(sigmas), strict=True):
        latents = latents + (after - sigma) * model(latents.to(setting.dtype), step=step, context=context).float()
    return latents.cpu()


def compare_streaming(setting: Setting, console: Console) -> None:
    """Streaming within 8 GB against resident weights and diffusers' group offloading, by its own benchmark."""
    options = argparse.Namespace(
        budget="8GB",
        size=f"{setting.size[0]}x{setting.size[1]}",
        window=setting.shape.window,
        precision="bf16",
        slots=2,
        compile=False,
        repeats=streaming.REPEATS,
    )
    way = streaming.setting_of(options, setting.device, console)
    if setting.device.type == "cuda":
        streaming.print_link(way, console)
    console.print(streaming.table_of(list(streaming.rows(way)), way))


if __name__ == "__main__":
    main()
