"""Recipes in results: the job that a file was made from, read back from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from goan_cli.errors import InvalidInput
from goan_cli.jobs.job import Job
from goan_cli.output.pictures import RECIPE_KEY, write_contact_sheet, write_poster
from goan_cli.output.recipe import RECIPE_VERSION, embedded_recipe, recipe_of
from goan_cli.output.sidecar import settings_of
from goan_cli.output.video import write_video
from tests.conftest import plan_files, write_jobs
from tests.output.test_sidecar import RICH, job_of
from tests.output.test_video import SIZE, chunks

FRAME = np.full((48, 64, 3), 90, np.uint8)


def _job(folder: Path, **keys: Any) -> Job:
    return job_of(folder, {**RICH, "prompt": "x = 1; # 'größe' 🙂 \u2028 \\n", **keys})


def test_in_every_place(folder: Path) -> None:
    """A video, a poster and a contact sheet hold the same recipe, as one line of ASCII."""
    job = _job(folder)
    recipe = recipe_of(job, compiled=False)
    assert recipe.isascii()
    assert "\n" not in recipe
    write_video(folder / "a.mp4", chunks(2), size=SIZE, fps=30, recipe=recipe)
    write_poster(folder / "a.png", FRAME, recipe)
    write_contact_sheet(folder / "a.sheet.png", [FRAME], ["0 s"], recipe)
    found = [embedded_recipe(folder / name) for name in ("a.mp4", "a.png", "a.sheet.png")]
    assert found == [json.loads(recipe)["settings"]] * 3


def test_it_makes_the_video_again(folder: Path) -> None:
    """A recipe is a job file's keys, and resolves to a job that makes the same: all but what is kept and where."""
    job = _job(folder, gates={"black": "fail"}, output={"dir": "out", "format": "webm", "keep": "sections"})
    settings = json.loads(recipe_of(job, compiled=True))["settings"]
    (plan,) = plan_files(write_jobs(folder / "again.yaml", settings))
    again = settings_of(plan.job)
    kept = ("output", "gates", "retry_seeds", "compile")
    assert {key: again[key] for key in again if key not in kept} == {
        key: value for key, value in settings_of(job).items() if key not in kept
    }
    assert plan.job.output.coding == job.output.coding
    assert settings["compile"] == "on"
    assert str(folder / "out") not in json.dumps(settings)


def test_a_recipe_is_the_same_wherever_it_is_rendered(folder: Path) -> None:
    """Folders, kept files and gates are no part of it, so that replaying a job makes the same bytes."""
    first = _job(folder, output={"dir": "a", "crf": 20, "poster": True}, gates={"black": "fail"}, retry_seeds=2)
    second = _job(folder, output={"dir": "b", "crf": 20, "keep": ["latents"]}, gates={"black": "off"}, retry_seeds=0)
    assert recipe_of(first, compiled=False) == recipe_of(second, compiled=False)
    assert recipe_of(first, compiled=False) != recipe_of(first, compiled=True)


def _png(path: Path, **chunks_of_text: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in chunks_of_text.items():
        info.add_text(key, text)
    Image.fromarray(FRAME).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    "text",
    [
        *("", "no JSON", "[1]", "{}", "[" * 100_000),
        '{"tool": "goan"}',
        '{"tool": "other", "version": 1, "settings": {}}',
        '{"tool": "goan", "version": 1, "settings": []}',
        '{"tool": "goan", "version": "1", "settings": {}}',
    ],
)
def test_other_texts(tmp_path: Path, text: str) -> None:
    """What is no recipe of goan's is none, whatever else it is."""
    assert embedded_recipe(_png(tmp_path / "a.png", **{RECIPE_KEY: text})) is None


def test_files_without_a_recipe(tmp_path: Path) -> None:
    """Pictures and videos without one, other files, and broken ones hold none."""
    write_video(tmp_path / "a.mp4", chunks(2), size=SIZE, fps=30)
    write_poster(tmp_path / "a.png", FRAME)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    (tmp_path / "text.mp4").write_text("words")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("a.mp4", "a.png", "broken.png", "text.mp4", "empty"):
        assert embedded_recipe(tmp_path / name) is None, name


def test_a_newer_recipe(tmp_path: Path) -> None:
    """A recipe of a newer version is refused by it, not half understood."""
    text = json.dumps({"tool": "goan", "version": RECIPE_VERSION + 1, "settings": {}})
    with pytest.raises(InvalidInput, match=rf"a\.png: a recipe of version {RECIPE_VERSION + 1}, which this goan"):
        embedded_recipe(_png(tmp_path / "a.png", **{RECIPE_KEY: text}))


@pytest.mark.parametrize("name", ["gone.mp4", "."])
def test_nothing_to_read(tmp_path: Path, name: str) -> None:
    """A file that is not there, and a folder, are told by their path."""
    with pytest.raises(InvalidInput, match="cannot be read"):
        embedded_recipe(tmp_path / name)
