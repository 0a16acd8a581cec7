"""Results of every kind: rendered, known as up to date, told apart from another recipe's, and cleared away."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import goan_cli.output.encoders as encoders_module
from goan_cli.batch.outcome import End, Outcome
from goan_cli.batch.run import render_jobs
from goan_cli.batch.standing import OnExists, State, standing_of
from goan_cli.batch.status import Found, folder_status
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import EnvironmentFault, RenderFailed
from goan_cli.files import sha256_of
from goan_cli.jobs.formats import CODECS, Format
from goan_cli.jobs.job import Gate, Post
from goan_cli.output.pictures import Frame
from goan_cli.output.recipe import embedded_recipe
from goan_cli.output.sidecar import read_sidecar
from goan_cli.output.video import read_video
from goan_cli.render.engine import Engine
from goan_cli.render.plan import RenderPlan
from tests.conftest import MINIMAL, problems_in, write_jobs
from tests.helpers import tiny_plan


def _plan(folder: Path, name: str = "job", sections: int = 1, **output: Any) -> RenderPlan:
    keys: dict[str, Any] = {"size": [32, 32], "sections": sections, "steps": 1, "decode": "single"}
    return tiny_plan(folder, name, output={"dir": str(folder / "out"), "metadata": True, **output}, **keys)


def _render(*plans: RenderPlan, cache: Path, **settings: Any) -> list[Outcome]:
    outcomes = render_jobs(plans, RunSettings(device="cpu", cache=cache, **settings))
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return outcomes


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_format(tmp_path: Path, embedding_cache: Path) -> None:
    """One job in every format shows the same frames; each is up to date afterwards, and its status is told."""
    plans = [_plan(tmp_path, f"as-{container}", format=str(container)) for container in Format]
    _render(*plans, cache=embedding_cache)
    videos = {plan.job.output.format: read_video(plan.job.video) for plan in plans}
    exact = videos[Format.PNG]
    assert exact.shape == (9, 32, 32, 3)
    for container, frames in videos.items():
        assert frames.shape == exact.shape, container
        assert np.abs(frames.astype(int) - exact).mean() < 8, container
    for plan in plans:
        content = read_sidecar(plan.job.sidecar)["video"]
        kind = plan.job.output.format
        assert (content["file"], content["format"]) == (plan.job.video.name, str(kind))
        assert content["codec"] == str(CODECS[kind][0])
        assert standing_of(plan, OnExists.SKIP).state is State.UP_TO_DATE
    assert {status.state for status in folder_status(tmp_path / "out", verify=True)} == {Found.DONE}
    assert {outcome.end for outcome in _render(*plans, cache=embedding_cache)} == {End.UP_TO_DATE}
    assert not list((tmp_path / "out").glob(".goan*"))


def test_everything_that_can_be_kept(tmp_path: Path, embedding_cache: Path) -> None:
    """Poster, sections, previews, latents and sheet are what they say, and their absence is seen."""
    keep = ["latents", "sections", "preview"]
    plan = _plan(tmp_path, sections=2, format="mov", keep=keep, poster=True, contact_sheet=True)
    _render(plan, cache=embedding_cache)
    job = plan.job
    assert sorted(path.name for path in job.results) == _names(tmp_path / "out")
    whole = read_video(job.video)
    parts = [read_video(job.section_video(number)) for number in (2, 1)]  # the inverted model begins at the end
    assert [len(part) for part in parts] == [9, 8]
    assert np.abs(np.concatenate(parts).astype(int) - whole).max() <= 2  # ProRes codes each frame alone
    poster = np.asarray(Image.open(job.poster))
    assert np.abs(poster.astype(int) - whole[0]).mean() < 8
    latents = load_file(job.latents)["latents"]
    assert latents.shape == (1, 16, 5, 4, 4)
    assert Image.open(job.preview(1)).size == (2 * 32, 32)
    recipes = [embedded_recipe(path) for path in (job.video, job.poster, job.contact_sheet, job.section_video(1))]
    assert recipes[0] is not None
    assert recipes == [recipes[0]] * 4
    assert recipes[0]["seed"] == 7
    for path in job.results:
        data = path.read_bytes()
        path.unlink()
        assert standing_of(plan, OnExists.SKIP).state is not State.UP_TO_DATE, path
        path.write_bytes(data)
    assert standing_of(plan, OnExists.SKIP).state is State.UP_TO_DATE


def test_sections_of_an_interpolated_video(tmp_path: Path, embedding_cache: Path) -> None:
    """Sections are stretches of the finished video, at its rate."""
    plan = _plan(tmp_path, sections=2, format="png", keep=["sections"])
    plan = replace(plan, job=replace(plan.job, post=Post(interpolate=60.0)))
    _render(plan, cache=embedding_cache)
    parts = [read_video(plan.job.section_video(number)) for number in (2, 1)]
    assert [len(part) for part in parts] == [18, 16]
    assert np.array_equal(np.concatenate(parts), read_video(plan.job.video))


def test_without_metadata(tmp_path: Path, embedding_cache: Path) -> None:
    """A result without metadata names no path and no prompt, in none of its files but the sidecar."""
    plan = _plan(tmp_path, metadata=False, poster=True, contact_sheet=True, keep="sections")
    _render(plan, cache=embedding_cache)
    for path in plan.job.results:
        content = path.read_bytes()
        if path != plan.job.sidecar:
            assert b"red ball" not in content, path
            assert str(tmp_path).encode() not in content, path
    (tmp_path / "told").mkdir()
    told = _plan(tmp_path / "told", poster=True)
    _render(told, cache=embedding_cache)
    assert b"red ball" in told.job.video.read_bytes()
    assert b"red ball" in told.job.poster.read_bytes()


def test_metadata_alone_renders_again(tmp_path: Path, embedding_cache: Path) -> None:
    """Who wants the recipe out of a file gets another file, and does not wait for what is up to date."""
    _render(_plan(tmp_path), cache=embedding_cache)
    assert standing_of(_plan(tmp_path, metadata=False), OnExists.SKIP).state is State.TAKEN
    assert standing_of(_plan(tmp_path, poster=False, keep=[]), OnExists.SKIP).state is State.UP_TO_DATE


@pytest.mark.parametrize(("first", "second"), [("mp4", "png"), ("png", "webp")])
def test_another_recipe_in_another_format(tmp_path: Path, embedding_cache: Path, first: str, second: str) -> None:
    """A name is one recipe's, whatever the format: another one takes a number, or replaces all of it."""
    _render(_plan(tmp_path, format=first, poster=True, keep=["sections"]), cache=embedding_cache)
    there = _names(tmp_path / "out")
    plan = _plan(tmp_path, format=second)
    plan = replace(plan, job=replace(plan.job, fps=24.0))
    assert standing_of(plan, OnExists.SKIP).state is State.TAKEN
    (outcome,) = _render(plan, cache=embedding_cache)
    assert outcome.plan.job.name == "job-2"
    added = [outcome.plan.job.video.name, outcome.plan.job.sidecar.name]
    assert _names(tmp_path / "out") == sorted([*there, *added])
    (outcome,) = _render(plan, cache=embedding_cache, on_exists=OnExists.REPLACE)
    assert outcome.plan.job.name == "job"
    assert _names(tmp_path / "out") == sorted([plan.job.video.name, "job.json", *added])
    assert standing_of(plan, OnExists.SKIP).state is State.UP_TO_DATE


