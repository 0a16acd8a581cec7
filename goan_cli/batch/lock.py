"""One process at a time on a job: a lock file that the system frees when its holder dies, however it dies."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from goan_cli.batch.stop import Stop
from goan_cli.errors import EnvironmentFault, Interrupted

_PATIENCE = 0.2  # seconds: somebody may be looking at the lock
_POLL = 0.5
_FOLDER_ATTEMPTS = 1000


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
    except Timeout:
        return True
    except OSError:  # not to be opened: whoever could hold it, we cannot tell
        return False
    probe.release()
    return False


def _acquired(lock: Path, patience: float = _PATIENCE) -> FileLock | None:
    taken = FileLock(lock)
    for _ in range(_FOLDER_ATTEMPTS):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            taken.acquire(timeout=patience, poll_interval=0.05)
        except Timeout:
            return None
        except (FileNotFoundError, FileExistsError):
            # The folder was empty, and another run has just removed it.
            if lock.parent.exists() and not lock.parent.is_dir():
                raise _unusable(lock, f"{lock.parent.name} is no folder") from None
        except OSError as error:
            raise _unusable(lock, error.strerror or str(error)) from error
        else:
            return taken
    raise _unusable(lock, "it vanishes again and again")


def _unusable(lock: Path, why: str) -> EnvironmentFault:
    return EnvironmentFault(f"{lock.parent.parent}: cannot be written to: {why}", hint="check its rights")
