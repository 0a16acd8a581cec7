"""`goan render`, with the tiny model."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    """A job that fails while it runs stops no other: both are reported, and the code is 1."""
    write_lora(folder / "zero.safetensors", up=0.0)
    content = {
        "defaults": {**QUICK, "output": {"dir": "out"}},
        "jobs": [{"name": "first"}, {"name": "fails", "loras": ["zero.safetensors"]}, {"name": "last"}],
    }
    write_jobs(folder / "shots.yaml", content)
    foreign = {"fails.mp4": b"another's video", "fails.json": b"another's sidecar"}
    (folder / "out").mkdir()
    for name, data in foreign.items():
        (folder / "out" / name).write_bytes(data)
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
    # What lies under the job's name is another's, so the job goes by the next one.
    assert "failed fails-2: " in run.stdout
    left = content_of(folder / "out")
    assert {name: left[name] for name in foreign} == foreign
    results = {f"{name}.{suffix}" for name in ("first", "fails", "last") for suffix in ("mp4", "json")}
    assert left.keys() == {*results, ".goan", ".goan/fails-2.failed.json"}


@pytest.mark.usefixtures("no_cuda")
def test_a_failure_among_what_it_would_replace(folder: Path, goan: Goan) -> None:
    """With `--on-exists replace` a job that fails leaves what it would have replaced."""
    write_lora(folder / "zero.safetensors", up=0.0)
    path = write_jobs(folder / "shot.yaml", QUICK)
    assert goan("render", path).code == 0
    before = content_of(folder / "renders")
    run = goan("render", write_jobs(path, {**QUICK, "loras": ["zero.safetensors"]}), "--on-exists", "replace")
    assert run.code == 1
    assert "failed shot: " in run.out
    left = content_of(folder / "renders")
    assert {name: data for name, data in left.items() if not name.startswith(".goan")} == before


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
    """A KeyboardInterrupt, wherever it comes from, ends the run with 75; the signals' handlers from before are back."""

    def interrupt(*_: object, **__: object) -> None:
        assert signal.getsignal(signal.SIGINT) is not before
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("goan_cli.batch.run.render_jobs", interrupt)
    assert goan("render", write_jobs(folder / "shot.yaml", QUICK)).code == 75
    assert signal.getsignal(signal.SIGINT) is before


# What is there already ----------------------------------------------------------------------------------------


def rendered(folder: Path, name: str = "shot") -> tuple[str, int]:
    """The prompt and the seed of what lies under a name, from its sidecar."""
    settings = json.loads((folder / "renders" / f"{name}.json").read_text(encoding="utf-8"))["settings"]
    return settings["prompt"], settings["seed"]


@pytest.mark.usefixtures("no_cuda")
def test_up_to_date(folder: Path, goan: Goan) -> None:
    """What is rendered is not rendered again: the code is 0, nothing changes, and torch is not even imported."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "loras": ["style.safetensors"]})
    assert goan("render", path).code == 0
    before = content_of(folder)
    code = "import sys; from goan_cli.cli.app import main; sys.argv = ['goan', 'render', 'shot.yaml']\n"
    code += "try:\n    main()\nfinally:\n    assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert f"up to date shot: {folder / 'renders' / 'shot.mp4'}" in run.stdout
    assert content_of(folder) == before


@pytest.mark.usefixtures("no_cuda")
def test_force(folder: Path, goan: Goan) -> None:
    """--force renders again what is up to date, to the same video."""
    path = write_jobs(folder / "shot.yaml", QUICK)
    assert goan("render", path).code == 0
    video, sidecar = folder / "renders" / "shot.mp4", folder / "renders" / "shot.json"
    data, first = video.read_bytes(), sidecar.stat().st_mtime_ns
    run = goan("render", path, "--force")
    assert run.code == 0
    assert f"done {video}" in run.out
    assert video.read_bytes() == data
    assert sidecar.stat().st_mtime_ns != first
    assert sorted(content_of(folder / "renders")) == ["shot.json", "shot.mp4"]


@pytest.mark.usefixtures("no_cuda")
def test_on_exists_number(folder: Path, goan: Goan) -> None:
    """Another recipe's result keeps its name; the new one takes the next, and keeps it in later runs."""
    path = write_jobs(folder / "shot.yaml", QUICK)
    assert goan("render", path).code == 0
    before = content_of(folder / "renders")
    write_jobs(path, {**QUICK, "prompt": "a cube"})
    assert goan("render", path).code == 0
    left = content_of(folder / "renders")
    assert left.keys() == {"shot.json", "shot.mp4", "shot-2.json", "shot-2.mp4"}
    assert {name: left[name] for name in before} == before
    assert rendered(folder, "shot-2") == ("a cube", 7)
    again = goan("render", path)
    assert again.code == 0
    assert "up to date shot-2: " in again.out
    assert content_of(folder / "renders") == left


