"""Mishaps around a batch: files of others in its folders, damaged records, kills at awkward moments."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

import goan_cli.batch.job as job_module
import goan_cli.batch.standing as standing_module
import goan_cli.render.parts as parts_module
from goan_cli.batch.job import render_job
from goan_cli.batch.outcome import End, Outcome, RunEvent
from goan_cli.batch.run import render_jobs
from goan_cli.batch.schedule import Order
from goan_cli.batch.standing import OnExists, State, standing_of
from goan_cli.batch.status import Found, folder_status
from goan_cli.batch.stop import Stop
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import RenderFailed
from goan_cli.files import known_sha256_of
from goan_cli.output.video import VideoInfo
from goan_cli.render.cache import EmbeddingCache
from goan_cli.render.checkpoint import METADATA_KEY, read_record
from goan_cli.render.engine import Engine
from goan_cli.render.events import Stage, StageFinished, StageStarted, StepFinished
from goan_cli.render.identity import latents_identity
from goan_cli.render.plan import RenderPlan
from goan_cli.render.text import TextEncoders
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"


def _small(folder: Path, name: str = "job", loras: Iterable[tuple[Path, float]] = (), **settings: Any) -> RenderPlan:
    return tiny_plan(folder, name, list(loras), **{"size": [16, 16], "steps": 2, "sections": 2, **settings})


def _run(plans: list[RenderPlan], **settings: Any) -> tuple[list[Outcome], list[RunEvent]]:
    heard: list[RunEvent] = []
    return render_jobs(plans, RunSettings(device="cpu", **settings), listener=heard.append), heard


def _stop_after(plan: RenderPlan, steps: int) -> None:
    stop, count = Stop(), iter(range(1, 100))

    def listen(event: RunEvent) -> None:
        if isinstance(event, StepFinished) and next(count) == steps:
            stop.ask("a test")

    (outcome,) = render_jobs([plan], RunSettings(device="cpu", stop=stop), listener=listen)
    assert outcome.end is End.STOPPED


# Files of others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".env", "a.jpg", "b" * 62 + ".safetensors"])
def test_pruning_leaves_the_files_of_others(tmp_path: Path, name: str) -> None:
    """In a cache folder that holds other things too, they stay, however old and large."""
    other = tmp_path / "project" / name
    other.parent.mkdir()
    other.write_bytes(b"x" * 1000)
    os.utime(other, (1, 1))
    EmbeddingCache(tmp_path).prune(500)
    assert other.exists()


def test_a_video_that_came_while_the_job_was_stopped(tmp_path: Path) -> None:
    """A foreign video that took the name of a half-sampled job stays; the job goes on under another name."""
    plan = _small(tmp_path)
    _stop_after(plan, 1)
    plan.job.video.write_bytes(b"holidays")
    (outcome,), _ = _run([plan])
    assert plan.job.video.read_bytes() == b"holidays"
    assert (outcome.end, outcome.plan.job.name) == (End.DONE, "job-2")


def test_another_recipes_checkpoint_stays(tmp_path: Path) -> None:
    """A job that is done takes its own checkpoints away, and not those of another recipe of its name."""
    begun = _small(tmp_path)
    _stop_after(begun, 3)
    _run([_small(tmp_path, seed=8)])
    assert begun.job.checkpoint(latents_identity(begun)).exists()


@pytest.mark.parametrize("seed", [9, None])
def test_the_checkpoint_of_another_seed(tmp_path: Path, seed: int | None) -> None:
    """A checkpoint of a seed that was asked for is no beginning of a job with another one, or with none."""
    _stop_after(_small(tmp_path, seed=7), 1)
    assert standing_of(_small(tmp_path, seed=seed), OnExists.NUMBER).state is State.NEW


# One job's trouble --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(Order))
def test_a_lora_that_vanished_before_the_run(tmp_path: Path, order: Order) -> None:
    """The job whose LoRA has vanished fails; the others are rendered, in either order."""
    lora = write_lora(tmp_path / "l.safetensors", factors(TO_Q, TINY_SQUARE))
    plans = [_small(tmp_path, "gone", [(lora, 1.0)]), _small(tmp_path, "good")]
    lora.unlink()
    outcomes, _ = _run(plans, order=order)
    assert [outcome.end for outcome in outcomes] == [End.FAILED, End.DONE]
    assert "l.safetensors" in str(outcomes[0].error)


def test_a_spoilt_picture_is_named(tmp_path: Path) -> None:
    """A picture that was spoilt since it was planned fails its job by its name."""
    picture = tmp_path / "p.png"
    picture.write_bytes(_small(tmp_path).job.pictures[0].read_bytes())
    plan = _small(tmp_path, image=str(picture))
    picture.write_bytes(b"x")
    (outcome,), _ = _run([plan])
    assert "p.png" in str(outcome.error)


def test_a_video_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that cannot be read does not end the run."""
    plan, other = _small(tmp_path), _small(tmp_path, "other")
    _run([plan])
    known = known_sha256_of

    def unreadable(path: Path) -> str:
        if path == plan.job.video:
            raise PermissionError(13, "Permission denied", str(path))
        return known(path)

    monkeypatch.setattr(standing_module, "known_sha256_of", unreadable)
    outcomes, _ = _run([plan, other])
    assert outcomes[1].end is End.DONE


