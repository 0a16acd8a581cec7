"""Signals to a run: the first asks it to stop at the next step, the second ends it at once."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from goan_cli.batch.stop import Stop

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAID = b"\nstopping after this step, with a checkpoint; once more to end at once\n"


@contextmanager
def stopping(stop: Stop) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM ask `stop`; a second one raises KeyboardInterrupt."""

    def handle(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.asked:
            for each in _SIGNALS:  # the third is not ours to catch
                signal.signal(each, signal.SIG_DFL)
            raise KeyboardInterrupt
        stop.ask(f"stopped by {name}")
        os.write(2, _SAID)  # no lock of a library could be held by whom the signal interrupted

    before = {each: signal.signal(each, handle) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
