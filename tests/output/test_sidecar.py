"""Sidecars: JSON that says what a video is, and makes its job again."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from goan_cli.errors import InvalidInput
from goan_cli.jobs.job import Compile, Job
from goan_cli.output.quality import Finding, Quality, SectionQuality
from goan_cli.output.sidecar import (
    SIDECAR_VERSION,
    PackRecord,
    RejectedSeed,
    RenderRecord,
    read_sidecar,
    recorded_video,
    settings_of,
    sidecar,
    write_sidecar,
)
from goan_cli.output.video import VideoInfo
from tests.clips import numbered_frames, write_clip
from tests.conftest import MINIMAL, plan_files, write_jobs

RICH = {
    "image": "start.png",
    "prompt": "Größe: 漢字 🙂 — 'a' \"b\" #c\n[d]: {e}\ttab",
    "negative_prompt": "off",
    "seconds": 2,
    "fps": 23.976,
    "size": [48, 64],
    "seed": 2**63 - 1,
    "steps": 3,
    "window": 2,
    "guidance_scale": 6,
    "true_cfg_scale": 2.5,
    "guidance_rescale": 0.7,
    "shift": 3.25,
    "step_cache": {"threshold": 0.1},
    "loras": [{"path": "style.safetensors", "weight": 0.3}, {"path": "style.safetensors", "weight": -1}],
    "output": {"dir": "out", "keep_latents": True, "crf": 1},
    "gates": {"black": "fail", "frozen": "off", "drift": "warn"},
    "retry_seeds": 3,
    "post": {"interpolate": 48},
}
# All that directs a job.
DIRECTED = {
    **RICH,
    "end_image": "start.png",
    "end_strength": 0.25,
    "fit": "pad",
    "paddings": [3, 3, 2, 1, 1, 0],
    "guidance_schedule": {"shape": "roll-off", "end": 2, "start_at": 0.5, "curve": 2, "trim": 0.9},
    "timeline": [
        {"at": 0, "negative_prompt": ""},
        {"at": "0.4s", "prompt": "", "blend": 2, "image": "start.png", "loras": []},
        {"at": 0.7, "true_cfg_scale": 1, "loras": [{"path": "style.safetensors", "weight": 2, "exclude": ["x*"]}]},
    ],
}
GUIDED = [{"at": 0.5, "guidance_scale": 0, "prompt": "größer"}]
RECORD = RenderRecord(
    identity="0123",
    asked_seed=7,
    rejected=[RejectedSeed(seed=7, reason="nothing moves")],
    latents_sha256="45",
    frames_sha256="67",
    quality=Quality(
        finite=True,
        black=0,
        black_frames=(),
        still_seconds=0.1,
        seconds=1.0,
        sections=(SectionQuality(luma=100.0, saturation=30.0, motion=1.0),),
    ),
    findings=[Finding(defect="drift", seen="luma wanders", fails=False)],
    machines=["cpu"],
    pack=PackRecord(name="tiny", family="inverted", manifest=Path("/packs/pack.yaml"), identity="abc"),
    pictures={"/somewhere/start.png": "def"},
    bake={"moved": 1.0},
    computed_steps=[[0, 1, 2], [0, 2]],
    timings={"sample": 1.23456},
    seconds_per_step=0.123456,
    device="cpu",
    dtype="float32",
    compiled=False,
    memory=None,
    versions={"torch": "2"},
    notes=["a note"],
)


def job_of(folder: Path, job: dict[str, Any], name: str = "shot") -> Job:
    """The resolved job of a file."""
    (plan,) = plan_files(write_jobs(folder / f"{name}.yaml", job))
    return plan.job


def content_of(job: Job) -> dict[str, Any]:
    """A whole sidecar."""
    record = replace(RECORD, pictures=dict.fromkeys(map(str, job.inputs), "def"))
    return sidecar(job, record, VideoInfo(frames=25, size=job.size, fps=job.fps), "123")


@pytest.mark.parametrize(
    "job",
    [
        dict(MINIMAL),
        {"image": "start.png", "prompt": ""},
        {**MINIMAL, "preset": "draft"},
        {**MINIMAL, "preset": "quality", "seed": 0, "guidance_scale": 0},
        {**MINIMAL, "loras": ["style.safetensors"], "step_cache": "off"},
        RICH,
        {**RICH, "output": {"format": "webm", "codec": "av1", "keep": ["sections", "latents"], "metadata": False}},
        {**RICH, "output": {"format": "gif", "poster": True, "keep": "preview"}},
        DIRECTED,
        {**MINIMAL, "sections": 3, "loop": True, "timeline": GUIDED},
        {"start": "#3A6EA5", "prompt": "", "sections": 3, "resolution": 96, "fit": "pad", "timeline": GUIDED},
        {"prompt": "", "start": "noise", "size": [64, 64], "end_image": "start.png", "fit": "pad"},
        {**MINIMAL, "size": [64, 48], "fit": "pad"},
    ],
    ids=[
        *("minimal", "five-seconds", "draft", "quality", "lora", "rich", "webm", "gif"),
        *("directed", "loop", "colour", "only the end is padded", "padding that pads nothing"),
    ],
)
def test_settings_make_the_job_again(folder: Path, job: dict[str, Any]) -> None:
    """A sidecar's settings, read back from its JSON as a job file anywhere, resolve to the very same job.

    But for what `compile: auto` came to, which a replay then does too.
    """
    first = job_of(folder, job)
    write_sidecar(folder / "shot.json", content_of(first))
    settings = json.loads((folder / "shot.json").read_text(encoding="utf-8"))["settings"]
    (folder / "elsewhere").mkdir()
    again = job_of(folder / "elsewhere", settings, name="shot")
    execution = replace(first.execution, compile=Compile.OFF)
    assert again == replace(first, seconds=None, seed_drawn=False, execution=execution)


def test_settings_of_a_long_video(folder: Path) -> None:
    """The longest video that may be asked for in seconds can be asked for again from its sidecar."""
    first = job_of(folder, {"image": "start.png", "prompt": "x", "seconds": 600})
    again = job_of(folder, settings_of(first), name="again")
    assert again.sections == first.sections


def test_settings_as_a_yaml_file(folder: Path) -> None:
    """Settings copied as JSON text into a YAML file mean the same, since JSON is YAML."""
    first = job_of(folder, RICH)
    text = json.dumps(settings_of(first), indent=2, ensure_ascii=False)
    (folder / "copied.yaml").write_text(text, encoding="utf-8")
    (plan,) = plan_files(folder / "copied.yaml")
    assert plan.job.prompt == first.prompt
    assert settings_of(plan.job) == settings_of(first)
    assert yaml.safe_load(text) == settings_of(first)


@pytest.mark.parametrize("prompt", ["a\x7fb", "a\x85b", "a\u2028b", "a\x07b"])
def test_control_characters_survive(folder: Path, prompt: str) -> None:
    """A prompt with control characters, pasted on a command line, comes back from the sidecar's own text."""
    first = replace(job_of(folder, dict(MINIMAL)), prompt=prompt)
    write_sidecar(folder / "out.json", content_of(first))
    text = (folder / "out.json").read_text(encoding="utf-8")
    assert json.loads(text)["settings"]["prompt"] == prompt
    settings = text[text.index('"settings": {') + len('"settings": ') : text.index('"seed_drawn"')].strip().rstrip(",")
    (folder / "copied.yaml").write_text(settings, encoding="utf-8")
    (plan,) = plan_files(folder / "copied.yaml")
    assert plan.job.prompt == prompt


