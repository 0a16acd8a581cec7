"""Whole jobs on the tiny pack: the files that they leave, and that no job leaves a trace in another."""

import hashlib
import json
import math
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

import goan_cli.batch.job as job_module
from goan_cli.batch.job import render_job, versions
from goan_cli.batch.outcome import End, JobStarted, Outcome, RunEvent, RunFinished, RunStarted
from goan_cli.batch.run import render_jobs
from goan_cli.batch.standing import OnExists, State
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import EnvironmentFault, LoraRefused, RenderFailed
from goan_cli.files import sha256_of
from goan_cli.jobs.load import load_requests
from goan_cli.model.transformer import PackedTransformer
from goan_cli.output.sidecar import write_sidecar
from goan_cli.output.video import VideoInfo, write_video
from goan_cli.packs.find import find_pack
from goan_cli.render.engine import Engine
from goan_cli.render.events import Baked, Event, Note, SectionFinished, Stage, StageStarted, StepFinished
from goan_cli.render.identity import bake_recipe, job_identity
from goan_cli.render.plan import RenderPlan, plan_renders
from tests.helpers import (
    TINY_CONFIG,
    TINY_QKV_MLP,
    TINY_SQUARE,
    factors,
    tiny_plan,
    write_lora,
    write_tiny_manifest,
    write_transformer,
)

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
SINGLE = "lora_unet_single_blocks_2_linear1"


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRAs that act on the tiny model, and one that changes nothing."""
    folder = tmp_path_factory.mktemp("loras")
    zero = factors(TO_Q, TINY_SQUARE)
    zero[f"{TO_Q}.lora_up.weight"].zero_()
    return {
        "a": write_lora(folder / "a.safetensors", factors(TO_Q, TINY_SQUARE, seed=1, alpha=2.0)),
        "b": write_lora(
            folder / "b.safetensors",
            factors(TO_Q, TINY_SQUARE, seed=2) | factors(SINGLE, TINY_QKV_MLP, rank=3, seed=3),
        ),
        "zero": write_lora(folder / "zero.safetensors", zero),
    }


def _latents(plan: RenderPlan) -> Tensor:
    return load_file(plan.job.output.dir / f"{plan.job.name}.latents.safetensors")["latents"]


def _sidecar(plan: RenderPlan) -> dict[str, Any]:
    """The sidecar as strict JSON, in which there is no NaN and no Infinity."""

    def no_constant(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    content: dict[str, Any] = json.loads(plan.job.sidecar.read_text(encoding="utf-8"), parse_constant=no_constant)
    return content


def _render(plans: Sequence[RenderPlan]) -> list[Outcome]:
    return render_jobs(plans, RunSettings(device="cpu", force=True))


def _files(plan: RenderPlan) -> dict[str, bytes]:
    """What a job left that must be the same whenever and wherever it is rendered."""
    return {"video": plan.job.video.read_bytes(), "latents": _latents(plan).numpy().tobytes()}


def _contents(folder: Path) -> dict[str, bytes]:
    """Every result in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _decoded_frames(video: Path) -> int:
    reader = imageio_ffmpeg.read_frames(str(video))
    meta = next(reader)
    assert meta["codec"] == "h264"
    return sum(1 for _ in reader)


def _mixed(folder: Path, loras: dict[str, Path]) -> dict[str, RenderPlan]:
    """Four jobs that use the weights differently."""
    return {
        "plain": tiny_plan(folder, "plain"),
        "a": tiny_plan(folder, "a", [(loras["a"], 1.0)]),
        "both": tiny_plan(folder, "both", [(loras["b"], 0.6), (loras["a"], 0.4)]),
        "a-again": tiny_plan(folder, "a-again", [(loras["a"], 1.0)]),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, loras: dict[str, Path]) -> dict[str, dict[str, bytes]]:
    """The files of each of the four jobs, each rendered by an engine of its own."""
    folder = tmp_path_factory.mktemp("alone")
    plans = _mixed(folder, loras)
    for plan in plans.values():
        assert _render([plan])[0].error is None
    files = {name: _files(plan) for name, plan in plans.items()}
    # What follows means nothing unless the LoRAs show in the video.
    assert files["a"] == files["a-again"]
    assert len({files[name]["video"] for name in ("plain", "a", "both")}) == 3
    return files


