"""`goan decode`: what it writes, under which name, and what it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from goan_cli.batch.job import render_job
from goan_cli.jobs.job import Job
from goan_cli.output.video import read_video
from goan_cli.render.engine import Engine
from tests.cli.conftest import Goan, content_of
from tests.helpers import tiny_plan


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished render with its latents."""
    folder = tmp_path_factory.mktemp("render")
    plan = tiny_plan(folder, "shot", size=[48, 32], steps=1)
    render_job(Engine(device="cpu", cache=folder / "cache"), plan)
    return plan.job


@pytest.fixture
def latents(job: Job, tmp_path: Path) -> Path:
    """The render's latents in a folder of their own."""
    copy = tmp_path / job.latents.name
    copy.write_bytes(job.latents.read_bytes())
    return copy


def test_decode(goan: Goan, job: Job, latents: Path) -> None:
    """Without options the render's own video is made, beside the latents under a name of its own."""
    run = goan("decode", latents, "--device", "cpu")
    assert (run.code, run.err) == (0, "")
    assert f"wrote {latents.with_name('shot-decoded.mp4')}" in run.out
    assert "9 frames of 48x32, 0.30 s" in run.out
    assert latents.with_name("shot-decoded.mp4").read_bytes() == job.video.read_bytes()


def test_options(goan: Goan, latents: Path, tmp_path: Path) -> None:
    """Every option has its say: the kind of file by its name, quality, rate, interpolation, decode."""
    out = tmp_path / "new" / "a.webm"
    options = ["--crf", "40", "--fps", "15", "--interpolate", "30", "--decode", "single", "--tile", "auto"]
    run = goan("decode", latents, "--out", out, *options, "--device", "cpu")
    assert (run.code, run.err) == (0, "")
    assert "18 frames of 48x32, 0.60 s" in run.out
    assert read_video(out).shape == (18, 32, 48, 3)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_never_overwrites(goan: Goan, latents: Path, tmp_path: Path, place: str) -> None:
    """What is there stays, unless it is a file and --replace is given."""
    out = tmp_path / "a.mp4"
    if place == "file":
        out.write_bytes(b"precious")
    else:
        out.mkdir()
    before = content_of(tmp_path)
    run = goan("decode", latents, "--out", out, "--device", "cpu")
    assert run.code == 2
    assert f"{out}: is " in run.err
    assert content_of(tmp_path) == before
    code = goan("decode", latents, "--out", out, "--replace", "--device", "cpu").code
    assert code == (0 if place == "file" else 2)
    assert (content_of(tmp_path) == before) == (place == "folder")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tile", "big"], "--tile big: auto, or WIDTHxHEIGHT"),
        (["--tile", "8x8"], "at least 128 pixels"),
        (["--crf", "60"], "--crf 60: h264 takes 1 to 51"),
        (["--crf", "20", "--format", "gif"], "--crf: gif has none"),
        (["--codec", "vp9"], "--codec vp9: mp4 has h264, hevc, av1"),
        (["--out", "a.avi"], "no video is named *.avi"),
        (["--out", "a.mp4", "--format", "webm"], "a webm file is named *.webm"),
        (["--format", "gif", "--fps", "60"], "a gif shows at most 50 frames a second"),
        (["--window", "5"], "sections of 5"),
        (["--interpolate", "20"], "30 frames a second already"),
        (["--model", "nowhere"], "nowhere"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_refusals(
    goan: Goan, latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    """What cannot be is one error, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = content_of(tmp_path)
    run = goan("decode", latents, *options)
    assert run.code in (2, 3)
    assert words in run.err
    assert run.err.count("error: ") == 1
    assert content_of(tmp_path) == before


def test_old_latents(goan: Goan, job: Job, tmp_path: Path) -> None:
    """Latents of an earlier goan ask for the two options that they need, and are decoded with them."""
    path = tmp_path / "old.latents.safetensors"
    save_file(load_file(job.latents), path)
    run = goan("decode", path, "--device", "cpu")
    assert run.code == 2
    assert "give --model and --window" in run.err
    run = goan("decode", path, "--model", "tiny", "--window", "2", "--device", "cpu")
    assert (run.code, run.err) == (0, "")
    assert np.array_equal(read_video(tmp_path / "old-decoded.mp4"), read_video(job.video))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"latents": np.zeros((1, 4, 3, 4, 6), np.float32)}, "not 1x4x3x4x6 in F32"),
        ({"latents": np.full((1, 16, 3, 4, 6), np.nan, np.float32)}, "no finite numbers"),
        ({"weights": np.zeros((2, 2), np.float32)}, "not kept latents of goan"),
    ],
    ids=["channels", "nan", "others"],
)
def test_files_that_are_none(goan: Goan, tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    """A wrong file is one clear error."""
    save_file(tensors, tmp_path / "a.safetensors")
    run = goan("decode", tmp_path / "a.safetensors")
    assert run.code == 2
    assert words in run.err
