"""One job through stops, failures, gates and changes of mind: what it leaves, and that no bit is lost."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import goan_cli.batch.job as job_module
from goan_cli.batch.job import render_job
from goan_cli.batch.standing import OnExists, State, standing_of
from goan_cli.batch.stop import Stop
from goan_cli.errors import GoanError, Interrupted, InvalidInput, QualityFailed, RenderFailed
from goan_cli.files import replaced_when_complete, sha256_of
from goan_cli.jobs.job import Job
from goan_cli.output.video import VideoInfo, read_video
from goan_cli.render.checkpoint import checkpoint_files, read_record
from goan_cli.render.engine import Engine, Sampled
from goan_cli.render.events import (
    CheckpointWritten,
    Event,
    Note,
    SectionFinished,
    Stage,
    StageStarted,
    StepFinished,
)
from goan_cli.render.identity import job_identity, latents_identity
from goan_cli.render.plan import RenderPlan
from goan_cli.render.progress import read_progress
from tests.clips import sound_of, write_clip
from tests.helpers import TINY_CONFIG, TINY_SQUARE, factors, tiny_plan, write_lora

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
Frames = Iterator[NDArray[np.uint8]]


@pytest.fixture(autouse=True, scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of embeddings for all these renders: encoding is not what is shown here."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that acts on the tiny model."""
    return write_lora(tmp_path_factory.mktemp("loras") / "a.safetensors", factors(TO_Q, TINY_SQUARE, seed=1, alpha=2.0))


def _plan(folder: Path, lora: Path | None = None, **settings: Any) -> RenderPlan:
    folder.mkdir(exist_ok=True)
    output = {"dir": str(folder / "out"), "keep_latents": True, **settings.pop("output", {})}
    settings = {"size": [16, 16], "sections": 2, "steps": 3, **settings}
    return tiny_plan(folder, loras=[(lora, 1.0)] if lora else [], output=output, **settings)


def _render(plan: RenderPlan, cache: Path, **options: Any) -> list[Event]:
    """Render with an engine of its own; returns what was heard."""
    heard: list[Event] = []
    render_job(Engine(device="cpu", cache=cache), plan, listener=heard.append, **options)
    return heard


def _results(job: Job) -> dict[str, bytes]:
    """The results that must be the same however often the job was stopped."""
    return {path.name: path.read_bytes() for path in job.results if path != job.sidecar}