# No traces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("plain", "a", "both", "a-again"), ("a-again", "both", "a", "plain")])
def test_order_of_jobs(
    tmp_path: Path, loras: dict[str, Path], alone: dict[str, dict[str, bytes]], order: tuple[str, ...]
) -> None:
    """In a run, in either order, each job's latents and video are bit for bit those it has alone."""
    plans = _mixed(tmp_path, loras)
    outcomes = _render([plans[name] for name in order])
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert {name: _files(plan) for name, plan in plans.items()} == alone


def test_rendering_again(tmp_path: Path, loras: dict[str, Path], alone: dict[str, dict[str, bytes]]) -> None:
    """A job rendered twice by one engine replaces its files by the same ones."""
    engine, plan = Engine(device="cpu"), tiny_plan(tmp_path, "a", [(loras["a"], 1.0)])
    for _ in range(2):
        render_job(engine, plan)
        assert _files(plan) == alone["a"]


def test_failing_job_in_the_middle(tmp_path: Path, loras: dict[str, Path], alone: dict[str, dict[str, bytes]]) -> None:
    """A job whose LoRA changes nothing fails by itself: it leaves no file, and the next is as if it had not been."""
    plans = _mixed(tmp_path, loras)
    failing = tiny_plan(tmp_path, "failing", [(loras["zero"], 1.0)])
    first, failed, last = _render([plans["both"], failing, plans["a"]])
    assert first.error is None
    assert failed.result is None
    assert isinstance(failed.error, LoraRefused)
    assert "zero.safetensors" in str(failed.error)
    assert last.error is None
    assert _files(plans["a"]) == alone["a"]
    assert _files(plans["both"]) == alone["both"]
    assert [path.name for path in failing.job.output.dir.iterdir() if path.name.startswith("failing")] == []


def test_unexpected_failure_stays_in_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: dict[str, dict[str, bytes]]
) -> None:
    """A mistake of our own fails one job with its exception; the others are rendered."""
    broken, plain = tiny_plan(tmp_path, "broken"), tiny_plan(tmp_path, "plain")

    calls = iter((True, False))

    def failing(path: Path, chunks: Iterable[NDArray[np.uint8]], **options: Any) -> VideoInfo:
        if next(calls):
            raise ZeroDivisionError
        return write_video(path, chunks, **options)

    monkeypatch.setattr(job_module, "write_video", failing)
    first, second = _render([broken, plain])
    assert isinstance(first.error, ZeroDivisionError)
    assert not broken.job.video.exists()
    assert not broken.job.sidecar.exists()
    assert second.error is None
    assert _files(plain) == alone["plain"]


def test_latents_that_are_not_finite_are_no_success(tmp_path: Path) -> None:
    """A render whose latents become NaN or infinite fails, and is not written as a video of a finished job."""
    # Finite factors and finite merged weights, but activations overflow.
    lora = write_lora(
        tmp_path / "wild.safetensors",
        factors(TO_Q, TINY_SQUARE)
        | factors("lora_unet_proj_out", (4 * TINY_CONFIG.out_channels, TINY_CONFIG.width), size=1e37),
    )
    plan = tiny_plan(tmp_path, "wild", [(lora, 1.0)])
    (outcome,) = _render([plan])
    assert outcome.error is not None
    assert not plan.job.sidecar.exists()


def test_failed_encoding_leaves_torch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ffmpeg fails in the middle of a video, torch is not left in inference mode for the rest of the process."""

    def failing(path: Path, chunks: Iterable[NDArray[np.uint8]], **_: Any) -> VideoInfo:
        next(iter(chunks))
        raise RenderFailed(f"{path}: ffmpeg could not write the video")

    monkeypatch.setattr(job_module, "write_video", failing)
    outcomes = _render([tiny_plan(tmp_path, "broken")])
    assert isinstance(outcomes[0].error, RenderFailed)
    stuck = torch.is_inference_mode_enabled()
    # The traceback holds the unfinished frames; without it, they are closed, for the sake of the other tests.
    outcomes.clear()
    assert not stuck


# What a job leaves --------------------------------------------------------------------------------------------


def test_library_use(tmp_path: Path) -> None:
    """goan as a library: job file to plans, one engine for all of them, each job's result and events in hand."""
    # A job file, as for the command line; paths in it are relative to it.
    jobs = tmp_path / "jobs.yaml"
    image = tiny_plan(tmp_path).job.pictures[0].name
    jobs.write_text(
        f"defaults: {{image: {image}, size: [32, 32], sections: 1, steps: 2}}\n"
        "jobs:\n"
        "  - {name: left, prompt: a red ball moves to the left, seed: 1}\n"
        "  - {name: right, prompt: a red ball moves to the right, seed: 1}\n"
    )
    # All problems of all jobs are told here, before any model is loaded.
    requests, problems = load_requests([jobs])
    plans = plan_renders(requests, problems)
    # The engine keeps the models between jobs; it prints nothing and tells its listener.
    engine = Engine(device="cpu")
    steps: list[StepFinished] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepFinished):
            steps.append(event)

    results = [render_job(engine, plan, listener=listen) for plan in plans]
    assert [result.video for result in results] == [tmp_path / "renders" / f"{name}.mp4" for name in ("left", "right")]
    assert all(result.video.is_file() and result.sidecar.is_file() for result in results)
    assert [result.frames for result in results] == [plan.job.sections.frames for plan in plans]
    assert len(steps) == 4
    assert results[0].video.read_bytes() != results[1].video.read_bytes()