@pytest.mark.usefixtures("no_cuda")
def test_on_exists_replace(folder: Path, goan: Goan) -> None:
    """--on-exists replace puts the new result in the place of another recipe's, with all that the other left."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "output": {"keep_latents": True, "contact_sheet": True}})
    assert goan("render", path).code == 0
    assert len(content_of(folder / "renders")) == 4
    write_jobs(path, {**QUICK, "prompt": "a cube"})
    assert goan("render", path, "--on-exists", "replace").code == 0
    assert sorted(content_of(folder / "renders")) == ["shot.json", "shot.mp4"]
    assert rendered(folder) == ("a cube", 7)


@pytest.mark.usefixtures("no_cuda")
def test_on_exists_skip(folder: Path, goan: Goan) -> None:
    """--on-exists skip leaves another recipe's result, says so, and ends with 0."""
    path = write_jobs(folder / "shot.yaml", QUICK)
    assert goan("render", path).code == 0
    before = content_of(folder / "renders")
    run = goan("render", write_jobs(path, {**QUICK, "prompt": "a cube"}), "--on-exists", "skip")
    assert run.code == 0
    assert "skipped shot: " in run.out
    assert content_of(folder / "renders") == before


# How a run is asked for and told of ---------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("--force",), ("--on-exists", "replace")])
def test_dry_run(folder: Path, goan: Goan, arguments: tuple[str, ...]) -> None:
    """--dry-run shows how each job stands under the same options, and changes nothing."""
    path = write_jobs(folder / "shots.yaml", {"defaults": QUICK, "jobs": [{"name": "a"}, {"name": "b"}]})
    (folder / "renders").mkdir()
    (folder / "renders" / "b.mp4").write_bytes(b"another's video")
    before = content_of(folder)
    run = goan("render", path, "--dry-run", *arguments)
    assert (run.code, run.err) == (0, "")
    assert ("b-2.mp4" in run.out) is ("replace" not in arguments)
    assert ("replaces it" in run.out) is ("replace" in arguments)
    assert content_of(folder) == before


@pytest.mark.usefixtures("no_cuda")
def test_dry_run_of_what_is_rendered(folder: Path, goan: Goan) -> None:
    """--dry-run tells what is up to date from what --force would render again."""
    path = write_jobs(folder / "shot.yaml", QUICK)
    assert goan("render", path).code == 0
    assert "up to date" in goan("render", path, "--dry-run").out
    assert "new, asked for again" in goan("render", path, "--dry-run", "--force").out


@pytest.mark.usefixtures("no_cuda")
def test_quiet(folder: Path, goan: Goan) -> None:
    """--quiet prints nothing of a run that goes well, and only the error of a job that fails."""
    write_lora(folder / "zero.safetensors", up=0.0)
    jobs = [{"name": "a"}, {"name": "b", "loras": ["zero.safetensors"]}]
    path = write_jobs(folder / "shots.yaml", {"defaults": QUICK, "jobs": jobs})
    well = goan("render", path, "--quiet", "--jobs", "a")
    assert (well.code, well.out, well.err) == (0, "", "")
    run = goan("render", path, "--quiet")
    assert (run.code, run.out) == (1, "")
    (line,) = run.err.splitlines()
    assert line.startswith("error: b: ")
    assert "zero.safetensors: changes no weight at all" in line


