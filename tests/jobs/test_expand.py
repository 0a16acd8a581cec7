"""Jobs that stand for several: images and matrices, the names of their variants, and problems at their values."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.documents import Document
from goan_cli.errors import Problem
from goan_cli.jobs.expand import Expanded, expanded
from goan_cli.jobs.fields import is_name
from goan_cli.jobs.job import Variant
from goan_cli.jobs.load import JobRequest, load_requests
from goan_cli.jobs.schema import JobEntry
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs, write_lora

PROMPT = {"prompt": "x", "sections": 1}


@pytest.fixture
def stills(folder: Path) -> Path:
    """The folder, with pictures in `stills` and deeper."""
    picture = (folder / "start.png").read_bytes()
    for name in ("b.png", "a.png", "c.jpg", "deep/d.png", "deep/a.png"):
        file = folder / "stills" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture)
    (folder / "stills" / "folder.png").mkdir()
    return folder


def requests_of(folder: Path, content: object, file: str = "shot.yaml") -> list[JobRequest]:
    """The requests of one file without problems."""
    requests, problems = load_requests([write_jobs(folder / file, content)])
    assert problems == []
    return requests


def names_of(folder: Path, content: object) -> list[str]:
    """The names of the jobs of one file that can be planned."""
    return [plan.job.name for plan in plan_files(write_jobs(folder / "shot.yaml", content))]


def variants_of(
    matrix: Mapping[str, Any], job: Mapping[str, Any] | None = None
) -> tuple[list[Expanded], list[Problem]]:
    """What a job of a file without lines stands for."""
    data = {**(job or {}), "matrix": dict(matrix)}
    document = Document(data=data, file=Path("shot.yaml"))
    return expanded(data, document, (), defaults={}, default_name="shot", base=Path())


# -- a matrix


def test_a_job_for_every_cell(folder: Path) -> None:
    """A matrix is one job for each combination, the last axis fastest, each with its cell's values."""
    requests = requests_of(folder, {**MINIMAL, "matrix": {"seed": [5, 3], "steps": [2, 4, 8]}})
    cells = [(request.spec.seed, request.spec.steps) for request in requests]
    assert cells == [(5, 2), (5, 4), (5, 8), (3, 2), (3, 4), (3, 8)]
    assert {request.spec.prompt for request in requests} == {"a ball"}


@pytest.mark.parametrize(
    ("matrix", "names"),
    [
        ({"seed": [1, 2]}, ["shot-seed=1", "shot-seed=2"]),
        ({"seed": [1], "steps": [2, 3]}, ["shot-seed=1-steps=2", "shot-seed=1-steps=3"]),
        ({"guidance_scale": [10, 2.5, 1.0]}, [f"shot-guidance_scale={label}" for label in ("10", "2.5", "1")]),
        ({"output.keep_latents": [True, False]}, ["shot-keep_latents=true", "shot-keep_latents=false"]),
        ({"preset": ["draft", "quality"]}, ["shot-preset=draft", "shot-preset=quality"]),
        ({"output.crf": [20], "gates.black": ["off"]}, ["shot-crf=20-black=off"]),
    ],
)
def test_names_tell_the_cell(folder: Path, matrix: Mapping[str, Any], names: list[str]) -> None:
    """A variant's name is the job's, then each axis by its last word with the value, plain ones as they are."""
    assert names_of(folder, {**MINIMAL, "matrix": dict(matrix)}) == names


def test_axes_that_end_alike_are_named_in_full(folder: Path) -> None:
    """Two axes of one last word are told apart by their whole keys."""
    job = {**MINIMAL, "loras": ["style.safetensors"] * 2, "matrix": {"loras.0.weight": [1], "loras.1.weight": [0.5]}}
    assert names_of(folder, job) == ["shot-loras.0.weight=1-loras.1.weight=0.5"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({**MINIMAL, "name": "given"}, ["given-seed=1", "given-seed=2"]),
        ({"version": 1, **MINIMAL}, ["shot-seed=1", "shot-seed=2"]),
        ({**MINIMAL, "name": None}, ["shot-seed=1", "shot-seed=2"]),
    ],
)
def test_what_names_begin_with(folder: Path, content: Mapping[str, Any], names: list[str]) -> None:
    """A variant's name begins with the job's own, else with the file's."""
    assert names_of(folder, {**content, "matrix": {"seed": [1, 2]}}) == names