def test_engine_s_own_listener(tmp_path: Path) -> None:
    """The listener that an engine was made with hears of its jobs, also where `render_job` is given none."""
    heard: list[Event] = []
    engine = Engine(device="cpu", listener=heard.append)
    render_job(engine, tiny_plan(tmp_path))
    assert any(isinstance(event, StepFinished) for event in heard)


@pytest.mark.parametrize("family", ["inverted", "f1"])
@pytest.mark.parametrize("sections", [1, 3])
def test_frames_are_as_planned(tmp_path: Path, family: str, sections: int) -> None:
    """Both families render as many frames as the plan says, in the result, the sidecar and the MP4 itself."""
    manifest = write_tiny_manifest(tmp_path / "pack.yaml", family=family)
    plan = tiny_plan(tmp_path, f"{family}-{sections}", model=str(manifest), sections=sections)
    (outcome,) = _render([plan])
    assert outcome.result is not None
    expected = (sections * 2 + 1) * 4 - 3
    assert plan.job.sections.frames == outcome.result.frames == expected
    assert _sidecar(plan)["video"]["frames"] == _decoded_frames(plan.job.video) == expected
    assert _sidecar(plan)["pack"]["family"] == family
    assert _latents(plan).shape == (1, 16, sections * 2 + 1, 4, 4)


def test_families_differ(tmp_path: Path) -> None:
    """The same weights in the other family, with other positions and history, make another video."""
    manifest = write_tiny_manifest(tmp_path / "pack.yaml", family="f1")
    f1, inverted = tiny_plan(tmp_path, "f1", model=str(manifest)), tiny_plan(tmp_path, "inverted")
    _render([f1, inverted])
    assert torch.equal(_latents(f1)[:, :, :1], _latents(inverted)[:, :, :1])
    assert not torch.allclose(_latents(f1)[:, :, 1:], _latents(inverted)[:, :, 1:], rtol=0, atol=1e-2)


