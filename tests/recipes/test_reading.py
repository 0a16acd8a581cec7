"""Recipes of what goan wrote: the short job, what is known of it, and files that have none."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from goan_cli.batch.outcome import End
from goan_cli.batch.run import render_jobs
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import InvalidInput, InvalidJobs
from goan_cli.output.pictures import RECIPE_KEY
from goan_cli.output.recipe import recipe_of
from goan_cli.output.sidecar import settings_of
from goan_cli.recipes.reading import read_recipe
from goan_cli.render.identity import job_identity
from goan_cli.render.plan import RenderPlan
from tests.conftest import plan_files, write_jobs
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora
from tests.recipes.files import write_png


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> RenderPlan:
    """A finished job with a LoRA, true CFG and a step cache."""
    folder = tmp_path_factory.mktemp("project")
    lora = write_lora(folder / "a.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE))
    settings = {"true_cfg_scale": 2.0, "negative_prompt": "dark\nblurry", "step_cache": "teacache", "fps": 12.5}
    output = {"dir": str(folder / "out"), "keep_latents": True, "metadata": True}
    plan = tiny_plan(folder, "job", [(lora, 0.7)], **settings, output=output)
    (outcome,) = render_jobs([plan], RunSettings(device="cpu"))
    assert outcome.error is None
    return plan


@pytest.fixture
def sidecar(rendered: RenderPlan, tmp_path: Path) -> Path:
    """Its sidecar alone, to be changed."""
    return Path(shutil.copy(rendered.job.sidecar, tmp_path / "job.json"))


def changed(sidecar: Path, change: Mapping[str, Any]) -> Path:
    """The sidecar with other content."""
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))
    return sidecar


def test_a_sidecar(rendered: RenderPlan) -> None:
    """A sidecar's job is short, and has its paths from the folder that it is for."""
    found = read_recipe(rendered.job.sidecar)
    assert found.job(rendered.job.output.dir.parent) == {
        "name": "job",
        "model": "tiny",
        "image": "start.png",
        "prompt": "a red ball moves to the left",
        "negative_prompt": "dark\nblurry",
        "sections": 1,
        "fps": 12.5,
        "size": [32, 32],
        "seed": 7,
        "steps": 2,
        "window": 2,
        "true_cfg_scale": 2.0,
        "step_cache": "teacache",
        "loras": [{"path": "a.safetensors", "weight": 0.7}],
        "output": {"dir": "out", "keep_latents": True},
    }
    assert found.missing == []


def test_what_is_known(rendered: RenderPlan) -> None:
    """Beside the job stand the file's and the image's hashes, the identity, the model and the versions."""
    content = json.loads(rendered.job.sidecar.read_text())
    facts = "\n".join(read_recipe(rendered.job.sidecar).facts)
    for known in (
        content["video"]["sha256"],
        content["identity"],
        content["inputs"]["image"]["sha256"],
        f"torch {content['versions']['torch']}",
        f"goan-cli {content['versions']['goan-cli']}",
        "tiny inverted",
        "cpu",
    ):
        assert known in facts


@pytest.mark.parametrize("folder", ["", "jobs", "jobs/deep"])
def test_the_same_render(rendered: RenderPlan, folder: str) -> None:
    """Wherever its job file stands, a sidecar's job is up to date: nothing is rendered."""
    place = rendered.job.output.dir.parent / folder
    place.mkdir(parents=True, exist_ok=True)
    job = read_recipe(rendered.job.sidecar).job(place)
    (plan,) = plan_files(write_jobs(place / "again.yaml", job))
    assert job_identity(plan) == job_identity(rendered)
    (outcome,) = render_jobs([plan], RunSettings(device="cpu"))
    assert outcome.end is End.UP_TO_DATE


def test_a_video(rendered: RenderPlan) -> None:
    """The video alone has the same job, but for where its results go and what is kept beside it."""
    home = rendered.job.output.dir.parent
    of_sidecar, of_video = (read_recipe(path).job(home) for path in (rendered.job.sidecar, rendered.job.video))
    assert of_video == {key: value for key, value in of_sidecar.items() if key != "output"}
    (plan,) = plan_files(write_jobs(home / "of-video.yaml", of_video))
    assert job_identity(plan) == job_identity(rendered)


def test_a_picture(rendered: RenderPlan, tmp_path: Path) -> None:
    """A PNG with a recipe has it too; the job goes by the picture's name."""
    write_png(tmp_path / "poster.png", {RECIPE_KEY: recipe_of(rendered.job, compiled=False)})
    found = read_recipe(tmp_path / "poster.png").job(rendered.job.output.dir.parent)
    of_video = read_recipe(rendered.job.video).job(rendered.job.output.dir.parent)
    assert found == {**of_video, "name": "poster"}


def test_results_are_where_the_sidecar_is(rendered: RenderPlan, tmp_path: Path) -> None:
    """Results that were moved are found where they are now; what they were made from is named by its old place."""
    shutil.copytree(rendered.job.output.dir, tmp_path / "moved")
    job = read_recipe(tmp_path / "moved" / "job.json").job(tmp_path)
    assert job["output"]["dir"] == "moved"
    (plan,) = plan_files(write_jobs(tmp_path / "again.yaml", job))
    assert plan.job.pictures[0].resolve() == rendered.job.pictures[0].resolve()
    (outcome,) = render_jobs([plan], RunSettings(device="cpu"))
    assert outcome.end is End.UP_TO_DATE