def test_names_beside_other_jobs(folder: Path) -> None:
    """In a list of jobs a matrix takes one number, and moves no other job's."""
    jobs = [dict(MINIMAL), {**MINIMAL, "matrix": {"seed": [1, 2]}}, dict(MINIMAL)]
    assert names_of(folder, {"jobs": jobs}) == ["shot-1", "shot-2-seed=1", "shot-2-seed=2", "shot-3"]


TEXTS = st.text(max_size=40) | st.sampled_from(["a/b.safetensors", "b/b.safetensors", "ends.", " a", "a b", "a-b", "."])
VALUES = st.none() | st.integers(-(2**70), 2**70) | TEXTS | st.lists(TEXTS, max_size=2)


@given(values=st.lists(VALUES, min_size=1, max_size=6))
def test_labels_are_distinct_and_can_be_file_names(values: list[Any]) -> None:
    """Variants have names that differ and that files can have, whatever their values; equal values are refused."""
    jobs, problems = variants_of({"prompt": values})
    if problems:
        texts = {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values}
        assert len(texts) < len(values)
        return
    assert [job.data["prompt"] for job in jobs] == values
    assert len({job.default_name for job in jobs}) == len(values)
    assert [job.default_name for job in jobs if not is_name(job.default_name)] == []


@given(
    axes=st.dictionaries(
        st.sampled_from(["seed", "prompt", "output.dir", "gates.dir"]),
        st.tuples(
            st.lists(st.integers() | TEXTS, min_size=1, max_size=3),
            st.lists(st.integers() | TEXTS, max_size=3),
        ),
        min_size=1,
        max_size=3,
    )
)  # fmt: skip
def test_appended_values_rename_nothing(axes: Mapping[str, tuple[list[Any], list[Any]]]) -> None:
    """Values appended to a matrix's axes leave the names of the jobs that were there, and what they stand for."""
    before, wrong = variants_of({key: values for key, (values, _) in axes.items()})
    after, more = variants_of({key: [*values, *appended] for key, (values, appended) in axes.items()})
    if not wrong and not more:
        grown = {job.default_name: job.data for job in after}
        assert all(grown[job.default_name] == job.data for job in before)


def test_reordered_values_rename_nothing(folder: Path) -> None:
    """A value's place in its axis is no part of the name."""
    there = names_of(folder, {**MINIMAL, "matrix": {"prompt": ["a ball that rolls", "b"]}})
    back = names_of(folder, {**MINIMAL, "matrix": {"prompt": ["b", "a ball that rolls"]}})
    assert back == there[::-1]


def test_long_values_are_cut_in_names(folder: Path) -> None:
    """A name has the beginning of a long value, and still differs from the name of a value that begins so too."""
    prompts = ["a red ball rolls down the stairs", "a red ball rolls down the hill, slowly"]
    first, second = names_of(folder, {**MINIMAL, "matrix": {"prompt": prompts}})
    assert first != second
    assert all(name.startswith("shot-prompt=a-red-ball") and len(name) < 50 for name in (first, second))


