"""Requests filled in: nothing is left to default, and a drawn seed is on record."""

from pathlib import Path
from typing import Any

import pytest

from goan_cli.jobs.job import Gate, Gates, Job, ModelDefaults, StepCache, Variant
from goan_cli.jobs.load import load_requests
from goan_cli.jobs.resolve import resolve_job
from goan_cli.jobs.sections import Family
from tests.conftest import MINIMAL, write_jobs

FULL_SIZE = ModelDefaults(family=Family.INVERTED, window=9, steps=25, resolution=640)


def resolved(folder: Path, job: dict[str, Any], defaults: ModelDefaults = FULL_SIZE, out: Path | None = None) -> Job:
    """The one job of a file without problems."""
    (request,), problems = load_requests([write_jobs(folder / "shot.yaml", job)])
    assert problems == []
    made, problems = resolve_job(request, defaults, out=out)
    assert problems == []
    assert made is not None
    return made


def test_defaults(folder: Path) -> None:
    """A job of an image and a prompt gets the model's window and steps, 5 s at 30 fps, and FramePack's guidance."""
    job = resolved(folder, {"image": "start.png", "prompt": "x"})
    sampling = job.sampling
    assert (job.name, job.model, job.fps, job.seconds, job.negative_prompt) == ("shot", "tiny", 30.0, 5.0, "")
    assert (job.sections.window, len(job.sections.sections), job.sections.frames) == (9, 4, 145)
    assert (sampling.steps, sampling.guidance_scale, sampling.true_cfg_scale) == (25, 10.0, 1.0)
    assert (sampling.guidance_rescale, sampling.shift, sampling.step_cache) == (0.0, None, None)
    assert (job.output.dir, job.output.crf, job.output.keep_latents) == (folder / "renders", 16, False)
    assert not job.output.contact_sheet
    assert job.loras == ()
    assert job.gates == Gates(nan=Gate.FAIL, black=Gate.WARN, frozen=Gate.WARN, drift=Gate.OFF)
    assert (job.retry_seeds, job.variant) == (0, None)


def test_everything_given(folder: Path) -> None:
    """What a job says stands against every default."""
    job = resolved(
        folder,
        {
            "name": "mine",
            "model": "other",
            "image": "start.png",
            "prompt": "",
            "negative_prompt": "blur",
            "seconds": 2,
            "fps": 24,
            "size": [48, 64],
            "seed": 0,
            "steps": 3,
            "window": 2,
            "guidance_scale": 0,
            "true_cfg_scale": 2,
            "guidance_rescale": 0.5,
            "shift": 3,
            "step_cache": {"threshold": 0.2},
            "loras": [{"path": "style.safetensors", "weight": 0}],
            "output": {"dir": "out", "keep_latents": True, "contact_sheet": True, "crf": 1},
            "gates": {"nan": "off", "black": "fail", "frozen": "off", "drift": "warn"},
            "retry_seeds": 5,
        },
    )
    sampling = job.sampling
    assert (job.name, job.model, job.prompt, job.negative_prompt, job.size) == ("mine", "other", "", "blur", (48, 64))
    assert (job.seconds, job.fps, job.sections.window, len(job.sections.sections)) == (2.0, 24.0, 2, 6)
    assert (sampling.seed, sampling.steps, sampling.guidance_scale, sampling.true_cfg_scale) == (0, 3, 0.0, 2.0)
    assert (sampling.guidance_rescale, sampling.shift) == (0.5, 3.0)
    assert sampling.step_cache == StepCache(threshold=0.2)
    assert [(lora.path, lora.weight) for lora in job.loras] == [(folder / "style.safetensors", 0.0)]
    assert (job.output.dir, job.output.crf, job.output.keep_latents) == (folder / "out", 1, True)
    assert job.output.contact_sheet
    assert job.gates == Gates(nan=Gate.OFF, black=Gate.FAIL, frozen=Gate.OFF, drift=Gate.WARN)
    assert job.retry_seeds == 5


