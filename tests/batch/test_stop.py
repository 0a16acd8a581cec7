"""When a run should stop, and what a deadline may look like."""

from datetime import datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import goan_cli.batch.stop as stop_module
from goan_cli.batch.stop import Stop, parse_deadline
from goan_cli.errors import InvalidInput

EVENING = datetime(2031, 5, 1, 22, 30, 15)


def local(deadline: float) -> str:
    """A deadline as the clock on the wall shows it."""
    return datetime.fromtimestamp(deadline).isoformat(sep=" ", timespec="seconds")


# -- whether to stop


def test_nothing_to_stop_for() -> None:
    """Without a deadline, and asked by nobody, a run goes on whatever its work takes."""
    stop = Stop()
    assert (stop.asked, stop.due, stop.fits(1e12)) == (False, False, True)


def test_asked_to_stop() -> None:
    """Who asks is obeyed with or without a deadline, and the first reason stands."""
    for stop in (Stop(), Stop(deadline=4e9)):
        stop.ask("interrupted")
        stop.ask("terminated")
        assert (stop.asked, stop.due, stop.reason) == (True, True, "interrupted")


def test_work_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work fits that ends before the deadline; a deadline that is over is due, though nobody asked."""
    clock = SimpleNamespace(time=lambda: 1000.0)
    monkeypatch.setattr(stop_module, "time", clock)
    stop = Stop(deadline=1060.0)
    assert [stop.fits(seconds) for seconds in (0, 59, 60, 61)] == [True, True, False, False]
    assert not stop.due
    clock.time = lambda: 1060.0
    assert (stop.due, stop.asked) == (True, False)


def test_reason_of_a_deadline() -> None:
    """A run that stops for its deadline says when that was, by the local clock, and on which day if not today."""
    assert Stop(deadline=datetime(2031, 5, 1, 6, 5, 9).timestamp()).reason == "the deadline, 2031-05-01 06:05:09"


# -- deadlines of the command line


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", "2031-05-02 00:00:15"),
        ("1h30m", "2031-05-02 00:00:15"),
        ("1h 30m", "2031-05-02 00:00:15"),
        ("1.5h", "2031-05-02 00:00:15"),
        ("1h", "2031-05-01 23:30:15"),
        ("45s", "2031-05-01 22:31:00"),
        ("1h0.5m15s", "2031-05-01 23:31:00"),
        ("48h", "2031-05-03 22:30:15"),
        (" 10m ", "2031-05-01 22:40:15"),
        ("23:00", "2031-05-01 23:00:00"),
        ("22:30:16", "2031-05-01 22:30:16"),
        ("06:00", "2031-05-02 06:00:00"),
        ("6:00", "2031-05-02 06:00:00"),
        ("22:30", "2031-05-02 22:30:00"),
        ("22:30:15", "2031-05-02 22:30:15"),
        ("00:00", "2031-05-02 00:00:00"),
        ("2031-05-03T06:00", "2031-05-03 06:00:00"),
        ("2031-05-03 06:00:30", "2031-05-03 06:00:30"),
        ("2031-05-03", "2031-05-03 00:00:00"),
    ],
)
def test_deadlines(text: str, moment: str) -> None:
    """A length of time counts from now, a time of day is the next one, and a date is as it stands."""
    assert local(parse_deadline(text, EVENING)) == moment


def test_deadline_in_another_zone() -> None:
    """A date with an offset is a moment of that zone."""
    asked = parse_deadline("2031-05-03T06:00:00+05:00", EVENING)
    assert asked == datetime.fromisoformat("2031-05-03T01:00:00+00:00").timestamp()


def test_the_next_time_of_day_at_the_end_of_a_month() -> None:
    """The next day may be the next month's, or the next year's."""
    assert local(parse_deadline("06:00", datetime(2031, 4, 30, 7))) == "2031-05-01 06:00:00"
    assert local(parse_deadline("06:00", datetime(2031, 12, 31, 7))) == "2032-01-01 06:00:00"


def test_deadline_from_now() -> None:
    """Now is the machine's own time, unless another is given."""
    first, second = parse_deadline("600h"), parse_deadline("600h", datetime.now())
    assert abs(second - first) < timedelta(hours=1).total_seconds()


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "90", "5", "h", "m", "-5m", "+5m", "1m1h", "1h1h", "1d", "1H", "90min", "1,5h", ".5h", "1.h",
        "inf", "nan", "1e3s", "6", "24:00", "06:60", "06:00:60", "6:0", "006:00", ":30", "06:", "06:00pm", "tomorrow",
        "2031-13-01", "2031-05-32T06:00", "31.05.2031", "\0", "9" * 400 + "h", "99999999h", "0001-01-01",
    ],
)  # fmt: skip
def test_no_deadlines(text: str) -> None:
    """Anything else is refused in its own words, with what could be given."""
    with pytest.raises(InvalidInput, match=r"--deadline .*neither a length of time nor a time") as caught:
        parse_deadline(text, EVENING)
    assert f"--deadline {text}:" in caught.value.message
    assert "90m, 1h30m, 06:00" in (caught.value.hint or "")


@pytest.mark.parametrize("text", ["2031-05-01T22:30:15", "2031-05-01", "2030-12-31T23:59", "2031-04-29T22:30+00:00"])
def test_deadlines_that_are_over(text: str) -> None:
    """A date that has passed is refused, and said to be over."""
    with pytest.raises(InvalidInput, match=f"--deadline {text[:10]}.*: is over"):
        parse_deadline(text, EVENING)


@given(text=st.text(max_size=12) | st.text(alphabet="0123456789:.hmsT-+Z ", max_size=16))
def test_any_deadline(text: str) -> None:
    """Whatever is given as a deadline is a moment that is not over, or refused."""
    said, moment = "", None
    try:
        moment = parse_deadline(text, EVENING)
    except InvalidInput as error:
        said = str(error)
    assert said.startswith("--deadline ") if moment is None else moment >= EVENING.timestamp()
