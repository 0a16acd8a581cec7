"""The user's settings: what the file may hold, and changes that lose nothing."""

import os
import pwd
from pathlib import Path

import pytest

from goan_cli.errors import EnvironmentFault, GoanError, InvalidInput, InvalidJobs
from goan_cli.packs.manifest import own_packs
from goan_cli.settings import (
    Settings,
    config_folder,
    read_settings,
    read_settings_file,
    unset_setting,
    write_setting,
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the settings are; there is no file yet, nor its folder."""
    monkeypatch.setenv("GOAN_CONFIG", str(tmp_path / "settings" / "goan"))
    return tmp_path / "settings" / "goan" / "config.yaml"


def written(file: Path, content: str | bytes) -> Path:
    """The file with this content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refusal(file: Path) -> str:
    """What is wrong with the file, without its path."""
    with pytest.raises(InvalidJobs) as caught:
        read_settings()
    return str(caught.value).replace(str(file), "FILE")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home folder, whom the machine does not know."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for variable in ("HOME", "GOAN_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.parametrize("content", [None, "", "\n", "# nothing yet\n", "version: 1\n", "---\n"])
def test_defaults(file: Path, content: str | None) -> None:
    """Without a file, and with nothing in it, there are the defaults."""
    if content is not None:
        written(file, content)
    assert read_settings() == Settings(models=(), pull=False)
    assert read_settings_file().line("models") is None


def test_what_a_file_says(file: Path) -> None:
    """Folders are kept as they are written, and each key's line is known."""
    written(file, "# mine\npull: true\nmodels: [/mnt/models, ~/models]\n")
    found = read_settings_file()
    assert found.settings == Settings(models=("/mnt/models", "~/models"), pull=True)
    assert (found.line("pull"), found.line("models"), found.line("version")) == (2, 3, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("models: 3\n", "FILE:1: models: must be a list, not 3"),
        ("models: /mnt/models\n", "FILE:1: models: must be a list, not '/mnt/models'"),
        ("models: [/a, 3]\n", "FILE:1: models[1]: must be text (in quotes, if it looks like something else), not 3"),
        ("models: ['']\n", "FILE:1: models[0]: must be more than empty text, not ''"),
        ("models:\n- /a\n- b/c\n", "FILE:3: models[1]: b/c: must be an absolute path, or begin with ~"),
        ("models: [~no-such-user/x]\n", "FILE:1: models[0]: ~no-such-user/x: there is no such home folder"),
        ('models: ["/a\\0b"]\n', "FILE:1: models[0]: no folder has a null character in its name"),
        ("pull: yes\n", "FILE:1: pull: must be true or false, not 'yes'"),
        ("pull: 1\n", "FILE:1: pull: must be true or false, not 1"),
        ("pull: true\nmodel: []\n", "FILE:2: model: unknown key (did you mean models?)"),
        ("pull: true\npull: false\n", "FILE:2: pull: given twice"),
        ("version: 2\n", "FILE:1: version: must be 1, not 2"),
        ("- /a\n", "FILE:1: expected keys and values here, found a list"),
        ("models\n", "FILE:1: expected keys and values here, found text"),
        ("models: [/a\n", "FILE:2: not valid YAML: "),
        (b"models: [\xff]\n", "FILE: not UTF-8 text, so no YAML file"),
    ],
)
def test_wrong_files(file: Path, content: str | bytes, said: str) -> None:
    """What is wrong is told with file, line and key; it cannot be set over, and nothing of it is lost."""
    written(file, content)
    before = file.read_bytes()
    assert refusal(file).startswith(said)
    another = "models" if said.split(": ")[1] == "pull" else "pull"
    with pytest.raises(InvalidJobs):
        write_setting(another, ["true"])
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_instead_of_the_file(file: Path) -> None:
    """A folder of the file's name is refused, and stays."""
    (file / "inside").mkdir(parents=True)
    assert refusal(file) == "FILE: is a folder, not a YAML file"
    for change in (lambda: write_setting("pull", ["true"]), lambda: unset_setting("pull")):
        with pytest.raises(InvalidJobs, match="is a folder"):
            change()
    assert (file / "inside").is_dir()


def test_a_file_instead_of_the_folder(file: Path) -> None:
    """`$GOAN_CONFIG` that names a file is refused instead of silently holding nothing."""
    file.parent.parent.mkdir()
    file.parent.write_text("pull: true\n")
    with pytest.raises(InvalidJobs, match=r"config\.yaml: cannot be read: Not a directory"):
        read_settings()


