"""Renders whose frames are finished before they are encoded: pixels, length, sidecar, and refusals in time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from goan_cli.batch.outcome import End
from goan_cli.batch.post import finishing
from goan_cli.batch.run import render_jobs
from goan_cli.batch.standing import OnExists, State, standing_of
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.jobs.job import Post
from goan_cli.output.sidecar import read_sidecar
from goan_cli.output.video import read_video
from goan_cli.render.plan import RenderPlan
from tests.helpers import tiny_plan
from tests.upscalers import doubling_file, enlarged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings for all these renders."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """The file of a model that makes four of every pixel."""
    return doubling_file(tmp_path / "x2.safetensors")


def plan_with(folder: Path, post: dict[str, Any] | None, name: str = "job", **keys: Any) -> RenderPlan:
    """A small job with this `post`."""
    return tiny_plan(folder, name, **{"size": [48, 32], "sections": 2, "post": post, **keys})


def render(plan: RenderPlan, shared: Path) -> dict[str, Any]:
    """Render one job; returns its sidecar."""
    (outcome,) = render_jobs([plan], RunSettings(device="cpu", cache=shared))
    if outcome.error is not None:
        raise outcome.error
    assert outcome.end is End.DONE
    return read_sidecar(plan.job.sidecar)


def test_interpolated(tmp_path: Path, shared: Path) -> None:
    """At twice the rate there are twice the frames, as long in time, the rendered ones among them; it is recorded."""
    plain = render(plan_with(tmp_path, None, "plain"), shared)
    plan = plan_with(tmp_path, {"interpolate": 60}, output={"dir": str(tmp_path / "out"), "contact_sheet": True})
    smooth = render(plan, shared)
    before, after = read_video(tmp_path / "out" / "plain.mp4"), read_video(plan.job.video)
    assert len(after) == 2 * len(before)
    assert (smooth["video"]["fps"], smooth["video"]["frames"]) == (60.0, len(after))
    assert smooth["video"]["seconds"] == plain["video"]["seconds"]
    assert np.abs(after[::2].astype(int) - before).mean() < 3
    # Digests and quality are of the frames as they were rendered.
    assert smooth["latents_sha256"] == plain["latents_sha256"]
    assert smooth["frames_sha256"] == plain["frames_sha256"]
    assert smooth["quality"] == plain["quality"]
    assert smooth["post"] == {"interpolate": 60.0}
    assert "post" not in plain
    assert smooth["settings"]["post"] == {"interpolate": 60.0}
    assert standing_of(plan, OnExists.NUMBER).state is State.UP_TO_DATE


@pytest.mark.usefixtures("real_spandrel")
def test_upscaled_and_interpolated(tmp_path: Path, shared: Path, doubling: Path) -> None:
    """Frames are enlarged, then interpolated: pixels of the render doubled, at the new rate; both are recorded."""
    render(plan_with(tmp_path, None, "plain", output={"dir": str(tmp_path / "out"), "crf": 1}), shared)
    output = {"dir": str(tmp_path / "out"), "crf": 1}
    plan = plan_with(tmp_path, {"upscale": str(doubling), "interpolate": 60}, output=output)
    content = render(plan, shared)
    before, after = read_video(tmp_path / "out" / "plain.mp4"), read_video(plan.job.video)
    assert after.shape == (2 * len(before), 64, 96, 3)
    assert np.abs(after[::2].astype(int) - enlarged(before)).mean() < 3
    assert (content["video"]["width"], content["video"]["height"]) == (96, 64)
    assert content["post"]["upscale"]["scale"] == 2
    assert content["post"]["upscale"]["path"] == str(doubling)
    assert len(content["post"]["upscale"]["sha256"]) == 64


@pytest.mark.usefixtures("real_spandrel")
def test_a_small_frame_may_be_interpolated_when_enlarged(tmp_path: Path, doubling: Path) -> None:
    """What is too small as it is rendered is judged by what the model makes of it."""
    finish = finishing(Post(upscale=doubling, interpolate=60.0), CPU, size=(16, 16), fps=30.0)
    assert (finish.size, finish.fps) == ((32, 32), 60.0)
    with pytest.raises(InvalidInput, match="16x8 are too small"):
        finishing(Post(upscale=doubling, interpolate=60.0), CPU, size=(8, 4), fps=30.0)


@pytest.mark.usefixtures("no_torchvision")
def test_what_cannot_be_loaded_is_told_before_anything_renders(tmp_path: Path, shared: Path, doubling: Path) -> None:
    """With a spandrel that cannot be imported no job of the run is begun, the ones without it neither."""
    plans = [plan_with(tmp_path, None, "a"), plan_with(tmp_path, {"upscale": str(doubling)}, "b")]
    with pytest.raises(EnvironmentFault, match="spandrel") as caught:
        render_jobs(plans, RunSettings(device="cpu", cache=shared))
    assert "goan-cli[post]" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_nothing_to_finish() -> None:
    """Without a `post` frames pass as they are."""
    finish = finishing(None, CPU, size=(48, 32), fps=30.0)
    chunk = np.zeros((2, 32, 48, 3), np.uint8)
    (passed,) = finish.frames([chunk], fps=30.0)
    assert passed is chunk
    assert (finish.size, finish.fps, finish.record) == ((48, 32), 30.0, None)