def test_a_drawn_seed_is_recorded(folder: Path) -> None:
    """A seed that was drawn stands in the settings, and that it was drawn stands beside them."""
    job = job_of(folder, dict(MINIMAL))
    content = content_of(job)
    assert content["settings"]["seed"] == job.sampling.seed
    assert content["seed_drawn"] is True
    assert content_of(job_of(folder, {**MINIMAL, "seed": 5}))["seed_drawn"] is False


def test_content(folder: Path) -> None:
    """A sidecar names the video and its hash, the inputs, the pack, the bake, and what each section was."""
    job = job_of(folder, RICH)
    content = json.loads(json.dumps(content_of(job)))
    assert content["version"] == 1
    assert content["name"] == "shot"
    assert content["video"] == {
        "file": "shot.mp4",
        "format": "mp4",
        "codec": "h264",
        "sha256": "123",
        "frames": 25,
        "fps": 23.976,
        "width": 48,
        "height": 64,
        "seconds": 1.042709,
    }
    assert content["inputs"]["image"]["sha256"] == "def"
    assert content["inputs"]["image"]["source"] == [160, 120]
    assert content["pack"] == {
        "name": "tiny",
        "family": "inverted",
        "manifest": "/packs/pack.yaml",
        "identity": "abc",
    }
    assert content["bake"] == {"moved": 1.0}
    assert [section["frames"] for section in content["sections"]] == [
        list(section.frames) for section in job.sections.sections
    ]
    assert content["computed_steps"] == [[0, 1, 2], [0, 2]]
    assert content["notes"] == ["a note"]
    assert (content["identity"], content["latents_sha256"], content["frames_sha256"]) == ("0123", "45", "67")
    assert (content["asked_seed"], content["settings"]["seed"]) == (7, 2**63 - 1)
    assert content["rejected_seeds"] == [{"seed": 7, "reason": "nothing moves"}]
    assert content["quality"] == {
        "finite": True,
        "black": 0,
        "black_frames": [],
        "still_seconds": 0.1,
        "seconds": 1.0,
        "sections": [{"luma": 100.0, "saturation": 30.0, "motion": 1.0}],
        "findings": [{"defect": "drift", "seen": "luma wanders", "fails": False}],
    }
    assert content["machines"] == ["cpu"]


def test_written_as_one(tmp_path: Path) -> None:
    """A sidecar is UTF-8 JSON that people can read, put in place as a whole."""
    path = tmp_path / "deep" / "a.json"
    write_sidecar(path, {"prompt": "Größe", "path": Path("/a")})
    assert path.read_text(encoding="utf-8") == '{\n  "prompt": "Größe",\n  "path": "/a"\n}\n'
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


