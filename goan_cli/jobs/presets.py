"""Presets: YAML files of job keys, shipped with goan or written by the user."""

from importlib.resources import files
from pathlib import Path

from goan_cli.checking import nearest
from goan_cli.documents import Document, read_document
from goan_cli.errors import InvalidInput
from goan_cli.jobs.paths import is_preset_file


def preset_folder() -> Path:
    """Where the shipped presets lie: in the wheel, or at the top of a source checkout."""
    package = Path(str(files("goan_cli")))
    installed = package / "presets"
    return installed if installed.is_dir() else package.parent / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def read_preset(name: str, base: Path) -> Document:
    """A preset by shipped name, or by path relative to `base`. Raises InvalidInput when there is none."""
    if name in preset_names():
        return read_document(preset_folder() / f"{name}.yaml")
    if is_preset_file(name):
        if not (base / name).exists():
            raise InvalidInput(f"{base / name}: no such file")
        return read_document(base / name)
    raise InvalidInput(f"no preset named {name}", hint=nearest(name, preset_names()))
