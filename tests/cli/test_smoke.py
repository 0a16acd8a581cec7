"""`goan smoke`: what it prints, and its exit codes."""

from pathlib import Path

import pytest

from goan_cli.tiny import smoke
from tests.cli.conftest import Goan


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[smoke.Check]:
    """The checks that a replaced run gives, for what the command makes of them."""
    checks: list[smoke.Check] = []

    def run(folder: Path, *, model: str, device: str) -> list[smoke.Check]:
        (folder / f"{model}-{device}").touch()
        return checks

    monkeypatch.setattr(smoke, "run_smoke", run)
    return checks


def test_all_passed_exits_with_0(goan: Goan, verdicts: list[smoke.Check], tmp_path: Path) -> None:
    """Every check is a line; the folder asked for keeps what was rendered."""
    verdicts.append(smoke.Check(name="the LoRA acts", passed=True, seen="90% of the way"))
    run = goan("smoke", "--model", "tiny-f1", "--out", str(tmp_path), "--device", "cpu")
    assert run.code == 0
    assert "ok   the LoRA acts: 90% of the way" in run.out
    assert (tmp_path / "tiny-f1-cpu").exists()


def test_a_failed_check_exits_with_1(goan: Goan, verdicts: list[smoke.Check]) -> None:
    """One failure among passes is enough, and is marked."""
    verdicts += [smoke.Check(name=name, passed=name == "one", seen="[x]") for name in ("one", "two")]
    run = goan("smoke")
    assert run.code == 1
    assert "ok   one: [x]" in run.out
    assert "FAIL two: [x]" in run.out


def test_other_models_are_refused(goan: Goan) -> None:
    """A model whose pictures cannot be read is refused before anything loads."""
    run = goan("smoke", "--model", "./framepack-i2v")
    assert run.code == 2
    assert "tiny-f1" in run.err
