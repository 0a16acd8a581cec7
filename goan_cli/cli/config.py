"""`goan config`: the user's own settings, and what else decides where models are."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from goan_cli.settings import Settings, SettingsFile

config = typer.Typer(
    name="config",
    help="Show and change your settings: where models are, and whether a render may download them.",
    no_args_is_help=True,
)
_KEYS = "Keys: models (folders searched for parts of models), pull (whether a render may download them)."
# The variables that decide where models are and how they are downloaded.
_VARIABLES = (
    "GOAN_MODELS",
    "GOAN_CONFIG",
    "GOAN_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
)
_HIDDEN = ("HF_TOKEN",)
_WIDEST_GAP = 40  # columns


@config.command("show")
def show(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show each setting, its value and where that is from, and the environment variables that matter."""
    from goan_cli.settings import read_settings_file

    found = read_settings_file()
    if as_json:
        import json

        typer.echo(json.dumps(_as_data(found), indent=2, ensure_ascii=False))
    else:
        _show(found)


@config.command("set")
def set_(
    key: Annotated[str, typer.Argument(help=_KEYS)],
    values: Annotated[list[str], typer.Argument(metavar="VALUE...", help="In YAML; of models, folders or a list.")],
) -> None:
    """Set a key, in place of what it was. Relative folders are made absolute, ~ is kept as it is written.

    The rest of the file stays, with its comments, unless all of it is in one line or it has YAML's anchors: then it
    is written anew, without comments.
    """
    from goan_cli.settings import write_setting

    _tell(key, write_setting(key, values))


@config.command("unset")
def unset(key: Annotated[str, typer.Argument(help=_KEYS)]) -> None:
    """Take a key out of the file, so that its default holds again; a key that is wrong there, too."""
    from goan_cli.settings import KEYS, Settings, unset_setting

    unset_setting(key)
    if key in KEYS:
        _tell(key, Settings())
    else:
        typer.echo(f"{key}: gone")


@config.command("path")
def path() -> None:
    """Print where the file of settings is, or would be."""
    from goan_cli.settings import CONFIG, config_folder

    typer.echo(config_folder() / CONFIG)


def _tell(key: str, settings: "Settings") -> None:
    """What holds now, and which folders are not there: a disk may be away, so that is no error."""
    typer.echo(f"{key}: {_text(getattr(settings, key))}")
    if key == "models":
        for folder in settings.models:
            if note := _absence(folder):
                typer.secho(f"note: {folder} {note}; it is searched once it is there", err=True, fg=typer.colors.YELLOW)


def _text(value: object) -> str:
    """As it would stand in YAML, in one line."""
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _absence(folder: str) -> str | None:
    from pathlib import Path

    from goan_cli.files import is_folder

    try:
        return None if is_folder(Path(folder).expanduser()) else "is no folder on this machine now"
    except RuntimeError:
        return "is in a home folder that there is not"


def _show(found: "SettingsFile") -> None:
    from rich.markup import escape

    from goan_cli.cli.terminal import make_console

    console = make_console()
    if found.file is None:
        console.print("this user has no home folder: set GOAN_CONFIG to a folder to keep settings in")
    else:
        console.print(f"{escape(str(found.file))}{'' if found.file.exists() else ' (not there yet)'}")
    rows = [*_settings_rows(found), *_variable_rows()]
    # No table: it would break long paths, which are here to be copied.
    columns = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, origin in rows:
        padding = " " * min(columns[1] - len(value), _WIDEST_GAP)
        console.print(f"[cyan]{key:<{columns[0]}}[/cyan]  {escape(value)}{padding}  [dim]{escape(origin)}[/dim]")


def _settings_rows(found: "SettingsFile") -> list[tuple[str, str, str]]:
    """Key, value and origin; folders of models a row each, in the order in which they are searched."""
    from goan_cli.packs.places import MODELS_VARIABLE, folders_of_environment
    from goan_cli.settings import CONFIG, KEYS

    rows = []
    for key in KEYS:
        value, line = getattr(found.settings, key), found.line(key)
        origin = "default" if line is None else f"{CONFIG}:{line}"
        if key != "models":
            rows.append((key, _text(value), origin))
            continue
        folders = [(folder, MODELS_VARIABLE) for folder in folders_of_environment()]
        folders += [(folder, origin) for folder in value]
        for folder, place in folders or [("none", origin)]:
            note = _absence(folder) if folders else None
            rows.append((key, folder, f"{place}, {note}" if note else place))
    return rows


def _variable_rows() -> list[tuple[str, str, str]]:
    return [(name, value or "not set", "environment") for name, value in _variables().items()]


def _variables() -> dict[str, str | None]:
    """The variables that matter; of what is secret, only that it is there."""
    import os
    import re

    values: dict[str, str | None] = {}
    for name in _VARIABLES:
        value = os.environ.get(name) or None
        if value is not None and name in _HIDDEN:
            value = "set (not shown)"
        # A name and password may stand in front of a server's name.
        values[name] = None if value is None else re.sub(r"//[^/@]*@", "//…@", value)
    return values


def _as_data(found: "SettingsFile") -> dict[str, Any]:
    from goan_cli.settings import KEYS

    return {
        "version": 1,
        "file": None if found.file is None else str(found.file),
        "settings": {
            key: {
                "value": getattr(found.settings, key),
                "origin": "default" if found.line(key) is None else "file",
                "line": found.line(key),
            }
            for key in KEYS
        },
        "environment": _variables(),
    }
