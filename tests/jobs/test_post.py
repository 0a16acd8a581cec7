"""`post` in job files: what it comes to, and every problem at its place before anything renders."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from goan_cli.errors import InvalidInput, InvalidJobs
from goan_cli.jobs import post as post_module
from goan_cli.jobs.job import Job, Post
from goan_cli.render.identity import job_identity, latents_identity, refuse_vanished
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs

SIZED = {**MINIMAL, "size": [64, 48]}


def job_with(folder: Path, post: object, **keys: Any) -> Job:
    """The resolved job of a file with this `post`."""
    (plan,) = plan_files(write_jobs(folder / "a.yaml", {**SIZED, **keys, "post": post}))
    return plan.job


@pytest.fixture
def spandrel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has the library."""
    monkeypatch.setattr(post_module, "find_spec", lambda _name: importlib.util.find_spec("json"))


@pytest.fixture
def model(folder: Path) -> Path:
    """A file that could be an upscaling model's, in a folder beside the job."""
    (folder / "models").mkdir()
    save_file({"body.weight": np.zeros((4, 3, 3, 3), np.float32)}, folder / "models" / "x2.safetensors")
    return folder / "models" / "x2.safetensors"


@pytest.mark.parametrize("post", [None, {}, {"interpolate": None}])
def test_nothing_asked_for(folder: Path, post: object) -> None:
    """A `post` that asks for nothing is none."""
    assert job_with(folder, post).post is None


def test_interpolate(folder: Path) -> None:
    """The rate to come to is kept as a number."""
    assert job_with(folder, {"interpolate": 60}).post == Post(interpolate=60.0)


@pytest.mark.usefixtures("spandrel")
def test_upscale(folder: Path, model: Path) -> None:
    """A model's path is relative to the file that names it."""
    assert job_with(folder, {"upscale": "models/x2.safetensors"}).post == Post(upscale=model)


@pytest.mark.parametrize(
    ("post", "keys", "words"),
    [
        ({"interpolate": 24}, {}, "post.interpolate: 24 frames a second, where there are 30 already"),
        ({"interpolate": 30}, {}, "where there are 30 already"),
        ({"interpolate": 500}, {}, "post.interpolate: must be"),
        ({"interpolate": "fast"}, {}, "post.interpolate: must be"),
        ({"interpolate": 60}, {"size": [64, 16]}, "post.interpolate: frames of 64x16 are too small to interpolate"),
        (
            {"interpolate": 60},
            {"output": {"format": "gif"}},
            "a gif shows at most 50 frames a second",
        ),
        ({"interpolate": 60}, {"sections": None, "one_frame": {"target": 1}}, "post: given beside one_frame"),
        ({"interpolat": 60}, {}, "post.interpolat: unknown key (did you mean interpolate?)"),
        (60, {}, "post: must be keys and values"),
    ],
)
def test_problems(folder: Path, post: object, keys: dict[str, Any], words: str) -> None:
    """What cannot be done is told at its key."""
    (problem,) = problems_in(write_jobs(folder / "a.yaml", {**SIZED, **keys, "post": post}))
    assert words in problem


@pytest.mark.usefixtures("spandrel")
@pytest.mark.parametrize("name", ["gone.safetensors", "x2.pth", "text.safetensors"])
def test_models_that_are_none(folder: Path, name: str) -> None:
    """A missing file, a pickle and something else are told at the key; a pickle is never opened."""
    torch.save({"a": torch.zeros(1)}, folder / "x2.pth")
    (folder / "text.safetensors").write_text("not a model")
    (problem,) = problems_in(write_jobs(folder / "a.yaml", {**SIZED, "post": {"upscale": name}}))
    assert f"post.upscale: {folder / name}" in problem
    assert ("never opens pickles" in problem) == (name == "x2.pth")


def test_without_the_extra(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library is missing, the command that gets it is told, as what the machine lacks."""
    monkeypatch.setattr(post_module, "find_spec", lambda _name: None)
    with pytest.raises(InvalidJobs) as caught:
        plan_files(write_jobs(folder / "a.yaml", {**SIZED, "post": {"upscale": str(model)}}))
    (problem,) = caught.value.problems
    assert "spandrel" in problem.message
    assert problem.hint == "pip install 'goan-cli[post]'"
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("spandrel")
def test_layers(folder: Path, model: Path) -> None:
    """Keys of weaker layers stay where a stronger one gives others, and can be taken back."""
    job = {**SIZED, "post": {"upscale": "models/x2.safetensors"}}
    file = write_jobs(folder / "a.yaml", {"defaults": {"post": {"interpolate": 60}}, "jobs": [job]})
    for settings, expected in (
        ((), Post(upscale=model, interpolate=60.0)),
        (("post.interpolate=90",), Post(upscale=model, interpolate=90.0)),
        (("post.upscale=null",), Post(interpolate=60.0)),
        (("post=null",), None),
    ):
        (plan,) = plan_files(file, settings=settings)
        assert plan.job.post == expected


@pytest.mark.usefixtures("spandrel")
def test_identity(folder: Path, model: Path) -> None:
    """What is done to the frames decides the video and not the latents; an equal model elsewhere is the same."""
    plain, fast, large = (
        plan_files(write_jobs(folder / "a.yaml", {**SIZED, "seed": 1, **keys}))[0]
        for keys in ({}, {"post": {"interpolate": 60}}, {"post": {"upscale": str(model)}})
    )
    assert len({latents_identity(plan) for plan in (plain, fast, large)}) == 1
    assert len({job_identity(plan) for plan in (plain, fast, large)}) == 3
    copy = folder / "copy.safetensors"
    copy.write_bytes(model.read_bytes())
    assert job_identity(replace(large, job=replace(large.job, post=Post(upscale=copy)))) == job_identity(large)
    model.unlink()
    with pytest.raises(InvalidInput, match=r"x2\.safetensors: cannot be read any more"):
        refuse_vanished(large)


@pytest.mark.usefixtures("spandrel")
def test_a_result_over_the_model(folder: Path, model: Path) -> None:
    """A result may not replace the model that it is made with."""
    keys = {"name": "x2", "output": {"dir": str(folder), "keep_latents": True}}
    target = model.rename(folder / "x2.latents.safetensors")
    (problem,) = problems_in(write_jobs(folder / "a.yaml", {**SIZED, **keys, "post": {"upscale": str(target)}}))
    assert "would replace a file that a job is made from" in problem