def test_sidecar_is_complete(tmp_path: Path, loras: dict[str, Path]) -> None:
    """The sidecar has every setting, input, pack, bake, section, timing and version, and the video's own sha256."""
    plan = tiny_plan(
        tmp_path,
        "complete",
        [(loras["b"], 0.5)],
        sections=2,
        steps=3,
        true_cfg_scale=1.5,
        guidance_rescale=0.3,
        negative_prompt="dark",
        shift=2.5,
        fps=24,
        output={"dir": str(tmp_path / "out"), "keep_latents": True, "crf": 20},
    )
    (outcome,) = _render([plan])
    assert outcome.result is not None
    sidecar = _sidecar(plan)

    assert set(sidecar) == {
        "version",
        "name",
        "video",
        "identity",
        "latents_sha256",
        "frames_sha256",
        "settings",
        "seed_drawn",
        "asked_seed",
        "rejected_seeds",
        "quality",
        "inputs",
        "pack",
        "bake",
        "sections",
        "computed_steps",
        "timings",
        "seconds_per_step",
        "device",
        "machines",
        "dtype",
        "compiled",
        "memory",
        "versions",
        "notes",
    }
    assert sidecar["video"] == {
        "file": "complete.mp4",
        "format": "mp4",
        "codec": "h264",
        "sha256": sha256_of(plan.job.video),
        "frames": 17,
        "fps": 24.0,
        "width": 32,
        "height": 32,
        "seconds": round(17 / 24, 6),
    }
    assert sidecar["settings"] == {
        "model": "tiny",
        "image": str(plan.job.pictures[0]),
        "start": None,
        "video": None,
        "fit": "crop",
        "paddings": None,
        "one_frame": None,
        "timeline": None,
        "guidance_schedule": None,
        "post": None,
        "prompt": "a red ball moves to the left",
        "negative_prompt": "dark",
        "sections": 2,
        "fps": 24.0,
        "size": [32, 32],
        "seed": 7,
        "steps": 3,
        "window": 2,
        "guidance_scale": 10.0,
        "true_cfg_scale": 1.5,
        "guidance_rescale": 0.3,
        "shift": 2.5,
        "step_cache": "off",
        "precision": "auto",
        "compile": "off",
        "attention": "auto",
        "memory": "auto",
        "decode": "overlap",
        "loras": [{"path": str(loras["b"]), "weight": 0.5, "include": [], "exclude": [], "trusted": False}],
        "output": {
            "dir": str(tmp_path / "out"),
            "format": "mp4",
            "codec": "h264",
            "crf": 20,
            "keep_latents": True,
            "keep": [],
            "contact_sheet": False,
            "poster": False,
            "metadata": False,
        },
        "gates": {"nan": "fail", "black": "warn", "frozen": "warn", "drift": "off"},
        "retry_seeds": 0,
    }
    assert sidecar["identity"] == job_identity(plan)
    assert sidecar["latents_sha256"] == hashlib.sha256(_latents(plan).numpy().tobytes()).hexdigest()
    assert (sidecar["asked_seed"], sidecar["rejected_seeds"]) == (7, [])
    assert sidecar["quality"]["seconds"] == round(17 / 24, 4)
    assert len(sidecar["quality"]["sections"]) == 2
    assert sidecar["machines"] == [f"cpu, float32, torch {sidecar['versions']['torch']}"]
    assert sidecar["inputs"]["image"]["sha256"] == sha256_of(plan.job.pictures[0])
    assert sidecar["pack"] == {
        "name": "tiny",
        "family": "inverted",
        "manifest": str(find_pack("tiny").manifest),
        "identity": find_pack("tiny").identity(),
    }
    (file,) = sidecar["bake"]["files"]
    assert (file["path"], file["sha256"], file["weight"]) == (str(loras["b"]), sha256_of(loras["b"]), 0.5)
    assert (file["keys"], file["matched_keys"], file["modules"], file["ranks"]) == (4, 4, 5, [2, 3])
    assert len(sidecar["bake"]["parameters"]) == 5
    assert 0 < sidecar["bake"]["relative_change"] < 10
    assert 0.9 < sidecar["bake"]["moved"] <= 1
    assert sidecar["bake"]["dtype"] == "float32"
    assert [section["frames"] for section in sidecar["sections"]] == [[9, 17], [0, 9]]
    assert [section["padding"] for section in sidecar["sections"]] == [1, 0]
    assert set(sidecar["timings"]) == {"load", "encode", "bake", "sample", "decode"}
    assert sidecar["seconds_per_step"] > 0
    assert (sidecar["device"], sidecar["dtype"], sidecar["seed_drawn"]) == ("cpu", "float32", False)
    assert sidecar["versions"] == versions()
    assert {"python", "ffmpeg", "goan-cli", "torch", "diffusers", "transformers"} <= set(sidecar["versions"])
    assert sidecar["notes"] == list(plan.notes)
    assert sidecar["quality"]["findings"] == []
    assert sidecar["bake"]["recipe"] == bake_recipe(plan).identity


def test_sidecar_makes_the_job_again(tmp_path: Path, loras: dict[str, Path]) -> None:
    """The sidecar's settings, given back as a job, make the same latents and the same video."""
    plan = tiny_plan(tmp_path, "first", [(loras["a"], 0.7)], shift=2.0, true_cfg_scale=1.5, seed=99)
    _render([plan])
    settings = _sidecar(plan)["settings"]
    pairs = [(Path(lora["path"]), lora["weight"]) for lora in settings.pop("loras")]
    again = tiny_plan(tmp_path, "again", pairs, **settings)
    _render([again])
    assert _files(again) == _files(plan)


