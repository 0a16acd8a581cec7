"""Presets, shipped and the user's own."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from goan_cli.errors import InvalidInput
from goan_cli.jobs.presets import preset_folder, preset_names, read_preset
from goan_cli.jobs.schema import JobSpec


def test_shipped_names() -> None:
    """draft, balanced and quality are shipped."""
    assert preset_names() == ["balanced", "draft", "quality"]


@pytest.mark.parametrize("name", preset_names())
def test_shipped_presets_are_valid(name: str, tmp_path: Path) -> None:
    """Every shipped preset holds valid job keys, and sets at least one."""
    document = read_preset(name, tmp_path)
    try:
        spec = JobSpec.model_validate(document.data)
    except ValidationError as error:  # pragma: no cover - only for a broken preset
        pytest.fail(str(error))
    assert spec.model_fields_set
    assert document.file == preset_folder() / f"{name}.yaml"


def test_a_users_preset(tmp_path: Path) -> None:
    """A name that ends in .yaml or .yml is a file, relative to the folder of whoever names it."""
    (tmp_path / "mine.yml").write_text("steps: 3\n")
    assert read_preset("mine.yml", tmp_path).data == {"steps": 3}
    assert read_preset(str(tmp_path / "mine.yml"), Path("/")).data == {"steps": 3}


@pytest.mark.parametrize(("name", "hint"), [("darft", "did you mean draft?"), ("xyz", "balanced, draft, quality")])
def test_unknown_name(name: str, hint: str, tmp_path: Path) -> None:
    """An unknown name is refused with the nearest name, or with all of them."""
    with pytest.raises(InvalidInput, match=f"no preset named {name}") as caught:
        read_preset(name, tmp_path)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    """A preset file that is not there is said to be missing."""
    with pytest.raises(InvalidInput, match=r"mine\.yaml: no such file"):
        read_preset("mine.yaml", tmp_path)