def test_files_of_one_name_in_two_folders(folder: Path) -> None:
    """LoRAs of one file name in two folders make variants of two names, both with the file's name in them."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        write_lora(folder / name / "look.safetensors")
    matrix = {"loras.0.path": ["one/look.safetensors", "two/look.safetensors"]}
    names = names_of(folder, {**MINIMAL, "loras": ["style.safetensors"], "matrix": matrix})
    assert len(set(names)) == 2
    assert all(name.startswith("shot-path=look") for name in names)


def test_a_null_takes_back_the_default(folder: Path) -> None:
    """A null in a matrix is a variant that goes without, as a null in a job is."""
    content = {
        "defaults": {**MINIMAL, "negative_prompt": "fog"},
        "jobs": [{"matrix": {"negative_prompt": [None, "blur"]}}],
    }
    assert [request.spec.negative_prompt for request in requests_of(folder, content)] == [None, "blur"]


def test_a_matrix_of_nothing(folder: Path) -> None:
    """An empty `matrix:` or `images:` is as good as none."""
    assert names_of(folder, {**MINIMAL, "matrix": None, "images": None}) == ["shot"]


# -- keys with dots


def test_axes_reach_loras_of_the_defaults(folder: Path) -> None:
    """An axis sets one key of a LoRA that stands in the defaults, and neither its neighbour's nor another job's."""
    loras = ["style.safetensors", {"path": "style.safetensors", "weight": 0.5, "include": ["single*"]}]
    content = {"defaults": {**MINIMAL, "loras": loras}, "jobs": [{"matrix": {"loras.1.weight": [1, 2]}}, {}]}
    weights = [[lora.weight for lora in request.spec.loras or ()] for request in requests_of(folder, content)]
    assert weights == [[1, 1], [1, 2], [1, 0.5]]
    assert all(
        request.spec.loras[1].include == ["single*"] for request in requests_of(folder, content) if request.spec.loras
    )


def test_a_bare_path_gets_a_weight(folder: Path) -> None:
    """An axis of weights makes keys of a LoRA that is given as a bare path."""
    job = {**MINIMAL, "loras": ["style.safetensors"], "matrix": {"loras.0.weight": [0.25, 2]}}
    loras = [request.spec.loras for request in requests_of(folder, job)]
    assert [[(Path(lora.path).name, lora.weight) for lora in each or ()] for each in loras] == [
        [("style.safetensors", 0.25)],
        [("style.safetensors", 2)],
    ]


def test_the_jobs_own_loras_stand_before_the_defaults(folder: Path) -> None:
    """An axis reaches into the job's own LoRAs where it has some."""
    write_lora(folder / "own.safetensors")
    content = {
        "defaults": {**MINIMAL, "loras": ["style.safetensors", "style.safetensors"]},
        "jobs": [{"loras": ["own.safetensors"], "matrix": {"loras.0.weight": [2]}}],
    }
    (request,) = requests_of(folder, content)
    assert [(Path(lora.path).name, lora.weight) for lora in request.spec.loras or ()] == [("own.safetensors", 2)]


def test_axes_leave_what_lies_beside(folder: Path) -> None:
    """An axis of one key of `output`, `gates` or `step_cache` keeps the other keys, from wherever they came."""
    content = {
        "defaults": {**MINIMAL, "output": {"dir": "out", "crf": 20}, "gates": {"drift": "warn"}},
        "jobs": [
            {
                "output": {"keep_latents": True},
                "matrix": {"output.crf": [30], "gates.black": ["fail"], "step_cache.threshold": [0.2]},
            }
        ],
    }
    (request,) = requests_of(folder, content)
    output, gates, cache = request.spec.output, request.spec.gates, request.spec.step_cache
    assert output is not None
    assert (output.dir, output.crf, output.keep_latents) == (str(folder / "out"), 30, True)
    assert gates is not None
    assert (gates.black, gates.drift) == ("fail", "warn")
    assert cache is not None
    assert (cache.kind, cache.threshold) == ("teacache", 0.2)


def test_an_axis_within_another(folder: Path) -> None:
    """An axis may reach into the values of one before it, and no variant changes another's."""
    loras = [["style.safetensors"], [{"path": "style.safetensors", "weight": 3}]]
    requests = requests_of(folder, {**MINIMAL, "matrix": {"loras": loras, "loras.0.weight": [0.5, 1]}})
    assert [[lora.weight for lora in request.spec.loras or ()] for request in requests] == [[0.5], [1], [0.5], [1]]


def test_paths_of_a_matrix_are_relative_to_the_file(folder: Path) -> None:
    """Images and LoRAs that a matrix names are relative to the job file."""
    (folder / "deep").mkdir()
    matrix = {"image": ["../start.png"], "loras": [["../style.safetensors"]]}
    (request,) = requests_of(folder, {**PROMPT, "matrix": matrix}, "deep/shot.yaml")
    assert Path(request.spec.image or "").resolve() == folder / "start.png"
    assert [Path(lora.path).resolve() for lora in request.spec.loras or ()] == [folder / "style.safetensors"]


# -- problems


