"""One process at a time on a job, among real processes."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from goan_cli.batch.lock import held, is_held
from goan_cli.batch.stop import Stop
from goan_cli.errors import EnvironmentFault, Interrupted

# Holds a lock and says so, until it is told to let go or killed.
_HOLDER = """
import sys
from pathlib import Path
from goan_cli.batch.lock import held
from goan_cli.batch.stop import Stop
with held(Path(sys.argv[1]), wait=False, stop=Stop()) as ours:
    print("held" if ours else "busy", flush=True)
    sys.stdin.readline()
"""
# Adds one to a number in a file, so often, each time with the lock; a lock that lets two in loses some.
_COUNTER = """
import sys
from pathlib import Path
from goan_cli.batch.lock import held
from goan_cli.batch.stop import Stop
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(int(sys.argv[3])):
    with held(lock, wait=True, stop=Stop()) as ours:
        assert ours
        assert lock.exists()
        number = int(counter.read_text())
        counter.write_text(str(number + 1))
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """Where a job's lock would be; its folders are not there yet."""
    return tmp_path / "out" / ".goan" / "größe v1.2.lock"


@contextmanager
def _other_process(lock: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds a lock."""
    command = [sys.executable, "-c", _HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def _let_go(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n")
    assert process.returncode == 0


def test_held_for_the_block(lock: Path) -> None:
    """A free lock is ours, its folder made for it; afterwards neither file nor empty folder is left."""
    with held(lock, wait=False, stop=Stop()) as ours:
        assert ours
        assert lock.is_file()
        assert is_held(lock)
    assert not is_held(lock)
    assert not lock.parent.exists()
    assert lock.parent.parent.is_dir()


def test_a_folder_with_something_in_it_stays(lock: Path) -> None:
    """What else is in the state folder stays there; only the lock goes."""
    with held(lock, wait=False, stop=Stop()):
        (lock.parent / "job.failed.json").write_text("{}")
    assert [path.name for path in lock.parent.iterdir()] == ["job.failed.json"]


def test_let_go_by_a_failure(lock: Path) -> None:
    """However the block ends, the lock is free afterwards."""
    with pytest.raises(ZeroDivisionError), held(lock, wait=False, stop=Stop()):
        raise ZeroDivisionError
    assert not lock.exists()
    with held(lock, wait=False, stop=Stop()) as ours:
        assert ours


def test_one_job_s_lock_is_not_another_s(lock: Path) -> None:
    """Two jobs of a folder are held at the same time."""
    other = lock.with_name("other.lock")
    with held(lock, wait=False, stop=Stop()), held(other, wait=False, stop=Stop()) as ours:
        assert ours
        assert is_held(lock)
    assert not lock.parent.exists()


def test_busy_in_another_process(lock: Path) -> None:
    """While another process has the lock it is not ours, and stays the other's; when that is done it is free."""
    with _other_process(lock) as process:
        assert is_held(lock)
        with held(lock, wait=False, stop=Stop()) as ours:
            assert not ours
        assert is_held(lock)
        _let_go(process)
        assert not lock.exists()
        assert not is_held(lock)
        with held(lock, wait=False, stop=Stop()) as ours:
            assert ours


def test_held_by_a_process_that_died(lock: Path) -> None:
    """A killed process leaves its file, and no lock."""
    with _other_process(lock) as process:
        process.kill()
        process.wait()
    assert lock.is_file()
    assert not is_held(lock)
    assert lock.is_file()
    with held(lock, wait=False, stop=Stop()) as ours:
        assert ours
    assert not lock.parent.exists()


def test_not_held_where_there_is_none(lock: Path) -> None:
    """Asking for a lock that is not there makes none."""
    assert not is_held(lock)
    assert not lock.parent.exists()


def test_waiting_for_another_process(lock: Path) -> None:
    """With `wait` the lock is ours as soon as the other process is done with it, and not before."""
    seen: list[tuple[bool, bool]] = []
    let_go = threading.Event()

    def wait() -> None:
        with held(lock, wait=True, stop=Stop()) as ours:
            seen.append((ours, let_go.is_set()))

    with _other_process(lock) as process:
        waiting = threading.Thread(target=wait)
        waiting.start()
        let_go.set()
        _let_go(process)
        waiting.join()
    assert seen == [(True, True)]


def test_waiting_is_stopped(lock: Path) -> None:
    """Who waits is stopped by a signal or the deadline, and leaves the other's lock alone."""
    stop = Stop()
    stop.ask("stopped by SIGINT")
    with _other_process(lock) as process:
        with pytest.raises(Interrupted, match="another run had the job: stopped by SIGINT"):  # noqa: SIM117
            with held(lock, wait=True, stop=stop):
                raise AssertionError
        assert is_held(lock)
        _let_go(process)


def test_many_processes(tmp_path: Path, lock: Path) -> None:
    """Processes that wait for one another, each removing the file when it is done, are never in the block together."""
    counter, rounds = tmp_path / "counter", 15
    counter.write_text("0")
    lock.parent.mkdir(parents=True)
    (lock.parent / "job.failed.json").write_text("{}")
    command = [sys.executable, "-c", _COUNTER, str(lock), str(counter), str(rounds)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == str(3 * rounds)
    assert [path.name for path in lock.parent.iterdir()] == ["job.failed.json"]


def _file_as_folder(lock: Path) -> None:
    lock.parent.parent.write_text("in the way")


def _file_as_state_folder(lock: Path) -> None:
    lock.parent.parent.mkdir()
    lock.parent.write_text("in the way")


@pytest.mark.parametrize("block", [_file_as_folder, _file_as_state_folder, lambda lock: lock.mkdir(parents=True)])
def test_lock_that_cannot_be_made(lock: Path, block: Callable[[Path], None]) -> None:
    """Where no lock can be, that is a fault of the machine, which names the output folder."""
    block(lock)
    with pytest.raises(EnvironmentFault, match="out: cannot be written to"), held(lock, wait=False, stop=Stop()):
        raise AssertionError
