"""The `goan` command: registers the commands, and turns every failure into one message and an exit code."""

import io
import logging
import sys
from typing import Annotated

import typer

from goan_cli import __version__
from goan_cli.cli.bench import bench
from goan_cli.cli.config import config
from goan_cli.cli.decode import decode
from goan_cli.cli.doctor import doctor
from goan_cli.cli.join import join
from goan_cli.cli.lora import lora
from goan_cli.cli.models import models
from goan_cli.cli.plan import plan
from goan_cli.cli.presets import presets
from goan_cli.cli.recipe import recipe
from goan_cli.cli.render import render
from goan_cli.cli.replay import replay
from goan_cli.cli.schema import schema
from goan_cli.cli.smoke import smoke
from goan_cli.cli.status import status
from goan_cli.errors import GoanError

app = typer.Typer(
    name="goan",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 some jobs failed, 2 invalid input, 3 the environment lacks something, "
    "75 interrupted: run again to go on.",
)
app.command()(render)
app.command()(plan)
app.command()(status)
app.command()(replay)
app.command()(decode)
app.command()(join)
app.command()(presets)
app.command()(schema)
app.command()(doctor)
app.command()(bench)
app.command()(smoke)
app.add_typer(lora)
app.add_typer(models)
app.add_typer(config)
app.add_typer(recipe)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"goan {__version__}")
        raise typer.Exit


@app.callback()
def goan(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
) -> None:
    """Render FramePack image-to-video from YAML jobs, with LoRAs baked into the weights."""
    del version
    logging.basicConfig(level=logging.DEBUG if debug else logging.CRITICAL, format="%(name)s: %(message)s")


def main() -> None:
    """Run the command line; every GoanError becomes its message and exit code, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter is no reason to stop
    try:
        app()
    except GoanError as error:
        if "--debug" in sys.argv:
            raise
        from goan_cli.cli.terminal import tell_error

        tell_error(error)
        sys.exit(error.exit_code)
