"""`goan render` left alone: signals, deadlines, two runs at once, full disks, and files that go away while it works."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from goan_cli.render.checkpoint import CheckpointRecord, read_record
from tests.conftest import write_jobs
from tests.helpers import TINY_QKV_MLP, TINY_SQUARE, factors, write_lora
from tests.processes import Event, GoanProcess, matching, wait_for_orphans

# Long enough that a signal sent after a step comes in the middle of the section.
STEPS = 60
LONG = {"sections": 2, "steps": STEPS}
SHORT = {"sections": 4, "steps": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"step_cache": {"kind": "teacache", "threshold": 0.1}},
    "guided": {"true_cfg_scale": 2.0, "negative_prompt": "dark", "step_cache": {"kind": "teacache", "threshold": 0.1}},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start image and two LoRAs."""
    folder = tmp_path_factory.mktemp("inputs")
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(folder / "start.png")
    write_lora(folder / "a.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE, seed=1))
    write_lora(folder / "b.safetensors", factors("lora_unet_single_blocks_2_linear1", TINY_QKV_MLP, seed=2))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of runs that share a cache of embeddings."""
    return {"GOAN_CACHE": str(tmp_path_factory.mktemp("cache"))}


def write(folder: Path, inputs: Path, jobs: Sequence[Mapping[str, Any]], **settings: Any) -> Path:
    """A folder with copies of the inputs and `jobs.yaml`."""
    shutil.copytree(inputs, folder, dirs_exist_ok=True)
    defaults = {
        "image": "start.png",
        "prompt": "a red ball moves to the left",
        "size": [32, 32],
        "sections": 1,
        "steps": 2,
        "window": 2,
        "seed": 7,
        "output": {"dir": "out", "keep_latents": True, "metadata": False},
        **settings,
    }
    write_jobs(folder / "jobs.yaml", {"defaults": defaults, "jobs": list(jobs)})
    return folder


def videos(out: Path) -> dict[str, bytes]:
    """The videos and latents in a folder."""
    return {path.name: path.read_bytes() for path in out.glob("[!.]*") if path.suffix != ".json"}


def names(out: Path) -> list[str]:
    """All that is in a folder, hidden or not."""
    return sorted(str(path.relative_to(out)) for path in out.rglob("*"))


def ends(events: Sequence[Event]) -> dict[str, str]:
    """How each job ended, by name."""
    results = matching(events, event="result")
    assert len(results) == len({event["job"] for event in results})
    return {event["job"]: event["end"] for event in results}


def complete(*jobs: str) -> list[str]:
    """The names of a folder in which these jobs, and nothing else, are complete."""
    return sorted(f"{name}{suffix}" for name in jobs for suffix in (".json", ".latents.safetensors", ".mp4"))


def checkpoint_of(out: Path, name: str) -> CheckpointRecord:
    """The record of a job's only checkpoint."""
    (file,) = (out / ".goan").glob(f"{name}.*.safetensors")
    return read_record(file)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, inputs: Path, cache: dict[str, str]) -> dict[str, bytes]:
    """Videos and latents of jobs that are rendered in one go."""
    jobs = [{"name": name, **LONG, **settings} for name, settings in SETTINGS.items()]
    folder = write(tmp_path_factory.mktemp("uninterrupted"), inputs, [*jobs, {"name": "short", **SHORT}])
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    files = videos(folder / "out")
    assert len(set(files.values())) == 2 * len(SETTINGS) + 2
    return files


def expected_of(name: str, uninterrupted: dict[str, bytes]) -> dict[str, bytes]:
    """The files of one of the jobs."""
    return {file: content for file, content in uninterrupted.items() if file.startswith(f"{name}.")}


def stop_in_mid_section(goan: GoanProcess, number: signal.Signals, section: int) -> None:
    """Wait until a section is sampled, and send a signal before it ends."""
    goan.wait_for(lambda: any(event["section"] >= section for event in matching(goan.events, event="step")))
    goan.send(number)
    assert goan.wait() == 75, goan.said
    assert "Traceback" not in goan.said


# Signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number", "section", "real"),
    [
        ("plain", signal.SIGINT, 1, True),
        ("plain", signal.SIGTERM, 2, True),
        ("cached", signal.SIGTERM, 1, False),
        ("guided", signal.SIGINT, 2, False),
    ],
)
def test_signal_in_mid_section(
    tmp_path: Path,
    inputs: Path,
    cache: dict[str, str],
    uninterrupted: dict[str, bytes],
    name: str,
    number: signal.Signals,
    section: int,
    *,
    real: bool,
) -> None:
    """A signal ends the run with 75 after the step, and the next run goes on at the step after, to the same bits."""
    folder = write(tmp_path, inputs, [{"name": name, **SETTINGS[name]}], **LONG)
    out = folder / "out"
    with GoanProcess(folder, "jobs.yaml", env=cache, real=real) as goan:
        stop_in_mid_section(goan, number, section)
    record = checkpoint_of(out, name)
    assert record.sections == section - 1
    assert record.section_state is not None
    done = record.section_state["done"]
    assert 0 < done < STEPS
    assert [path.name for path in out.iterdir()] == [".goan"]
    assert ends(goan.events) == {name: "stopped"}
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    first = matching(goan.events, event="step")[0]
    assert (first["section"], first["step"]) == (section, done + 1)
    assert videos(out) == expected_of(name, uninterrupted)
    assert names(out) == complete(name)


def test_stopped_again_and_again(
    tmp_path: Path, inputs: Path, cache: dict[str, str], uninterrupted: dict[str, bytes]
) -> None:
    """A job that is stopped in every run, after a few steps each, goes on every time, to the same bits."""
    folder = write(tmp_path, inputs, [{"name": "guided", **SETTINGS["guided"]}], **LONG)
    place = 0
    for _ in range(3):
        with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
            stop_in_mid_section(goan, signal.SIGINT, 1)
        steps = matching(goan.events, event="step")
        assert (steps[0]["section"] - 1) * STEPS + steps[0]["step"] == place + 1
        place += len(steps)
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert len(matching(goan.events, event="step")) == 2 * STEPS - place
    assert videos(folder / "out") == expected_of("guided", uninterrupted)


FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg_that(folder: Path, does: str) -> dict[str, str]:
    """An environment in which ffmpeg is a script that knows its version, and else does what it is told."""
    script = folder / "ffmpeg.sh"
    version = f'case "$*" in *-version* | *-encoders*) exec "{FFMPEG}" "$@";; esac'
    script.write_text(f"#!/bin/sh\n{version}\n{does}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"IMAGEIO_FFMPEG_EXE": str(script)}


def test_ctrl_c_while_ffmpeg_ends_its_file(
    tmp_path: Path, inputs: Path, cache: dict[str, str], uninterrupted: dict[str, bytes]
) -> None:
    """Ctrl-C, which a terminal sends to ffmpeg too, fails no job that is being encoded: run again to go on."""
    folder = write(tmp_path, inputs, [{"name": "short", **SHORT}, {"name": "next"}])
    keeping = 'cat > "$0.frames"; touch "$0.fed"; while [ ! -e "$0.go" ]; do sleep 0.01; done'
    env = {**cache, **ffmpeg_that(folder, f'{keeping}; exec "{FFMPEG}" "$@" < "$0.frames"')}
    with GoanProcess(folder, "jobs.yaml", env=env) as goan:
        goan.wait_for((folder / "ffmpeg.sh.fed").exists)
        goan.send_group(signal.SIGINT)
        goan.wait_for(lambda: "once more" in goan.said)
        (folder / "ffmpeg.sh.go").touch()
        assert goan.wait() == 75, goan.said
    assert ends(goan.events)["short"] in {"stopped", "done"}
    assert ends(goan.events)["next"] == "stopped"
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert matching(goan.events, event="step", job="short") == []
    assert expected_of("short", videos(folder / "out")) == expected_of("short", uninterrupted)
    assert names(folder / "out") == complete("short", "next")


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.15])
def test_ctrl_c_while_it_decodes(
    tmp_path: Path, inputs: Path, cache: dict[str, str], uninterrupted: dict[str, bytes], delay: float
) -> None:
    """Whenever in the decode Ctrl-C comes, the job is complete, or complete after the next run."""
    folder = write(tmp_path, inputs, [{"name": "short", **SHORT}, {"name": "next"}])
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        goan.wait_for_event(event="stage", stage="decode", phase="started")
        goan.wait_briefly(delay)
        goan.send_group(signal.SIGINT)
        assert goan.wait() == 75, goan.said
    assert ends(goan.events)["short"] in {"stopped", "done"}
    assert "Traceback" not in goan.said
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert matching(goan.events, event="step", job="short") == []
    assert expected_of("short", videos(folder / "out")) == expected_of("short", uninterrupted)
    assert names(folder / "out") == complete("short", "next")


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_second_signal(
    tmp_path: Path, inputs: Path, cache: dict[str, str], numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    """A second signal ends a run at once, also where it waits for an ffmpeg; the next one goes on."""
    folder = write(tmp_path, inputs, [{"name": "short", **SHORT}])
    hangs = 'touch "$0.hangs"; while kill -0 $PPID; do sleep 0.01; done'
    env = {**cache, **ffmpeg_that(folder, hangs)}
    with GoanProcess(folder, "jobs.yaml", env=env) as goan:
        goan.wait_for((folder / "ffmpeg.sh.hangs").exists)
        goan.send(numbers[0])
        goan.wait_for(lambda: "once more" in goan.said)
        goan.send(numbers[1])
        assert goan.wait() == 75, goan.said
    assert "Traceback" not in goan.said
    wait_for_orphans(folder)
    assert checkpoint_of(folder / "out", "short").complete
    assert [path.name for path in (folder / "out").iterdir()] == [".goan"]
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert matching(goan.events, event="step") == []
    assert names(folder / "out") == complete("short")


def suspend(goan: GoanProcess) -> None:
    """Stop a process where it is, until `resume`."""
    goan.send(signal.SIGSTOP)
    goan.wait_for(lambda: Path(f"/proc/{goan.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")


def resume(goan: GoanProcess) -> None:
    """Let a suspended process go on."""
    goan.send(signal.SIGCONT)


def test_deadline(tmp_path: Path, inputs: Path, cache: dict[str, str], uninterrupted: dict[str, bytes]) -> None:
    """A run whose deadline comes in mid-section ends with 75 after the step, and goes on to the same bits."""
    folder = write(tmp_path, inputs, [{"name": "plain", **LONG}, {"name": "next"}])
    over = time.monotonic() + 4
    with GoanProcess(folder, "jobs.yaml", "--deadline", "4s", env=cache) as goan:
        goan.wait_for_event(event="step")
        suspend(goan)
        goan.wait_briefly(over + 1 - time.monotonic())
        resume(goan)
        assert goan.wait() == 75, goan.said
    assert ends(goan.events) == {"plain": "stopped", "next": "stopped"}
    state = checkpoint_of(folder / "out", "plain").section_state
    assert state is not None
    assert 0 < state["done"] < STEPS
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert len(matching(goan.events, event="step", job="plain")) == 2 * STEPS - state["done"]
    assert expected_of("plain", videos(folder / "out")) == expected_of("plain", uninterrupted)


# Two runs -----------------------------------------------------------------------------------------------------


def held_up(folder: Path, env: dict[str, str], *arguments: str) -> GoanProcess:
    """A run that is suspended in the sampling of its first job."""
    goan = GoanProcess(folder, "jobs.yaml", *arguments, log="held.jsonl", env=env)
    goan.wait_for_event(event="step")
    suspend(goan)
    return goan


def done_by(*runs: GoanProcess) -> dict[str, int]:
    """How often each job was done by some runs."""
    done = [event["job"] for run in runs for event in matching(run.events, event="result", end="done")]
    return {name: done.count(name) for name in done}


def test_second_run(tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """A run leaves a job that another has to it and ends with 75; the other finds the rest up to date."""
    folder = write(tmp_path, inputs, [{"name": "first", **LONG}, {"name": "second"}, {"name": "third"}])
    with held_up(folder, cache) as other:
        with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
            assert goan.wait() == 75, goan.said
        assert ends(goan.events) == {"first": "busy", "second": "done", "third": "done"}
        resume(other)
        assert other.wait() == 0, other.said
    assert ends(other.events) == {"first": "done", "second": "up to date", "third": "up to date"}
    assert names(folder / "out") == complete("first", "second", "third")


def test_waiting_for_another_run(tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """With --wait both runs end with 0, and each job is rendered by one of them."""
    folder = write(tmp_path, inputs, [{"name": "first", **LONG}, {"name": "second"}, {"name": "third"}])
    with held_up(folder, cache, "--wait") as other, GoanProcess(folder, "jobs.yaml", "--wait", env=cache) as goan:
        goan.wait_for_event(event="job", job="first")
        resume(other)
        assert [other.wait(), goan.wait()] == [0, 0], other.said + goan.said
    assert done_by(other, goan) == {"first": 1, "second": 1, "third": 1}
    assert names(folder / "out") == complete("first", "second", "third")


def test_signal_to_a_run_that_waits(tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """A run that waits for another's job ends with 75 when it is told to, and the other does not notice."""
    folder = write(tmp_path, inputs, [{"name": "first", **LONG}])
    with held_up(folder, cache) as other:
        with GoanProcess(folder, "jobs.yaml", "--wait", env=cache) as goan:
            goan.wait_for_event(event="job", job="first")
            goan.send(signal.SIGTERM)
            assert goan.wait() == 75, goan.said
        assert ends(goan.events) == {"first": "stopped"}
        resume(other)
        assert other.wait() == 0, other.said
    assert names(folder / "out") == complete("first")


@pytest.mark.parametrize("wait", [True, False])
def test_many_runs_at_once(tmp_path: Path, inputs: Path, cache: dict[str, str], *, wait: bool) -> None:
    """Runs that begin together render each job once between them."""
    jobs = ["a", "b", "c", "d"]
    folder = write(tmp_path, inputs, [{"name": name} for name in jobs])
    words = ["--wait"] if wait else []
    runs = [GoanProcess(folder, "jobs.yaml", *words, log=f"{number}.jsonl", env=cache) for number in range(4)]
    codes = [run.wait() for run in runs]
    assert set(codes) <= ({0} if wait else {0, 75}), [run.said for run in runs]
    with GoanProcess(folder, "jobs.yaml", env=cache) as last:
        assert last.wait() == 0, last.said
    assert done_by(*runs, last) == dict.fromkeys(jobs, 1)
    assert done_by(last) == {}
    assert names(folder / "out") == complete(*jobs)


def test_stale_lock(tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """The lock of a run that was killed holds up nobody."""
    folder = write(tmp_path, inputs, [{"name": "job", **LONG}])
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        goan.wait_for_event(event="step")
        goan.send(signal.SIGKILL)
        assert goan.wait() == -signal.SIGKILL
    assert (folder / "out" / ".goan" / "job.lock").exists()
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert ends(goan.events) == {"job": "done"}
    assert names(folder / "out") == complete("job")


# Disks --------------------------------------------------------------------------------------------------------


def noisy(inputs: Path, size: int) -> dict[str, Any]:
    """Settings of a job whose video is far larger than its latents."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(inputs / f"noise-{size}.png")
    output = {"dir": "out", "keep_latents": True, "crf": 1, "metadata": False}
    return {"size": [size, size], "image": f"noise-{size}.png", "output": output}


def error_of(goan_events: Sequence[Event], job: str) -> str:
    """The message of the one error of a job."""
    (error,) = matching(goan_events, event="error", job=job)
    assert error["kind"] in {"EnvironmentFault", "RenderFailed", "InvalidInput", "LoraRefused"}
    return str(error["message"])


def test_largest_file(tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """A job whose checkpoint is beyond a quota fails with the reason, keeps the one before, and stops no other."""
    jobs: list[dict[str, Any]] = [
        {"name": "before"},
        {"name": "large", "size": [64, 64], "sections": 3},
        {"name": "after"},
    ]
    folder = write(tmp_path, inputs, jobs)
    with GoanProcess(folder, "jobs.yaml", env=cache, largest_file=24 << 10) as goan:
        assert goan.wait() == 1, goan.said
    assert ends(goan.events) == {"before": "done", "large": "failed", "after": "done"}
    assert "File too large" in error_of(goan.events, "large")
    assert "Traceback" not in goan.said
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == [".goan", *complete("after", "before")]
    assert checkpoint_of(out, "large").sections == 2
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert [event["section"] for event in matching(goan.events, event="section")] == [3]
    assert names(out) == complete("before", "large", "after")


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory, inputs: Path, cache: dict[str, str]) -> Path:
    """A folder after two runs: one onto a full and a read-only disk, one after room was made on both.

    The disks are there for these runs alone; `first-out`, `second-out` and `second-locked` are copies of them.
    """
    jobs: list[dict[str, Any]] = [
        {"name": "before"},
        {"name": "large", "size": [128, 128], "sections": 3},
        {"name": "locked", "output": {"dir": "locked", "keep_latents": True}},
        {"name": "noisy", **noisy(inputs, 128)},
        {"name": "after"},
    ]
    folder = write(tmp_path_factory.mktemp("small-disk"), inputs, jobs)
    run = f"{sys.executable} -m goan_cli render jobs.yaml --device cpu --log-json"
    script = f"""
        mkdir out locked
        mount -t tmpfs -o size=192k none out && mount -t tmpfs -o size=4m,ro none locked || exit 99
        {run} first.jsonl > first.txt 2>&1; echo $? > first.code
        cp -a out first-out
        mount -o remount,size=4m out && mount -o remount,rw locked || exit 99
        {run} second.jsonl --jobs noisy --jobs locked > second.txt 2>&1; echo $? > second.code
        cp -a out second-out && cp -a locked second-locked
    """
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to mount a small disk with")
    ran = subprocess.run(
        ["unshare", *own, "--mount", "sh", "-c", textwrap.dedent(script)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if not (folder / "first.code").exists():
        pytest.skip(f"no disk can be mounted here: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return folder


def logged(log: Path) -> list[Event]:
    """The events of a log."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_full_disk(small_disk: Path) -> None:
    """Jobs for which there is no room fail with the reason and leave no half file; what fits is rendered."""
    events = logged(small_disk / "first.jsonl")
    assert (small_disk / "first.code").read_text() == "1\n"
    assert "Traceback" not in (small_disk / "first.txt").read_text()
    failed = dict.fromkeys(("large", "locked", "noisy"), "failed")
    assert ends(events) == {"before": "done", **failed, "after": "done"}
    for job in ("large", "noisy"):
        assert "No space left on device" in error_of(events, job)
    out = small_disk / "first-out"
    assert sorted(path.name for path in out.iterdir()) == [".goan", *complete("after", "before")]
    left = {path.name.split(".")[0] for path in (out / ".goan").iterdir()}
    assert left == {"large", "noisy"}
    assert checkpoint_of(out, "large").sections == 2


def test_read_only_disk(small_disk: Path) -> None:
    """A job whose folder cannot be written to fails before it is sampled, naming the folder."""
    events = logged(small_disk / "first.jsonl")
    assert f"{small_disk / 'locked'}: cannot be written to" in error_of(events, "locked")
    assert matching(events, event="step", job="locked") == []


def test_once_there_is_room(small_disk: Path, tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """What failed for want of room or rights is complete after the next run, which samples nothing again."""
    events = logged(small_disk / "second.jsonl")
    assert (small_disk / "second.code").read_text() == "0\n"
    assert ends(events) == {"noisy": "done", "locked": "done"}
    assert matching(events, event="step", job="noisy") == []
    assert names(small_disk / "second-locked") == complete("locked")
    assert set(complete("before", "noisy", "after")) <= set(names(small_disk / "second-out"))


def test_folder_that_cannot_be_made(tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """A job whose folder cannot be made fails with its name and stops no other."""
    jobs: list[dict[str, Any]] = [
        {"name": "before"},
        {"name": "nowhere", "output": {"dir": "/proc/goan/out"}},
        {"name": "after"},
    ]
    folder = write(tmp_path, inputs, jobs)
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 1, goan.said
    assert ends(goan.events) == {"before": "done", "nowhere": "failed", "after": "done"}
    assert "/proc/goan/out" in error_of(goan.events, "nowhere")
    assert names(folder / "out") == complete("before", "after")


# Files that go away -------------------------------------------------------------------------------------------


def test_inputs_that_change_while_it_works(tmp_path: Path, inputs: Path, cache: dict[str, str]) -> None:
    """Jobs whose image or LoRA is gone or broken when their turn comes fail, and are complete once it is back."""
    broken = ("no-lora", "cut-lora", "no-safetensors")
    spoilt = ("no-image", *broken)
    originals = shutil.copytree(inputs, tmp_path / "originals")
    shutil.copy(originals / "start.png", originals / "no-image.png")
    for seed, name in enumerate(broken, start=10):
        weights = factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE, seed=seed)
        write_lora(originals / f"{name}.safetensors", weights)
    jobs: list[dict[str, Any]] = [
        {"name": "first", "loras": ["a.safetensors"], **LONG},
        {"name": "no-image", "image": "no-image.png", "loras": ["a.safetensors"]},
        *({"name": name, "loras": [f"{name}.safetensors"]} for name in broken),
        {"name": "last", "loras": ["b.safetensors"]},
    ]
    folder = write(tmp_path / "work", originals, jobs)
    with held_up(folder, cache) as goan:
        (folder / "no-image.png").unlink()
        (folder / "no-lora.safetensors").unlink()
        os.truncate(folder / "cut-lora.safetensors", 500)
        (folder / "no-safetensors.safetensors").write_text("<html>not found</html>")
        resume(goan)
        assert goan.wait() == 1, goan.said
    assert "Traceback" not in goan.said
    assert ends(goan.events) == {"first": "done", **dict.fromkeys(spoilt, "failed"), "last": "done"}
    assert "no-image.png: cannot be read any more" in error_of(goan.events, "no-image")
    assert "no-lora.safetensors: cannot be read any more" in error_of(goan.events, "no-lora")
    assert [event for event in matching(goan.events, event="step") if event["job"] in spoilt] == []
    assert [path for path in names(folder / "out") if not path.startswith(".goan")] == complete("first", "last")
    shutil.copytree(originals, folder, dirs_exist_ok=True)
    with GoanProcess(folder, "jobs.yaml", env=cache) as goan:
        assert goan.wait() == 0, goan.said
    assert ends(goan.events) == {"first": "up to date", **dict.fromkeys(spoilt, "done"), "last": "up to date"}
    assert names(folder / "out") == complete("first", "last", *spoilt)