@pytest.mark.usefixtures("no_cuda")
def test_jobs(folder: Path, goan: Goan) -> None:
    """--jobs renders the jobs of these names alone; a name that is none's ends the run with 2 before it begins."""
    jobs = [{"name": name} for name in ("night-1", "day-1", "night-2", "dusk")]
    path = write_jobs(folder / "shots.yaml", {"defaults": QUICK, "jobs": jobs})
    wrong = goan("render", path, "--jobs", "dusk", "--jobs", "noon*")
    assert wrong.code == 2
    assert "--jobs noon*: no job has such a name" in wrong.err
    assert not (folder / "renders").exists()
    assert goan("render", path, "--jobs", "night-*", "--jobs", "dusk").code == 0
    assert {file.stem for file in (folder / "renders").iterdir()} == {"night-1", "night-2", "dusk"}


def events_in(text: str) -> list[dict[str, Any]]:
    """The events of a log's text."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("no_cuda")
def test_log(folder: Path, goan: Goan) -> None:
    """--log-json appends a run's events to a file, beside what is printed: the run, each job, and all between."""
    path, log = write_jobs(folder / "shot.yaml", QUICK), folder / "log.jsonl"
    first = goan("render", path, "--log-json", log)
    again = goan("render", path, "--log-json", log)
    assert (first.code, again.code) == (0, 0)
    assert "done" in first.out
    events = events_in(log.read_text(encoding="utf-8"))
    runs = list(dict.fromkeys(event["run"] for event in events))
    told = [[event for event in events if event["run"] == run] for run in runs]
    assert [event["event"] for event in told[1]] == ["run", "result", "run"]
    assert told[1][1]["end"] == "up to date"
    kinds = [event["event"] for event in told[0] if event["event"] != "stage"]
    assert kinds == ["run", "job", "step", "section", "checkpoint", "result", "run"]
    stages = [event["stage"] for event in told[0] if event.get("phase") == "finished" and event["event"] == "stage"]
    assert {"load", "encode", "sample", "decode"} <= set(stages)
    assert (told[0][-2]["end"], told[0][-2]["video"]) == ("done", str(folder / "renders" / "shot.mp4"))
    assert (told[0][-1]["ends"], told[0][-1]["exit_code"]) == ({"done": 1}, 0)


@pytest.mark.usefixtures("no_cuda")
def test_log_on_standard_output(folder: Path, goan: Goan) -> None:
    """With --log-json - standard output has events alone, and people read standard error."""
    run = goan("render", write_jobs(folder / "shot.yaml", QUICK), "--log-json", "-")
    assert run.code == 0
    assert events_in(run.out)[-1]["exit_code"] == 0
    assert f"done {folder / 'renders' / 'shot.mp4'}" in run.err


def test_log_of_invalid_jobs(folder: Path, goan: Goan) -> None:
    """Problems for which nothing runs are in the log too, each with its place."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "steps": 0, "sise": 3})
    run = goan("render", path, "--log-json", "-")
    assert run.code == 2
    events = events_in(run.out)
    assert [event["event"] for event in events] == ["error"] * len(run.err.splitlines())
    assert {event["key"] for event in events} == {"steps", "sise"}
    assert {event["file"] for event in events} == {str(path)}


def test_log_that_cannot_be_written(folder: Path, goan: Goan) -> None:
    """A log in a folder that is not there ends the run with 3 before anything is rendered."""
    run = goan("render", write_jobs(folder / "shot.yaml", QUICK), "--log-json", "gone/log.jsonl")
    assert run.code == 3
    assert "--log-json gone/log.jsonl: " in run.err
    assert not (folder / "renders").exists()


@pytest.mark.parametrize("deadline", ["soon", "25:00", "2001-01-01T06:00", ""])
def test_deadlines_that_are_none(folder: Path, goan: Goan, deadline: str) -> None:
    """A deadline that is over, or no time at all, ends the run with 2 before anything is rendered."""
    run = goan("render", write_jobs(folder / "shot.yaml", QUICK), "--deadline", deadline)
    assert run.code == 2
    assert run.err.startswith(f"error: --deadline {deadline}: ")
    assert not (folder / "renders").exists()
