"""`goan bench`: how fast this machine samples, and the calibration of MagCache for a pack."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.jobs.job import AttentionBackend, Compile, Execution, WantedPrecision

if TYPE_CHECKING:
    from goan_cli.bench.measure import BenchResult
    from goan_cli.packs.magnitudes import Magnitudes
    from goan_cli.packs.pack import Pack
    from goan_cli.render.plan import RenderPlan

_STEPS = 10
_SECTIONS = 4  # of each video that is calibrated with


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The command line; None where it is silent."""

    model: str | None
    synthetic: Literal["full", "mid"] | None
    size: tuple[int, int] | None
    execution: Execution
    steps: int | None
    device: str
    images: tuple[Path, ...]
    prompts: tuple[str, ...]


def bench(
    model: Annotated[str | None, typer.Option(help="Model pack: a name, a folder or a manifest; tiny if none.")] = None,
    synthetic: Annotated[
        Literal["full", "mid"] | None,
        typer.Option(help="Instead of a pack, random weights: the full-size model on a GPU, or 50 M parameters."),
    ] = None,
    size: Annotated[str | None, typer.Option(help="Of the video, like 640x608; the model's own if none.")] = None,
    precision: Annotated[WantedPrecision, typer.Option(help="As the job key.")] = WantedPrecision.AUTO,
    compile_: Annotated[Compile, typer.Option("--compile", help="As the job key.")] = Compile.AUTO,
    attention: Annotated[AttentionBackend, typer.Option(help="As the job key.")] = AttentionBackend.AUTO,
    memory: Annotated[str, typer.Option(help="Budget on the GPU: auto, or like 12GB.")] = "auto",
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=1000, help=f"Steps to count ({_STEPS} if none), or to calibrate for (the pack's)."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Calibrate MagCache for the pack, and write it beside its manifest.")
    ] = False,
    image: Annotated[
        list[Path] | None, typer.Option(help="Start image to calibrate with; may be repeated, each with each prompt.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt to calibrate with; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure a section's steps as a render runs them: speed, memory, and how fast weights are loaded and baked.

    With --calibrate, render a few videos exactly and write what step_cache: magcache needs to know.
    """
    execution = Execution(precision=precision, compile=compile_, attention=attention, memory=_memory(memory))
    asked = _Asked(
        model=model,
        synthetic=synthetic,
        size=None if size is None else _size(size),
        execution=execution,
        steps=steps,
        device=device,
        images=tuple(image or ()),
        prompts=tuple(prompt or ()),
    )
    if model is not None and synthetic is not None:
        raise InvalidInput("--model and --synthetic: give one of the two")
    if calibrate:
        _calibrate(asked, as_json=as_json)
    elif asked.images or asked.prompts:
        raise InvalidInput("--image and --prompt are for --calibrate", hint="speed is measured with random ones")
    else:
        _measure(asked, as_json=as_json)


def _size(text: str) -> tuple[int, int]:
    """`640x608` as (width, height)."""
    parts = text.lower().split("x")
    if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
        width, height = map(int, parts)
        if all(16 <= length <= 4096 and length % 16 == 0 for length in (width, height)):
            return width, height
    raise InvalidInput(f"--size {text}: no such size", hint="like 640x608: width x height, multiples of 16 up to 4096")


def _memory(text: str) -> int | None:
    """A budget in bytes, None for auto."""
    from goan_cli.jobs.fields import memory_bytes

    try:
        return memory_bytes(text)
    except ValueError as error:
        raise InvalidInput(f"--memory: {error}") from error


def _measure(asked: _Asked, *, as_json: bool) -> None:
    from goan_cli.bench.measure import measure, refuse_full_on_cpu
    from goan_cli.bench.subjects import PackSubject, Subject, SyntheticSubject
    from goan_cli.cli.terminal import make_console
    from goan_cli.files import cache_folder
    from goan_cli.packs.find import find_pack
    from goan_cli.render.device import choose_device

    device = choose_device(asked.device)
    if device.type != "cuda" and asked.execution.memory is not None:
        raise InvalidInput("--memory is a budget on a GPU", hint="on a CPU all weights are in main memory")
    if asked.synthetic == "full":
        refuse_full_on_cpu(device, asked.execution)
    subject: Subject
    if asked.synthetic is not None:
        subject = SyntheticSubject(asked.synthetic, device, cache=cache_folder())
    else:
        subject = PackSubject(find_pack(asked.model or "tiny"), device, cache=cache_folder())
    console = make_console(stderr=as_json)
    with console.status(f"measuring {subject.shape.name}"):
        result = measure(subject, device, size=asked.size, wanted=asked.execution, steps=asked.steps or _STEPS)
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        _show(result)


def _show(result: "BenchResult") -> None:
    from rich.markup import escape
    from rich.table import Table

    from goan_cli.cli.terminal import make_console

    table = Table(title=f"goan bench, {result.date}", title_justify="left", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in _rows(result):
        table.add_row(label, escape(text))
    make_console().print(table)


def _rows(result: "BenchResult") -> list[tuple[str, str]]:
    from goan_cli.render.memory import gigabytes

    tokens, limit = result.tokens, f"{result.matmul_tflops:.3g} in {result.matmul_dtype} matrix products"
    kinds = f"{tokens.noisy:,} noisy, {tokens.clean:,} of history, {tokens.image:,} of SigLIP, {tokens.text:,} of text"
    size = f"{result.size[0]}x{result.size[1]}, window {result.window}"
    spread = f"median of {result.steps}, {result.fastest_step:.4g} to {result.slowest_step:.4g} s"
    compiled = "compiled" if result.compiled else "not compiled"
    streamed = f", {gigabytes(result.streamed_weight_bytes)} streamed" if result.streamed_weight_bytes else ""
    rows = [
        ("model", f"{result.model}, {_count(result.parameters)} parameters"),
        ("machine", f"{result.device}; {result.machine}; torch {result.torch}"),
        ("section", f"{size}: {tokens.total:,} tokens ({kinds})"),
        ("runs in", f"{result.precision}, {compiled}, {result.attention} attention"),
        ("a step", f"{result.seconds_per_step:.4g} s ({spread}) for {result.tflop_per_step:.4g} TFLOP"),
        ("rate", f"{result.tflops:.3g} TFLOP/s, {result.matmul_share:.0%} of this machine's {limit}"),
        ("first step", f"{result.first_step_seconds:.3g} s from loaded weights"),
        ("once a job", f"{result.tables_seconds:.3g} s for the tables of {result.tables_steps} steps"),
        ("a section", f"{result.context_seconds:.3g} s for its history and image"),
        ("memory", result.memory),
        ("weights", f"{gigabytes(result.resident_weight_bytes)} on the device while it samples{streamed}"),
    ]
    if result.peak_bytes is not None:
        rows.append(("peak", gigabytes(result.peak_bytes)))
    if result.load_gb_per_second is not None:
        rows.append(("load", f"{result.load_gb_per_second:.3g} GB/s, {result.load_seconds:.3g} s"))
    rows.append(("bake", f"{result.bake_million_parameters_per_second:,.3g} M parameters/s"))
    if result.fp8_error is not None:
        rows.append(("fp8", f"one forward is {result.fp8_error:.2%} off the same in {result.matmul_dtype}"))
    return rows


def _count(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _calibrate(asked: _Asked, *, as_json: bool) -> None:
    import tempfile

    from goan_cli.packs.find import find_pack
    from goan_cli.packs.magnitudes import write_magnitudes

    if asked.synthetic is not None:
        raise InvalidInput("--calibrate is for a pack", hint="random weights have nothing to calibrate")
    pack = find_pack(asked.model or "tiny")
    with tempfile.TemporaryDirectory() as folder:
        plans = _plans(asked, pack, Path(folder))
        _refuse_unwritable(pack)
        magnitudes = _calibrated(asked, plans, as_json=as_json)
    write_magnitudes(pack, magnitudes)
    _tell_written(pack, magnitudes, as_json=as_json)


def _plans(asked: _Asked, pack: "Pack", folder: Path) -> "list[RenderPlan]":
    """The videos to calibrate with: of every image with every prompt, or of the tiny packs' own scenes."""
    from goan_cli.packs.find import find_pack
    from goan_cli.packs.manifest import EMBEDDED

    model, steps = asked.model or "tiny", asked.steps or pack.steps
    if asked.images and asked.prompts:
        return _own_plans(asked, model, steps, folder)
    if asked.images or asked.prompts:
        raise InvalidInput("--calibrate needs both --image and --prompt")
    transformer = pack.identity_of("transformer")
    if transformer not in {find_pack(name).identity_of("transformer") for name in EMBEDDED}:
        raise InvalidInput(
            f"--calibrate: {pack.name} has no scenes of its own", hint="give --image and --prompt, as in a job"
        )
    if asked.size is not None:
        raise InvalidInput("--size: the pack's own scenes have one size", hint="give --image and --prompt with it")

    from goan_cli.tiny.calibration import CLIPS, scene_plan

    scenes = [scene_plan(folder, model, pack, number, steps=steps, sections=_SECTIONS) for number in range(CLIPS)]
    return [replace(plan, job=replace(plan.job, execution=asked.execution)) for plan in scenes]


def _own_plans(asked: _Asked, model: str, steps: int, folder: Path) -> "list[RenderPlan]":
    from goan_cli.documents import Data
    from goan_cli.jobs.load import request_from_settings, settings_document
    from goan_cli.render.plan import plan_renders

    requests, problems = [], []
    for number, (image, prompt) in enumerate(product(asked.images, asked.prompts)):
        keys: dict[str, Data] = {
            "model": model,
            "image": str(image),
            "prompt": prompt,
            "seed": number,
            "steps": steps,
            "sections": _SECTIONS,
            "output": {"dir": str(folder)},
        }
        if asked.size is not None:
            keys["size"] = list(asked.size)
        these, wrong = request_from_settings(settings_document((), keys), name=f"calibration-{number}")
        requests += these
        problems += wrong
    plans = plan_renders(requests, problems)
    return [replace(plan, job=replace(plan.job, execution=asked.execution)) for plan in plans]


def _refuse_unwritable(pack: "Pack") -> None:
    """Raise EnvironmentFault where the calibration could not be kept: before minutes are spent on it."""
    import tempfile

    from goan_cli.packs.magnitudes import magnitudes_file

    file = magnitudes_file(pack)
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise EnvironmentFault(
            f"{file}: cannot be written: {error.strerror or error}",
            hint="copy the manifest to a folder of your own, with the paths of its parts",
        ) from error


def _calibrated(asked: _Asked, plans: "Sequence[RenderPlan]", *, as_json: bool) -> "Magnitudes":
    from goan_cli.cli.terminal import make_console
    from goan_cli.files import cache_folder
    from goan_cli.render.calibrate import calibrated
    from goan_cli.render.engine import Engine
    from goan_cli.render.sampling import MakeCache

    engine = Engine(device=asked.device, cache=cache_folder())
    engine.steps_ahead = sum(len(plan.job.sections.sections) * plan.job.sampling.steps for plan in plans)

    def sample(plan: "RenderPlan", caches: MakeCache) -> None:
        engine.sample(plan, engine.conditioning_for(plan), make_cache=caches)

    with make_console(stderr=as_json).status(f"sampling {len(plans)} videos exactly"):
        return calibrated(plans, sample)


def _tell_written(pack: "Pack", magnitudes: "Magnitudes", *, as_json: bool) -> None:
    """What was written, and what the default threshold makes of it."""
    from rich.markup import escape

    from goan_cli.cli.terminal import make_console
    from goan_cli.jobs.job import StepCacheKind
    from goan_cli.jobs.resolve import DEFAULT_THRESHOLDS
    from goan_cli.packs.magnitudes import magnitudes_file, steps_to_compute

    file, threshold = magnitudes_file(pack), DEFAULT_THRESHOLDS[StepCacheKind.MAGCACHE]
    computed = steps_to_compute(magnitudes.ratios, threshold=threshold)
    if as_json:
        written = {"file": str(file), "threshold": threshold, "computed_steps": computed, **asdict(magnitudes)}
        typer.echo(json.dumps({"version": 1, **written}))
        return
    console, steps = make_console(), magnitudes.steps
    made = f"from {magnitudes.samples} sections, spread {magnitudes.spread:.3f}"
    console.print(f"{escape(str(file))}: MagCache for {steps} steps, {made}")
    numbers = ", ".join(str(step + 1) for step in computed)
    console.print(f"at the default threshold {threshold:g} it computes {len(computed)} of {steps} steps: {numbers}")