@pytest.mark.parametrize(
    "change",
    [
        {"quality": {"finite": True, "black": 0, "black_frames": [], "still_seconds": 0, "seconds": 1, "sections": []}},
        {"quality": 5},
        {"video": "x"},
        {"settings": [1]},
        {"asked_seed": "seven"},
        {"identity": 5},
    ],
)
def test_an_edited_sidecar(tmp_path: Path, change: dict[str, Any]) -> None:
    """Whatever a sidecar was edited to, it is no reason for the run to end."""
    plan, other = _small(tmp_path), _small(tmp_path, "other")
    _run([plan])
    content = json.loads(plan.job.sidecar.read_text())
    plan.job.sidecar.write_text(json.dumps({**content, **change}))
    outcomes, _ = _run([plan, other], on_exists=OnExists.REPLACE)
    assert outcomes[0].end in (End.DONE, End.UP_TO_DATE)
    assert outcomes[1].end is End.DONE


@pytest.mark.parametrize("change", [{"section_state": [1]}, {"section_state": {"done": "x"}}, {"total": 0}])
def test_an_odd_checkpoint(tmp_path: Path, change: dict[str, Any]) -> None:
    """A checkpoint whose record cannot be true is none."""
    plan = _small(tmp_path)
    _stop_after(plan, 1)
    path = plan.job.checkpoint(latents_identity(plan))
    record = {**json.loads(read_record(path).as_text()), **change}
    save_file({"x": torch.zeros(1)}, path, metadata={METADATA_KEY: json.dumps(record)})
    assert standing_of(plan, OnExists.NUMBER).state is State.NEW


def test_a_cache_entry_of_something_else(tmp_path: Path) -> None:
    """A file with other tensors in the place of an entry is encoded anew."""
    cache = tmp_path / "cache"
    _run([_small(tmp_path, "a")], cache=cache)
    for file in cache.glob("*/*.safetensors"):
        save_file({"x": torch.zeros(1)}, file)
    (outcome,), _ = _run([_small(tmp_path, "b", seed=3)], cache=cache)
    assert outcome.end is End.DONE


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where embeddings cannot be kept, the text encoders are loaded once all the same, and not let go between."""
    loads: list[None] = []
    encoders = TextEncoders

    def counted(**options: Any) -> object:
        loads.append(None)
        return encoders(**options)

    monkeypatch.setattr(parts_module, "TextEncoders", counted)
    (tmp_path / "cache").write_text("")
    (outcome,), _ = _run([_small(tmp_path)], cache=tmp_path / "cache")
    assert outcome.end is End.DONE
    assert len(loads) == 1


# Awkward moments ----------------------------------------------------------------------------------------------


def test_killed_before_the_sidecar_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while a result is replaced leaves no sidecar that is up to date beside another recipe's latents."""
    first = _small(tmp_path)
    _run([first])
    before = first.job.latents.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job_module, "clear_earlier", killed)
        with pytest.raises(KeyboardInterrupt):
            _run([_small(tmp_path, seed=8)], on_exists=OnExists.REPLACE)
    assert first.job.latents.read_bytes() == before
    assert standing_of(first, OnExists.SKIP).state is State.UP_TO_DATE