def test_a_folder_that_cannot_be_made(file: Path) -> None:
    """Where the settings cannot be written is an error of the environment."""
    file.parent.parent.write_text("in the way")
    with pytest.raises(GoanError, match=r"cannot be (read|written)"):
        write_setting("pull", ["true"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(file: Path) -> None:
    """A folder without the right to write is an error of the environment, and the file stays."""
    written(file, "pull: false\n")
    file.parent.chmod(0o500)
    try:
        with pytest.raises(EnvironmentFault, match="cannot be written"):
            write_setting("pull", ["true"])
    finally:
        file.parent.chmod(0o700)
    assert file.read_text() == "pull: false\n"


def test_a_first_setting(file: Path) -> None:
    """The folder and the file are made when something is set."""
    assert write_setting("pull", ["true"]) == Settings(pull=True)
    assert file.read_text() == "pull: true\n"
    assert read_settings() == Settings(pull=True)


@pytest.mark.parametrize(
    ("texts", "folders"),
    [
        (["/a"], ["/a"]),
        (["/a", "/b", "/a", "/b/"], ["/a", "/b"]),
        (["[/a, ~/b]"], ["/a", "~/b"]),
        (["[/a, /b]", "/c"], ["/a", "/b", "/c"]),
        (["- /a\n- /b\n"], ["/a", "/b"]),
        (["'/a'"], ["/a"]),
        (["~"], ["~"]),
        (["relative/x", "."], ["{here}/relative/x", "{here}"]),
        (["12", "true", "null"], ["{here}/12", "{here}/true", "{here}/null"]),
        (["/a: b", "/c #d", "/e'f", "/*", "/Bücher 本 🎬"], ["/a: b", "/c #d", "/e'f", "/*", "/Bücher 本 🎬"]),
        (["/a\u2028b\x85c\td"], ["/a\u2028b\x85c\td"]),
        (["[]"], []),
    ],
)
def test_folders_as_they_are_typed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], folders: list[str]
) -> None:
    """A list of YAML, or folders as a shell gives them; relative ones become absolute, ~ stays, each stands once."""
    monkeypatch.chdir(tmp_path)
    expected = Settings(models=tuple(folder.format(here=tmp_path) for folder in folders))
    assert write_setting("models", texts) == expected
    assert read_settings() == expected


@pytest.mark.parametrize(
    ("key", "texts", "said"),
    [
        ("model", ["/a"], "model: no such setting (did you mean models?)"),
        ("version", ["1"], "version: no such setting (valid: models, pull)"),
        ("", ["1"], ": no such setting (valid: models, pull)"),
        ("pull", ["yes"], "pull: must be true or false, not 'yes'"),
        ("pull", ["null"], "pull: must be true or false, not null"),
        ("pull", [""], "pull: must be true or false, not null"),
        ("pull", ["[true]"], "pull: must be true or false, not a list"),
        ("pull", ["true", "false"], "pull: takes one value, not 2"),
        ("pull", ["[true"], "pull: '[true': not valid YAML: "),
        ("models", [""], "models[0]: must be more than empty text, not ''"),
        ("models", ["[3]"], "models[0]: must be text (in quotes, if it looks like something else), not 3"),
        ("models", ["[/a"], "models: '[/a': not valid YAML: "),
        ("models", ["~no-such-user/x"], "models[0]: ~no-such-user/x: there is no such home folder"),
        ("models", ["/a\udcff"], "models[0]: must be a valid string"),
    ],
)
def test_wrong_values(file: Path, key: str, texts: list[str], said: str) -> None:
    """An unknown key gets the nearest name, a wrong value what is expected; nothing is written."""
    with pytest.raises(InvalidInput) as caught:
        write_setting(key, texts)
    assert str(caught.value).startswith(said)
    assert not file.parent.exists()


COMMENTED = """\
# Settings of the studio.
version: 1

# Where the disks are.
models:
  - /mnt/a   # the fast one
  - /mnt/b   # the slow one

# Downloads are large.
pull: false  # ask first
# The end.
"""


def test_comments_stay(file: Path) -> None:
    """A change touches the lines of its own key alone."""
    written(file, COMMENTED)
    write_setting("pull", ["true"])
    assert file.read_text() == COMMENTED.replace("pull: false", "pull: true")
    write_setting("models", ["/mnt/c"])
    assert file.read_text() == COMMENTED.replace("pull: false", "pull: true").replace(
        "  - /mnt/a   # the fast one\n  - /mnt/b   #", "- /mnt/c   #"
    )
    unset_setting("models")
    assert file.read_text() == COMMENTED.replace("pull: false", "pull: true").replace(
        "models:\n  - /mnt/a   # the fast one\n  - /mnt/b   # the slow one\n", ""
    )
    unset_setting("pull")
    assert "# ask first" not in file.read_text()
    assert file.read_text().endswith("# Downloads are large.\n# The end.\n")
    assert read_settings() == Settings()


