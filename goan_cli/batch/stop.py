"""When a run should stop: somebody asked, or the deadline is near."""

import re
import time
from datetime import datetime, timedelta

from goan_cli.errors import InvalidInput

_DURATION = re.compile(
    r"(?:(?P<hours>\d+(?:\.\d+)?)h)?(?:(?P<minutes>\d+(?:\.\d+)?)m)?(?:(?P<seconds>\d+(?:\.\d+)?)s)?"
)
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")


class Stop:
    """Asked between two steps. `deadline` is in seconds since the epoch; None for none."""

    def __init__(self, *, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._asked: str | None = None

    def ask(self, reason: str) -> None:
        """Ask for the run to stop after the step at work."""
        self._asked = self._asked or reason

    @property
    def asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked is not None

    @property
    def due(self) -> bool:
        """Whether somebody asked, or the deadline is over."""
        return self.asked or not self.fits(0.0)

    def fits(self, seconds: float) -> bool:
        """Whether so much work ends before the deadline."""
        return self.deadline is None or time.time() + seconds < self.deadline

    @property
    def reason(self) -> str:
        """Why the run stops, for people."""
        if self._asked:
            return self._asked
        moment = datetime.fromtimestamp(self.deadline or 0.0).astimezone()
        day = "" if moment.date() == datetime.now().astimezone().date() else f"{moment:%Y-%m-%d }"
        return f"the deadline, {day}{moment:%H:%M:%S}"


def parse_deadline(text: str, now: datetime | None = None) -> float:
    """`90m`, `1h30m`, `06:00` (the next one), or a date with a time, in seconds since the epoch.

    Raises InvalidInput for anything else, and for a time that is over.
    """
    now = (now or datetime.now()).astimezone()
    word = text.strip()
    hint = "for example 90m, 1h30m, 06:00 or 2031-05-01T06:00"
    try:
        if word and (span := _DURATION.fullmatch(word.replace(" ", ""))):
            parts = {name: float(value) for name, value in span.groupdict().items() if value}
            return (now + timedelta(**parts)).timestamp()
        if clock := _CLOCK.fullmatch(word):
            hour, minute, second = (int(part or 0) for part in clock.groups())
            moment = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
            if moment <= now:
                moment = (moment.replace(tzinfo=None) + timedelta(days=1)).astimezone()
            return moment.timestamp()
        moment = datetime.fromisoformat(word).astimezone()
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"--deadline {text}: neither a length of time nor a time", hint=hint) from error
    if moment <= now:
        raise InvalidInput(f"--deadline {text}: is over")
    return moment.timestamp()