# Reading --------------------------------------------------------------------------------------------------


# Values that readers could not use, under keys that they rely on.
SPOILT: Sequence[tuple[str, object]] = (
    ("version", "first"),
    ("settings", []),
    ("video", "shot.mp4"),
    ("video", {"file": "shot.mp4", "sha256": "12", "frames": 25}),
    ("pack", None),
    ("bake", []),
    ("versions", {"torch": 2}),
)
# The least that a sidecar has.
LEAST: dict[str, Any] = {
    "version": SIDECAR_VERSION,
    "settings": {},
    "video": {"file": "shot.mp4", "sha256": "12", "frames": 25, "seconds": 1.0},
    "pack": {},
}


def test_read_as_written(folder: Path) -> None:
    """A sidecar is read as the JSON that was written, with every key and each number."""
    job = job_of(folder, RICH)
    write_sidecar(job.sidecar, content_of(job))
    assert read_sidecar(job.sidecar) == json.loads(json.dumps(content_of(job)))


def test_the_least_that_is_a_sidecar(tmp_path: Path) -> None:
    """Keys that came later are not needed, and unknown ones do no harm."""
    (tmp_path / "a.json").write_text(json.dumps({**LEAST, "more": [1]}), encoding="utf-8")
    assert read_sidecar(tmp_path / "a.json") == {**LEAST, "more": [1]}


def test_values_without_a_number(tmp_path: Path) -> None:
    """A ratio that has no finite value is null, and what is written stays strict JSON."""
    write_sidecar(tmp_path / "a.json", {**LEAST, "bake": {"ratios": [float("inf"), float("nan"), 1.5]}})
    assert read_sidecar(tmp_path / "a.json")["bake"] == {"ratios": [None, None, 1.5]}


def _json(value: object) -> Callable[[Path], object]:
    return lambda path: path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda _: None, "no such file", id="missing"),
        pytest.param(Path.mkdir, "not a sidecar", id="a folder"),
        pytest.param(lambda path: path.write_bytes(b""), "not a sidecar", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe{}"), "not a sidecar", id="no UTF-8"),
        pytest.param(lambda path: path.write_text('{"version": 1, "sett'), "not a sidecar", id="cut off"),
        pytest.param(lambda path: path.write_text("[" * 100_000), "not a sidecar", id="deep"),
        pytest.param(_json(["version", "settings", "video", "pack"]), "not a sidecar of goan", id="a list"),
        pytest.param(_json({}), "not a sidecar of goan", id="an empty object"),
        pytest.param(_json({"version": 1, "name": "x", "jobs": []}), "not a sidecar of goan", id="some other JSON"),
        *(pytest.param(_json({**LEAST, key: value}), "not a sidecar of goan", id=key) for key, value in SPOILT),
        pytest.param(
            _json({**LEAST, "version": SIDECAR_VERSION + 1}),
            f"of version {SIDECAR_VERSION + 1}, which this goan cannot read",
            id="newer",
        ),
    ],
)
def test_what_is_no_sidecar(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    """Whatever is not a sidecar of this version is refused by its path, with what it is."""
    path = tmp_path / "shot.json"
    make(path)
    with pytest.raises(InvalidInput, match=said) as caught:
        read_sidecar(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
@pytest.mark.parametrize("keys", [{}, {"join": False}, {"audio": True, "cross_fade": "0.2s"}, {"cross_fade": 0}])
def test_a_video_that_is_gone_on_with(folder: Path, model: str, keys: dict[str, Any]) -> None:
    """Its settings make the job again, also where it is padded, and its content is recorded."""
    write_clip(folder / "clip.mp4", numbered_frames(23), hertz=440)
    job = {"video": {"path": "clip.mp4", **keys}, "prompt": "a ball", "sections": 1, "model": model, "fit": "pad"}
    first = job_of(folder, {**job, "seed": 7, "size": [64, 64]})
    assert first.extension is not None
    assert first.extension.fit.beside
    (folder / "elsewhere").mkdir()
    again = job_of(folder / "elsewhere", settings_of(first), name="shot")
    assert again == first if first.extension.join else replace(again, extension=first.extension) == first
    assert settings_of(again) == settings_of(first)
    inputs = content_of(first)["inputs"]
    seen = [2, 23] if model == "tiny-f1" else [0, 21]
    path = str(folder / "clip.mp4")
    assert inputs["video"] == {"path": path, "sha256": "def", "frames": 23, "fps": 30.0, "seen": seen}
    assert "pictures" not in inputs


@pytest.mark.parametrize(
    ("file", "video"),
    [
        ("shot.mp4", "other.mp4"),
        ("shot.frames", "other.frames"),
        ("../../shot.webm", "other.webm"),
        ("a.b.gif", "other.gif"),
    ],
)
def test_recorded_video(tmp_path: Path, file: str, video: str) -> None:
    """A sidecar's video is beside it, under its name and of the kind that was written, wherever both were moved."""
    assert recorded_video(tmp_path / "other.json", {"video": {"file": file}}) == tmp_path / video
