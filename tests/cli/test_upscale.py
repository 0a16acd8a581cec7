"""`post: {upscale: FILE}` from the command line, with spandrel itself: what it does to pixels, and when it refuses."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from goan_cli.files import sha256_of
from goan_cli.output.sidecar import read_sidecar
from goan_cli.output.video import read_video
from tests.cli.conftest import Goan, content_of
from tests.conftest import MINIMAL, write_jobs
from tests.upscalers import doubling_file, enlarged, negative, negative_file

# Two steps, and no recipes in the files, so that the same pixels are the same bytes.
COMMON = {**MINIMAL, "steps": 2, "size": [48, 32], "window": 2, "seed": 7}
EXACT = {"format": "png", "metadata": False}
FINE = {"crf": 1, "metadata": False}


def write_variants(path: Path, **variants: dict[str, Any]) -> Path:
    """A file of jobs that differ in what their names are given with."""
    return write_jobs(path, {"defaults": COMMON, "jobs": [{"name": name, **keys} for name, keys in variants.items()]})


@pytest.mark.usefixtures("real_spandrel")
def test_render_and_decode(folder: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain render's frames come out as the model makes them, to the level; kept latents make the same again.

    They are not decoded to something else where the library is not there any more.
    """
    model, other = doubling_file(folder / "x2.safetensors"), negative_file(folder / "negative.safetensors")
    upscale = {"post": {"upscale": model.name}}
    jobs = write_variants(
        folder / "jobs.yaml",
        plain={"output": EXACT},
        large={"output": EXACT, **upscale},
        other={"output": EXACT, "post": {"upscale": other.name}},
        video={"output": {**FINE, "keep_latents": True}, **upscale},
    )
    run = goan("render", jobs, "--device", "cpu")
    assert (run.code, run.err) == (0, "")
    renders = folder / "renders"
    plain = read_video(renders / "plain.frames")
    assert plain.shape == (9, 32, 48, 3)
    assert plain.std() > 5  # there is something to see
    assert np.array_equal(read_video(renders / "large.frames"), enlarged(plain))
    assert np.array_equal(read_video(renders / "other.frames"), negative(plain))
    video = read_video(renders / "video.mp4")
    assert video.shape == (9, 64, 96, 3)
    assert np.abs(video.astype(int) - enlarged(plain)).mean() < 3

    before, after = (read_sidecar(renders / f"{name}.json") for name in ("plain", "large"))
    assert after["post"] == {"upscale": {"path": str(model), "sha256": sha256_of(model), "scale": 2}}
    assert (after["video"]["width"], after["video"]["height"]) == (96, 64)
    assert after["settings"]["post"] == {"upscale": str(model)}
    assert after["latents_sha256"] == before["latents_sha256"]
    assert after["frames_sha256"] == before["frames_sha256"]  # of what was rendered

    again = goan("decode", renders / "video.latents.safetensors", "--device", "cpu")
    assert (again.code, again.err) == (0, "")
    assert "9 frames of 96x64" in again.out
    assert (renders / "video-decoded.mp4").read_bytes() == (renders / "video.mp4").read_bytes()
    left = content_of(renders)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    refused = goan("decode", renders / "video.latents.safetensors", "--out", "small.mp4", "--device", "cpu")
    assert refused.code == 3
    assert "pip install 'goan-cli[post]'" in refused.err
    assert content_of(renders) == left
    assert not (folder / "small.mp4").exists()


@pytest.mark.usefixtures("no_torchvision")
def test_what_spandrel_needs_is_missing(folder: Path, goan: Goan, embedding_cache: Path) -> None:
    """Before a prompt is encoded the whole run is refused as the environment's fault, with the command that helps."""
    doubling_file(folder / "x2.safetensors")
    jobs = write_variants(folder / "jobs.yaml", plain={}, large={"post": {"upscale": "x2.safetensors"}})
    before = content_of(folder)
    run = goan("render", jobs, "--device", "cpu")
    assert run.code == 3
    assert "upscaling needs the library spandrel" in run.err
    assert "torchvision" in run.err
    assert "pip install 'goan-cli[post]'" in run.err
    assert content_of(folder) == before
    assert not content_of(embedding_cache)
