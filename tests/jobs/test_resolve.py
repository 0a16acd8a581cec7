"""Requests filled in: nothing is left to default, and a drawn seed is on record."""

from pathlib import Path
from typing import Any

import pytest

from goan_cli.jobs.job import (
    AttentionBackend,
    Compile,
    DecodeMode,
    Execution,
    Gate,
    Gates,
    Job,
    ModelDefaults,
    StepCache,
    StepCacheKind,
    Variant,
    WantedPrecision,
)
from goan_cli.jobs.load import load_requests
from goan_cli.jobs.resolve import resolve_job
from goan_cli.jobs.sections import Family
from goan_cli.output.sidecar import settings_of
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


# -- how a job is carried out


def test_execution_by_default(folder: Path) -> None:
    """A job that says nothing leaves everything to the device, without a budget, and decodes as FramePack does."""
    job = resolved(folder, dict(MINIMAL))
    assert job.execution == Execution(
        precision=WantedPrecision.AUTO, compile=Compile.AUTO, attention=AttentionBackend.AUTO, memory=None
    )
    assert job.decode is DecodeMode.OVERLAP


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("precision", "fp8", Execution(precision=WantedPrecision.FP8)),
        ("compile", "on", Execution(compile=Compile.ON)),
        ("compile", "off", Execution(compile=Compile.OFF)),
        ("compile", True, Execution(compile=Compile.ON)),
        ("compile", False, Execution(compile=Compile.OFF)),
        ("attention", "cudnn", Execution(attention=AttentionBackend.CUDNN)),
        ("memory", "12GB", Execution(memory=12 * 10**9)),
        ("memory", "7.5 GiB", Execution(memory=15 << 29)),
        ("memory", "800MB", Execution(memory=8 * 10**8)),
        ("memory", "auto", Execution()),
    ],
)
def test_execution_of_a_job(folder: Path, key: str, value: object, expected: Execution) -> None:
    """Each key of the execution ends in its place and in no other."""
    assert resolved(folder, {**MINIMAL, key: value}).execution == expected


@pytest.mark.parametrize("line", ["compile: on", "compile: true", "compile: 'on'"])
def test_on_in_a_file(folder: Path, line: str) -> None:
    """However a file spells it, on is on."""
    text = f"image: start.png\nprompt: a ball\nsections: 1\n{line}\n"
    (request,), problems = load_requests([write_jobs(folder / "shot.yaml", text)])
    assert problems == []
    job, problems = resolve_job(request, FULL_SIZE)
    assert problems == []
    assert job is not None
    assert job.execution.compile is Compile.ON


def test_layers_of_the_execution(folder: Path) -> None:
    """A job's key stands above the file's defaults, and `auto` in it takes them back."""
    content = {
        "defaults": {**MINIMAL, "precision": "fp8", "memory": "8GB", "compile": True, "decode": "single"},
        "jobs": [
            {},
            {"precision": "auto", "memory": "auto", "compile": "auto", "decode": "overlap"},
            {"memory": "6GB"},
        ],
    }
    requests, problems = load_requests([write_jobs(folder / "shots.yaml", content)])
    assert problems == []
    first, second, third = (resolve_job(request, FULL_SIZE)[0] for request in requests)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.execution == Execution(precision=WantedPrecision.FP8, memory=8 * 10**9, compile=Compile.ON)
    assert first.decode is DecodeMode.SINGLE
    assert second.execution == Execution()
    assert second.decode is DecodeMode.OVERLAP
    assert third.execution == Execution(precision=WantedPrecision.FP8, memory=6 * 10**9, compile=Compile.ON)


@pytest.mark.parametrize(
    ("asked", "cache"),
    [
        ("teacache", StepCache(kind=StepCacheKind.TEACACHE, threshold=0.15)),
        ("magcache", StepCache(kind=StepCacheKind.MAGCACHE, threshold=0.1)),
        ({"kind": "magcache", "threshold": 0.2}, StepCache(kind=StepCacheKind.MAGCACHE, threshold=0.2)),
        ({"kind": "off", "threshold": 0.2}, None),
        (False, None),
    ],
)
def test_step_caches(folder: Path, asked: object, cache: StepCache | None) -> None:
    """Each kind of step cache has a threshold of its own where the job names none."""
    assert resolved(folder, {**MINIMAL, "step_cache": asked}).sampling.step_cache == cache


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("precision", "int8", "must be 'auto', 'fp32', 'fp16', 'bf16' or 'fp8', not 'int8'"),
        ("compile", "yes", "must be 'auto', 'on' or 'off', not 'yes'"),
        ("attention", "flex", "must be 'auto', 'sdpa', 'cudnn', 'flash' or 'sage', not 'flex'"),
        ("attention", False, "must be 'auto', 'sdpa', 'cudnn', 'flash' or 'sage', not false"),
        ("memory", "12", "must be auto or a size such as 12GB, not '12'"),
        ("memory", 12, "must be auto or a size such as 12GB, not 12"),
        ("decode", "tiled", "must be 'overlap' or 'single', not 'tiled'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder: Path, key: str, value: object, problem: str) -> None:
    """A wrong value is a problem with file, line and key, and the values that are right."""
    path = write_jobs(folder / "shot.yaml", {**MINIMAL, key: value, "seed": 1})
    _, problems = load_requests([path])
    assert [str(each) for each in problems] == [f"{path}:{len(MINIMAL) + 1}: {key}: {problem}"]


def test_a_matrix_of_executions(folder: Path) -> None:
    """The keys can be axes, for comparing them."""
    axes = {"precision": ["fp32", "fp8"], "compile": ["on", "off"]}
    requests, problems = load_requests([write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": axes})])
    assert problems == []
    jobs = [resolve_job(request, FULL_SIZE)[0] for request in requests]
    made = [(str(job.execution.precision), str(job.execution.compile), job.name) for job in jobs if job]
    assert made == [
        (precision, compiled, f"shot-precision={precision}-compile={compiled}")
        for precision in axes["precision"]
        for compiled in axes["compile"]
    ]


@pytest.mark.parametrize("asked", ["auto", "12GB", "7.5GiB", "800MB", "1B"])
def test_settings_make_the_same_execution(folder: Path, asked: str) -> None:
    """A sidecar's settings, read as a job again, make the same execution, decode and step cache, to the last byte."""
    keys = {"memory": asked, "precision": "bf16", "compile": "off", "attention": "sage", "decode": "single"}
    job = resolved(folder, {**MINIMAL, **keys, "step_cache": {"kind": "magcache", "threshold": 0.05}})
    settings = settings_of(job)
    assert {key: settings[key] for key in keys if key != "memory"} == {
        key: value for key, value in keys.items() if key != "memory"
    }
    again = resolved(folder, settings)
    assert (again.execution, again.decode) == (job.execution, job.decode)
    assert again.sampling == job.sampling
