"""Signals to a run: the first asks it to stop at the next step, the second ends it at once."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from goan_cli.batch.stop import Stop
from goan_cli.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping after this step, with a checkpoint; once more to end at once\n"


@contextmanager
def stopping(stop: Stop) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM ask `stop`; a second one ends the process with exit code 75.

    A thread hears of them, since Python's own handlers wait for a call into torch to return, which on a CPU may
    be minutes. Nothing is tidied up then, and nothing needs to be: a run may be killed at any moment.
    """
    here, there = socket.socketpair()
    there.setblocking(False)
    before = {each: signal.signal(each, lambda *_: None) for each in _SIGNALS}
    wakeup = signal.set_wakeup_fd(there.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=_listen, args=(here, stop), daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for each, handler in before.items():
            signal.signal(each, handler)
        there.close()
        listener.join()
        here.close()


def _listen(source: socket.socket, stop: Stop) -> None:
    """Each signal arrives as a byte, its number."""
    while number := source.recv(1):
        if number[0] not in _SIGNALS:
            continue
        if stop.asked:
            os._exit(Interrupted.exit_code)
        stop.ask(f"stopped by {signal.Signals(number[0]).name}")
        with suppress(OSError):
            os.write(2, _SAID)