def _sidecar(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(job.sidecar.read_text(encoding="utf-8"))
    return content


def _names(folder: Path) -> list[str]:
    """Every file under a folder; folders that hold none do not count."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _notes(heard: Sequence[Event]) -> list[str]:
    return [event.text for event in heard if isinstance(event, Note)]


def _steps(heard: Sequence[Event]) -> list[tuple[int, int]]:
    return [(event.section, event.step) for event in heard if isinstance(event, StepFinished)]


class _Asking:
    """A listener that asks for a stop at the first event that answers to a description."""

    def __init__(self, when: Callable[[Event], bool]) -> None:
        self.stop = Stop()
        self.heard: list[Event] = []
        self._when = when

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        if self._when(event):
            self.stop.ask("stopped by SIGTERM")


def _stopped(plan: RenderPlan, cache: Path, when: Callable[[Event], bool]) -> list[Event]:
    """Render until it stops there; returns what was heard."""
    asking = _Asking(when)
    with pytest.raises(Interrupted):
        render_job(Engine(device="cpu", cache=cache), plan, stop=asking.stop, listener=asking)
    return asking.heard


def _step(section: int, step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StepFinished) and (event.section, event.step) == (section, step)


def _section(section: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, SectionFinished) and event.section == section


def _stage(stage: Stage) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StageStarted) and event.stage is stage


# Stopped and gone on with ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, lora: Path, embeddings: Path) -> dict[str, bytes]:
    """The results of a job that was never stopped."""
    plan = _plan(tmp_path_factory.mktemp("whole"), lora, output={"contact_sheet": True})
    _render(plan, embeddings)
    return _results(plan.job)


@pytest.mark.parametrize(
    ("when", "sections", "steps", "rest"),
    [
        pytest.param(_stage(Stage.ENCODE), 0, 1, 5, id="while encoding"),
        pytest.param(_stage(Stage.BAKE), 0, 1, 5, id="while baking"),
        pytest.param(_step(1, 1), 0, 1, 5, id="step 1"),
        pytest.param(_step(1, 2), 0, 2, 4, id="step 2"),
        pytest.param(_step(1, 3), 1, 0, 3, id="the section's last step"),
        pytest.param(_section(1), 1, 0, 3, id="section 1"),
        pytest.param(_step(2, 1), 1, 1, 2, id="step 1 of section 2"),
        pytest.param(_step(2, 2), 1, 2, 1, id="step 2 of section 2"),
        pytest.param(_section(2), 2, 0, 0, id="the last section"),
        pytest.param(_stage(Stage.DECODE), 2, 0, 0, id="while decoding"),
    ],
)
def test_stopped_anywhere(
    tmp_path: Path,
    lora: Path,
    embeddings: Path,
    whole: dict[str, bytes],
    when: Callable[[Event], bool],
    sections: int,
    steps: int,
    rest: int,
) -> None:
    """A job stopped anywhere leaves a checkpoint and nothing else; the next engine does the rest, to the same bits."""
    plan = _plan(tmp_path, lora, output={"contact_sheet": True})
    checkpoint = plan.job.checkpoint(latents_identity(plan))
    told = [event for event in _stopped(plan, embeddings, when) if isinstance(event, CheckpointWritten)][-1]
    assert told == CheckpointWritten(sections=sections, total=2, steps=steps, path=checkpoint)
    assert _names(plan.job.output.dir) == [f".goan/{checkpoint.name}"]
    record = read_record(checkpoint)
    assert (record.sections, record.total, record.steps, record.name) == (sections, 2, 3, "job")
    assert (record.seed, record.asked_seed, record.seed_drawn) == (7, 7, False)
    assert (record.section_state or {"done": 0})["done"] == steps
    heard = _render(plan, embeddings)
    assert len(_steps(heard)) == rest
    assert _results(plan.job) == whole
    assert _names(plan.job.output.dir) == sorted([*whole, "job.json"])


def test_stopped_again_and_again(tmp_path: Path, lora: Path, embeddings: Path, whole: dict[str, bytes]) -> None:
    """A job that is stopped after every step, and in the decode, still comes to the same results."""
    plan = _plan(tmp_path, lora, output={"contact_sheet": True})
    stops = 0
    for when in (*(lambda event: isinstance(event, StepFinished) for _ in range(6)), _stage(Stage.DECODE)):
        _stopped(plan, embeddings, when)
        stops += 1
    heard = _render(plan, embeddings)
    assert stops == 7
    assert _steps(heard) == []
    assert _results(plan.job) == whole


def test_account_of_a_job_in_pieces(tmp_path: Path, lora: Path, embeddings: Path) -> None:
    """The sidecar of a stopped job is that of a whole one, but for its times and a note that it was gone on with."""
    once, pieces = _plan(tmp_path / "once", lora), _plan(tmp_path / "pieces", lora)
    _render(once, embeddings)
    _stopped(pieces, embeddings, _step(2, 1))
    before = read_record(pieces.job.checkpoint(latents_identity(pieces))).timings
    notes = _notes(_render(pieces, embeddings))
    one, other = _sidecar(once.job), _sidecar(pieces.job)
    differing = {key for key in one if one[key] != other[key]}
    assert differing <= {"timings", "seconds_per_step", "notes", "settings", "inputs", "bake"}
    assert other["notes"] == notes == ["goes on from a checkpoint, 67% sampled"]
    assert other["bake"]["recipe"] == one["bake"]["recipe"]
    assert all(other["timings"][stage] >= round(seconds, 4) for stage, seconds in before.items())
    assert set(other["timings"]) == set(one["timings"])


def test_account_of_a_job_that_was_only_decoded(tmp_path: Path, lora: Path, embeddings: Path) -> None:
    """Where only the decode was left, the sidecar still has the bake, the computed steps and the machine."""
    plan = _plan(tmp_path, lora, steps=6, step_cache={"kind": "teacache", "threshold": 10.0})
    _stopped(plan, embeddings, _section(2))
    record = read_record(plan.job.checkpoint(latents_identity(plan)))
    assert record.complete
    heard = _render(plan, embeddings)
    assert _notes(heard) == ["goes on from a checkpoint, only to be decoded"]
    sidecar = _sidecar(plan.job)
    assert sidecar["computed_steps"] == [[0, 5], [0, 5]]
    assert sidecar["bake"]["files"][0]["path"] == str(lora)
    assert sidecar["machines"] == list(record.machines)
    assert sidecar["seconds_per_step"] == pytest.approx(record.timings["sample"] / 12, abs=1e-4)


def test_gone_on_with_elsewhere(tmp_path: Path, embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another machine goes on, that is told, and the sidecar names both; one that only decodes is not named."""
    first, second = _plan(tmp_path / "a"), _plan(tmp_path / "b")
    _stopped(first, embeddings, _section(1))
    _stopped(second, embeddings, _section(2))
    (here,) = read_record(first.job.checkpoint(latents_identity(first))).machines
    assert here.startswith("cpu, float32, torch ")
    monkeypatch.setattr(Engine, "device_name", "NVIDIA H200")
    there = "NVIDIA H200" + here.removeprefix("cpu")
    notes = _notes(_render(first, embeddings))
    assert notes[1] == f"sampled on {here} and {there}: the bits are those of neither alone"
    assert _sidecar(first.job)["machines"] == [here, there]
    assert len(_notes(_render(second, embeddings))) == 1
    assert _sidecar(second.job)["machines"] == [here]
    assert _sidecar(second.job)["device"] == "NVIDIA H200"


class _Late(Stop):
    """A deadline before which no further section fits, though it is not over yet."""

    def fits(self, seconds: float) -> bool:
        return seconds == 0


def test_no_further_section_before_the_deadline(tmp_path: Path, embeddings: Path) -> None:
    """A job stops after the section behind which no other one fits, and the last section is no place to stop."""
    plan = _plan(tmp_path, sections=3)
    heard: list[Event] = []
    for sections in (1, 2):
        with pytest.raises(Interrupted, match=f"after section {sections} of 3"):
            render_job(Engine(device="cpu", cache=embeddings), plan, stop=_Late(deadline=0.0), listener=heard.append)
    render_job(Engine(device="cpu", cache=embeddings), plan, stop=_Late(deadline=0.0), listener=heard.append)
    assert _steps(heard) == [(section, step) for section in (1, 2, 3) for step in (1, 2, 3)]
    assert plan.job.sidecar.exists()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_cut, id="cut off"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("<html>"), id="a page"),
    ],
)
def test_damaged_checkpoint(
    tmp_path: Path, lora: Path, embeddings: Path, whole: dict[str, bytes], damage: Callable[[Path], None]
) -> None:
    """A job whose checkpoint is damaged says so, starts anew, and comes to the same results."""
    plan = _plan(tmp_path, lora, output={"contact_sheet": True})
    _stopped(plan, embeddings, _section(1))
    damage(plan.job.checkpoint(latents_identity(plan)))
    heard = _render(plan, embeddings)
    (note,) = _notes(heard)
    assert note.startswith("starts anew: ")
    assert len(_steps(heard)) == 6
    assert _results(plan.job) == whole


