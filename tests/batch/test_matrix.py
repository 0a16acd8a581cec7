"""A matrix's contact sheet and table: every variant's own frames and figures, in their places."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import goan_cli.batch.matrix as matrix_module
from goan_cli.batch.outcome import End, Outcome
from goan_cli.batch.run import render_jobs
from goan_cli.batch.stop import Stop
from goan_cli.batch.survey import RunSettings, finished_already
from goan_cli.errors import InvalidInput
from goan_cli.jobs.job import Variant
from goan_cli.output.matrix import Cell, write_matrix_sheet
from goan_cli.output.video import read_video
from goan_cli.render.events import StepFinished
from tests.conftest import MINIMAL, plan_files, write_jobs, write_lora

QUICK = {**MINIMAL, "steps": 1, "size": [64, 64], "window": 1}
SEEDS = {**QUICK, "name": "m", "matrix": {"seed": [1, 2, 3]}}
BOTH = {**QUICK, "name": "m", "loras": ["style.safetensors"], "matrix": {"seed": [1, 2], "loras.0.weight": [0, 4]}}


def _render(folder: Path, job: dict[str, Any], **settings: Any) -> list[Outcome]:
    plans = plan_files(write_jobs(folder / "jobs.yaml", job))
    return render_jobs(plans, RunSettings(device="cpu", **settings))


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "renders" / "m.matrix.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table(folder: Path) -> None:
    """The table has a row for each variant, with its values, how it ended, and the hash of its frames."""
    outcomes = _render(folder, BOTH)
    rows = _rows(folder)
    assert [(row["name"], row["seed"], row["weight"], row["end"]) for row in rows] == [
        ("m-seed=1-weight=0", "1", "0", "done"),
        ("m-seed=1-weight=4", "1", "4", "done"),
        ("m-seed=2-weight=0", "2", "0", "done"),
        ("m-seed=2-weight=4", "2", "4", "done"),
    ]
    assert [row["video"] for row in rows] == [outcome.plan.job.video.name for outcome in outcomes]
    assert len({row["frames_sha256"] for row in rows}) == 4


def test_sheet_has_each_variants_frames(folder: Path) -> None:
    """In row and column of a variant stand its first, middle and last frame, as its video has them."""
    outcomes = _render(folder, BOTH)
    sheet = np.asarray(Image.open(folder / "renders" / "m.matrix.png").convert("RGB"))
    left, top, thumb, across, down = 28 * 6, 28, 180, 3 * 180 + 6, 180 + 14 + 6
    assert sheet.shape == (top + 2 * down, left + 2 * across, 3)
    for number, outcome in enumerate(outcomes):
        y, x = top + number // 2 * down, left + number % 2 * across
        frames = read_video(outcome.plan.job.video)
        for place, frame in enumerate((frames[0], frames[(len(frames) - 1) // 2], frames[-1])):
            shown = sheet[y : y + thumb, x + place * thumb : x + (place + 1) * thumb]
            enlarged = np.asarray(Image.fromarray(frame).resize((thumb, thumb), Image.Resampling.NEAREST))
            assert np.array_equal(shown, enlarged)


def test_one_axis_goes_down(folder: Path) -> None:
    """A matrix of one axis has a row for each value, and labels beside them that are not blank."""
    _render(folder, SEEDS)
    sheet = np.asarray(Image.open(folder / "renders" / "m.matrix.png").convert("L"))
    down = 180 + 14 + 6
    assert sheet.shape == (28 + 3 * down, 28 * 6 + 3 * 180 + 6)
    labels = [sheet[28 + row * down :, : 28 * 6][:14] for row in range(3)]
    assert all((label < 128).any() for label in labels)
    assert not np.array_equal(labels[0], labels[1])


def test_a_variant_that_failed(folder: Path) -> None:
    """A variant that failed is blank on the sheet and says why in the table; the others are there."""
    write_lora(folder / "zero.safetensors", up=0.0)
    job = {**QUICK, "name": "m", "matrix": {"loras": [["zero.safetensors"], ["style.safetensors"]]}}
    outcomes = _render(folder, job)
    assert [outcome.end for outcome in outcomes] == [End.FAILED, End.DONE]
    failed, done = _rows(folder)
    assert (failed["end"], failed["frames_sha256"], failed["video"]) == ("failed", "", "")
    assert "changes no weight at all" in failed["reason"]
    assert (done["end"], done["reason"]) == ("done", "")
    sheet = np.asarray(Image.open(folder / "renders" / "m.matrix.png").convert("RGB"))
    frames = sheet[:, 28 * 6 : 28 * 6 + 3 * 180]
    assert (frames[28 : 28 + 180] == 255).all()
    assert not (frames[228 : 228 + 180] == 255).all()


def test_nothing_before_the_last_variant(folder: Path) -> None:
    """While variants are missing there is no sheet; the run that makes the last one writes it."""
    plans = plan_files(write_jobs(folder / "jobs.yaml", SEEDS))
    stop = Stop()

    def listen(event: object) -> None:
        if isinstance(event, Outcome) and event.end is End.DONE:
            stop.ask("a test")

    outcomes = render_jobs(plans, RunSettings(device="cpu", stop=stop), listener=listen)
    assert [outcome.end for outcome in outcomes] == [End.DONE, End.STOPPED, End.STOPPED]
    assert not list((folder / "renders").glob("*.matrix.*"))
    outcomes = render_jobs(plans, RunSettings(device="cpu"))
    assert [outcome.end for outcome in outcomes] == [End.UP_TO_DATE, End.DONE, End.DONE]
    assert len(_rows(folder)) == 3
    assert (folder / "renders" / "m.matrix.png").is_file()


def test_a_rerun_leaves_the_sheet_alone(folder: Path) -> None:
    """Where all is up to date the sheet stays as it is, and one that is gone is made again without rendering."""
    _render(folder, SEEDS)
    sheet = folder / "renders" / "m.matrix.png"
    before = sheet.read_bytes()
    sheet.write_bytes(b"touched")
    plans = plan_files(folder / "jobs.yaml")
    heard: list[object] = []
    assert finished_already(plans, RunSettings(device="cpu"), heard.append) is not None
    assert sheet.read_bytes() == b"touched"
    sheet.unlink()
    assert finished_already(plans, RunSettings(device="cpu"), heard.append) is not None
    assert sheet.read_bytes() == before
    assert not any(isinstance(event, StepFinished) for event in heard)


def test_an_added_value_completes_the_sheet(folder: Path) -> None:
    """Another value renders its own variants only, and the sheet shows them all."""
    _render(folder, SEEDS)
    outcomes = _render(folder, {**SEEDS, "matrix": {"seed": [1, 2, 3, 4]}})
    assert [outcome.end for outcome in outcomes] == [*[End.UP_TO_DATE] * 3, End.DONE]
    assert [row["seed"] for row in _rows(folder)] == ["1", "2", "3", "4"]


def test_two_matrices_of_one_name(folder: Path) -> None:
    """Two matrices that would write the same sheet are a problem before anything runs."""
    other = {**QUICK, "name": "m", "matrix": {"steps": [1, 2]}}
    path = write_jobs(folder / "jobs.yaml", {"jobs": [SEEDS, other]})
    with pytest.raises(Exception, match=r"two matrices would write .*m\.matrix\.png"):
        plan_files(path)


def test_a_sheet_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever befalls the sheet is noted, and the jobs after it are rendered all the same."""

    def failing(*_: object) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(matrix_module, "write_matrix_sheet", failing)
    heard: list[Any] = []
    plans = plan_files(write_jobs(folder / "jobs.yaml", {"jobs": [SEEDS, {**QUICK, "name": "last"}]}))
    outcomes = render_jobs(plans, RunSettings(device="cpu"), listener=heard.append)
    assert {outcome.end for outcome in outcomes} == {End.DONE}
    assert any("the matrix has no sheet: too large" in getattr(event, "text", "") for event in heard)


