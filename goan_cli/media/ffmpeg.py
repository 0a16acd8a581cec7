"""The ffmpeg in use: where it is, what it says of itself, and running it."""

import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from goan_cli.errors import EnvironmentFault

# Frames as they are in memory, for the sides of ffmpeg that are pipes.
RAW = ("-f", "rawvideo", "-pix_fmt", "rgb24")


def ffmpeg_path() -> str:
    """The ffmpeg in use. Raises EnvironmentFault when there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EnvironmentFault("no ffmpeg found", hint="reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE") from error


def ffmpeg_version() -> str:
    """The first line that ffmpeg says of itself. Raises EnvironmentFault when it cannot be run."""
    return _version_of(ffmpeg_path())


@lru_cache  # every sidecar names it
def _version_of(path: str) -> str:
    return _asked(path, "-version").split("\n", maxsplit=1)[0]


def available_encoders() -> frozenset[str]:
    """The names of the encoders that the ffmpeg in use has. Raises EnvironmentFault when it cannot be run."""
    return _encoders_of(ffmpeg_path())


@lru_cache
def _encoders_of(path: str) -> frozenset[str]:
    return frozenset(re.findall(r"^ [VAS][A-Z.]{5} (\w\S*)", _asked(path, "-encoders"), re.MULTILINE))


def _asked(path: str, question: str) -> str:
    """What ffmpeg says to a question about itself."""
    done = _run([path, question])
    if done.returncode:
        raise _cannot_run(path, last_words(done.stderr, f"exit {done.returncode}"))
    return done.stdout.decode(errors="replace")


def input_file(path: Path) -> list[str]:
    """Arguments that open a file by whatever name; what is a playlist opens no more than files of this machine."""
    return ["-protocol_whitelist", "file", "-i", f"file:{path}"]


def raw_input(size: tuple[int, int], fps: float) -> list[str]:
    """Arguments that take frames of (width, height) from the pipe."""
    return [*RAW, "-s", f"{size[0]}x{size[1]}", "-r", f"{fps:g}", "-i", "-"]


def run_ffmpeg(arguments: Iterable[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run ffmpeg to its end, well or not. Raises EnvironmentFault when it cannot be run."""
    return _run(_command(arguments))


def _run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, start_new_session=True, check=False
        )
    except OSError as error:
        raise _cannot_run(command[0], error) from error


@contextmanager
def ffmpeg_running(
    arguments: Iterable[str], words: IO[bytes], *, fed: bool = False, read: bool = False
) -> Iterator["subprocess.Popen[bytes]"]:
    """Yield ffmpeg at work, with pipes where it is `fed` or `read`; what it says goes to `words`.

    It has ended when the block has; where the block fails it is killed. Raises EnvironmentFault when it cannot be run.
    """
    command = _command(arguments)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
            stdout=subprocess.PIPE if read else subprocess.DEVNULL,
            stderr=words,
            start_new_session=True,
        )
    except OSError as error:
        raise _cannot_run(command[0], error) from error
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):  # it has ended early, and has said why
                if process.stdin is not None:
                    process.stdin.close()


def _command(arguments: Iterable[str]) -> list[str]:
    # All run in sessions of their own: Ctrl-C in a terminal is for goan, which stops when it has saved its work.
    return [ffmpeg_path(), "-nostdin", "-hide_banner", *arguments]


def _cannot_run(path: str, error: object) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path}: cannot be run: {error}", hint="reinstall imageio-ffmpeg, or mend IMAGEIO_FFMPEG_EXE"
    )


def last_words(said: bytes | IO[bytes], otherwise: str) -> str:
    """The last line that ffmpeg said, or that a file of its words has; `otherwise` where it said nothing."""
    if not isinstance(said, bytes):
        said.seek(0)
        said = said.read()
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else otherwise
