"""`goan render`, with the tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch

from tests.cli.conftest import Goan, content_of
from tests.conftest import MINIMAL, write_jobs, write_lora

QUICK = {**MINIMAL, "steps": 1, "size": [32, 16], "window": 1, "seed": 7}


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a CUDA device, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(("device", "code"), [("cuda", 3), ("cuda:9", 3), ("banana", 2), ("cuda:x", 2), ("", 2)])
def test_devices_that_are_not_there(folder: Path, goan: Goan, device: str, code: int) -> None:
    """A missing device is the environment's fault, an unknown word the user's; nothing is written."""
    write_jobs(folder / "shot.yaml", QUICK)
    (folder / "renders").mkdir()
    (folder / "renders" / "shot.mp4").write_bytes(b"an earlier video")
    before = content_of(folder)
    run = goan("render", "shot.yaml", "--device", device)
    assert run.code == code
    (line,) = run.err.splitlines()
    assert line.startswith(f"error: --device {device}: ")
    assert content_of(folder) == before


@pytest.mark.usefixtures("no_cuda")
def test_one_off(folder: Path, goan: Goan) -> None:
    """An image, a prompt, LoRAs with weights and settings render without a file; all are on record."""
    run = goan(
        *("render", "--image", "start.png", "--prompt", "a ball", "--lora", "style.safetensors:0.5", "--seed", "7"),
        *("--set", "steps=1", "--set", "sections=2", "--set", "window=1", "--set", "size=[32, 16]", "--preview"),
        *("--set", "output.keep_latents=true"),
    )
    assert (run.code, run.err) == (0, "")
    names = ["start-7.json", "start-7.latents.safetensors", "start-7.mp4"]
    names += ["start-7.section-1.png", "start-7.section-2.png"]
    assert sorted(path.name for path in (folder / "renders").iterdir()) == names
    sidecar = json.loads((folder / "renders" / "start-7.json").read_text())
    settings = sidecar["settings"]
    (lora,) = settings["loras"]
    assert (lora["path"], lora["weight"]) == (str(folder / "style.safetensors"), 0.5)
    assert (settings["seed"], settings["steps"], settings["sections"], sidecar["seed_drawn"]) == (7, 1, 2, False)
    assert sidecar["bake"]["files"][0]["matched_keys"] == 3
    reader = imageio_ffmpeg.read_frames(str(folder / "renders" / "start-7.mp4"))
    assert next(reader)["size"] == (32, 16)
    assert len(list(reader)) == sidecar["video"]["frames"] == 9
    assert "start-7" in run.out


@pytest.mark.usefixtures("no_cuda")
def test_the_same_job_makes_the_same_video(folder: Path, goan: Goan) -> None:
    """A job rendered twice makes the same bytes, and so does its sidecar's settings as a job."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "loras": ["style.safetensors"]})
    assert goan("render", path).code == 0
    first = (folder / "renders" / "shot.mp4").read_bytes()
    settings = json.loads((folder / "renders" / "shot.json").read_text())["settings"]
    again = write_jobs(folder / "again.yaml", {**settings, "output": {"dir": "again"}})
    assert goan("render", path, again).code == 0
    assert (folder / "renders" / "shot.mp4").read_bytes() == first
    assert (folder / "again" / "again.mp4").read_bytes() == first


@pytest.mark.usefixtures("no_cuda")
def test_brackets_in_a_run(folder: Path, goan: Goan) -> None:
    """Brackets in folders and prompts are shown as they are while a job runs."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "prompt": "a [/b] c", "output": {"dir": "[/x]"}})
    run = goan("render", path)
    assert run.code == 0
    assert str(folder / "[/x]" / "shot.mp4") in run.out


def test_a_job_that_fails_among_others(folder: Path) -> None:
    """A job that fails while it runs stops no other: both are reported, the code is 1, and its old video stays."""
    write_lora(folder / "zero.safetensors", up=0.0)
    content = {
        "defaults": {**QUICK, "output": {"dir": "out"}},
        "jobs": [{"name": "first"}, {"name": "fails", "loras": ["zero.safetensors"]}, {"name": "last"}],
    }
    write_jobs(folder / "shots.yaml", content)
    (folder / "out").mkdir()
    (folder / "out" / "fails.mp4").write_bytes(b"an earlier video")
    (folder / "out" / "fails.json").write_bytes(b"an earlier sidecar")
    run = subprocess.run(
        [sys.executable, "-m", "goan_cli", "render", "shots.yaml", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr + run.stdout
    assert "zero.safetensors: changes no weight at all" in run.stdout
    for name in ("first", "last"):
        assert f"done {folder / 'out' / name}.mp4" in run.stdout
        assert (folder / "out" / f"{name}.json").is_file()
    assert "failed fails: " in run.stdout
    assert (folder / "out" / "fails.mp4").read_bytes() == b"an earlier video"
    assert (folder / "out" / "fails.json").read_bytes() == b"an earlier sidecar"
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(
        f"{name}.{suffix}" for name in ("first", "fails", "last") for suffix in ("mp4", "json")
    )


@pytest.mark.usefixtures("no_cuda")
def test_a_failed_bake_leaves_the_weights_as_they_were(folder: Path, goan: Goan) -> None:
    """The job after one whose LoRA failed makes the same video as without it."""
    write_lora(folder / "zero.safetensors", up=0.0)
    jobs = [{"name": "a"}, {"name": "b", "loras": ["zero.safetensors"]}, {"name": "c"}]
    path = write_jobs(folder / "shots.yaml", {"defaults": QUICK, "jobs": jobs})
    assert goan("render", path).code == 1
    assert (folder / "renders" / "a.mp4").read_bytes() == (folder / "renders" / "c.mp4").read_bytes()


@pytest.mark.usefixtures("no_cuda")
def test_a_file_in_place_of_the_folder(folder: Path, goan: Goan) -> None:
    """Where the output folder cannot be made, nothing is rendered, and the file stays."""
    (folder / "out").write_text("in the way")
    run = goan("render", write_jobs(folder / "shot.yaml", QUICK), "--out", "out")
    assert run.code == 2
    assert f"{folder / 'out'}: is a file, not a folder" in run.err
    assert (folder / "out").read_text() == "in the way"


@pytest.mark.usefixtures("no_cuda")
def test_no_ffmpeg(folder: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an ffmpeg that runs, the render ends before hours of sampling, and not after."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(folder / "gone"))
    run = goan("render", write_jobs(folder / "shot.yaml", QUICK))
    assert run.code != 0
    assert "ffmpeg" in run.out + run.err
    assert "section 1/1" not in run.out


def test_interrupted(folder: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the run with 130, a line, and no traceback."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("goan_cli.batch.run.render_jobs", interrupt)
    run = goan("render", write_jobs(folder / "shot.yaml", QUICK))
    assert run.code == 130
    assert "interrupted" in run.out
