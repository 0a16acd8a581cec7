"""`goan doctor`: what this machine can do."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goan_cli.errors import EnvironmentFault, GoanError

if TYPE_CHECKING:
    import torch

    from goan_cli.cli.machine import Backend, Disk, Driver, Gpu, MainMemory
    from goan_cli.cli.readiness import Readiness, Target
    from goan_cli.render.device import Precision

Row = tuple[str, str]
_LABEL = 12  # columns


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What was found out about one thing: for JSON under `key`, for people as rows, and why nothing can render."""

    key: str
    data: object
    rows: tuple[Row, ...]
    problem: str | None = None


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Tell what this machine can render with, and how; exits with 3 when it cannot render at all.

    The memory plan of a pack is that of a job which sets nothing, with a square image.
    """
    from rich.markup import escape

    from goan_cli.cli.terminal import make_console

    console = make_console(quiet=as_json)
    facts: dict[str, Any] = {"version": 1}
    problems: list[str] = []
    for finding in _findings():
        facts[finding.key] = finding.data
        problems += [finding.problem] if finding.problem is not None else []
        for label, text in finding.rows:
            lines = escape(text).replace("\n", "\n" + " " * _LABEL)
            console.print(f"[cyan]{label:<{_LABEL}}[/cyan]{lines}")
    if as_json:
        import json

        typer.echo(json.dumps({**facts, "can_render": not problems, "problems": problems}, indent=2))
    for problem in problems:
        console.print(f"[red]this machine cannot render: {escape(problem)}[/red]")
    if problems:
        raise typer.Exit(EnvironmentFault.exit_code)


def _findings() -> Iterator[_Finding]:
    """Everything, what takes no time first. What depends on torch is left out where it cannot be imported."""
    from goan_cli.cli.machine import (
        HUB_CACHE,
        attention_backends,
        automatic_attention,
        disks,
        gpus,
        main_memory,
        nvidia_driver,
        torch_fault,
    )

    yield _versions()
    memory = main_memory()
    yield _memory(memory)
    where = disks()
    yield _disks(where)
    yield _ffmpeg()
    settings = _settings()
    yield settings
    fault = torch_fault()
    yield _torch(fault)
    if fault is not None:
        return
    driver, found = nvidia_driver(), gpus()
    yield _gpus(found, driver)
    if found and found[0].fault is not None:
        return

    from goan_cli.cli.readiness import pack_names, readiness
    from goan_cli.render.device import choose_device, precision_for

    device = choose_device("auto")
    precision = precision_for(device)
    yield _renders(device, precision)
    yield _attention(attention_backends(device, precision.transformer), automatic_attention(device))
    if settings.problem is None:
        target = _target(device, precision, found, memory)
        hub_free = next((disk.free for disk in where if disk.what == HUB_CACHE), None)
        yield _packs([readiness(model, target) for model in pack_names()], hub_free)


def _target(
    device: "torch.device", precision: "Precision", found: "Sequence[Gpu]", memory: "MainMemory | None"
) -> "Target":
    from goan_cli.cli.readiness import Target
    from goan_cli.jobs.job import Execution
    from goan_cli.render.device import holds_llama
    from goan_cli.render.execution import resolve_execution

    execution = resolve_execution(Execution(), device, precision.transformer, steps_ahead=0)
    on_device = device.type == "cuda" and holds_llama(device)
    return Target(
        precision=execution.short_precision,
        device=found[0].free if found else None,
        main=None if memory is None else memory.free,
        encoder_value=precision.encoders.itemsize if on_device else None,
    )


def _versions() -> _Finding:
    import platform

    from goan_cli import __version__
    from goan_cli.cli.machine import library_versions

    libraries = library_versions()
    python, system = platform.python_version(), platform.platform()
    return _Finding(
        key="versions",
        data={"goan": __version__, "python": python, "platform": system, **libraries},
        rows=(
            ("goan", __version__),
            ("python", f"{python} on {system}"),
            ("libraries", ", ".join(f"{name} {number}" for name, number in libraries.items() if name != "torch")),
        ),
    )


def _memory(memory: "MainMemory | None") -> _Finding:
    text = "unknown" if memory is None else f"{memory.total / 1e9:.1f} GB, {memory.free / 1e9:.1f} GB free"
    return _Finding(key="memory", data=None if memory is None else asdict(memory), rows=(("memory", text),))


def _disks(found: "Sequence[Disk]") -> _Finding:
    from goan_cli.cli.machine import HERE

    rows = []
    for disk in found:
        place = disk.what if disk.what == HERE else f"in the {disk.what} {disk.folder}"
        rows.append(("disk", f"{'unknown' if disk.free is None else f'{disk.free / 1e9:.0f} GB'} free {place}"))
    return _Finding(key="disk", data=[asdict(disk) for disk in found], rows=tuple(rows))


def _ffmpeg() -> _Finding:
    from goan_cli.media.ffmpeg import ffmpeg_path, ffmpeg_version

    try:
        path, version = ffmpeg_path(), ffmpeg_version()
    except GoanError as error:
        said = str(error)
        return _Finding(key="ffmpeg", data={"problem": said}, rows=(("ffmpeg", said),), problem="no ffmpeg, see above")
    return _Finding(key="ffmpeg", data={"path": path, "version": version}, rows=(("ffmpeg", version),))


def _settings() -> _Finding:
    from goan_cli.settings import read_settings_file

    try:
        found = read_settings_file()
    except GoanError as error:
        rows = (("config", str(error)),)
        return _Finding(
            key="config", data={"problem": str(error)}, rows=rows, problem="the settings are wrong, see above"
        )
    there = found.file is not None and found.file.exists()
    file = str(found.file) if there else None
    return _Finding(key="config", data={"file": file}, rows=(("config", file or "none, all defaults"),))


def _torch(fault: str | None) -> _Finding:
    from goan_cli.cli.machine import cpu_text, library_versions, torch_build

    version = library_versions().get("torch", "of unknown version")
    if fault is not None:
        said = f"{version} cannot be imported: {fault}"
        return _Finding(key="torch", data={"problem": fault}, rows=(("torch", said),), problem=f"torch {said}")
    build, cpu = torch_build(), cpu_text()
    rows = (("torch", f"{version}, {build}"), ("cpu", cpu))
    return _Finding(key="torch", data={"built_for": build, "cpu": cpu}, rows=rows)


def _gpus(found: "Sequence[Gpu]", driver: "Driver | None") -> _Finding:
    from goan_cli.cli.machine import no_gpu_reason

    data: dict[str, Any] = {"driver": None if driver is None else driver.version, "devices": list(map(asdict, found))}
    if not found:
        reason = no_gpu_reason(driver)
        return _Finding(key="gpu", data={**data, "problem": reason}, rows=(("gpu", reason),))
    problem = None
    if found[0].fault is not None:
        problem = "cuda:0 fails, see above; --device cpu, or another with --device, may render"
    return _Finding(
        key="gpu",
        data=data,
        rows=tuple((f"cuda:{gpu.index}", _gpu_text(gpu, driver)) for gpu in found),
        problem=problem,
    )


def _gpu_text(gpu: "Gpu", driver: "Driver | None") -> str:
    parts = [gpu.name] if gpu.name else []
    if gpu.free is not None and gpu.total is not None:
        parts.append(f"{gpu.free / 1e9:.1f} of {gpu.total / 1e9:.1f} GB free")
    if gpu.capability is not None:
        parts.append(f"capability {gpu.capability[0]}.{gpu.capability[1]}")
    if driver is not None:
        parts.append(f"driver {driver.version}")
    if gpu.fault is not None:
        parts.append(f"cannot be used: {gpu.fault}")
    return ", ".join(parts)


def _renders(device: "torch.device", precision: "Precision") -> _Finding:
    """What a render uses that asks for nothing."""
    from goan_cli.render.device import holds_llama, is_roomy
    from goan_cli.render.execution import lacking_compiler

    transformer, encoders = (str(each).removeprefix("torch.") for each in (precision.transformer, precision.encoders))
    data = {"device": str(device), "transformer": transformer, "encoders": encoders}
    if device.type != "cuda":
        return _Finding(key="renders", data=data, rows=(("renders on", f"{device} in {transformer}"),))
    if is_roomy(device):
        parts = "together on the device"
    else:
        parts = "one at a time on the device" + ("" if holds_llama(device) else ", the text encoder layer by layer")
    lacking = lacking_compiler(device)
    rows = (
        ("renders on", f"{device} in {transformer}, encoders and VAE in {encoders}"),
        ("parts", parts),
        ("compile", "in long runs" if lacking is None else f"not without {lacking}"),
    )
    return _Finding(key="renders", data={**data, "parts": parts, "compile_lacks": lacking}, rows=rows)


def _attention(found: "Sequence[Backend]", automatic: str) -> _Finding:
    usable = ", ".join(backend.name for backend in found if backend.problem is None)
    rows: list[Row] = [("attention", f"{usable or 'none'} (auto: {automatic})")]
    reasons: dict[str, list[str]] = {}
    for backend in found:
        if backend.problem is not None:
            reasons.setdefault(backend.problem, []).append(backend.name)
    rows += [("", f"not {', '.join(names)}: {reason}") for reason, names in reasons.items()]
    data = {"auto": automatic, "backends": [asdict(backend) for backend in found]}
    return _Finding(key="attention", data=data, rows=tuple(rows))


def _packs(packs: "Sequence[Readiness]", hub_free: int | None) -> _Finding:
    """Every pack, and what to do where only the embedded ones can render."""
    from goan_cli.packs.manifest import EMBEDDED

    rows = [row for pack in packs for row in _pack_rows(pack, hub_free)]
    usable = [pack.model for pack in packs if pack.can_render]
    problem = None if usable else "no pack is complete and fits, see above"
    if usable and all(model in EMBEDDED for model in usable):
        rows.append(("note", f"only the packs for tests can render here now: {', '.join(usable)}"))
    data = [{**asdict(pack), "can_render": pack.can_render} for pack in packs]
    return _Finding(key="packs", data=data, rows=tuple(rows), problem=problem)


def _pack_rows(pack: "Readiness", hub_free: int | None) -> list[Row]:
    from goan_cli.render.memory import gigabytes

    name = pack.model if pack.family is None else f"{pack.model} ({pack.family})"
    if not pack.complete:
        rows = [("pack", f"{name}: {pack.problem}")]
        if pack.command is not None:
            short = hub_free is not None and hub_free < pack.download
            lacking = f", and only {gigabytes(hub_free or 0)} are free there" if short else ""
            rows.append(("", f"{pack.command} downloads {gigabytes(pack.download)}{lacking}"))
        return rows
    rows = [("pack", f"{name}, complete, {pack.where}")]
    if (outlook := pack.outlook) is not None:
        says = (outlook.memory, outlook.note, outlook.problem and f"does not fit: {outlook.problem}")
        rows += [("", text) for text in says if text]
    return rows
