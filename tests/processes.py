"""`goan` in processes of its own, to be stopped and killed: the real command, or forked with torch imported already."""

import gc
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

Event = dict[str, Any]

_PATIENCE = 120.0  # seconds until a test gives up on something that should happen
_POLL = 0.001
_FORKING = multiprocessing.get_context("forkserver")
# The libraries that encoders and VAE load with too: a fork would import them for seconds, each anew.
_FORKING.set_forkserver_preload(["goan_cli.cli.app", "goan_cli.batch.run", "goan_cli.render.loading", "rich.progress"])
# What changes a folder, as Python tells its audit hooks of it before it happens.
_CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "subprocess.Popen")


class GoanProcess:
    """`goan render` at work in a folder, in a session of its own; it appends its events to the file `log` there.

    `real` starts an interpreter, as a user does; otherwise the command runs in a fork of one that has torch.
    `dies_before` kills a fork just before its change of the folder `out` with that number, counted from 0;
    `largest_file` is the size in bytes beyond which a fork cannot write a file.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str | Path,
        log: str = "log.jsonl",
        env: Mapping[str, str] | None = None,
        real: bool = False,
        dies_before: int | None = None,
        largest_file: int | None = None,
    ) -> None:
        self.log = folder / log
        self.said_in = self.log.with_suffix(".txt")
        self._start = self.log.stat().st_size if self.log.exists() else 0
        words = ["render", *map(str, arguments), "--device", "cpu", "--log-json", str(self.log)]
        given = {"OMP_NUM_THREADS": "1", "GOAN_CACHE": str(folder / "cache"), **(env or {})}
        self._process: subprocess.Popen[bytes] | multiprocessing.context.ForkServerProcess
        if real:
            with self.said_in.open("wb") as said:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "goan_cli", *words],
                    cwd=folder,
                    env={**os.environ, **given},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
        else:
            self._process = _FORKING.Process(
                target=_goan, args=(words, folder, self.said_in, given, dies_before, largest_file)
            )
            self._process.start()
        self.pid = self._process.pid or 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            self.send(signal.SIGKILL)
            self.wait()

    @property
    def code(self) -> int | None:
        """The exit code, the negative number of the signal that ended it, or None while it is alive."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    @property
    def said(self) -> str:
        """Standard output and error."""
        return self.said_in.read_text(encoding="utf-8") if self.said_in.exists() else ""

    @property
    def events(self) -> list[Event]:
        """The whole lines that this run has logged so far."""
        if not self.log.exists():
            return []
        with self.log.open("rb") as log:
            log.seek(self._start)
            lines = log.read().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Send a signal to this process and to what it has started, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, seconds: float = _PATIENCE) -> int:
        """The exit code, once it has ended."""
        self.wait_briefly(seconds)
        if (code := self.code) is None:
            raise AssertionError(f"still running: {self.said}")
        return code

    def wait_briefly(self, seconds: float) -> None:
        """Wait for its end for so long at the most."""
        if isinstance(self._process, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        else:
            self._process.join(seconds)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait until something is so; a process that ends before is a failure."""
        ended = False
        for _ in patiently():
            if happened():
                return
            if ended:
                raise AssertionError(f"ended with {self.code}: {self.said}")
            ended = self.code is not None

    def wait_for_event(self, **fields: object) -> None:
        """Wait until an event with these fields is logged."""
        self.wait_for(lambda: bool(matching(self.events, **fields)))


def matching(events: Sequence[Event], **fields: object) -> list[Event]:
    """The events that have these fields."""
    return [event for event in events if fields.items() <= event.items()]


def patiently() -> Iterator[None]:
    """Turns of a loop that waits for something, short of forever."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        yield
        time.sleep(_POLL)
    raise AssertionError("it did not happen")


def wait_for_orphans(folder: Path) -> None:
    """Wait until no process works on a folder: the ffmpeg of a run that was killed still ends its file."""
    for _ in patiently():
        if not any(str(folder) in words for words in _command_lines()):
            return


def _command_lines() -> Iterator[str]:
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            yield place.read_text(errors="replace")


def _goan(
    words: Sequence[str],
    folder: Path,
    said_in: Path,
    env: Mapping[str, str],
    dies_before: int | None,
    largest_file: int | None,
) -> None:
    """What a fork does."""
    import torch  # noqa: PLC0415 - here it is imported already

    from goan_cli.cli.app import main  # noqa: PLC0415

    os.setsid()
    os.chdir(folder)
    os.environ.update(env)
    said = os.open(said_in, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, sys.stdout.fileno())
    os.dup2(said, sys.stderr.fileno())
    torch.set_num_threads(1)
    gc.freeze()  # or every collection would look at all that the fork shares with its parent, and copy it
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    if dies_before is not None:
        _die_before(dies_before, str(folder / "out"))
    sys.argv = ["goan", *words]
    main()


def _die_before(number: int, folder: str) -> None:
    """Be killed before the change with this number of anything in a folder."""
    numbers = count()

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES and _is_change(event, arguments, folder) and next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def _is_change(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    if event == "subprocess.Popen":
        return any(str(word).startswith(folder) for word in arguments[1])
    if not str(arguments[0]).startswith(folder):
        return False
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
