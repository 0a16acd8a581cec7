"""What a job's result is: formats with their codecs and qualities, names from a template, and what is kept."""

import re
from pathlib import Path
from typing import Any

import pytest

from goan_cli.jobs.formats import Codec, Coding, Format
from goan_cli.jobs.job import Job
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs


def _job(folder: Path, output: dict[str, Any], **keys: Any) -> Job:
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**MINIMAL, "seed": 7, **keys, "output": output}))
    return plan.job


def _problem(folder: Path, output: dict[str, Any], **keys: Any) -> str:
    (line,) = problems_in(write_jobs(folder / "shot.yaml", {**MINIMAL, **keys, "output": output}))
    return line


@pytest.mark.parametrize(
    ("output", "coding", "name"),
    [
        ({}, Coding(), "shot.mp4"),
        ({"crf": 30}, Coding(crf=30), "shot.mp4"),
        ({"codec": "hevc"}, Coding(codec=Codec.HEVC, crf=18), "shot.mp4"),
        ({"codec": "av1", "crf": 63}, Coding(codec=Codec.AV1, crf=63), "shot.mp4"),
        ({"format": "webm"}, Coding(format=Format.WEBM, codec=Codec.VP9, crf=22), "shot.webm"),
        ({"format": "webm", "codec": "av1"}, Coding(format=Format.WEBM, codec=Codec.AV1, crf=22), "shot.webm"),
        ({"format": "gif"}, Coding(format=Format.GIF, codec=Codec.GIF, crf=None), "shot.gif"),
        ({"format": "webp"}, Coding(format=Format.WEBP, codec=Codec.WEBP, crf=None), "shot.webp"),
        ({"format": "png"}, Coding(format=Format.PNG, codec=Codec.PNG, crf=None), "shot.frames"),
        ({"format": "mov", "codec": "prores"}, Coding(format=Format.MOV, codec=Codec.PRORES, crf=None), "shot.mov"),
    ],
)
def test_codings(folder: Path, output: dict[str, Any], coding: Coding, name: str) -> None:
    """A format brings its codec, the codec its quality, and the result's name ends with the format."""
    job = _job(folder, output)
    assert (job.output.coding, job.video) == (coding, folder / "renders" / name)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ({"format": "webm", "codec": "h264"}, r"output\.codec: h264 does not go into webm \(webm has vp9 or av1\)"),
        ({"format": "gif", "codec": "av1"}, r"output\.codec: av1 does not go into gif \(gif has gif\)"),
        ({"codec": "prores"}, r"output\.codec: prores does not go into mp4 \(mp4 has h264 or hevc or av1\)"),
        ({"format": "mov", "crf": 20}, r"output\.crf: prores has no crf \(leave it out\)"),
        ({"crf": 52}, r"output\.crf: h264 takes 1 to 51 \(default 16\), not 52"),
        ({"format": "mp5"}, r"output\.format: must be .*mp4.*not 'mp5'"),
        ({"keep": ["latent"]}, r"output\.keep\[0\]: must be .*latents.*not 'latent'"),
    ],
)
def test_what_does_not_go_together(folder: Path, output: dict[str, Any], said: str) -> None:
    """A codec that the format has not, and a quality that the codec has not, are told at their key."""
    line = _problem(folder, output)
    assert re.search(rf"shot\.yaml:\d+: {said}", line), line


def test_fast_gifs(folder: Path) -> None:
    """A gif that no viewer would show at its rate is a problem; WebP shows it."""
    assert "a gif shows at most 50 frames a second, and this job has 60" in _problem(folder, {"format": "gif"}, fps=60)
    assert _job(folder, {"format": "webp"}, fps=60).fps == 60


@pytest.mark.parametrize(
    ("output", "kept"),
    [
        ({}, (False, False, False)),
        ({"keep_latents": True}, (True, False, False)),
        ({"keep": ["latents"]}, (True, False, False)),
        ({"keep": "sections"}, (False, True, False)),
        ({"keep": ["preview", "sections"], "keep_latents": True}, (True, True, True)),
        ({"keep": []}, (False, False, False)),
    ],
)
def test_keep(folder: Path, output: dict[str, Any], kept: tuple[bool, bool, bool]) -> None:
    """`keep` lists what is kept, or is one word; `keep_latents` says the same as it always did."""
    asked = _job(folder, output).output
    assert (asked.keep_latents, asked.keep_sections, asked.keep_previews) == kept


