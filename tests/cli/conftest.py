"""The command line in this process: arguments in, exit code and text out."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from goan_cli.cli.app import main


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Goan = Callable[..., Run]


@pytest.fixture
def goan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Goan:
    """Runs `goan` with arguments. An exception that would be a traceback fails the test."""

    def run(*arguments: str | Path) -> Run:
        monkeypatch.setattr(sys, "argv", ["goan", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        said = capsys.readouterr()
        return Run(code=code, out=said.out, err=said.err)

    return run


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: the bytes of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