def test_a_changed_sequence(tmp_path: Path, embedding_cache: Path) -> None:
    """A folder of frames with one missing, changed or added is not what was written."""
    plan = _plan(tmp_path, format="png")
    _render(plan, cache=embedding_cache)
    frames = sorted(plan.job.video.iterdir())
    assert [frame.name for frame in frames[:2]] == ["frame-000000.png", "frame-000001.png"]
    first = frames[0].read_bytes()
    for damage in (frames[0].unlink, lambda: frames[0].write_bytes(frames[1].read_bytes())):
        damage()
        assert "was changed" in standing_of(plan, OnExists.SKIP).reason
        (status,) = folder_status(tmp_path / "out", verify=True)
        assert status.state is Found.DAMAGED
        frames[0].write_bytes(first)
        assert standing_of(plan, OnExists.SKIP).state is State.UP_TO_DATE


def test_a_refused_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedding_cache: Path) -> None:
    """A folder of frames that a gate refuses is put aside as a whole, in place of an earlier one, and nothing else."""

    def still(*_: object, **__: object) -> Iterator[Frame]:
        yield np.zeros((9, 32, 32, 3), np.uint8)

    monkeypatch.setattr(Engine, "frames", still)
    plan = _plan(tmp_path, format="png", keep=["sections"])
    plan = replace(plan, job=replace(plan.job, gates=replace(plan.job.gates, frozen=Gate.FAIL)))
    for _ in range(2):
        (outcome,) = render_jobs([plan], RunSettings(device="cpu", cache=embedding_cache))
        assert outcome.end is End.FAILED
        assert len(list(plan.job.rejected.iterdir())) == 9
        assert _names(tmp_path / "out") == [".goan"]