def test_drawn_seed_is_recorded(tmp_path: Path) -> None:
    """A seed that the job left open is drawn, and in the sidecar, so that the video can be made again."""
    drawn = tiny_plan(tmp_path, "drawn", seed=None)
    _render([drawn])
    sidecar = _sidecar(drawn)
    assert sidecar["seed_drawn"] is True
    again = tiny_plan(tmp_path, "again", seed=sidecar["settings"]["seed"])
    _render([again])
    assert _files(again) == _files(drawn)


def test_sidecar_of_a_bake_into_zeros(tmp_path: Path) -> None:
    """A LoRA on weights that are all zero, whose relative change has no finite value, leaves a sidecar that is JSON."""
    part = find_pack("tiny").transformer
    tensors = load_file(next(part.glob("*.safetensors")))
    tensors["transformer_blocks.0.attn.to_q.weight"].zero_()
    write_transformer(tmp_path / "transformer", tensors)
    (tmp_path / "transformer" / "config.json").write_bytes((part / "config.json").read_bytes())
    manifest = write_tiny_manifest(tmp_path / "pack.yaml", parts={"transformer": tmp_path / "transformer"})
    lora = write_lora(tmp_path / "lora.safetensors", factors(TO_Q, TINY_SQUARE))
    plan = tiny_plan(tmp_path, "zeros", [(lora, 1.0)], model=str(manifest))
    (outcome,) = _render([plan])
    assert outcome.error is None
    assert _sidecar(plan)["bake"]["moved"] == 1.0


def test_image_replaced_while_rendering(tmp_path: Path) -> None:
    """The sidecar has the hash of the image that was rendered, also where the file is another by the end."""
    plan = tiny_plan(tmp_path, "job")
    rendered = sha256_of(plan.job.pictures[0])

    def listen(event: Event) -> None:
        if isinstance(event, StepFinished):
            plan.job.pictures[0].write_bytes(b"the next picture")

    render_job(Engine(device="cpu"), plan, listener=listen)
    assert _sidecar(plan)["inputs"]["image"]["sha256"] == rendered


def test_without_loras_there_is_no_bake(tmp_path: Path, loras: dict[str, Path]) -> None:
    """A job without LoRAs after one with them records no bake."""
    first, second = tiny_plan(tmp_path, "first", [(loras["a"], 1.0)]), tiny_plan(tmp_path, "second")
    _render([first, second])
    assert _sidecar(first)["bake"] is not None
    assert _sidecar(second)["bake"] is None


def test_lora_of_weight_zero_is_left_out_with_a_note(tmp_path: Path, loras: dict[str, Path]) -> None:
    """A LoRA of weight 0 is not baked; the sidecar says so, and the video is the base model's."""
    without, base = tiny_plan(tmp_path, "without", [(loras["a"], 0.0)]), tiny_plan(tmp_path, "base")
    _render([without, base])
    assert _files(without) == _files(base)
    assert _sidecar(without)["bake"] is None
    assert _sidecar(without)["notes"] == ["a.safetensors has weight 0 and is left out"]


@pytest.mark.parametrize("cached", [False, True])
def test_notes_are_recorded(tmp_path: Path, cached: bool) -> None:
    """What is told while rendering, a cut prompt for one, is told once, and stands in the sidecar too."""
    plan, heard = tiny_plan(tmp_path, "noted", prompt="red " * 90), []

    def listen(event: RunEvent) -> None:
        if isinstance(event, Note):
            heard.append(event.text)

    render_jobs([plan], RunSettings(device="cpu", cache=tmp_path / "cache" if cached else None), listener=listen)
    assert len(heard) == 1
    assert heard[0].startswith("prompt: CLIP cannot take its last 15 tokens")
    assert _sidecar(plan)["notes"] == heard


def test_true_cfg_and_step_cache_are_recorded(tmp_path: Path) -> None:
    """A job with true CFG and TeaCache runs, differs from the plain one, and records the steps it computed."""
    plain = tiny_plan(tmp_path, "plain", steps=8)
    cached = tiny_plan(
        tmp_path,
        "cached",
        sections=2,
        steps=16,
        true_cfg_scale=2.0,
        step_cache={"kind": "teacache", "threshold": 10.0},
    )
    _render([plain, cached])
    sidecar = _sidecar(cached)
    assert sidecar["settings"]["step_cache"] == {"kind": "teacache", "threshold": 10.0}
    assert sidecar["settings"]["true_cfg_scale"] == 2.0
    assert len(sidecar["computed_steps"]) == 2
    for computed in sidecar["computed_steps"]:
        assert computed[0] == 0
        assert computed[-1] == 15
        assert len(computed) < 16
    assert _sidecar(plain)["computed_steps"] == []
    assert _sidecar(plain)["settings"]["step_cache"] == "off"