@pytest.mark.parametrize(
    ("matrix", "place", "words"),
    [
        ("matrix: [1]", 4, r"matrix: must be keys with lists of values"),
        ("matrix: 5", 4, r"matrix: must be keys with lists of values"),
        ("matrix: {}", 4, r"matrix: has no keys"),
        ("matrix:\n  max: 3", 4, r"matrix: has no keys"),
        ("matrix:\n  seed: 1", 5, r"matrix\.seed: must be a list of values"),
        ("matrix:\n  seed: []", 5, r"matrix\.seed: must be a list of values"),
        ("matrix:\n  seed: {a: 1}", 5, r"matrix\.seed: must be a list of values"),
        ("matrix:\n  seed: [1, 2, 1]", 5, r"matrix\.seed: has 1 twice"),
        ("matrix:\n  steps: [2]\n  name: [a]", 6, r"matrix\.name: cannot be an axis"),
        ("matrix:\n  matrix: [a]", 5, r"matrix\.matrix: cannot be an axis"),
        ("matrix:\n  images: [a]", 5, r"matrix\.images: cannot be an axis"),
        ("matrix:\n  output..crf: [1]", 5, r"matrix\.output\.\.crf: cannot be an axis"),
        ("matrix:\n  seed.: [1]", 5, r"matrix\.seed\.: cannot be an axis"),
        ("matrix:\n  '': [1]", 5, r"cannot be an axis"),
        ("matrix:\n  loras.0.weight: [1]", 5, r"matrix\.loras\.0\.weight: this job has no loras\.0\.weight"),
        ("loras: [a]\nmatrix:\n  loras.1.weight: [1]", 6, r"this job has no loras\.1\.weight"),
        ("loras: [a]\nmatrix:\n  loras.first.weight: [1]", 6, r"this job has no loras\.first\.weight"),
        ("seed: 3\nmatrix:\n  seed.x: [1]", 6, r"this job has no seed\.x"),
        ("output: {crf: 1}\nmatrix:\n  output.0: [1]", 6, r"this job has no output\.0"),
        ("matrix:\n  seed: [1]\n  max: 0", 6, r"matrix\.max: must be a whole number from 1 to 10000"),
        ("matrix:\n  seed: [1]\n  max: '9'", 6, r"matrix\.max: must be a whole number"),
        ("matrix:\n  seed: [1]\n  max: true", 6, r"matrix\.max: must be a whole number"),
        ("matrix:\n  seed: [1]\n  max: 2.5", 6, r"matrix\.max: must be a whole number"),
        ("matrix:\n  max: 3\n  seed: [1, 2]\n  steps: [1, 2]", 4, r"matrix: makes 4 jobs, more than 3"),
    ],
)
def test_wrong_matrices(folder: Path, matrix: str, place: int, words: str) -> None:
    """A matrix that cannot be is one problem, at the line and key that are wrong."""
    write_lora(folder / "a")
    text = f"image: start.png\nprompt: x\nsections: 1\n{matrix}\n"
    (line,) = problems_in(write_jobs(folder / "shot.yaml", text))
    assert re.search(rf"shot\.yaml:{place}: .*{words}", line), line


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("seed: [1, x]", r"seed: must be a whole number, not 'x'"),
        ("sede: [1]", r"sede: unknown key \(did you mean seed\?\)"),
        ("output.crv: [1]", r"output\.crv: unknown key \(did you mean crf\?\)"),
        ("output.crf: [18, 99]", r"output\.crf: must be less than or equal to 63, not 99"),
        ("size: [[64, 65]]", r"size: .*65 is not"),
        ("image: [gone.png]", r"image: .*gone\.png: no such file"),
        ("model: [tinny]", r"model: no model pack named tinny"),
        ("preset: [darft]", r"preset: no preset named darft"),
        ("gates.black: [never]", r"gates\.black: must be "),
        ("loras.0.weight: [1, 5]", r"loras\[0\]\.weight: must be less than or equal to 4, not 5"),
        ("loras.0.path: [gone.st]", r"loras\[0\]\.path: .*gone\.st: no such file"),
        ("loras: [[{path: style.safetensors, weight: 5}]]", r"loras\[0\]\.weight: must be less than or equal to 4"),
        ("loras: [[style.safetensors, gone.st]]", r"loras\[1\].*: .*gone\.st: no such file"),
    ],
)
def test_problems_point_at_the_value(folder: Path, axis: str, words: str) -> None:
    """A wrong value of a matrix is told once, at its own line, in however many cells it stands."""
    key, _, values = axis.partition(": ")
    given = {"image": "start.png", "loras": "[style.safetensors]", "prompt": "x", "sections": "1"}
    job = "".join(f"{name}: {value}\n" for name, value in given.items() if name != key)
    listed = "".join(f"    - {value}\n" for value in _items(values))
    text = f"{job}matrix:\n  steps: [1, 2, 3]\n  {key}:\n{listed}"
    (line,) = problems_in(write_jobs(folder / "shot.yaml", text))
    assert re.search(rf"shot\.yaml:{len(text.splitlines())}: {words}", line), line


