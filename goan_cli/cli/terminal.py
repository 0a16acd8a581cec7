"""The console that commands print on."""

import sys

from rich.console import Console

_PLAIN_WIDTH = 120


def make_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """A console on standard output or error; wide and unwrapped where that is no terminal."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        highlight=False, soft_wrap=not terminal, width=None if terminal else _PLAIN_WIDTH, quiet=quiet, stderr=stderr
    )