def test_checkpoint_of_another_job_under_the_name(tmp_path: Path, embeddings: Path) -> None:
    """A file under the checkpoint's name that is of another identity is not gone on with."""
    plan, other = _plan(tmp_path, name="job"), _plan(tmp_path / "b", seed=8)
    _stopped(other, embeddings, _section(1))
    place = plan.job.checkpoint(latents_identity(plan))
    place.parent.mkdir(parents=True)
    other.job.checkpoint(latents_identity(other)).rename(place)
    heard = _render(plan, embeddings)
    assert len(_steps(heard)) == 6
    assert _notes(heard) == []


@pytest.mark.parametrize("change", [{"fps": 12}, {"output": {"crf": 40}}, {"output": {"contact_sheet": True}}])
def test_another_video_of_the_same_latents(tmp_path: Path, embeddings: Path, change: dict[str, Any]) -> None:
    """A beginning serves a job that wants another video of the same latents."""
    _stopped(_plan(tmp_path), embeddings, _section(1))
    plan = _plan(tmp_path, **change)
    assert _steps(_render(plan, embeddings)) == [(2, 1), (2, 2), (2, 3)]
    fresh = _plan(tmp_path / "fresh", **change)
    _render(fresh, embeddings)
    assert _results(plan.job) == _results(fresh.job)


