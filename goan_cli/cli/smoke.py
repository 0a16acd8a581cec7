"""`goan smoke`: render a small clip with a LoRA and look at it, for cron and CI."""

from pathlib import Path
from typing import Annotated

import typer


def smoke(
    out: Annotated[Path | None, typer.Option(help="Keep the videos here, instead of in a temporary folder.")] = None,
    model: Annotated[str, typer.Option(help="tiny or tiny-f1.")] = "tiny",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Render a small clip with a prompt and a LoRA, and check what it shows.

    Exits with 0 when the shape moves as told, keeps its colour, starts at the start image, and the LoRA acts;
    with 1 when a check fails.
    """
    from goan_cli.errors import InvalidInput

    if model not in ("tiny", "tiny-f1"):
        raise InvalidInput(f"--model {model}: only what tiny or tiny-f1 renders can be checked")

    import tempfile
    import time

    started = time.perf_counter()

    from rich.markup import escape

    from goan_cli.cli.terminal import make_console
    from goan_cli.tiny.smoke import run_smoke

    with tempfile.TemporaryDirectory() as temporary:
        folder = (out or Path(temporary)).absolute()
        checks = run_smoke(folder, model=model, device=device)
    console = make_console()
    for check in checks:
        verdict = "[green]ok[/green]  " if check.passed else "[red]FAIL[/red]"
        console.print(f"{verdict} {check.name}: {escape(check.seen)}")
    kept = f", videos in {escape(str(folder))}" if out else ""
    console.print(f"{model}: {time.perf_counter() - started:.1f} s{kept}")
    if not all(check.passed for check in checks):
        raise typer.Exit(1)