def test_missing_files(sidecar: Path) -> None:
    """Files that a job names and that are not there are told."""
    settings = json.loads(sidecar.read_text())["settings"]
    lora = {"path": "/gone/b.safetensors", "weight": 1}
    path = changed(sidecar, {"settings": {**settings, "image": "/gone/a.png", "loras": [lora], "model": "/gone/pack"}})
    assert read_recipe(path).missing == ["/gone/a.png", "/gone/b.safetensors", "/gone/pack"]


def test_refused_seeds(sidecar: Path) -> None:
    """After refused seeds the job asks for the first one, which leads to the same result; both are told."""
    settings = json.loads(sidecar.read_text())["settings"]
    path = changed(
        sidecar,
        {
            "settings": {**settings, "seed": 9, "retry_seeds": 3},
            "asked_seed": 7,
            "rejected_seeds": [{"seed": 7, "reason": "black"}, {"seed": 8, "reason": "black"}],
        },
    )
    found = read_recipe(path)
    assert (found.job(path.parent)["seed"], found.job(path.parent)["retry_seeds"]) == (7, 3)
    assert "seed 9 made the video, after 2 refused by a gate" in found.facts


@pytest.mark.parametrize("word", ["a\nmodel: b", "../up", "x" * 500, ""])
def test_strange_names(sidecar: Path, word: str) -> None:
    """A name that no result can have is left out."""
    assert "name" not in read_recipe(changed(sidecar, {"name": word})).job(sidecar.parent)


def test_settings_that_are_no_job(sidecar: Path) -> None:
    """Settings that this goan has no keys for are told, each with its place."""
    settings = json.loads(sidecar.read_text())["settings"]
    path = changed(sidecar, {"settings": {**settings, "steps": [1], "loras": {"a": 1}, "warp": True, "image": "a\0b"}})
    with pytest.raises(InvalidJobs) as caught:
        read_recipe(path).job(path.parent)
    assert {problem.key for problem in caught.value.problems} == {"steps", "loras", "warp", "image"}
    assert {problem.file for problem in caught.value.problems} == {path}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\x89PNG\r\n\x1a\n and no more",
        b"\x00\x00\x00\x18ftypmp42 and no more",
        b"\x1a\x45\xdf\xa3 and no more",
        b"GIF89a",
        b"PK\3\4",
    ],
)
def test_files_without_a_recipe(tmp_path: Path, content: bytes) -> None:
    """A file without a recipe is told as such, and which files have one."""
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(InvalidInput, match="no recipe of goan in it") as caught:
        read_recipe(tmp_path / "a.mp4")
    assert "sidecars" in str(caught.value.hint)
    assert "MP4" in str(caught.value.hint)


@pytest.mark.parametrize("content", ["{", "[1, 2]", "{}", '{"version": 1}', "[" * 100_000, '{"prompt": "x"}', "[]"])
def test_json_that_is_no_sidecar(tmp_path: Path, content: str) -> None:
    """JSON that is no sidecar is told as such, and what has a recipe."""
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidInput, match="not a sidecar") as caught:
        read_recipe(tmp_path / "a.json")
    assert "goan recipe import" in str(caught.value.hint)


def test_the_sidecar_beside(rendered: RenderPlan, tmp_path: Path) -> None:
    """A video without a recipe points to its sidecar, where that lies beside it."""
    shutil.copy(rendered.job.sidecar, tmp_path / "job.json")
    (tmp_path / "job.mp4").write_bytes(b"GIF89a")
    with pytest.raises(InvalidInput) as caught:
        read_recipe(tmp_path / "job.mp4")
    assert caught.value.hint == f"take {tmp_path / 'job.json'}, beside it"


def test_hostile_recipes(tmp_path: Path) -> None:
    """A recipe of anything but settings is none; a newer one is told as such."""
    for content in ("[]", '{"tool": "goan", "version": 1, "settings": 3}', "{" * 10_000):
        write_png(tmp_path / "a.png", {RECIPE_KEY: content})
        with pytest.raises(InvalidInput, match="no recipe of goan in it"):
            read_recipe(tmp_path / "a.png")
    newer = '{"tool": "goan", "version": 99, "settings": {}}'
    write_png(tmp_path / "a.png", {RECIPE_KEY: newer})
    with pytest.raises(InvalidInput, match="version 99"):
        read_recipe(tmp_path / "a.png")


def test_every_key(rendered: RenderPlan) -> None:
    """The short job comes to every setting that the sidecar has, folders of results and compiling apart."""
    home = rendered.job.output.dir.parent
    text = yaml.safe_dump(read_recipe(rendered.job.sidecar).job(home))
    (plan,) = plan_files(write_jobs(home / "job.yaml", text))
    assert settings_of(plan.job) == settings_of(rendered.job)