def _items(flow: str) -> list[str]:
    """The entries of a list in YAML's flow style: split at its own commas."""
    inner = flow[1:-1]
    return [inner] if "[" in inner else inner.split(", ")


def test_lines_in_lists_of_jobs(folder: Path) -> None:
    """Every wrong value of every job's matrix is told at its own line, in one pass."""
    text = (
        "defaults: {image: start.png, prompt: x, loras: [style.safetensors]}\n"
        "jobs:\n"
        "  - matrix:\n"
        "      seed:\n"
        "        - -1\n"
        "        - 1\n"
        "        - many\n"
        "  - matrix:\n"
        "      loras.0.weight:\n"
        "        - 1\n"
        "        - heavy\n"
        "      steps: [0]\n"
    )
    lines = problems_in(write_jobs(folder / "shot.yaml", text))
    places = [re.findall(r"shot\.yaml:(\d+): jobs\[(\d)\]\.(\w+)", line) for line in lines]
    assert places == [[("5", "0", "seed")], [("7", "0", "seed")], [("11", "1", "loras")], [("12", "1", "steps")]]


def test_a_wrong_matrix_hides_nothing(folder: Path) -> None:
    """Beside a wrong matrix the job's other problems, and those of other jobs, are found in the same pass."""
    jobs = [{**MINIMAL, "stepz": 1, "matrix": {"seed": 1}}, {**MINIMAL, "fps": 0}, {**MINIMAL, "images": 5}]
    lines = problems_in(write_jobs(folder / "shot.yaml", {"jobs": jobs}))
    found = [re.findall(r"jobs\[(\d)\]\.([\w.]+): ", line)[0] for line in lines]
    assert sorted(found) == [("0", "matrix.seed"), ("0", "stepz"), ("1", "fps"), ("2", "images")]


def test_matrices_stand_in_jobs_only(folder: Path) -> None:
    """Neither defaults, nor presets, nor the command line have matrices or images."""
    (folder / "look.yaml").write_text("matrix: {seed: [1]}\n", encoding="utf-8")
    content = {"defaults": {"images": "*.png", "preset": "look.yaml"}, "jobs": [dict(MINIMAL)]}
    lines = problems_in(write_jobs(folder / "shot.yaml", content), settings=["matrix.seed=[1, 2]"])
    assert sorted(re.findall(r"([\w.]*(?:images|matrix)): unknown key", " ".join(lines))) == [
        "defaults.images",
        "matrix",
        "matrix",
    ]


# -- how many


@pytest.mark.parametrize(
    ("count", "most", "refused"), [(256, None, False), (257, None, True), (257, 257, False), (258, 257, True)]
)
def test_most_variants(count: int, most: int | None, refused: bool) -> None:
    """A matrix makes at most 256 jobs, or as many as its `max` says; the message counts them."""
    matrix: dict[str, Any] = {"seed": list(range(count))}
    jobs, problems = variants_of(matrix if most is None else {**matrix, "max": most})
    assert len(jobs) == (1 if refused else count)
    assert [problem.message for problem in problems] == (
        [f"makes {count} jobs, more than {most or 256}"] if refused else []
    )


def test_images_count_too(stills: Path) -> None:
    """What is counted are jobs: images times the matrix's cells."""
    job = {**PROMPT, "images": "stills/[ab].png"}
    path = write_jobs(stills / "shot.yaml", {**job, "matrix": {"max": 5, "seed": [1, 2, 3]}})
    assert any("matrix: makes 6 jobs, more than 5 (max: allows more)" in line for line in problems_in(path))
    assert len(names_of(stills, {**job, "matrix": {"max": 6, "seed": [1, 2, 3]}})) == 6


# -- images


