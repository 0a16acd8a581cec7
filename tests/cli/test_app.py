"""The command as a whole: help, exit codes, errors without tracebacks, and what it does not import."""

import subprocess
import sys
from pathlib import Path

import pytest

from goan_cli import __version__
from goan_cli.errors import GoanError
from tests.cli.conftest import Goan
from tests.conftest import MINIMAL, write_jobs

_IMPORTED = """
import sys
from goan_cli.cli.app import main
sys.argv = ["goan", *sys.argv[1:]]
try:
    main()
except SystemExit as error:
    print("exit", error.code, file=sys.stderr)
heavy = {"torch", "diffusers", "transformers", "einops", "accelerate", "huggingface_hub"} & set(sys.modules)
print("heavy", sorted(heavy), file=sys.stderr)
"""


def test_help(goan: Goan) -> None:
    """Help names every command and every exit code."""
    run = goan("--help")
    assert run.code == 0
    for word in ("render", "plan", "presets", "schema", "doctor", "Exit codes"):
        assert word in run.out
    assert goan("-h").out == run.out


@pytest.mark.parametrize("command", ["render", "plan", "presets", "schema", "doctor"])
def test_help_of_a_command(goan: Goan, command: str) -> None:
    """Every command has help, and says in a sentence what it does."""
    run = goan(command, "--help")
    assert run.code == 0
    assert "Usage" in run.out


def test_version(goan: Goan) -> None:
    """`--version` prints the version alone."""
    run = goan("--version")
    assert (run.code, run.out) == (0, f"goan {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [(), ("frobnicate",), ("plan", "--frobnicate"), ("plan", "--seed", "x"), ("plan", "--seconds", "long")],
)
def test_usage_errors(goan: Goan, arguments: tuple[str, ...]) -> None:
    """Unknown commands, options and values of the wrong kind exit with 2, as does no command at all."""
    assert goan(*arguments).code == 2


def test_errors_are_lines_of_their_own(folder: Path, goan: Goan) -> None:
    """Each problem is one line of standard error that begins with `error:`; nothing goes to standard output."""
    path = write_jobs(folder / "shot.yaml", {**MINIMAL, "stpes": 1, "seed": -1})
    run = goan("plan", path)
    assert (run.code, run.out) == (2, "")
    lines = run.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"error: {path}:") for line in lines)


def test_debug_shows_the_traceback(folder: Path, goan: Goan) -> None:
    """With `--debug` an error is raised as it is."""
    with pytest.raises(GoanError):
        goan("--debug", "plan", folder / "gone.yaml")


def test_a_process_that_fails(folder: Path) -> None:
    """As a process of its own, bad input gives exit code 2 and one line without a traceback."""
    write_jobs(folder / "shot.yaml", {**MINIMAL, "stpes": 1})
    run = subprocess.run(
        [sys.executable, "-m", "goan_cli", "render", "shot.yaml"], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.strip() == "error: shot.yaml:4: stpes: unknown key (did you mean steps?)"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("render", "--help"),
        ("plan", "shot.yaml"),
        ("presets",),
        ("schema",),
        ("render", "gone.yaml"),
    ],
    ids=" ".join,
)
def test_light_commands(folder: Path, arguments: tuple[str, ...]) -> None:
    """Help, plan, presets, schema, and a render refused for its input import neither torch nor what needs it."""
    write_jobs(folder / "shot.yaml", {**MINIMAL, "loras": ["style.safetensors"]})
    run = subprocess.run([sys.executable, "-c", _IMPORTED, *arguments], capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1] == "heavy []"


def test_help_reads_no_pictures() -> None:
    """Help waits for no library that pictures and videos are read with."""
    command = "import sys, goan_cli.cli.app; print(sorted({'numpy', 'PIL', 'imageio_ffmpeg'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