def test_kept_latents_are_the_final_ones(tmp_path: Path) -> None:
    """`keep_latents` saves the sampled latents bit for bit, start latent first; without it nothing is saved."""
    plan = tiny_plan(tmp_path, "kept", sections=2)
    engine = Engine(device="cpu")
    expected = engine.sample(plan, engine.conditioning_for(plan)).latents
    render_job(engine, plan)
    assert torch.equal(_latents(plan), expected)
    other = tiny_plan(tmp_path, "other", output={"dir": str(tmp_path / "out")})
    render_job(engine, other)
    assert not (tmp_path / "out" / "other.latents.safetensors").exists()


def test_contact_sheet_where_asked_for(tmp_path: Path) -> None:
    """`output.contact_sheet` adds one PNG of the video's frames; the video is the same with and without it."""
    plain = tiny_plan(tmp_path, "plain", output={"dir": str(tmp_path / "out")})
    shown = tiny_plan(tmp_path, "shown", output={"dir": str(tmp_path / "out"), "contact_sheet": True})
    outcomes = render_jobs([plain, shown], RunSettings(device="cpu"))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["shown.sheet.png"]
    assert plain.job.video.read_bytes() == shown.job.video.read_bytes()
    assert _sidecar(shown)["settings"]["output"]["contact_sheet"] is True


def test_only_the_named_files_are_left(tmp_path: Path) -> None:
    """A job leaves its video, sidecar, kept latents and asked-for previews, and no temporary file."""
    plan = tiny_plan(tmp_path, "job", sections=2)
    render_jobs([plan], RunSettings(device="cpu", previews=True))
    assert sorted(path.name for path in plan.job.output.dir.iterdir()) == [
        "job.json",
        "job.latents.safetensors",
        "job.mp4",
        "job.section-1.png",
        "job.section-2.png",
    ]


# Written last -------------------------------------------------------------------------------------------------


def test_sidecar_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the sidecar is written, all other files are in place, complete, and none is temporary."""
    plan = tiny_plan(tmp_path, "job")
    seen: list[list[str]] = []

    def watching(path: Path, content: dict[str, Any]) -> None:
        seen.append(sorted(file.name for file in path.parent.iterdir()))
        assert content["video"]["sha256"] == sha256_of(plan.job.video)
        write_sidecar(path, content)

    monkeypatch.setattr(job_module, "write_sidecar", watching)
    assert _render([plan])[0].error is None
    assert seen == [[".goan", "job.latents.safetensors", "job.mp4"]]


def test_no_sidecar_of_an_earlier_render_beside_a_new_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a render ends between the video and its sidecar, the sidecar of an earlier render is gone."""
    plan = tiny_plan(tmp_path, "job")
    _render([plan])
    before = plan.job.video.read_bytes()

    def failing(*_: object) -> None:
        raise EnvironmentFault("no space left on device")

    monkeypatch.setattr(job_module, "write_sidecar", failing)
    other = tiny_plan(tmp_path, "job", seed=8)
    (outcome,) = render_jobs([other], RunSettings(device="cpu", on_exists=OnExists.REPLACE))
    assert isinstance(outcome.error, EnvironmentFault)
    assert other.job.video.read_bytes() != before
    assert not other.job.sidecar.exists()


@pytest.mark.parametrize("on_exists", OnExists)
@pytest.mark.parametrize("stage", ["sample", "write_video"])
def test_failed_render_keeps_the_earlier_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, on_exists: OnExists
) -> None:
    """A render that fails before its video is complete leaves the earlier video, latents and sidecar untouched."""
    plan = tiny_plan(tmp_path, "job")
    _render([plan])
    before = _contents(plan.job.output.dir)

    def failing(*_: object, **__: object) -> None:
        raise RenderFailed("out of memory")

    monkeypatch.setattr(*((Engine, "sample", failing) if stage == "sample" else (job_module, "write_video", failing)))
    settings = RunSettings(device="cpu", on_exists=on_exists)
    (outcome,) = render_jobs([tiny_plan(tmp_path, "job", seed=8)], settings)
    if on_exists is OnExists.SKIP:
        assert outcome.end is End.SKIPPED
    else:
        assert isinstance(outcome.error, RenderFailed)
    assert _contents(plan.job.output.dir) == before


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """An output folder that is a file fails the job before anything is rendered, as a fault of the machine."""
    plan = tiny_plan(tmp_path, "job", output={"dir": str(tmp_path / "taken" / "out")})
    (tmp_path / "taken").write_text("")  # in the way since the plan was made
    heard: list[Event] = []
    with pytest.raises(EnvironmentFault, match="taken"):
        render_job(Engine(device="cpu"), plan, listener=heard.append)
    assert heard == []