# Failures -------------------------------------------------------------------------------------------------


def test_failed_decode_loses_no_latents(
    tmp_path: Path, embeddings: Path, whole: dict[str, bytes], lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sampled outlives a decode that fails, and is all that the next run needs."""
    plan = _plan(tmp_path, lora, output={"contact_sheet": True})

    def failing(*_: Any, **__: Any) -> VideoInfo:
        raise RenderFailed("no space")

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "write_video", failing)
        with pytest.raises(RenderFailed, match="no space"):
            _render(plan, embeddings)
    checkpoint = plan.job.checkpoint(latents_identity(plan))
    assert _names(plan.job.output.dir) == [f".goan/{checkpoint.name}"]
    record, progress = read_progress(checkpoint)
    assert record.complete

    def sampling(*_: Any, **__: Any) -> Sampled:
        raise AssertionError

    monkeypatch.setattr(Engine, "sample", sampling)
    _render(plan, embeddings)
    assert _results(plan.job) == whole
    assert torch.equal(load_file(plan.job.latents)["latents"], progress.history)
    assert not checkpoint.exists()


@pytest.mark.parametrize("failing", ["write_latents", "clear_earlier", "write_contact_sheet", "write_sidecar"])
def test_failure_between_the_results(
    tmp_path: Path,
    embeddings: Path,
    whole: dict[str, bytes],
    lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    """Wherever the writing of results fails, no sidecar says that they are whole, and the next run completes them."""
    plan = _plan(tmp_path, lora, output={"contact_sheet": True})

    def fail(*_: Any, **__: Any) -> None:
        raise RenderFailed("no space")

    with monkeypatch.context() as patch:
        patch.setattr(job_module, failing, fail)
        with pytest.raises(RenderFailed, match="no space"):
            _render(plan, embeddings)
    assert not plan.job.sidecar.exists()
    heard = _render(plan, embeddings)
    assert _steps(heard) == []
    assert _results(plan.job) == whole
    assert _sidecar(plan.job)["video"]["sha256"] == sha256_of(plan.job.video)


@pytest.mark.parametrize("missing", ["image", "lora"])
def test_vanished_files(tmp_path: Path, embeddings: Path, missing: str) -> None:
    """A picture or LoRA that vanished since it was planned fails the job by its path, before anything is rendered."""
    lora = write_lora(tmp_path / "gone.safetensors", factors(TO_Q, TINY_SQUARE))
    plan = _plan(tmp_path, lora)
    path = plan.job.pictures[0] if missing == "image" else lora
    path.unlink()
    with pytest.raises(InvalidInput, match=path.name):
        _render(plan, embeddings)
    assert _names(plan.job.output.dir) == []


def test_engine_s_listener_comes_back(tmp_path: Path, embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a job ends, its engine tells its own listener alone afterwards."""
    engine, asking = Engine(device="cpu", cache=embeddings), _Asking(_step(1, 1))
    own = engine.listener
    with pytest.raises(Interrupted):
        render_job(engine, _plan(tmp_path), stop=asking.stop, listener=asking)
    assert engine.listener is own
    render_job(engine, _plan(tmp_path), listener=asking)
    assert engine.listener is own


def test_what_a_killed_run_left(tmp_path: Path, embeddings: Path) -> None:
    """Half-written files of a killed run of this job are removed; those of other jobs stay."""
    plan, other = _plan(tmp_path), _plan(tmp_path, name="other")
    checkpoint = plan.job.checkpoint(latents_identity(plan))

    def left(path: Path) -> str:
        with pytest.raises(ZeroDivisionError), replaced_when_complete(path) as temporary:  # noqa: PT012
            stray = temporary.with_name(temporary.name.replace(".goan-", ".goan-1"))
            stray.write_bytes(b"half")
            raise ZeroDivisionError
        return str(stray.relative_to(plan.job.output.dir))

    ours = [left(path) for path in (*plan.job.results, plan.job.preview(2), plan.job.failure, checkpoint)]
    kept = [left(other.job.video), left(other.job.failure)]
    assert _names(plan.job.output.dir) == sorted([*ours, *kept])
    _render(plan, embeddings)
    assert _names(plan.job.output.dir) == sorted([*kept, *_results(plan.job), "job.json"])


# Gates ----------------------------------------------------------------------------------------------------


def _black(plan: RenderPlan) -> NDArray[np.uint8]:
    frames = np.zeros((plan.job.sections.frames, *plan.job.size[::-1], 3), dtype=np.uint8)
    frames[0] = np.arange(frames[0].size, dtype=np.uint8).reshape(frames[0].shape)  # as the start image is
    return frames


def _frozen(plan: RenderPlan) -> NDArray[np.uint8]:
    return np.repeat(_black(plan)[:1], plan.job.sections.frames, axis=0)


def _lively(plan: RenderPlan) -> NDArray[np.uint8]:
    """What no gate objects to; what a model makes of a seed at a size that it does not know may be of one colour."""
    shape = (plan.job.sections.frames, *plan.job.size[::-1], 3)
    return np.random.default_rng(plan.job.sampling.seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def bad_seeds(monkeypatch: pytest.MonkeyPatch) -> dict[int, Callable[[RenderPlan], NDArray[np.uint8]]]:
    """Seeds whose videos come out otherwise than they are decoded."""
    frames, bad = Engine.frames, dict[int, Callable[[RenderPlan], NDArray[np.uint8]]]()

    def decoded(engine: Engine, plan: RenderPlan, *arguments: Any, **options: Any) -> Frames:
        seed = plan.job.sampling.seed
        if seed in bad:
            return (frame for frame in [bad[seed](plan)])
        return frames(engine, plan, *arguments, **options)

    monkeypatch.setattr(Engine, "frames", decoded)
    return bad


Bad = dict[int, Callable[[RenderPlan], NDArray[np.uint8]]]


@pytest.mark.parametrize(
    ("gate", "make", "said"),
    [("black", _black, "16 frames are nearly black"), ("frozen", _frozen, "nothing moves for 0.53 s")],
)
def test_gate_that_fails(
    tmp_path: Path,
    embeddings: Path,
    bad_seeds: Bad,
    gate: str,
    make: Callable[[RenderPlan], NDArray[np.uint8]],
    said: str,
) -> None:
    """A job that its gate refuses leaves the video to be looked at, its checkpoint, and no result."""
    bad_seeds[7] = make
    plan = _plan(tmp_path, gates={gate: "fail"})
    with pytest.raises(QualityFailed, match=said) as caught:
        _render(plan, embeddings)
    assert caught.value.hint == f"look at {plan.job.rejected}"
    checkpoint = plan.job.checkpoint(latents_identity(plan))
    assert _names(plan.job.output.dir) == [f".goan/{checkpoint.name}", ".goan/job.rejected.mp4"]
    assert read_record(checkpoint).complete
    # Nothing is sampled again for a gate that has been opened since.
    warned = _plan(tmp_path, gates={gate: "warn"})
    heard = _render(warned, embeddings)
    assert _steps(heard) == []
    assert any(said in note for note in _notes(heard))
    (finding,) = [each for each in _sidecar(warned.job)["quality"]["findings"] if each["defect"] == gate]
    assert finding["fails"] is False
    assert _names(plan.job.output.dir) == ["job.json", "job.latents.safetensors", "job.mp4"]


def test_gate_that_is_off_says_nothing(tmp_path: Path, embeddings: Path, bad_seeds: Bad) -> None:
    """What a gate does not look for is measured, and not told."""
    bad_seeds[7] = _black
    plan = _plan(tmp_path, gates={"black": "off", "frozen": "off"})
    assert _notes(_render(plan, embeddings)) == []
    assert _sidecar(plan.job)["quality"]["black"] == 16
    assert _sidecar(plan.job)["quality"]["findings"] == []


def test_gate_that_fails_keeps_the_earlier_result(tmp_path: Path, embeddings: Path, bad_seeds: Bad) -> None:
    """A render that is refused leaves an earlier result as it is."""
    earlier = _plan(tmp_path, seed=8)
    _render(earlier, embeddings)
    before = {path.name: path.read_bytes() for path in earlier.job.output.dir.iterdir() if path.is_file()}
    bad_seeds[7] = _black
    with pytest.raises(QualityFailed):
        _render(_plan(tmp_path, gates={"black": "fail"}), embeddings)
    rejected = earlier.job.rejected
    assert rejected.is_file()
    rejected.unlink()
    assert {path.name: path.read_bytes() for path in earlier.job.output.dir.iterdir() if path.is_file()} == before


def _wild(folder: Path) -> Path:
    """A LoRA whose factors and merged weights are finite, and with which the model's answers are not."""
    shape = (4 * TINY_CONFIG.out_channels, TINY_CONFIG.width)
    return write_lora(folder / "wild.safetensors", factors("lora_unet_proj_out", shape, size=1e37))


def test_values_that_are_not_finite(tmp_path: Path, embeddings: Path) -> None:
    """Latents that are not finite fail a job in their section; where the gate warns, there is a video and a note."""
    lora = _wild(tmp_path)
    failing, warned = _plan(tmp_path / "a", lora), _plan(tmp_path / "b", lora, gates={"nan": "warn"})
    with pytest.raises(QualityFailed, match="section 1: the latents are not finite"):
        _render(failing, embeddings)
    assert _names(failing.job.output.dir) == []
    heard = _render(warned, embeddings)
    assert "nan: values that are no finite numbers" in _notes(heard)
    assert _sidecar(warned.job)["quality"]["finite"] is False
    assert warned.job.video.is_file()


def test_pixels_that_are_not_finite(tmp_path: Path, embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that are not finite, of latents that are, fail a job with its checkpoint kept."""
    plan = _plan(tmp_path)

    def overflowing(*_: object) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda latents: torch.full((1, 3, 4 * latents.shape[2] - 3, 16, 16), torch.inf)

    monkeypatch.setattr("goan_cli.render.engine.vae_decoder", overflowing)
    with pytest.raises(QualityFailed, match="decoded pixels are not finite"):
        _render(plan, embeddings)
    (name,) = _names(plan.job.output.dir)
    assert name == f".goan/{plan.job.checkpoint(latents_identity(plan)).name}"


# Further seeds --------------------------------------------------------------------------------------------


def test_further_seeds_are_tried(tmp_path: Path, embeddings: Path, bad_seeds: Bad) -> None:
    """A job whose gate refuses a seed tries the next ones, and its sidecar says which and why."""
    bad_seeds |= {7: _black, 8: _frozen, 9: _lively}
    plan = _plan(tmp_path, gates={"black": "fail", "frozen": "fail"}, retry_seeds=3)
    heard = _render(plan, embeddings)
    content = _sidecar(plan.job)
    assert (content["settings"]["seed"], content["asked_seed"]) == (9, 7)
    assert [each["seed"] for each in content["rejected_seeds"]] == [7, 8]
    assert "black" in content["rejected_seeds"][0]["reason"]
    assert "nothing moves" in content["rejected_seeds"][1]["reason"]
    assert content["identity"] == job_identity(plan)
    assert [note[:18] for note in _notes(heard)[:2]] == ["seed 7 is rejected", "seed 8 is rejected"]
    assert len(_steps(heard)) == 18
    assert _names(plan.job.output.dir) == ["job.json", "job.latents.safetensors", "job.mp4"]
    ninth = _plan(tmp_path / "ninth", seed=9)
    _render(ninth, embeddings)
    assert _results(plan.job) == _results(ninth.job)


def test_all_seeds_are_refused(tmp_path: Path, embeddings: Path, bad_seeds: Bad) -> None:
    """Where every seed that may be tried is refused, the job fails, and another try samples nothing again."""
    bad_seeds |= dict.fromkeys((7, 8, 9), _black)
    plan = _plan(tmp_path, gates={"black": "fail"}, retry_seeds=1)
    for number in range(2):
        heard: list[Event] = []
        with pytest.raises(QualityFailed, match=r"^seeds 7 to 8: 16 frames are nearly black"):
            render_job(Engine(device="cpu", cache=embeddings), plan, listener=heard.append)
        assert len(_steps(heard)) == (12 if number == 0 else 0)
    assert plan.job.rejected.is_file()
    assert not plan.job.video.exists()
    assert len(checkpoint_files(plan.job.state_dir, "job")) == 2
    # One more seed may be tried: only that one is sampled.
    bad_seeds[9] = _lively
    heard = _render(_plan(tmp_path, gates={"black": "fail"}, retry_seeds=2), embeddings)
    assert len(_steps(heard)) == 6
    assert _sidecar(plan.job)["settings"]["seed"] == 9
    assert _names(plan.job.output.dir) == ["job.json", "job.latents.safetensors", "job.mp4"]


def test_stopped_while_a_further_seed_is_tried(tmp_path: Path, embeddings: Path, bad_seeds: Bad) -> None:
    """A job that was stopped in its second seed goes on there, and still knows why."""
    bad_seeds |= {9: _black, 10: _lively}
    plan = _plan(tmp_path, seed=9, gates={"black": "fail"}, retry_seeds=1)
    steps = iter(range(100))
    _stopped(plan, embeddings, lambda event: isinstance(event, StepFinished) and next(steps) == 6 + 3)
    records = [read_record(path) for path in checkpoint_files(plan.job.state_dir, "job")]
    assert sorted((record.seed, record.asked_seed) for record in records) == [(9, 9), (10, 9)]
    heard = _render(plan, embeddings)
    assert len(_steps(heard)) == 2
    assert [each["seed"] for each in _sidecar(plan.job)["rejected_seeds"]] == [9]
    assert _sidecar(plan.job)["settings"]["seed"] == 10


def test_the_last_seed_is_followed_by_the_first(tmp_path: Path, embeddings: Path, bad_seeds: Bad) -> None:
    """Behind the highest seed comes 0, so that every one that is tried is a seed of a job."""
    bad_seeds[2**63 - 1] = _black
    plan = _plan(tmp_path, seed=2**63 - 1, sections=1, gates={"black": "fail"}, retry_seeds=1)
    _render(plan, embeddings)
    assert _sidecar(plan.job)["settings"]["seed"] == 0


def test_other_failures_are_no_reason_for_another_seed(
    tmp_path: Path, embeddings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a gate has further seeds tried."""

    def failing(*_: Any, **__: Any) -> VideoInfo:
        raise RenderFailed("no space")

    monkeypatch.setattr(job_module, "write_video", failing)
    heard: list[Event] = []
    plan = _plan(tmp_path, retry_seeds=3)
    with pytest.raises(RenderFailed, match="no space"):
        render_job(Engine(device="cpu", cache=embeddings), plan, listener=heard.append)
    assert len(_steps(heard)) == 6


# Another recipe under the name ----------------------------------------------------------------------------


def test_replaced_recipe_leaves_nothing_behind(tmp_path: Path, embeddings: Path) -> None:
    """Kept latents and contact sheet of an earlier recipe go with its video, where the new one has none."""
    both, none = {"keep_latents": True, "contact_sheet": True}, {"keep_latents": False}
    _render(_plan(tmp_path, output=both), embeddings)
    plan = _plan(tmp_path, seed=8, output=none)
    _render(plan, embeddings)
    assert _names(plan.job.output.dir) == ["job.json", "job.mp4"]


def test_same_recipe_keeps_what_is_still_true(tmp_path: Path, embeddings: Path) -> None:
    """A job rendered again with less asked for leaves the earlier latents and sheet, which are still its own."""
    both, none = {"keep_latents": True, "contact_sheet": True}, {"keep_latents": False}
    _render(_plan(tmp_path, output=both), embeddings)
    _render(_plan(tmp_path, output=none), embeddings)
    assert _names(tmp_path / "out") == ["job.json", "job.latents.safetensors", "job.mp4", "job.sheet.png"]


def test_files_that_goan_did_not_write_stay(tmp_path: Path, embeddings: Path) -> None:
    """Files of the names of latents and sheet that no sidecar speaks of are not touched."""
    plan = _plan(tmp_path, output={"keep_latents": False})
    _render(plan, embeddings)
    for path in (plan.job.latents, plan.job.contact_sheet):
        path.write_text("mine")
    _render(_plan(tmp_path, seed=8, output={"keep_latents": False}), embeddings)
    assert [path.read_text() for path in (plan.job.latents, plan.job.contact_sheet)] == ["mine", "mine"]


def test_a_foreign_sidecar_is_replaced(tmp_path: Path, embeddings: Path) -> None:
    """Whatever lies where the sidecar goes is replaced when the job is complete, and not before."""
    plan = _plan(tmp_path)
    plan.job.output.dir.mkdir()
    plan.job.sidecar.write_text('{"holidays": 2025}')
    with pytest.raises(GoanError):
        render_job(Engine(device="cpu", cache=embeddings), plan, stop=_asked())
    assert plan.job.sidecar.read_text() == '{"holidays": 2025}'
    _render(plan, embeddings)
    assert _sidecar(plan.job)["identity"] == job_identity(plan)


def _asked() -> Stop:
    stop = Stop()
    stop.ask("stopped by SIGTERM")
    return stop


# Times ----------------------------------------------------------------------------------------------------


def test_seconds_spent_before(tmp_path: Path, embeddings: Path) -> None:
    """What was spent on a job before it was its turn is in its account."""
    plan = _plan(tmp_path)
    _render(plan, embeddings, spent={Stage.LOAD: 1000.0, Stage.ENCODE: 2000.0})
    timings = _sidecar(plan.job)["timings"]
    assert timings["load"] >= 1000
    assert timings["encode"] >= 2000
    assert timings["sample"] < 1000


# A video that is gone on with --------------------------------------------------------------------------


def _extended(folder: Path, model: str, **keys: Any) -> RenderPlan:
    folder.mkdir(exist_ok=True)
    clip = folder / "clip.mkv"
    frames = np.random.default_rng(6).integers(0, 256, (21, 16, 16, 3), dtype=np.uint8)
    write_clip(clip, frames, hertz=440)
    # Without metadata, which has the folder in it.
    output = {"metadata": False}
    return _plan(folder, image=None, model=model, output=output, video={"path": str(clip), "audio": True, **keys})


@pytest.mark.parametrize(
    ("model", "when"), [("tiny", _step(1, 2)), ("tiny-f1", _section(1)), ("tiny-f1", _stage(Stage.DECODE))]
)
def test_stopped_while_a_video_is_gone_on_with(
    tmp_path: Path, embeddings: Path, model: str, when: Callable[[Event], bool]
) -> None:
    """The checkpoint has the video's latents, or they are drawn again alike: the results are those of a job in one."""
    whole, plan = _extended(tmp_path / "whole", model), _extended(tmp_path / "stopped", model)
    _render(whole, embeddings)
    _stopped(plan, embeddings, when)
    _render(plan, embeddings)
    assert _results(plan.job) == _results(whole.job)


@pytest.mark.parametrize(("model", "join"), [("tiny", True), ("tiny-f1", False)])
def test_results_beside_a_video(tmp_path: Path, embeddings: Path, model: str, join: bool) -> None:
    """The video is as long as planned and sounds where it is joined; the kept latents are those of the new part."""
    plan = _extended(tmp_path, model, **({} if join else {"join": False, "audio": False}))
    _render(plan, embeddings)
    frames = 16 + (21 if join else 0)
    assert plan.job.frames == frames
    assert len(read_video(plan.job.video)) == frames
    assert sound_of(plan.job.video).any() == join
    content = _sidecar(plan.job)
    assert content["video"]["frames"] == frames
    assert content["inputs"]["video"]["sha256"] == sha256_of(tmp_path / "clip.mkv")
    assert load_file(plan.job.latents)["latents"].shape[2] == plan.job.sections.latent_frames
    assert standing_of(plan, OnExists.SKIP).state is State.UP_TO_DATE
