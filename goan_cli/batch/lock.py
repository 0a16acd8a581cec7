"""One process at a time on a job: a lock file that the system frees when its holder dies, however it dies."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from goan_cli.batch.stop import Stop
from goan_cli.errors import EnvironmentFault, Interrupted

_PATIENCE = 0.2  # seconds: somebody may be looking at the lock
_POLL = 0.5


@contextmanager
def held(lock: Path, *, wait: bool, stop: Stop) -> Iterator[bool]:
    """Hold a lock for as long as the block runs; yields False where another process holds it and `wait` is off.

    Raises EnvironmentFault where the lock cannot be made, and Interrupted when `stop` is due while waiting.
    """
    taken = _acquired(lock)
    while wait and taken is None:
        if stop.due:
            raise Interrupted(f"while another run had the job: {stop.reason}")
        taken = _acquired(lock, _POLL)
    if taken is None:
        yield False
        return
    try:
        yield True
    finally:
        # While it is held: whoever waits for it sees that the name is gone, and makes a new one.
        with suppress(OSError):
            lock.unlink()
        taken.release()
        with suppress(OSError):
            lock.parent.rmdir()  # only if nothing else is in it


def is_held(lock: Path) -> bool:
    """Whether a living process has the lock."""
    if not lock.exists():
        return False
    probe = FileLock(lock)
    try:
        probe.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    probe.release()
    return False


def _acquired(lock: Path, patience: float = _PATIENCE) -> FileLock | None:
    taken = FileLock(lock)
    for attempt in range(3):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            taken.acquire(timeout=patience, poll_interval=0.05)
        except Timeout:
            return None
        except FileNotFoundError as error:  # the folder was empty, and another run has just removed it
            if attempt == 2:
                raise _unusable(lock, error) from error
        except OSError as error:
            raise _unusable(lock, error) from error
        else:
            return taken
    return None


def _unusable(lock: Path, error: OSError) -> EnvironmentFault:
    folder = lock.parent.parent
    return EnvironmentFault(f"{folder}: cannot be written to: {error.strerror or error}", hint="check its rights")