def test_killed_before_the_tidying_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a finished job could not take away any more goes when the next run finds it up to date."""
    plan = _small(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(job_module, "remove_state", lambda *_: None)
        _run([plan])
    assert plan.job.checkpoint(latents_identity(plan)).exists()
    (outcome,), _ = _run([plan])
    assert outcome.end is End.UP_TO_DATE
    assert not plan.job.state_dir.exists()
    assert [job.state for job in folder_status(plan.job.output.dir)] == [Found.DONE]


def test_a_failure_that_is_over(tmp_path: Path) -> None:
    """A job that failed for a vanished picture, and is up to date now that it is back, is not failed any more."""
    picture = tmp_path / "p.png"
    picture.write_bytes(_small(tmp_path).job.pictures[0].read_bytes())
    plan = _small(tmp_path, image=str(picture))
    _run([plan])
    content = picture.read_bytes()
    picture.unlink()
    assert _run([plan])[0][0].end is End.FAILED
    picture.write_bytes(content)
    assert _run([plan])[0][0].end is End.UP_TO_DATE
    assert [job.state for job in folder_status(plan.job.output.dir)] == [Found.DONE]


def test_the_folder_of_locks_comes_and_goes(tmp_path: Path) -> None:
    """Runs that take turns on a lock, each removing the empty folder after it, never fail for want of it."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from goan_cli.batch.lock import held\n"
        "from goan_cli.batch.stop import Stop\n"
        "for _ in range(100):\n"
        "    with held(Path(sys.argv[1]), wait=True, stop=Stop()) as ours:\n"
        "        assert ours\n"
    )
    lock = tmp_path / "out" / ".goan" / "job.lock"
    runs = [subprocess.Popen([sys.executable, "-c", code, lock], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate()[1] for process in runs]
    assert [process.returncode for process in runs] == [0, 0, 0], said
    assert not lock.parent.exists()


# What is told -------------------------------------------------------------------------------------------------


def test_time_before_a_resume_counts(tmp_path: Path) -> None:
    """Seconds that were spent on a job before it goes on are added to those of its checkpoint."""
    plan = _small(tmp_path)
    _stop_after(plan, 1)
    render_job(Engine(device="cpu"), plan, spent={Stage.ENCODE: 1000.0})
    assert json.loads(plan.job.sidecar.read_text())["timings"]["encode"] > 1000
    assert not plan.job.state_dir.exists()


def test_a_failed_decode_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage that starts is told to be over, also when the video could not be written."""

    def failing(_: Path, chunks: Iterable[NDArray[np.uint8]], **__: Any) -> VideoInfo:
        next(iter(chunks))
        raise RenderFailed("no")

    monkeypatch.setattr(job_module, "write_video", failing)
    _, heard = _run([_small(tmp_path)])
    started = [event.stage for event in heard if isinstance(event, StageStarted)]
    assert started == [event.stage for event in heard if isinstance(event, StageFinished)]
    assert Stage.DECODE in started


def test_rescale_without_true_cfg(tmp_path: Path) -> None:
    """A rescale that nothing looks at makes no other recipe."""
    assert latents_identity(_small(tmp_path)) == latents_identity(_small(tmp_path, guidance_rescale=0.5))


def test_a_job_called_like_another_ones_rejects(tmp_path: Path) -> None:
    """A job called a.rejected keeps its video whatever becomes of the job a."""
    plans = [_small(tmp_path, "a.rejected"), _small(tmp_path, "a", seed=8)]
    for _ in range(2):
        outcomes, _ = _run(plans)
    assert [outcome.end for outcome in outcomes] == [End.UP_TO_DATE] * 2
    assert all(plan.job.video.is_file() for plan in plans)


@pytest.mark.parametrize("ending", ["latents.safetensors", "sheet.png"])
def test_foreign_files_beside_the_video(tmp_path: Path, ending: str) -> None:
    """A foreign file in the place of what the job keeps besides is not written over, and neither is a broken link."""
    plan = _small(tmp_path, output={"dir": str(tmp_path / "out"), "keep_latents": True, "contact_sheet": True})
    plan.job.output.dir.mkdir()
    foreign = plan.job.output.dir / f"job.{ending}"
    foreign.write_bytes(b"holidays")
    (outcome,), _ = _run([plan])
    assert (outcome.end, outcome.plan.job.name) == (End.DONE, "job-2")
    assert foreign.read_bytes() == b"holidays"


def test_gates_that_would_have_taken_another_seed(tmp_path: Path) -> None:
    """A result of a later seed is not that of a job whose gates would have taken the first."""
    guarded = _small(tmp_path, retry_seeds=2, gates={"black": "fail"})
    _run([guarded])
    content = json.loads(guarded.job.sidecar.read_text())
    content["rejected_seeds"] = [{"seed": 7, "reason": "a test"}]
    guarded.job.sidecar.write_text(json.dumps(content))
    assert standing_of(guarded, OnExists.SKIP).state is State.UP_TO_DATE
    assert standing_of(_small(tmp_path, retry_seeds=2), OnExists.SKIP).state is State.TAKEN
    assert standing_of(_small(tmp_path, gates={"black": "fail"}), OnExists.SKIP).state is State.TAKEN


def test_status_after_another_recipe(tmp_path: Path) -> None:
    """A job that was done after another recipe of its name was begun is done, not partial."""
    _stop_after(_small(tmp_path), 3)
    plan = _small(tmp_path, seed=8)
    _run([plan])
    assert [job.state for job in folder_status(plan.job.output.dir)] == [Found.DONE]
