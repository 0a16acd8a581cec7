"""`goan lora report`: how much a bake changed, block by block."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goan_cli.cli.options import Trusted, lora_and_weight

if TYPE_CHECKING:
    from rich.table import Table

    from goan_cli.lora.report import BlockReport, ParameterReport


def report(
    sidecar: Annotated[Path | None, typer.Argument(help="Sidecar of a finished render.", show_default=False)] = None,
    trusted: Trusted = False,
    model: Annotated[str, typer.Option(help="Without a sidecar: the model pack to bake into.")] = "tiny",
    lora: Annotated[list[str] | None, typer.Option(help="Without a sidecar: FILE or FILE:WEIGHT.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the chart as a PNG too.")] = None,
) -> None:
    """Show per block how large the change is and how many weights moved.

    Reads the bake report of a render's sidecar, or bakes LoRAs in memory and throws the weights away.
    """
    from goan_cli.cli.terminal import make_console
    from goan_cli.errors import InvalidInput
    from goan_cli.lora.report import by_block

    if plot is not None and plot.suffix.lower() != ".png":
        raise InvalidInput(f"--plot {plot}: the chart is a PNG", hint=f"for example {plot.stem}.png")
    if (sidecar is None) == (not lora):
        raise InvalidInput("give a sidecar, or LoRAs with --lora", hint="goan lora report renders/job.json")
    if sidecar is not None:
        baked = _baked_in(sidecar)
    else:
        from goan_cli.render.lora_files import bake_in_memory

        keys = [{**lora_and_weight(text), "trusted": trusted} for text in lora or ()]
        baked = [("", list(bake_in_memory(model, keys).parameters))]
    console, charts = make_console(), [(title, by_block(parameters)) for title, parameters in baked]
    for title, blocks in charts:
        console.print(_table(title, blocks))
    if plot is not None:
        _plot(charts, plot)


def _table(title: str, blocks: "list[BlockReport]") -> "Table":
    from rich.table import Table

    most = max((block.relative_change for block in blocks if math.isfinite(block.relative_change)), default=0.0)
    table = Table(title=title or None, title_justify="left", show_edge=False, pad_edge=False)
    for column in ("block", "parameters", "change", "moved", ""):
        table.add_column(column, justify="left" if column in ("block", "") else "right")
    for block in blocks:
        bar = "█" * round(24 * min(block.relative_change / most, 1.0)) if most else ""
        moved = f"{block.moved:.1%}"
        table.add_row(block.block, str(block.parameters), f"{block.relative_change:.3%}", moved, f"[cyan]{bar}[/cyan]")
    return table


def _baked_in(sidecar: Path) -> "list[tuple[str, list[ParameterReport]]]":
    """The changed parameters of a render's bake; of every bake with its sections, where a timeline changes LoRAs."""
    import json

    from goan_cli.errors import InvalidInput
    from goan_cli.lora.report import ParameterReport, by_block

    try:
        bake = json.loads(sidecar.read_text(encoding="utf-8"))["bake"]
        sets = [] if bake is None else bake.get("sets", [{"report": bake}])
        found = [
            (_of_sections(each.get("sections")), [ParameterReport(**one) for one in each["report"]["parameters"]])
            for each in sets
            if each["report"] is not None
        ]
        for _, parameters in found:
            by_block(parameters)  # whatever is not a number shows here
        if found:
            return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{sidecar}: not a sidecar of a render: {error}") from error
    raise InvalidInput(f"{sidecar}: that render had no LoRA")


def _of_sections(sections: list[int] | None) -> str:
    numbers = ", ".join(map(str, sections or ()))
    return f"section{'s' if ',' in numbers else ''} {numbers}, in sampling order" if numbers else ""


def _plot(charts: "list[tuple[str, list[BlockReport]]]", path: Path) -> None:
    from goan_cli.output.pictures import write_bars

    bars = [
        (
            f"{block.block} ({title.split(',')[0]})" if len(charts) > 1 else block.block,
            block.relative_change,
            block.moved,
        )
        for title, blocks in charts
        for block in blocks
    ]
    write_bars(path.absolute(), "change of the weights' norm by block (and share of values moved)", bars)
    typer.echo(f"wrote {path}")
