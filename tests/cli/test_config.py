"""`goan config`: what is set, where it is from, and changing it."""

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Goan


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the settings are; there is no file yet."""
    monkeypatch.setenv("GOAN_CONFIG", str(tmp_path / "settings"))
    for variable in ("GOAN_CACHE", "HF_HOME", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "settings" / "config.yaml"


def rows_of(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]


def test_path(goan: Goan, file: Path) -> None:
    """The path of the file is printed alone, whether there is one or not."""
    run = goan("config", "path")
    assert (run.code, run.out, run.err) == (0, f"{file}\n", "")


def test_set_show_unset(goan: Goan, file: Path, tmp_path: Path) -> None:
    """What is set is told, shown with its line in the file, used, and gone once it is unset."""
    assert goan("config", "set", "pull", "true").out == "pull: true\n"
    run = goan("config", "set", "models", tmp_path, f"{tmp_path}/")
    assert (run.code, run.out, run.err) == (0, f"models: {tmp_path}\n", "")
    shown = goan("config", "show")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[0] == str(file)
    rows = rows_of(shown.out)
    assert ["models", str(tmp_path), "config.yaml:2"] in rows
    assert ["pull", "true", "config.yaml:1"] in rows
    assert goan("config", "unset", "pull").out == "pull: false\n"
    assert ["pull", "false", "default"] in rows_of(goan("config", "show").out)
    assert file.read_text() == f"models:\n- {tmp_path}\n"


def test_show_without_a_file(goan: Goan, file: Path) -> None:
    """Without a file the defaults are shown, and where the file would be."""
    run = goan("config", "show")
    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines()[0] == f"{file} (not there yet)"
    rows = rows_of(run.out)
    assert ["models", "none", "default"] in rows
    assert ["HF_HUB_OFFLINE", "not", "set", "environment"] in rows
    assert not file.parent.exists()


def test_show_the_environment(goan: Goan, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the environment come first; what is secret is not printed, in a table nor as JSON."""
    goan("config", "set", "models", tmp_path)
    monkeypatch.setenv("GOAN_MODELS", os.pathsep.join(["/no/such/place", str(tmp_path)]))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "https://someone:password@mirror.example/hub")
    shown, as_json = goan("config", "show"), goan("config", "show", "--json")
    models = [row[1:] for row in rows_of(shown.out) if row[0] == "models"]
    assert [row[:2] for row in models] == [
        ["/no/such/place", "GOAN_MODELS,"],
        [str(tmp_path), "GOAN_MODELS"],
        [str(tmp_path), "config.yaml:1"],
    ]
    assert " ".join(models[0][2:]) == "is no folder on this machine now"
    assert ["HF_TOKEN", "set", "(not", "shown)", "environment"] in rows_of(shown.out)
    assert ["HF_ENDPOINT", "https://…@mirror.example/hub", "environment"] in rows_of(shown.out)
    for said in (shown.out, as_json.out):
        assert "hf_secret" not in said
        assert "password" not in said


def test_show_as_json(goan: Goan, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One JSON object has each setting with its origin, and the variables, null where they are not set."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    goan("config", "set", "models", "~", "/")
    found = json.loads(goan("config", "show", "--json").out)
    assert (found["version"], found["file"]) == (1, str(file))
    assert found["settings"] == {
        "models": {"value": ["~", "/"], "origin": "file", "line": 1},
        "pull": {"value": False, "origin": "default", "line": None},
    }
    assert found["environment"] == {
        "GOAN_MODELS": None,
        "GOAN_CONFIG": str(file.parent),
        "GOAN_CACHE": None,
        "HF_HOME": None,
        "HF_HUB_CACHE": None,
        "HF_ENDPOINT": None,
        "HF_HUB_OFFLINE": "1",
        "HF_TOKEN": None,
    }


def test_a_folder_that_is_away(goan: Goan, file: Path, tmp_path: Path) -> None:
    """A folder that is not there is accepted with a note: its disk may be away."""
    run = goan("config", "set", "models", tmp_path / "away", tmp_path)
    assert (run.code, run.out) == (0, f"models: {tmp_path / 'away'}, {tmp_path}\n")
    assert run.err == f"note: {tmp_path / 'away'} is no folder on this machine now; it is searched once it is there\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "model", "/a"), "error: model: no such setting (did you mean models?)"),
        (("set", "pull", "ja"), "error: pull: must be true or false, not 'ja'"),
        (("unset", "pul"), "error: pul: no such setting (did you mean pull?)"),
    ],
)
def test_wrong_words(goan: Goan, file: Path, arguments: tuple[str, ...], said: str) -> None:
    """What cannot be set is one line on standard error and exit code 2; no file is made."""
    run = goan("config", *arguments)
    assert (run.code, run.out, run.err) == (2, "", f"{said}\n")
    assert not file.parent.exists()


@pytest.mark.parametrize("command", [("show",), ("show", "--json"), ("set", "pull", "true")])
def test_a_wrong_file(goan: Goan, file: Path, command: tuple[str, ...]) -> None:
    """Every problem of a wrong file is told with its line, and the file stays."""
    file.parent.mkdir()
    file.write_text("# mine\nmodels: 3\npulls: true\n")
    run = goan("config", *command)
    assert (run.code, run.out) == (2, "")
    assert run.err.splitlines() == [
        f"error: {file}:2: models: must be a list, not 3",
        f"error: {file}:3: pulls: unknown key (did you mean pull?)",
    ]
    assert file.read_text() == "# mine\nmodels: 3\npulls: true\n"


def test_mending_a_wrong_file(goan: Goan, file: Path) -> None:
    """An unknown key is taken out by name."""
    file.parent.mkdir()
    file.write_text("# mine\npulls: true\n")
    run = goan("config", "unset", "pulls")
    assert (run.code, run.out, run.err) == (0, "pulls: gone\n", "")
    assert file.read_text() == "# mine\n"