@pytest.mark.parametrize(
    ("images", "names"),
    [
        ("stills/?.*", ["a", "b", "c"]),
        (["stills/b.png", "stills/?.*"], ["b", "a", "c"]),
        (["stills/c.jpg", "stills/a.png"], ["c", "a"]),
        (["stills/a.png", "stills/a.png"], ["a"]),
        ("stills/deep/d.png", ["d"]),
        ("stills/**/[bd].png", ["b", "d"]),
        ("./stills/../stills/[b]*", ["b"]),
    ],
)
def test_a_job_for_every_image(stills: Path, images: object, names: list[str]) -> None:
    """Every picture that a pattern matches is one job of its name, by name within a pattern, each file once."""
    requests = requests_of(stills, {**PROMPT, "images": images})
    assert [request.name for request in requests] == names
    assert [Path(request.spec.image or "").stem for request in requests] == names
    assert [plan.job.variant for plan in plan_files(stills / "shot.yaml")] == [None] * len(names)


def test_folders_are_no_images(stills: Path) -> None:
    """A folder that a pattern matches is passed over."""
    assert names_of(stills, {**PROMPT, "images": "stills/[bf]*.png"}) == ["b"]


def test_patterns_are_relative_to_the_file(stills: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern is relative to the job file, or absolute, or in the home folder; never to the current folder."""
    monkeypatch.setenv("HOME", str(stills / "stills"))
    for images in ("../[ab].png", f"{stills}/stills/[ab].png", "~/[ab].png"):
        requests = requests_of(stills, {**PROMPT, "images": images}, "stills/deep/shot.yaml")
        found = [Path(request.spec.image or "").resolve() for request in requests]
        assert found == [stills / "stills" / "a.png", stills / "stills" / "b.png"]


def test_images_of_one_stem(stills: Path) -> None:
    """Pictures of one stem, in two formats or folders, are jobs of different names that begin with it."""
    (stills / "stills" / "b.jpg").write_bytes((stills / "start.png").read_bytes())
    names = names_of(stills, {**PROMPT, "images": ["stills/**/a.png", "stills/b.*"]})
    assert len(set(names)) == 4
    assert [name[0] for name in names] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("name", "names"), [("night", ["night-a", "night-b"]), (None, ["a", "b"])]
)  # fmt: skip
def test_names_of_images(stills: Path, name: str | None, names: list[str]) -> None:
    """A job's name comes before the pictures'; without one they stand alone, in lists of jobs too."""
    job = {**PROMPT, "images": "stills/[ab].png", "name": name}
    assert names_of(stills, job) == names
    assert names_of(stills, {"jobs": [job, dict(MINIMAL)]}) == [*names, "shot-2"]


def test_images_times_matrix(stills: Path) -> None:
    """Images and a matrix are a job for each picture and cell, picture by picture."""
    job = {**PROMPT, "images": "stills/[ab].png", "matrix": {"seed": [1, 2]}}
    requests = requests_of(stills, job)
    assert [request.name for request in requests] == ["a-seed=1", "a-seed=2", "b-seed=1", "b-seed=2"]
    made = [(Path(request.spec.image or "").stem, request.spec.seed) for request in requests]
    assert made == list(itertools.product("ab", [1, 2]))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("images: gone/*.png", r"gone/\*\.png: matches no file$"),
        ("images: [stills/a.png, gone/*.png]", r"gone/\*\.png: matches no file$"),
        ("images: stills", r"stills: matches no file \(a folder's pictures are stills/\*\.png\)"),
        ("images: stills/", r"stills/: matches no file \(a folder's pictures are stills/\*\.png\)"),
        ("images: '~nobody-has-this-name/*.png'", r"matches no file"),
        ('images: "a\\0*"', r"matches no file"),
        ("images: []", r"must be a pattern such as"),
        ("images: ''", r"must be a pattern such as"),
        ("images: 5", r"must be a pattern such as"),
        ("images: [5]", r"must be a pattern such as"),
        ("images: {a: b}", r"must be a pattern such as"),
        ("image: start.png\nimages: stills/*", r"given beside image"),
    ],
)
def test_wrong_images(stills: Path, images: str, words: str) -> None:
    """Patterns that are none, or match nothing, are a problem of `images` at its line."""
    text = f"prompt: x\n{images}\n"
    lines = problems_in(write_jobs(stills / "shot.yaml", text))
    place = len(text.splitlines())
    assert sum(bool(re.search(rf"shot\.yaml:{place}: images: .*{words}", line)) for line in lines) == 1, lines


def test_a_match_that_is_no_image(stills: Path) -> None:
    """A match that cannot be read as an image is told with its path, at the line of the pattern."""
    (stills / "stills" / "b.png").write_text("words", encoding="utf-8")
    (line,) = problems_in(write_jobs(stills / "shot.yaml", "prompt: x\nimages: stills/[ab].png\n"))
    assert re.search(r"shot\.yaml:2: image: .*stills/b\.png: not an image", line)


# -- variants


def test_variant_of_a_job(stills: Path) -> None:
    """A planned job knows its matrix, all axes with their values as text, and its own place on each."""
    job = {
        **PROMPT,
        "name": "night",
        "images": "stills/[ab].png",
        "loras": ["style.safetensors"],
        "matrix": {"loras.0.weight": [0.5, 1], "prompt": ["a ball rolls"], "output.contact_sheet": [True]},
    }
    plans = plan_files(write_jobs(stills / "shot.yaml", job))
    axes = (
        ("image", ("stills/a.png", "stills/b.png")),
        ("weight", ("0.5", "1")),
        ("prompt", ("a ball rolls",)),
        ("contact_sheet", ("true",)),
    )
    places = [(0, 0, 0, 0), (0, 1, 0, 0), (1, 0, 0, 0), (1, 1, 0, 0)]
    assert [plan.job.variant for plan in plans] == [Variant(matrix="night", axes=axes, place=place) for place in places]


def test_variants_of_several_matrices(folder: Path) -> None:
    """Each job's matrix has a name of its own, and a job without one is no variant."""
    jobs = [{**MINIMAL, "matrix": {"seed": [1, 2]}}, {**MINIMAL, "matrix": {"steps": [1]}}, dict(MINIMAL)]
    variants = [plan.job.variant for plan in plan_files(write_jobs(folder / "shot.yaml", {"jobs": jobs}))]
    assert [variant and variant.matrix for variant in variants] == ["shot-1", "shot-1", "shot-2", None]


def test_every_key_of_a_job_can_be_an_axis_or_says_why() -> None:
    """Every key but `name`, `images` and `matrix` can be an axis."""
    refused = [key for key in JobEntry.model_fields if variants_of({key: ["a", "b"]})[1]]
    assert refused == ["name", "images", "matrix"]


@pytest.mark.parametrize("key", ["0.5", "0.x", "7.weight", "loras." + "9" * 5000 + ".weight"])
def test_axes_that_begin_with_a_number(folder: Path, key: str) -> None:
    """Keys that no job has are problems, whatever numbers are in them."""
    assert problems_in(write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {key: [1]}}))