def test_another_recipes_sheet_stays(folder: Path) -> None:
    """With another prompt the variants are numbered, and so is the sheet; the earlier one stays."""
    _render(folder, SEEDS)
    before = {path.name: path.read_bytes() for path in (folder / "renders").glob("*.matrix.*")}
    _render(folder, {**SEEDS, "prompt": "a cube"})
    after = {path.name: path.read_bytes() for path in (folder / "renders").glob("*.matrix.*")}
    assert sorted(after) == ["m-2.matrix.csv", "m-2.matrix.png", "m.matrix.csv", "m.matrix.png"]
    assert {name: after[name] for name in before} == before
    assert b"m-seed=1-2," in after["m-2.matrix.csv"]


def test_a_foreign_sheet_stays(folder: Path) -> None:
    """A file of somebody else in the sheet's place is not written over."""
    (folder / "renders").mkdir()
    (folder / "renders" / "m.matrix.png").write_bytes(b"holidays")
    _render(folder, SEEDS)
    assert (folder / "renders" / "m.matrix.png").read_bytes() == b"holidays"
    assert (folder / "renders" / "m-2.matrix.png").is_file()


def test_a_removed_value_leaves_the_sheet(folder: Path) -> None:
    """Without one of its values the matrix is shown without it, though nothing is rendered."""
    _render(folder, SEEDS)
    _render(folder, {**SEEDS, "matrix": {"seed": [1, 3]}})
    assert [row["seed"] for row in _rows(folder)] == ["1", "3"]
    height = Image.open(folder / "renders" / "m.matrix.png").height
    assert height == 28 + 2 * (180 + 14 + 6)


def test_some_variants_alone(folder: Path) -> None:
    """Where only some variants are asked for, the sheet of all of them stays as it is."""
    _render(folder, SEEDS)
    before = (folder / "renders" / "m.matrix.png").read_bytes()
    plans = plan_files(folder / "jobs.yaml")
    render_jobs(plans[:1], RunSettings(device="cpu", force=True))
    assert (folder / "renders" / "m.matrix.png").read_bytes() == before
    assert len(_rows(folder)) == 3


def test_a_sheet_of_too_many_rows(tmp_path: Path) -> None:
    """More rows than a picture can have are refused, and not drawn."""
    variant = Variant(matrix="m", axes=(("seed", tuple(map(str, range(1000)))),), place=(0,))
    with pytest.raises(InvalidInput, match="too many for one picture"):
        write_matrix_sheet(tmp_path / "m.png", [Cell(variant=variant, frames=(), caption="")])
