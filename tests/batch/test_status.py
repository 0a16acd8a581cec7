"""What `goan status` finds in a folder: jobs in every state, and nothing that is not goan's."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from goan_cli.batch.outcome import End
from goan_cli.batch.run import render_jobs
from goan_cli.batch.schedule import Order
from goan_cli.batch.status import Found, folder_status
from goan_cli.batch.stop import Stop
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import InvalidInput
from goan_cli.render.events import StepFinished
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished job, one that was stopped in its second section of three, and one that failed."""
    folder = tmp_path_factory.mktemp("status")
    zero = factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE)
    zero["lora_unet_transformer_blocks_0_attn_to_q.lora_up.weight"].zero_()
    lora = write_lora(folder / "zero.safetensors", zero)
    done, failed = tiny_plan(folder, "done"), tiny_plan(folder, "failed", [(lora, 1.0)])
    partial = tiny_plan(folder, "partial", sections=3, steps=4)
    stop = Stop()

    def listen(event: object) -> None:
        if isinstance(event, StepFinished) and (event.section, event.step, event.steps) == (2, 2, 4):
            stop.ask("a test")

    outcomes = render_jobs(
        [done, failed, partial], RunSettings(device="cpu", order=Order.FILE, stop=stop), listener=listen
    )
    assert [outcome.end for outcome in outcomes] == [End.DONE, End.FAILED, End.STOPPED]
    return folder / "out"


def test_states_of_a_folder(rendered: Path) -> None:
    """Done, failed with the reason, and partial with the share of its steps; other JSON is passed over."""
    (rendered / "foreign.json").write_text("{}")
    (rendered / "broken.json").write_text("{")
    found = {job.name: job for job in folder_status(rendered)}
    assert list(found) == ["done", "failed", "partial"]
    assert [job.state for job in found.values()] == [Found.DONE, Found.FAILED, Found.PARTIAL]
    assert found["done"].detail == "9 frames, 0.30 s"
    assert "changes no weight at all" in found["failed"].detail
    assert found["partial"].share == pytest.approx(1.5 / 3)
    assert found["partial"].detail == "1 of 3 sections are sampled, and 2 of 4 steps"


def test_a_job_at_work(rendered: Path) -> None:
    """While another process holds a job's lock, the job is running."""
    lock = rendered / ".goan" / "partial.lock"
    holder = (
        "import sys\nfrom filelock import FileLock\nwith FileLock(sys.argv[1]):\n print('held', flush=True)\n input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        states = {job.name: job.state for job in folder_status(rendered)}
        process.kill()
    assert states == {"done": Found.DONE, "failed": Found.FAILED, "partial": Found.RUNNING}
    assert {job.name: job.state for job in folder_status(rendered)}["partial"] is Found.PARTIAL
    lock.unlink(missing_ok=True)


def test_videos_that_are_gone_or_changed(tmp_path: Path) -> None:
    """A video that is gone shows at once; one that was changed shows when its hash is asked for."""
    plan = tiny_plan(tmp_path, "job")
    render_jobs([plan], RunSettings(device="cpu"))
    folder = plan.job.output.dir
    assert [job.state for job in folder_status(folder, verify=True)] == [Found.DONE]
    plan.job.video.write_bytes(b"another")
    assert [job.state for job in folder_status(folder)] == [Found.DONE]
    (changed,) = folder_status(folder, verify=True)
    assert (changed.state, changed.detail) == (Found.DAMAGED, "job.mp4 is not what was written")
    plan.job.video.unlink()
    (gone,) = folder_status(folder)
    assert (gone.state, gone.detail) == (Found.DAMAGED, "job.mp4 is gone")


def test_an_earlier_result_is_told(tmp_path: Path) -> None:
    """A job that failed after it once was done says that the earlier result is there."""
    plan = tiny_plan(tmp_path, "job")
    render_jobs([plan], RunSettings(device="cpu"))
    broken = replace(plan, job=replace(plan.job, image=tmp_path / "gone.png"))
    (outcome,) = render_jobs([broken], RunSettings(device="cpu"))
    assert outcome.end is End.FAILED
    (job,) = folder_status(plan.job.output.dir)
    assert job.state is Found.FAILED
    assert job.detail.endswith("with an earlier result")
    assert json.loads(plan.job.failure.read_text())["name"] == "job"


def test_no_folder(tmp_path: Path) -> None:
    """A folder that is not there is the user's error; an empty one has no jobs."""
    with pytest.raises(InvalidInput, match="no such folder"):
        folder_status(tmp_path / "nowhere")
    assert folder_status(tmp_path) == []