# Events -------------------------------------------------------------------------------------------------------


def test_events_of_a_run(tmp_path: Path, loras: dict[str, Path]) -> None:
    """Each job is announced, worked on and concluded before the next, the failing one too."""
    plans = [
        tiny_plan(tmp_path, "first", [(loras["a"], 1.0)]),
        tiny_plan(tmp_path, "failing", [(loras["zero"], 1.0)]),
        tiny_plan(tmp_path, "last"),
    ]
    heard: list[RunEvent] = []
    outcomes = render_jobs(plans, RunSettings(device="cpu"), listener=heard.append)
    started, *middle, finished = heard
    assert isinstance(started, RunStarted)
    assert [standing.plan for standing in started.standings] == plans
    assert {standing.state for standing in started.standings} == {State.NEW}
    assert isinstance(finished, RunFinished)
    assert finished.outcomes == tuple(outcomes)
    jobs: list[list[RunEvent]] = []
    for event in middle:
        if isinstance(event, JobStarted):
            jobs.append([])
        jobs[-1].append(event)
    assert len(jobs) == 3
    for number, (events, plan, outcome) in enumerate(zip(jobs, plans, outcomes, strict=True), start=1):
        assert events[0] == JobStarted(plan=plan, number=number, total=3)
        assert events[-1] is outcome
        assert outcome.plan is plan
        assert outcome.end is (End.FAILED if number == 2 else End.DONE)
        assert (outcome.result is None) == (outcome.error is not None) == (number == 2)
        assert sum(isinstance(event, Outcome) for event in events) == 1
    baked = [sum(isinstance(event, Baked) for event in events) for events in jobs]
    steps = [sum(isinstance(event, StepFinished) for event in events) for events in jobs]
    sections = [sum(isinstance(event, SectionFinished) for event in events) for events in jobs]
    assert (baked, steps, sections) == ([1, 0, 0], [2, 0, 2], [1, 0, 1])
    stages = [event.stage for event in jobs[0] if isinstance(event, StageStarted)]
    assert stages[-1] is Stage.DECODE


def test_result_adds_up(tmp_path: Path) -> None:
    """The result's seconds cover its stages, and its seconds per step are the sampling's share."""
    plan = tiny_plan(tmp_path, "job", sections=2, steps=3)
    (outcome,) = _render([plan])
    assert outcome.result is not None
    timings = _sidecar(plan)["timings"]
    assert outcome.result.seconds >= sum(timings.values()) - 0.01
    assert math.isclose(outcome.result.seconds_per_step, timings["sample"] / 6, abs_tol=1e-4)


def test_no_jobs() -> None:
    """A run of no jobs has no outcomes, and says so."""
    heard: list[RunEvent] = []
    assert render_jobs([], RunSettings(device="cpu"), listener=heard.append) == []
    assert heard[0] == RunStarted(standings=())
    assert isinstance(heard[1], RunFinished)
    assert heard[1].outcomes == ()
    assert len(heard) == 2


# What a failure leaves ----------------------------------------------------------------------------------------


def test_a_failed_job_lets_go_of_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed job held is gone before the next one starts, though its error is kept."""
    held: list[weakref.ref[Tensor]] = []
    forward = PackedTransformer.forward

    def failing(model: PackedTransformer, latents: Tensor, **inputs: Any) -> Tensor:
        if not held:
            activations = torch.ones(8)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("too much")
        assert held[0]() is None
        return forward(model, latents, **inputs)

    monkeypatch.setattr(PackedTransformer, "forward", failing)
    first, second = _render([tiny_plan(tmp_path, "first"), tiny_plan(tmp_path, "second")])
    assert isinstance(first.error, RenderFailed)
    assert "out of memory" in str(first.error)
    assert second.error is None
