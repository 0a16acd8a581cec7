"""Speed of streamed blocks against resident ones and diffusers' group offloading: `python -m tests.bench.streaming`.

Everything is measured in one run on one machine, on the same random weights and inputs, and printed as ratios;
nothing here is a test. A step is the transformer's blocks without their modulation, which streams in none of the
rows. diffusers' offloading keeps no block resident and has no budget, so there is a row of goan's that keeps none.
"""

import argparse
import gc
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from goan_cli.jobs.fields import memory_bytes
from goan_cli.model.attention import attention
from goan_cli.model.calls import compiled_calls
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import use_fp8
from goan_cli.model.rope import Rope
from goan_cli.model.transformer import PackedTransformer, SectionContext, StepConditioning
from goan_cli.model.weights import empty_transformer
from goan_cli.render.memory import Tokens, describe, gigabytes, plan_memory, spread, tokens_of
from goan_cli.render.streaming import BlockStream, streamed_tensors

CPU = torch.device("cpu")
# Narrow enough for a CPU, deep enough for a ring.
SMALL = TransformerConfig(
    num_attention_heads=4, attention_head_dim=64, num_layers=3, num_single_layers=6, rope_axes_dim=(16, 24, 24)
)
STEPS = 4  # measured together, so that one step's last blocks are at work while the next one's first are copied
REPEATS = 3
_TEXT = 200
_SIGLIP = 729
_THEIRS = "diffusers group offloading"
_MODULATION = ("norm1", "norm1_context", "norm")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows have in common. `resident` is the split of the row with a budget."""

    device: torch.device
    config: TransformerConfig
    precision: str
    tokens: Tokens
    resident: tuple[bool, ...]
    slots: int
    compiled: bool
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to hold the weights: seconds a step, peak bytes on the device, seconds of preparation, and the result.

    Without a result, the memory was not enough.
    """

    name: str
    seconds: float = math.nan
    peak: int = 0
    prepared: float = math.nan
    result: Tensor | None = None
    note: str | None = None


