"""`goan lora inspect`: what LoRA files are, without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goan_cli.cli.options import Trusted
from goan_cli.errors import GoanError

if TYPE_CHECKING:
    from rich.console import Console

    from goan_cli.lora.adapter import Shapes
    from goan_cli.lora.inspection import Inspection


def inspect(
    files: Annotated[list[Path], typer.Argument(help="LoRA files.")],
    model: Annotated[str | None, typer.Option(help="Match with this model pack too.")] = None,
    trusted: Trusted = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a file, a line each.")] = False,
) -> None:
    """Show layout, writer, algorithm, ranks and target modules of LoRA files, and what would be skipped.

    Exits with 2 when a file is damaged, for another model, or does not fit --model.
    """
    from goan_cli.cli.terminal import make_console
    from goan_cli.lora.inspection import inspect_lora

    base = _shapes(model)
    console = make_console()
    failed = False
    for file in files:
        try:
            found = inspect_lora(file, base, trusted=trusted)
        except GoanError as error:
            failed = True
            typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
            continue
        failed = failed or found.refusal is not None
        if as_json:
            _print_json(found)
        else:
            _show(console, found)
    if failed:
        raise typer.Exit(2)


def _shapes(model: str | None) -> "Shapes | None":
    if model is None:
        return None
    from goan_cli.model.checkpoint import read_checkpoint
    from goan_cli.packs.find import find_part

    return read_checkpoint(find_part(model, "transformer").usable).shapes


def _print_json(found: "Inspection") -> None:
    import json
    from dataclasses import asdict

    typer.echo(json.dumps(asdict(found), default=str, ensure_ascii=False))


def _show(console: "Console", found: "Inspection") -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(str(found.path))}[/bold]")
    facts: Sequence[tuple[str, str | None]] = (
        ("layout", f"{found.layout}, {found.writer}"),
        ("trained for", found.trained_for),
        ("holds", f"{found.keys} keys, {found.megabytes:g} MB, {' and '.join(found.dtypes)}"),
        ("algorithm", ", ".join(found.algorithms) or None),
        ("rank", _span(found.ranks)),
        ("alpha", _span(found.alphas)),
        ("changes", None if found.targets is None else f"{found.targets} modules of the model"),
        *(("skipped", f"{count} {rule}") for rule, count in found.skipped.items()),
    )
    for label, text in facts:
        if text:
            console.print(f"  [cyan]{label:<12}[/cyan]{escape(text)}")
    table = Table(show_edge=False, pad_edge=False)
    for column in ("module", "count", "blocks", "rank", "algorithm"):
        table.add_column(column)
    for family in found.families:
        blocks, ranks = _span(family.blocks) or "", _span(family.ranks) or ""
        table.add_row(escape(family.name), str(family.modules), blocks, ranks, family.algorithm)
    if found.families:
        console.print(table)
    if found.refusal:
        console.print(f"  [red]cannot be used:[/red] {escape(found.refusal)}")


def _span(values: tuple[float, float] | None) -> str | None:
    if values is None:
        return None
    low, high = values
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
