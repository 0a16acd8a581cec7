"""The console that commands print on."""

import sys

import typer
from rich.console import Console

from goan_cli.errors import GoanError, InvalidJobs

_PLAIN_WIDTH = 120


def tell_error(error: GoanError) -> None:
    """Print an error to standard error, each of several problems in a line of its own."""
    lines = [str(problem) for problem in error.problems] if isinstance(error, InvalidJobs) else [str(error)]
    for line in lines:
        typer.secho(f"error: {line}", err=True, fg=typer.colors.RED)


def make_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A console on standard output or error; wide and unwrapped where that is no terminal."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        highlight=False, soft_wrap=not terminal, width=None if terminal else _PLAIN_WIDTH, quiet=quiet, stderr=stderr
    )