def test_absent_seed_is_drawn(folder: Path) -> None:
    """Without a seed one is drawn each time, in 32 bits, and the job says that it was drawn."""
    jobs = [resolved(folder, dict(MINIMAL)) for _ in range(8)]
    seeds = {job.sampling.seed for job in jobs}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert all(job.seed_drawn for job in jobs)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_given_seed_is_kept(folder: Path, seed: int) -> None:
    """A seed given is the job's, zero too."""
    job = resolved(folder, {**MINIMAL, "seed": seed})
    assert (job.sampling.seed, job.seed_drawn) == (seed, False)


def test_sections_instead_of_seconds(folder: Path) -> None:
    """A length in sections is taken as it is, and no seconds were asked for."""
    job = resolved(folder, {**MINIMAL, "sections": 7})
    assert (len(job.sections.sections), job.seconds) == (7, None)


@pytest.mark.parametrize(("resolution", "size"), [(640, (704, 544)), (320, (352, 272)), (64, (64, 48))])
@pytest.mark.parametrize("given", [{}, {"size": "auto"}])
def test_automatic_size(folder: Path, resolution: int, size: tuple[int, int], given: dict[str, Any]) -> None:
    """The automatic size is the model's bucket nearest to the image's shape, as (width, height)."""
    defaults = ModelDefaults(family=Family.F1, window=9, steps=25, resolution=resolution)
    job = resolved(folder, {**MINIMAL, **given}, defaults)
    assert job.size == size
    assert job.image_fit.source == (160, 120)


@pytest.mark.parametrize("family", list(Family))
def test_family_of_the_model(folder: Path, family: Family) -> None:
    """The sections are planned for the model's family."""
    defaults = ModelDefaults(family=family, window=3, steps=8, resolution=64)
    assert resolved(folder, dict(MINIMAL), defaults).sections.family is family


def test_step_cache_off(folder: Path) -> None:
    """`off` in a job turns off the step cache of a preset."""
    assert resolved(folder, {**MINIMAL, "preset": "draft"}).sampling.step_cache == StepCache(threshold=0.15)
    assert resolved(folder, {**MINIMAL, "preset": "draft", "step_cache": "off"}).sampling.step_cache is None


def test_gates_left_open(folder: Path) -> None:
    """A gate that is not given, or given as null, is as by default beside one that is given."""
    job = resolved(folder, {**MINIMAL, "gates": {"black": "fail", "nan": None}})
    assert job.gates == Gates(nan=Gate.FAIL, black=Gate.FAIL, frozen=Gate.WARN, drift=Gate.OFF)


def test_variant_of_a_matrix(folder: Path) -> None:
    """A job of a matrix keeps its place there."""
    requests, _ = load_requests([write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {"seed": [4, 9]}})])
    jobs = [resolve_job(request, FULL_SIZE)[0] for request in requests]
    axes = (("seed", ("4", "9")),)
    assert [job and job.variant for job in jobs] == [
        Variant(matrix="shot", axes=axes, place=(0,)),
        Variant(matrix="shot", axes=axes, place=(1,)),
    ]
    assert [job and job.sampling.seed for job in jobs] == [4, 9]


def test_folder_of_the_command_line(folder: Path) -> None:
    """`--out` stands above the job's own folder."""
    job = resolved(folder, {**MINIMAL, "output": {"dir": "out", "crf": 20}}, out=folder / "there")
    assert (job.output.dir, job.output.crf) == (folder / "there", 20)


def test_missing_files_are_all_named(folder: Path) -> None:
    """A missing image and every missing LoRA are problems of one pass."""
    content = {"image": "gone.png", "loras": ["gone.st", "style.safetensors", "away.st"]}
    (request,), _ = load_requests([write_jobs(folder / "shot.yaml", content)])
    job, problems = resolve_job(request, FULL_SIZE)
    assert job is None
    assert sorted(problem.key or "" for problem in problems) == ["image", "loras[0].path", "loras[2].path", "prompt"]