@pytest.mark.parametrize(
    "content",
    [
        "models: [/x]\n",
        "models: [/x]",
        "models:\n- /x\n",
        "models:\n- /x",
        "models:\n  - >-\n    /x\n\n# more\n",
        "models: []\n",
        "models:\n  [\n    /x,\n    /y\n  ]\n",
        '"models": ["/x"]\n',
        "models: &all [/x]\n",
        "? models\n: [/x]\n",
        "models: [/x]\r\n# more\r\n",
        "models: [/x]\n...\n",
        "# only this\n",
        "version: 1",
    ],
)
@pytest.mark.parametrize(
    "before", ["", "# first\n\n", "pull: true\n", "--- # first\npull: true\n", "\ufeffpull: true\n"]
)
def test_layouts(file: Path, before: str, content: str) -> None:
    """However a file is laid out, a key is set and unset in it, and the other keys hold what they held."""
    written(file, before + content)
    pull = read_settings().pull
    assert pull == ("pull" in before)
    write_setting("models", ["/a: b", "~/c"])
    assert read_settings() == Settings(models=("/a: b", "~/c"), pull=pull)
    unset_setting("models")
    assert read_settings() == Settings(pull=pull)
    write_setting("models", ["/d"])
    assert read_settings() == Settings(models=("/d",), pull=pull)


@pytest.mark.parametrize(
    "content",
    [
        "{models: [/x], pull: true}\n",
        "{pull: true, models: [/x]}",
        "<<: {models: [/x], pull: true}\n",
        "<<: &base {pull: true}\nmodels: [/x]\n",
    ],
)
def test_unusual_layouts(file: Path, content: str) -> None:
    """Files in one line and with merges are changed, too, by being written anew where it must be."""
    written(file, content)
    write_setting("models", ["/y"])
    assert read_settings() == Settings(models=("/y",), pull=True)
    unset_setting("pull")
    assert read_settings() == Settings(models=("/y",))
    unset_setting("models")
    assert read_settings() == Settings()


def test_mending(file: Path) -> None:
    """A key that is wrong can be set right, and wrong or unknown ones taken out; the rest stays as it is."""
    written(file, "models: 3\npul: true\npull: x\n")
    with pytest.raises(InvalidJobs, match="pul: unknown key"):
        write_setting("models", ["/a"])
    unset_setting("pul")
    assert file.read_text() == "models: 3\npull: x\n"
    unset_setting("pull")
    write_setting("models", ["/a"])
    assert read_settings() == Settings(models=("/a",))


def test_unset_what_is_not_set(file: Path) -> None:
    """A key that is not there is no error, an unknown one is; neither makes a file."""
    unset_setting("pull")
    with pytest.raises(InvalidInput, match=r"pul: no such setting \(did you mean pull\?\)"):
        unset_setting("pul")
    assert not file.parent.exists()


def test_a_link(file: Path, tmp_path: Path) -> None:
    """A link to the file stays a link: the file that it points to is changed."""
    kept = written(tmp_path / "dotfiles" / "goan.yaml", "pull: false\n")
    file.parent.mkdir(parents=True)
    file.symlink_to(kept)
    write_setting("pull", ["true"])
    assert file.is_symlink()
    assert kept.read_text() == "pull: true\n"


def test_where_the_settings_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$GOAN_CONFIG` is before `$XDG_CONFIG_HOME`, and that before ~/.config."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("GOAN_CONFIG", "~/own")
    assert config_folder() == tmp_path / "home" / "own"
    monkeypatch.delenv("GOAN_CONFIG")
    assert config_folder() == tmp_path / "xdg" / "goan"
    written(tmp_path / "xdg" / "goan" / "config.yaml", "pull: true\n")
    assert read_settings().pull


@pytest.mark.usefixtures("homeless")
def test_without_a_home() -> None:
    """A user without a home folder has the defaults and no packs, and is told so where something is to be written."""
    assert read_settings() == Settings()
    assert read_settings_file().file is None
    assert own_packs() == {}
    for change in (lambda: write_setting("pull", ["true"]), lambda: unset_setting("pull")):
        with pytest.raises(EnvironmentFault, match=r"no home folder.*set GOAN_CONFIG"):
            change()


def test_a_folder_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """`$GOAN_CONFIG` in a home folder that there is not is an error, not silence."""
    monkeypatch.setenv("GOAN_CONFIG", "~no-such-user/x")
    with pytest.raises(EnvironmentFault, match="no such home folder"):
        read_settings()