@pytest.mark.parametrize("images", ["a" * 300, "a" * 5000, "stills/" + "a" * 256])
def test_long_patterns(folder: Path, images: str) -> None:
    """A pattern longer than a file name can be matches no file."""
    (line,) = problems_in(write_jobs(folder / "shot.yaml", {"prompt": "x", "images": images}))
    assert "matches no file" in line


@pytest.mark.parametrize(
    "content",
    [
        "prompt: x\nimages: gone/*.png\n",
        "image: start.png\nmatrix: {prompt: x}\n",
        "image: start.png\nmatrix: {max: 1, prompt: [a, b]}\n",
        "prompt: x\nmatrix: {image: [start.png, start.png]}\n",
    ],
)
def test_a_wrong_matrix_is_not_a_missing_key_too(folder: Path, content: str) -> None:
    """What a wrong matrix would have given is not called missing besides."""
    assert len(problems_in(write_jobs(folder / "shot.yaml", content))) == 1


def test_line_of_a_value_that_replaces(folder: Path) -> None:
    """A problem inside a value of the matrix is told at its line there, not at what it replaces."""
    text = (
        "image: start.png\nprompt: x\nsections: 1\nloras: [{path: style.safetensors, weight: 1}]\nmatrix:\n  loras:\n"
    )
    text += "    - [{path: style.safetensors, weight: 5}]\n"
    (line,) = problems_in(write_jobs(folder / "shot.yaml", text))
    assert "shot.yaml:7: loras[0].weight" in line


def test_images_beside_an_axis_of_images(folder: Path) -> None:
    """Pictures are given in one way, not in two."""
    job = {"prompt": "x", "images": "*.png", "matrix": {"image": ["start.png"]}}
    (line,) = problems_in(write_jobs(folder / "shot.yaml", job))
    assert "given beside images" in line