class Blocks(nn.Module):
    """A transformer's blocks as one module, which is what group offloading is applied to."""

    def __init__(self, model: PackedTransformer) -> None:
        super().__init__()
        self.transformer_blocks = model.transformer_blocks
        self.single_transformer_blocks = model.single_transformer_blocks
        self._run = model._blocks

    def forward(self, image: Tensor, step: StepConditioning, context: SectionContext, kept: int) -> Tensor:
        """The packed image tokens to the noisy ones."""
        return self._run(image, step, context, kept=kept)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--budget", default="8GB", help="of the second row; on the CPU half of the blocks stay instead")
    parser.add_argument("--size", default="640x608", help="of the video, on CUDA")
    parser.add_argument("--window", type=int, default=9)
    parser.add_argument("--precision", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the blocks, but in diffusers' row")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"counted runs of {STEPS} steps each")
    options = parser.parse_args()
    device, console = torch.device(options.device), Console(width=120)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    console.print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    setting = setting_of(options, device, console)
    if device.type == "cuda":
        print_link(setting, console)
    console.print(table_of(list(rows(setting)), setting))


def setting_of(options: argparse.Namespace, device: torch.device, console: Console) -> Setting:
    """Full size on CUDA with what the budget lets stay; on the CPU a small model of which half stays."""
    config, size, window = TransformerConfig(), tuple(int(length) for length in options.size.split("x")), options.window
    if device.type == "cuda":
        tokens = tokens_of(size=(size[0], size[1]), window=window, image=_SIGLIP, text=_TEXT)
        plan = plan_memory(
            config,
            precision=options.precision,
            tokens=tokens,
            steps=25,
            budget=memory_bytes(options.budget),
        )
        console.print(f"{options.size}, window {window}, {options.budget}: {describe(plan)}")
        resident = plan.resident
    else:
        config, tokens = SMALL, Tokens(noisy=320, clean=80, image=16, text=32)
        halves = [spread(count // 2, count) for count in (config.num_layers, config.num_single_layers)]
        resident = (*halves[0], *halves[1])
    return Setting(
        device=device,
        config=config,
        precision=options.precision,
        tokens=tokens,
        resident=resident,
        slots=options.slots,
        compiled=options.compile,
        repeats=options.repeats,
    )


def rows(setting: Setting) -> Iterator[Row]:
    """Every way in turn, each with a model of its own; resident ones first and last, to show what drifts."""
    none = (False,) * len(setting.resident)
    streams = "use_stream" if setting.device.type == "cuda" else "no streams on a CPU"
    ways: list[tuple[str, Callable[[Setting], Prepared]]] = [
        ("resident", resident_step),
        ("goan, within the budget", lambda setting: streamed_step(setting, setting.resident)),
        ("goan, every block streamed", lambda setting: streamed_step(setting, none)),
        (f"{_THEIRS}, {streams}", offloaded_step),
        ("resident, once more", resident_step),
    ]
    for name, prepare in ways:
        try:
            yield measured(name, setting, prepare)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            yield Row(name=name, note="out of memory")


Prepared = tuple[Callable[[], Tensor], str | None]


def measured(name: str, setting: Setting, prepare: Callable[[Setting], Prepared]) -> Row:
    """Median seconds of a step in runs of STEPS, after one that is not counted."""
    device = setting.device
    _tidy(device)
    started = time.perf_counter()
    step, note = prepare(setting)
    _wait(device)
    prepared = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, result = [], torch.empty(0)
    with torch.inference_mode():
        for run in range(setting.repeats + 1):
            _wait(device)
            started = time.perf_counter()
            for _ in range(STEPS):
                result = step()
            _wait(device)
            if run:
                seconds.append((time.perf_counter() - started) / STEPS)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Row(
        name=name,
        seconds=statistics.median(seconds),
        peak=peak,
        prepared=prepared,
        result=result.cpu(),
        note=note,
    )


def resident_step(setting: Setting) -> Prepared:
    """Every block on the device."""
    model = random_model(setting, (True,) * len(setting.resident))
    return step_of(model, setting, compiled=setting.compiled), None


def streamed_step(setting: Setting, resident: Sequence[bool]) -> Prepared:
    """goan's streaming of the blocks that are not resident."""
    model = random_model(setting, resident)
    stream = BlockStream([*model.own_blocks()], resident, setting.device, slots=setting.slots)
    model.block_source = stream
    return step_of(model, setting, compiled=setting.compiled), stream.note


def offloaded_step(setting: Setting) -> Prepared:
    """diffusers' group offloading, each block a group, in its fastest form."""
    from diffusers.hooks import apply_group_offloading  # noqa: PLC0415 - the other rows need no diffusers

    model = random_model(setting, (False,) * len(setting.resident))
    blocks, on_cuda = Blocks(model), setting.device.type == "cuda"
    apply_group_offloading(
        blocks,
        onload_device=setting.device,
        offload_device=CPU,
        offload_type="block_level",
        num_blocks_per_group=1,
        non_blocking=True,
        use_stream=on_cuda,
        record_stream=on_cuda,
    )
    return step_of(model, setting, compiled=False, run=blocks), None


def random_model(setting: Setting, resident: Sequence[bool]) -> PackedTransformer:
    """Blocks of the same random weights every time, made on the device one by one; the rest has no memory."""
    model = empty_transformer(setting.config)
    for number, (block, stays) in enumerate(zip(model.own_blocks(), resident, strict=True)):
        for name in _MODULATION:
            if hasattr(block, name):
                setattr(block, name, nn.Identity())
        block.to(torch.bfloat16).to_empty(device=setting.device).requires_grad_(requires_grad=False).eval()
        generator = torch.Generator(setting.device).manual_seed(number)
        for tensor in streamed_tensors(block).values():
            # Norms of one, and linears that keep the size of what they are given.
            matrix = tensor.dim() > 1
            deviation, mean = (tensor.shape[-1] ** -0.5, 0.0) if matrix else (0.02, float(tensor.numel() < 512))
            tensor.normal_(mean, deviation, generator=generator)
        if setting.precision == "fp8":
            alone = nn.Module()
            alone.transformer_blocks = nn.ModuleList([block])
            use_fp8(alone)
        if not stays:
            block.to(CPU)
    return model


def step_of(
    model: PackedTransformer, setting: Setting, *, compiled: bool, run: Callable[..., Tensor] | None = None
) -> Callable[[], Tensor]:
    """A function that runs the blocks once, on the same random tokens and tables every time."""
    config, tokens, device = setting.config, setting.tokens, setting.device
    generator = torch.Generator(device).manual_seed(4)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    model.attend = attention("auto", device)
    if compiled:
        model.calls = compiled_calls()
    angles = torch.randn((tokens.packed, config.attention_head_dim // 2), generator=generator, device=device)
    context = SectionContext(
        clean_tokens=random(1, tokens.clean, config.width),
        image_tokens=random(1, tokens.image, config.width),
        rope=Rope(table=torch.stack((angles.cos(), angles.sin()), dim=-1)),
    )
    step = StepConditioning(
        double=random(config.num_layers, 1, 6, config.width) * 0.1,
        double_text=random(config.num_layers, 1, 6, config.width) * 0.1,
        single=random(config.num_single_layers, 1, 3, config.width) * 0.1,
        out=random(1, 2, config.width),
        text_tokens=random(1, tokens.text, config.width),
    )
    image = torch.cat((context.clean_tokens, random(1, tokens.noisy, config.width)), dim=1)
    call = run or Blocks(model)
    return lambda: call(image, step, context, tokens.noisy)


def print_link(setting: Setting, console: Console) -> None:
    """How fast pinned memory is copied to the device, and so how long all blocks take at least."""
    size, device = 1 << 30, setting.device
    source = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    seconds = []
    for _ in range(4):
        _wait(device)
        started = time.perf_counter()
        target.copy_(source, non_blocking=True)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    rate = size / min(seconds)
    plan = plan_memory(setting.config, precision=setting.precision, tokens=setting.tokens, steps=1, budget=None)
    every = sum(plan.blocks)
    streamed = sum(size for size, stays in zip(plan.blocks, setting.resident, strict=True) if not stays)
    console.print(
        f"host to device: {rate / 1e9:.1f} GB/s; a step copies at least {streamed / rate:.3f} s "
        f"({gigabytes(streamed)}) within the budget, {every / rate:.3f} s with every block streamed"
    )


def table_of(measured_rows: Sequence[Row], setting: Setting) -> Table:
    """Seconds and ratios; the last column says whether the result is the first row's bit for bit."""
    first = next((row.result for row in measured_rows if row.result is not None), None)
    resident = measured_rows[0]
    theirs = next(row for row in measured_rows if row.name.startswith(_THEIRS))
    tokens = setting.tokens.total
    title = f"the blocks of one step, {setting.precision}, {tokens:,} tokens, {setting.repeats} runs of {STEPS} steps"
    table = Table(title=title, title_justify="left")
    for column in ("weights", "s/step", "to resident", "to diffusers", "peak", "prepared in", "same bits"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for row in measured_rows:
        table.add_row(
            row.name + (f" ({row.note})" if row.note else ""),
            f"{row.seconds:.4f}",
            f"{row.seconds / resident.seconds:.3f}x",
            f"{row.seconds / theirs.seconds:.3f}x",
            gigabytes(row.peak) if row.peak else "-",
            f"{row.prepared:.1f} s",
            "-" if row.result is None or first is None else "yes" if torch.equal(row.result, first) else "no",
        )
    return table


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