def test_failing_frames_leave_an_earlier_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedding_cache: Path
) -> None:
    """When the decode fails in the middle, neither a part of a folder of frames nor of a section is left."""
    plan = _plan(tmp_path, format="png", keep=["sections"])
    _render(plan, cache=embedding_cache)
    there = {path: sha256_of(path) for path in plan.job.results}

    def failing(*_: object, **__: object) -> Iterator[Frame]:
        yield np.zeros((3, 32, 32, 3), np.uint8)
        raise RenderFailed("decoding failed")

    monkeypatch.setattr(Engine, "frames", failing)
    (outcome,) = render_jobs([plan], RunSettings(device="cpu", cache=embedding_cache, force=True))
    assert outcome.end is End.FAILED
    assert {path: sha256_of(path) for path in plan.job.results} == there
    assert sorted(_names(tmp_path / "out")) == sorted([".goan", *(path.name for path in there)])


def test_an_encoder_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedding_cache: Path) -> None:
    """A codec that ffmpeg lacks is told before anything is rendered, and not where nothing is to be rendered."""
    plan = _plan(tmp_path, codec="hevc")
    _render(plan, cache=embedding_cache)
    monkeypatch.setattr(encoders_module, "available_encoders", lambda: frozenset({"libx264"}))
    monkeypatch.setattr(Engine, "encode", lambda *_: pytest.fail("it rendered"))
    with pytest.raises(EnvironmentFault, match="cannot write hevc: it has no encoder libx265"):
        _render(_plan(tmp_path, "other", codec="hevc"), cache=embedding_cache)
    assert {outcome.end for outcome in _render(plan, cache=embedding_cache)} == {End.UP_TO_DATE}


def _said(folder: Path, **keys: Any) -> str:
    content = {**MINIMAL, **keys, "output": {"dir": ".", **keys["output"]}}
    return "\n".join(problems_in(write_jobs(folder / "shot.yaml", content)))


def test_what_is_in_the_way(folder: Path) -> None:
    """A poster is not written over the start image, nor frames over a file, nor a video over a folder."""
    (folder / "shot.frames").write_text("a file")
    (folder / "shot.webm").mkdir()
    assert "shot.frames is to be a folder, and is a file already" in _said(folder, output={"format": "png"})
    assert "shot.webm is a folder already" in _said(folder, output={"format": "webm"})
    said = _said(folder, name="start", output={"poster": True})
    assert "start.png would replace a file that a job is made from" in said