def test_results(folder: Path) -> None:
    """A job's results are all the files that it is asked for, by which is known whether it is up to date."""
    job = _job(folder, {"format": "webm", "keep": ["sections", "preview"], "poster": True}, sections=2)
    assert sorted(path.name for path in job.results) == sorted(
        [
            *("shot.webm", "shot.json", "shot.png"),
            *("shot.section-1.webm", "shot.section-2.webm", "shot.section-1.png", "shot.section-2.png"),
        ]
    )


LORAS = [{"path": "style.safetensors", "weight": 0.5}, "style.safetensors"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{name}-{seed}-{lora}", "shot-7-style@0.5+style"),
        ("{model} {width}x{height}, {steps} steps", "tiny 80x64, 9 steps"),
        ("fixed", "fixed"),
    ],
)
def test_templates(folder: Path, template: str, name: str) -> None:
    """A template's fields are what the job comes to; every file of the result has the name."""
    job = _job(folder, {"template": template}, loras=LORAS, steps=9, size=[80, 64])
    assert job.name == name
    assert {path.name for path in job.results} == {f"{name}.mp4", f"{name}.json"}


def test_a_job_without_loras(folder: Path) -> None:
    """The field of the LoRAs is never empty."""
    assert _job(folder, {"template": "{name}-{lora}"}).name == "shot-none"


def test_a_lora_with_signs_in_its_name(folder: Path) -> None:
    """Signs that no result's name may have become underscores."""
    (folder / "style.safetensors").rename(folder / "my (best) style.safetensors")
    job = _job(folder, {"template": "{lora}"}, loras=["my (best) style.safetensors"])
    assert job.name == "my_best_style"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{name}-{sed}", r"\{sed\} is no field of a name \(did you mean seed\?\)"),
        ("{date}", r"\{date\} is no field of a name \(valid: height, lora, model, name, seed, steps, width\)"),
        ("{}", r"\{\} is no field"),
        ("{seed:04d}", r"\{seed\} takes nothing after the field's name"),
        ("{seed!r}", r"\{seed\} takes nothing after the field's name"),
        ("{name", r"must be text with fields such as \{name\}-\{seed\}"),
        ("{name.__class__}", r"\{name\.__class__\} is no field"),
        ("../{name}", r"makes '\.\./shot', which cannot name a result: letters"),
        ("{name}/{seed}", r"makes 'shot/7', which cannot name a result"),
        ("{{name}}", r"makes '\{name\}', which cannot name a result"),
    ],
)
def test_wrong_templates(folder: Path, template: str, said: str) -> None:
    """A template that has other fields, or makes what cannot be a name, is told at its key."""
    line = _problem(folder, {"template": template}, seed=7)
    assert re.search(rf"shot\.yaml:\d+: output\.template: {said}", line), line


def test_a_template_with_a_drawn_seed(folder: Path) -> None:
    """A name with a seed that each run would draw anew is a problem: nothing could ever be up to date."""
    line = _problem(folder, {"template": "{name}-{seed}"})
    assert "output.template: names the seed, and the job has none" in line
    assert "(give it a seed)" in line


def test_a_template_for_a_matrix(folder: Path) -> None:
    """Variants are named by one template; names that come out the same are told, whatever the formats."""
    content = {
        **MINIMAL,
        "output": {"template": "{name}_{steps}"},
        "matrix": {"seed": [1, 2], "output.format": ["mp4", "gif"]},
    }
    plans = plan_files(write_jobs(folder / "shot.yaml", content), settings=["steps=3"])
    assert plans[1].job.video.name == "shot-seed=1-format=gif_3.gif"
    content = {**MINIMAL, "matrix": {"output.format": ["mp4", "gif"]}, "output": {"template": "same"}}
    (line,) = problems_in(write_jobs(folder / "shot.yaml", content))
    assert "two jobs would write" in line
