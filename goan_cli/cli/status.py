"""`goan status`: what has become of the jobs of an output folder."""

from pathlib import Path
from typing import Annotated

import typer


def status(
    folder: Annotated[Path, typer.Argument(help="An output folder.")] = Path("renders"),
    verify: Annotated[bool, typer.Option("--verify", help="Read every video and compare its hash.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the jobs that left something in a folder: done, running, partial with percent, failed, damaged.

    Jobs that have not begun leave nothing; goan plan shows those too.
    """
    from goan_cli.batch.status import folder_status

    jobs = folder_status(folder, verify=verify)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(job) for job in jobs], indent=2, ensure_ascii=False))
        return

    from rich.markup import escape
    from rich.table import Table

    from goan_cli.cli.terminal import make_console

    console = make_console()
    table = Table(show_edge=False)
    for column in ("job", "state", "done", "what"):
        table.add_column(column, overflow="fold", justify="right" if column == "done" else "left")
    for job in jobs:
        table.add_row(
            escape(job.name), f"[{_COLOURS[job.state]}]{job.state}[/]", f"{job.share:.0%}", escape(job.detail)
        )
    console.print(table)
    counts = {state: sum(job.state == state for job in jobs) for state in dict.fromkeys(job.state for job in jobs)}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()) or "no jobs here")


_COLOURS = {"done": "green", "running": "cyan", "partial": "yellow", "failed": "red", "damaged": "red"}
