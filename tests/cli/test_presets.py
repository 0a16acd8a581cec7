"""`goan presets`."""

import pytest

from goan_cli.jobs.presets import preset_names
from tests.cli.conftest import Goan


def test_presets(goan: Goan) -> None:
    """Every preset is listed with the keys that it sets."""
    run = goan("presets")
    assert run.code == 0
    lines = run.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == preset_names()
    assert "  steps: 15" in lines


@pytest.mark.parametrize("name", preset_names())
def test_presets_say_what_they_are_for(goan: Goan, name: str) -> None:
    """Under each name stands a sentence before the keys."""
    lines = goan("presets").out.splitlines()
    assert lines[lines.index(name) + 1].startswith("  # ")