@pytest.mark.parametrize(
    "matrix",
    [
        {"output.crf": [20, 30], "output": [{"dir": "a"}, {"dir": "b"}]},
        {"loras.0.weight": [1, 0.5], "loras.00.weight": [1, 2]},
    ],
)
def test_axes_that_undo_each_other(folder: Path, matrix: dict[str, Any]) -> None:
    """An axis that would set again what an earlier one has set is refused."""
    job = {**MINIMAL, "loras": ["style.safetensors"], "matrix": matrix}
    (line,) = problems_in(write_jobs(folder / "shot.yaml", job))
    assert "would undo" in line


def test_close_numbers(folder: Path) -> None:
    """Numbers that differ in their eighth digit are two values."""
    path = write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {"guidance_scale": [1.0000001, 1.0000002]}})
    assert [plan.job.name for plan in plan_files(path)] == [
        "shot-guidance_scale=1.0000001",
        "shot-guidance_scale=1.0000002",
    ]


@pytest.mark.parametrize("name", ["", " ", "a/b"])
def test_a_wrong_name_of_a_matrix(folder: Path, name: str) -> None:
    """A name that no file can have is one problem, as it is without a matrix."""
    path = write_jobs(folder / "shot.yaml", {**MINIMAL, "name": name, "matrix": {"seed": [1, 2]}})
    assert len(problems_in(path)) == 1


def test_images_with_names_that_results_cannot_have(folder: Path) -> None:
    """A picture called `photo (1).png` makes a job with a name that a result can have."""
    (folder / "photo (1).png").write_bytes((folder / "start.png").read_bytes())
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {"prompt": "x", "sections": 1, "images": "ph*.png"}))
    assert plan.job.name.startswith("photo-1")


def test_one_image_in_two_spellings(folder: Path) -> None:
    """A picture that two patterns match is one job."""
    job = {"prompt": "x", "sections": 1, "images": ["./start.png", "start.png"]}
    assert len(plan_files(write_jobs(folder / "shot.yaml", job))) == 1


def test_an_axis_takes_its_rivals_place(folder: Path) -> None:
    """An axis of seconds replaces the job's sections."""
    plans = plan_files(write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {"seconds": [1, 2]}}))
    assert [plan.job.seconds for plan in plans] == [1.0, 2.0]


def test_the_command_line_cannot_undo_an_axis(folder: Path) -> None:
    """A setting for all jobs that is an axis of a matrix would make their names untrue, and is refused."""
    path = write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {"seed": [1, 2]}})
    (line,) = problems_in(path, settings=["seed=9"])
    assert "seed: goes against images or a matrix" in line
    assert len(plan_files(path, settings=["steps=2"])) == 2


@pytest.mark.parametrize(
    ("job", "setting"),
    [
        ({"prompt": "x", "images": "*.png"}, "image=start.png"),
        ({**MINIMAL, "matrix": {"seconds": [1, 5]}}, "sections=2"),
        ({**MINIMAL, "matrix": {"output.crf": [20, 30]}}, "output.crf=25"),
        (
            {**MINIMAL, "loras": ["style.safetensors"], "matrix": {"loras.0.weight": [1, 2]}},
            "loras=[style.safetensors]",
        ),
    ],
)
def test_settings_that_go_against_names(folder: Path, job: dict[str, Any], setting: str) -> None:
    """What would take from images or a matrix what their names say is refused."""
    lines = problems_in(write_jobs(folder / "shot.yaml", job), settings=[setting])
    assert len(lines) == 1
    assert "goes against" in lines[0]


def test_settings_beside_an_axis(folder: Path) -> None:
    """A key of the output beside the one that is an axis can be set for all jobs."""
    path = write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {"output.crf": [20, 30]}})
    plans = plan_files(path, settings=["output.keep_latents=true"])
    assert [(plan.job.output.crf, plan.job.output.keep_latents) for plan in plans] == [(20, True), (30, True)]


def test_two_axes_of_one_length(folder: Path) -> None:
    """Seconds and sections cannot both be axes."""
    (line,) = problems_in(write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {"seconds": [1], "sections": [2]}}))
    assert "would undo seconds" in line
