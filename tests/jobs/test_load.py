"""Job files: layers, names, paths, and every problem at once, each with its place."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goan_cli.documents import Document
from goan_cli.errors import GoanError, InvalidInput
from goan_cli.jobs.load import (
    JobRequest,
    job_files,
    load_requests,
    request_from_settings,
    selected,
    settings_document,
)
from goan_cli.jobs.schema import JobSpec
from goan_cli.render.plan import plan_renders
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs

FUZZ = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def requests_in(path: Path, *pairs: str) -> list[JobRequest]:
    """The requests of a file without problems, under `--set` settings."""
    requests, problems = load_requests([path], settings_document(pairs, {}) if pairs else None)
    assert problems == []
    return requests


# -- layers


def test_precedence(folder: Path) -> None:
    """A key comes from the command line, else the job, else the defaults, else the preset."""
    (folder / "look.yaml").write_text("steps: 1\nguidance_scale: 1\nfps: 1\nwindow: 1\n")
    content = {
        "defaults": {"preset": "look.yaml", "guidance_scale": 2, "fps": 2, "window": 2},
        "jobs": [{**MINIMAL, "fps": 3, "window": 3}],
    }
    (request,) = requests_in(write_jobs(folder / "jobs.yaml", content), "window=4")
    spec = request.spec
    assert (spec.steps, spec.guidance_scale, spec.fps, spec.window) == (1, 2, 3, 4)


def test_preset_of_the_strongest_layer(folder: Path) -> None:
    """Of several presets the one named by the strongest layer acts, and it stays below the file's own keys."""
    content = {"defaults": {"preset": "draft", "steps": 7}, "jobs": [{**MINIMAL, "preset": "balanced"}, MINIMAL]}
    path = write_jobs(folder / "jobs.yaml", content)
    first, second = requests_in(path)
    assert (first.spec.steps, first.spec.guidance_scale) == (7, 10.0)
    assert second.spec.step_cache is not None
    assert second.spec.step_cache.kind == "teacache"
    (quality, _) = requests_in(path, "preset=quality")
    assert quality.spec.output is not None
    assert quality.spec.output.crf == 12


def test_output_is_merged_key_by_key(folder: Path) -> None:
    """A layer that sets one key of `output` leaves the others to the layers below."""
    content = {"defaults": {"output": {"dir": "out", "crf": 20}}, "jobs": [{**MINIMAL, "output": {"crf": 30}}]}
    (request,) = requests_in(write_jobs(folder / "jobs.yaml", content), "output.keep_latents=true")
    output = request.spec.output
    assert output is not None
    assert (output.dir, output.crf, output.keep_latents) == (str(folder / "out"), 30, True)


def test_gates_are_merged_key_by_key(folder: Path) -> None:
    """A layer that sets one gate leaves the others to the layers below, the preset's among them."""
    (folder / "look.yaml").write_text("gates: {nan: warn, black: fail}\nretry_seeds: 3\n")
    content = {
        "defaults": {"preset": "look.yaml", "gates": {"black": "off", "drift": "warn"}},
        "jobs": [{**MINIMAL, "gates": {"drift": "fail"}}, {**MINIMAL, "gates": None, "retry_seeds": 0}],
    }
    first, second = requests_in(write_jobs(folder / "jobs.yaml", content), "gates.frozen=off")
    asked = [
        request.spec.gates.model_dump(exclude_none=True) if request.spec.gates else {} for request in (first, second)
    ]
    assert asked == [{"nan": "warn", "black": "off", "drift": "fail", "frozen": "off"}, {"frozen": "off"}]
    assert (first.spec.retry_seeds, second.spec.retry_seeds) == (3, 0)


def test_loras_are_replaced_as_a_whole(folder: Path) -> None:
    """A layer's list of LoRAs replaces the one below it."""
    content = {"defaults": {"loras": ["a", "b"]}, "jobs": [{**MINIMAL, "loras": ["c"]}, {**MINIMAL, "loras": []}]}
    first, second = requests_in(write_jobs(folder / "jobs.yaml", content))
    assert [lora.path for lora in first.spec.loras or ()] == [str(folder / "c")]
    assert second.spec.loras == []


@pytest.mark.parametrize(
    ("below", "above", "seconds", "sections"),
    [
        ({"seconds": 4}, {"sections": 2}, None, 2),
        ({"sections": 2}, {"seconds": 4}, 4, None),
        ({"seconds": 4}, {}, 4, None),
        ({"seconds": 4}, {"sections": None}, 4, None),
    ],
)
def test_length_of_the_strongest_layer(
    folder: Path, below: Mapping[str, Any], above: Mapping[str, Any], seconds: float | None, sections: int | None
) -> None:
    """A stronger layer's length replaces a weaker one's in whichever unit; an empty one leaves the other unit."""
    job = {"image": "start.png", "prompt": "x"}
    path = write_jobs(folder / "jobs.yaml", {"defaults": below, "jobs": [{**job, **above}]})
    (request,) = requests_in(path)
    assert (request.spec.seconds, request.spec.sections) == (seconds, sections)


def test_paths_are_relative_to_their_file(folder: Path) -> None:
    """A path is relative to the file that names it: the job file, the preset, or the command line's folder."""
    (folder / "looks").mkdir()
    (folder / "deep").mkdir()
    (folder / "looks" / "a.yaml").write_text("loras: [style.safetensors]\noutput: {dir: out}\n")
    job = {"image": "../start.png", "prompt": "x", "preset": "../looks/a.yaml", "model": "./pack"}
    path = write_jobs(folder / "deep" / "jobs.yaml", job)
    (request,) = requests_in(path)
    spec = request.spec
    assert Path(spec.image or "").resolve() == folder / "start.png"
    assert spec.model == str(folder / "deep" / "pack")
    assert [Path(lora.path).resolve() for lora in spec.loras or ()] == [folder / "looks" / "style.safetensors"]
    assert spec.output is not None
    assert Path(spec.output.dir or "").resolve() == folder / "looks" / "out"
    assert request.default_dir == folder / "deep" / "renders"
    (overridden,) = requests_in(path, "image=start.png", "output.dir=here")
    assert overridden.spec.image == str(folder / "start.png")
    assert overridden.spec.output is not None
    assert overridden.spec.output.dir == str(folder / "here")


def test_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde at the start of a path is the user's home folder."""
    monkeypatch.setenv("HOME", str(folder))
    (request,) = requests_in(write_jobs(folder / "jobs.yaml", {**MINIMAL, "image": "~/start.png"}))
    assert request.spec.image == str(folder / "start.png")


# -- names


@pytest.mark.parametrize(
    ("count", "names"), [(1, ["shots-1"]), (2, ["shots-1", "shots-2"]), (10, [f"shots-{n:02d}" for n in range(1, 11)])]
)
def test_names_of_several_jobs(folder: Path, count: int, names: list[str]) -> None:
    """Jobs of a list are named after their file and number, numbers of one width."""
    path = write_jobs(folder / "shots.yaml", {"jobs": [dict(MINIMAL)] * count})
    assert [plan.job.name for plan in plan_files(path)] == names


def test_name_of_one_job(folder: Path) -> None:
    """A job without a name is named after its file; a name given wins."""
    assert [plan.job.name for plan in plan_files(write_jobs(folder / "shot.yaml", dict(MINIMAL)))] == ["shot"]
    named = write_jobs(folder / "other.yaml", {**MINIMAL, "name": "given"})
    assert [plan.job.name for plan in plan_files(named)] == ["given"]


@pytest.mark.parametrize("stem", ["a" * 245, "clip:1"])
def test_names_from_files_are_checked_too(folder: Path, stem: str) -> None:
    """A file's name that could not be given as `name` is not taken over unseen: it is refused, or made usable."""
    path = write_jobs(folder / f"{stem}.yaml", dict(MINIMAL))
    try:
        (plan,) = plan_files(path)
    except InvalidInput:
        return
    JobSpec.model_validate({"name": plan.job.name})


def test_name_of_a_request(folder: Path) -> None:
    """A request has the name that its result will have; a seed yet to be drawn stands in it as `{seed}`."""
    path = write_jobs(folder / "shots.yaml", {"jobs": [dict(MINIMAL), {**MINIMAL, "name": "given"}]})
    assert [request.name for request in requests_in(path)] == ["shots-1", "given"]
    (request,), _ = request_from_settings(settings_document(["prompt=x"], {}), name="start-{seed}")
    assert request.name == "start-{seed}"


# -- folders of job files


def test_folder_of_job_files(folder: Path) -> None:
    """A folder stands for its YAML files, by name; neither hidden ones, nor others, nor those of folders in it."""
    (folder / "night" / "deep").mkdir(parents=True)
    for name in ("b.yaml", "a.yml", "c.yaml", ".hidden.yaml", "notes.txt", "d.yaml.bak", "deep/e.yaml", "yaml"):
        write_jobs(folder / "night" / name, {**MINIMAL, "image": "../start.png"})
    files, problems = job_files([folder / "night"])
    assert (files, problems) == ([folder / "night" / name for name in ("a.yml", "b.yaml", "c.yaml")], [])
    assert [plan.job.name for plan in plan_files(folder / "night")] == ["a", "b", "c"]


def test_folders_beside_files(folder: Path) -> None:
    """Files and folders keep the order that they are given in, and a job's paths start at its own file."""
    (folder / "night").mkdir()
    first = write_jobs(folder / "night" / "z.yaml", {**MINIMAL, "image": "../start.png"})
    second = write_jobs(folder / "a.yaml", dict(MINIMAL))
    (request, other) = load_requests([folder / "night", second])[0]
    assert (request.origin.document.file, other.origin.document.file) == (first, second)
    assert request.default_dir == folder / "night" / "renders"


def test_problems_of_folders(folder: Path) -> None:
    """A folder without job files is a problem that names it, beside the problems of the files in other folders."""
    (folder / "empty").mkdir()
    (folder / "night").mkdir()
    write_jobs(folder / "night" / "a.yaml", {**MINIMAL, "image": "../start.png", "steps": 0})
    write_jobs(folder / "night" / "b.yaml", {**MINIMAL, "image": "../start.png", "fps": 0})
    lines = problems_in(folder / "empty", folder / "night", folder / "gone")
    assert [line.removeprefix(f"{folder}/").split(" (")[0] for line in lines] == [
        "empty: no job files in this folder",
        "night/a.yaml:4: steps: must be greater than or equal to 1, not 0",
        "night/b.yaml:4: fps: must be greater than or equal to 1, not 0",
        "gone: no such file",
    ]


# -- jobs by name


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ([], ["night-1", "night-2", "night-10", "Day", "day"]),
        (["day"], ["day"]),
        (["night-*"], ["night-1", "night-2", "night-10"]),
        (["night-?"], ["night-1", "night-2"]),
        (["night-[2-9]", "[dD]ay"], ["night-2", "Day", "day"]),
        (["day", "night-1", "*1"], ["night-1", "day"]),
        (["*"], ["night-1", "night-2", "night-10", "Day", "day"]),
    ],
)
def test_selected_jobs(folder: Path, patterns: list[str], names: list[str]) -> None:
    """Jobs that match any of the patterns are kept, once and in their order; without patterns all are."""
    jobs = [{**MINIMAL, "name": name} for name in ("night-1", "night-2", "night-10", "Day", "day")]
    requests = requests_in(write_jobs(folder / "jobs.yaml", {"jobs": jobs}))
    assert [request.name for request in selected(requests, patterns)] == names


def test_selected_variants(folder: Path) -> None:
    """Variants of a matrix are chosen by their own names."""
    job = {**MINIMAL, "matrix": {"seed": [1, 2], "steps": [1, 2]}}
    requests = requests_in(write_jobs(folder / "shot.yaml", job))
    chosen = selected(requests, ["shot-seed=2-*"])
    assert [(request.spec.seed, request.spec.steps) for request in chosen] == [(2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["nihgt"], r"--jobs nihgt: no job has such a name \(did you mean night\?\)"),
        (["night", "nothing-*"], r"--jobs nothing-\*: no job has such a name \(valid: day, night\)"),
        ([""], r"--jobs : no job has such a name"),
    ],
)
def test_patterns_that_match_nothing(folder: Path, patterns: list[str], words: str) -> None:
    """A pattern that matches no job is refused, with the names that there are, whatever the others match."""
    jobs = [{**MINIMAL, "name": name} for name in ("night", "day")]
    requests = requests_in(write_jobs(folder / "jobs.yaml", {"jobs": jobs}))
    with pytest.raises(InvalidInput, match=words):
        selected(requests, patterns)


# -- problems


def test_all_problems_of_all_files(folder: Path) -> None:
    """Every problem of every file comes at once, in the order of files and lines, with file, line and key."""
    first = write_jobs(folder / "a.yaml", "image: start.png\nprompt: x\nstpes: 3\nseconds: 0\nloras:\n  - nope.st\n")
    second = write_jobs(folder / "b.yaml", "version: 1\njobs:\n  - prompt: x\n  - image: gone.png\n    steps: '30'\n")
    third = write_jobs(folder / "c.yaml", "image: 'start.png\n")
    lines = problems_in(first, second, third, folder / "d.yaml")
    patterns = [
        r"a\.yaml:3: stpes: unknown key \(did you mean steps\?\)",
        r"a\.yaml:4: seconds: must be greater than 0, not 0",
        r"a\.yaml:6: loras\[0\].*: .*nope\.st: no such file",
        r"b\.yaml:3: jobs\[0\].*image: missing",
        r"b\.yaml:4: jobs\[1\]\.image: .*gone\.png: no such file",
        r"b\.yaml:4: jobs\[1\].*prompt: missing",
        r"b\.yaml:5: jobs\[1\]\.steps: must be a whole number",
        r"c\.yaml:\d: not valid YAML: ",
        r"d\.yaml: no such file",
    ]
    unfound = [pattern for pattern in patterns if not any(re.search(pattern, line) for line in lines)]
    assert unfound == []
    assert len(lines) == len(patterns)
    files = [re.findall(r"([abcd])\.yaml", line)[0] for line in lines]
    assert files == sorted(files)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stesp: 3", r":1: stesp: unknown key \(did you mean steps\?\)"),
        ("lora: []", r":1: lora: unknown key \(did you mean loras\?\)"),
        ("colour: red", r":1: colour: unknown key \(valid: attention, .*window\)"),
        ("output: {dri: x}", r":1: output\.dri: unknown key \(did you mean dir\?\)"),
        ("step_cache: {treshold: 1}", r":1: step_cache\.treshold: unknown key \(did you mean threshold\?\)"),
        ("loras: [{path: a, wieght: 1}]", r":1: loras\[0\]\.wieght: unknown key \(did you mean weight\?\)"),
        ("loras:\n  - a\n  - {}", r":3: loras\[1\]\.path: missing"),
        ("seed: '7'", r":1: seed: must be a whole number, not '7'"),
        ("seed: true", r":1: seed: must be a whole number, not true"),
        ("steps: 2.5", r":1: steps: must be a whole number, not 2\.5"),
        ("size: [65, 48]", r":1: size: .*multiples of 16.*65 is not \(near it: 64 and 80\)"),
        ("seconds: 0", r":1: seconds: must be greater than 0, not 0"),
        ("sections: 0", r":1: sections: must be greater than or equal to 1, not 0"),
        ("name: a/b", r":1: name: must be usable as a file name"),
        ("preset: darft", r":1: preset: no preset named darft \(did you mean draft\?\)"),
        ("preset: gone.yaml", r":1: preset: .*gone\.yaml: no such file"),
        ("model: tinny", r":1: model: no model pack named tinny \(did you mean tiny"),
        ("model: ./gone", r":1: model: .*gone: no such model pack"),
        ("version: 2", r":1: version: must be 1, not 2"),
        ("seconds: 2\nsections: 1", r":2: sections: given beside seconds"),
        ("image: gone.png", r":1: image: .*gone\.png: no such file"),
        ("jobs: []", r":1: jobs: "),
        ("jobs: 5", r":1: jobs: must be a list, not 5"),
        ("jobs: [5]", r":1: jobs\[0\]: expected keys and values here, found"),
        ("jobs: [{}]\ndefualts: {}", r":2: defualts: unknown key \(did you mean defaults\?\)"),
        ("jobs: [{}]\ndefaults:\n  stesp: 3", r":3: defaults\.stesp: unknown key \(did you mean steps\?\)"),
        ("jobs: [{}]\ndefaults: [1]", r":2: defaults: must be "),
        ("prompt: [a]", r":1: prompt: must be "),
        ("gates: {blak: off}", r":1: gates\.blak: unknown key \(did you mean black\?\)"),
        ("gates: {black: never}", r":1: gates\.black: must be 'fail', 'warn' or 'off', not 'never'"),
        ("gates:\n  nan: off\n  frozen: true", r":3: gates\.frozen: must be "),
        ("gates: off", r":1: gates: must be keys and values, not 'off'"),
        ("retry_seeds: 101", r":1: retry_seeds: must be less than or equal to 100, not 101"),
    ],
)
def test_one_problem(folder: Path, text: str, expected: str) -> None:
    """A problem is told as `file:line: key: problem (nearest valid name)`."""
    lines = problems_in(write_jobs(folder / "jobs.yaml", text + "\n"))
    assert sum(bool(re.search(r"jobs\.yaml" + expected, line)) for line in lines) == 1, lines


@pytest.mark.parametrize(
    ("key", "value"),
    [("seconds", "abc"), ("fps", ".nan"), ("guidance_scale", "[1]"), ("shift", ".inf"), ("true_cfg_scale", "true")],
)
def test_one_wrong_number_is_one_problem(folder: Path, key: str, value: str) -> None:
    """A value that is no number is one problem, at the key as the user wrote it."""
    job = "image: start.png\nprompt: x\n"
    lines = problems_in(write_jobs(folder / "jobs.yaml", f"{job}{key}: {value}\n"))
    assert len(lines) == 1, lines
    assert re.search(rf"jobs\.yaml:3: {key}: must be ", lines[0]), lines


@pytest.mark.parametrize(
    "text",
    ["model: ''", "image: ''", "loras: ['']", "loras: [5]", "output: 5", "jobs: []", f"loras: {['a'] * 33}"],
)
def test_messages_speak_of_yaml(folder: Path, text: str) -> None:
    """No message speaks of Python's types or of the library that found the problem."""
    for line in problems_in(write_jobs(folder / "jobs.yaml", text + "\n")):
        assert not re.search(r"String should|List should|dictionary|instance of|Spec\b|None|datetime", line), line


def test_a_misspelt_key_is_not_missing_too(folder: Path) -> None:
    """A misspelt `image` is one problem, not also a missing one."""
    lines = problems_in(write_jobs(folder / "jobs.yaml", "imge: start.png\nprompt: x\n"))
    assert len(lines) == 1
    assert "imge: unknown key (did you mean image?)" in lines[0]


@pytest.mark.parametrize(
    "loras",
    [
        "  - {path: style.safetensors, weight: x}\n  - gone.st\n",
        "  - 5\n  - gone.st\n",
        "  - {weight: 1}\n  - gone.st\n",
        "  - {path: style.safetensors, wieght: 1}\n  - gone.st\n",
    ],
)
def test_problems_of_neighbours_keep_their_place(folder: Path, loras: str) -> None:
    """A wrong entry of a list neither hides the problem of the next one nor moves it to another line."""
    text = f"image: start.png\nprompt: x\nloras:\n{loras}"
    lines = problems_in(write_jobs(folder / "jobs.yaml", text))
    assert any(re.search(r"jobs\.yaml:4: loras\[0\]", line) for line in lines), lines
    assert any(re.search(r"jobs\.yaml:5: loras\[1\].*gone\.st: no such file", line) for line in lines), lines


def test_problems_of_a_preset(folder: Path) -> None:
    """A preset's problems carry the preset's own file and line, once for all jobs that name it."""
    (folder / "look.yaml").write_text("steps: 3\nfsp: 3\npreset: draft\n")
    content = {"defaults": {"preset": "look.yaml"}, "jobs": [dict(MINIMAL), dict(MINIMAL)]}
    lines = problems_in(write_jobs(folder / "jobs.yaml", content))
    assert len(lines) == 2
    assert any("look.yaml:2: fsp: unknown key (did you mean fps?)" in line for line in lines)
    assert any("look.yaml:3: preset: a preset cannot name another" in line for line in lines)


def test_problems_of_defaults_are_told_once(folder: Path) -> None:
    """A wrong default is one problem however many jobs take it, at the line of the default."""
    text = "defaults:\n  image: gone.png\njobs:\n  - prompt: a\n  - prompt: b\n"
    lines = problems_in(write_jobs(folder / "jobs.yaml", text))
    assert len(lines) == 1
    assert re.search(r"jobs\.yaml:2: defaults\.image: .*gone\.png: no such file", lines[0])


@pytest.mark.parametrize("text", ["", "# only a comment\n", "null\n"])
def test_empty_file(folder: Path, text: str) -> None:
    """An empty file is one problem, and says so."""
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", text))
    assert "found nothing" in line


@pytest.mark.parametrize("text", ["- image: start.png\n", "just words\n", "42\n"])
def test_no_keys_at_the_top(folder: Path, text: str) -> None:
    """A list or a word at the top is one problem at line 1."""
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", text))
    assert re.search(r"jobs\.yaml:1: expected keys and values here, found", line)


@pytest.mark.parametrize("version", ["'1'", "1.0", "true", "0", "2", "[1]"])
def test_other_versions(folder: Path, version: str) -> None:
    """Only the whole number 1 is a version of this schema."""
    lines = problems_in(write_jobs(folder / "jobs.yaml", f"version: {version}\n{yaml.safe_dump(dict(MINIMAL))}"))
    assert len(lines) == 1
    assert "jobs.yaml:1: version: " in lines[0]


def test_two_jobs_with_one_output(folder: Path) -> None:
    """Two jobs that would write one file are refused, named by the second one."""
    content = {"jobs": [{**MINIMAL, "name": "same"}, {**MINIMAL, "name": "same"}]}
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", content))
    assert re.search(r"jobs\[1\]\.name: two jobs would write .*same\.mp4 \(give them other names\)", line)


def test_two_spellings_of_one_output(folder: Path) -> None:
    """Two spellings of one folder are one output too."""
    (folder / "sub").mkdir()
    content = {
        "jobs": [
            {**MINIMAL, "name": "same", "output": {"dir": "out"}},
            {**MINIMAL, "name": "same", "output": {"dir": "sub/../out"}},
        ]
    }
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", content))
    assert "two jobs would write" in line


def test_two_files_with_one_output(folder: Path) -> None:
    """A file given twice would write its output twice, and is refused."""
    path = write_jobs(folder / "jobs.yaml", dict(MINIMAL))
    (line,) = problems_in(path, path)
    assert "two jobs would write" in line


@pytest.mark.parametrize(
    "job",
    [
        {"image": "start.png\0", "prompt": "x"},
        {**MINIMAL, "preset": "a\0.yaml"},
        {**MINIMAL, "output": {"dir": "a\0b"}},
        {**MINIMAL, "loras": ["a\0b"]},
        {**MINIMAL, "model": "./a\0b"},
        {**MINIMAL, "image": "~nobody-has-this-name/a.png"},
        {**MINIMAL, "loras": ["~nobody-has-this-name/a.st"]},
        {**MINIMAL, "output": {"dir": "~nobody-has-this-name/a"}},
        {**MINIMAL, "image": "a" * 5000},
    ],
    ids=[
        "image-nul", "preset-nul", "dir-nul", "lora-nul", "model-nul", "image-user", "lora-user", "dir-user", "long",
    ],
)  # fmt: skip
def test_paths_that_cannot_be(folder: Path, job: Mapping[str, Any]) -> None:
    """A path that no file system can hold, or of a user who does not exist, is a problem of its key."""
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", job))
    assert re.search(r"jobs\.yaml:\d+: (image|preset|output|loras|model)", line)


# -- settings of a command line


@pytest.mark.parametrize(
    ("pairs", "data"),
    [
        (["steps=20"], {"steps": 20}),
        (["steps = 20"], {"steps": 20}),
        (["steps=1", "steps=2"], {"steps": 2}),
        (["output.crf=20", "output.dir=out"], {"output.crf": 20, "output.dir": "out"}),
        (["loras.0.weight=1", "loras=[a]", " loras.-1.weight = 2 "], {"loras": ["a"], "loras.-1.weight": 2}),
        (["timeline.0.at=1", "timeline.0={at: 2}", "timeline.01=x"], {"timeline.0": {"at": 2}, "timeline.01": "x"}),
        (["prompt=a = b"], {"prompt": "a = b"}),
        (["size=[64, 48]"], {"size": [64, 48]}),
        (["step_cache=off"], {"step_cache": "off"}),
        (["negative_prompt="], {"negative_prompt": None}),
        (["loras=[{path: a, weight: 0.5}]"], {"loras": [{"path": "a", "weight": 0.5}]}),
    ],
)
def test_settings(pairs: list[str], data: Mapping[str, Any]) -> None:
    """Settings are keys, also with dots, and YAML values; the last one of a key wins, over those inside of it too."""
    assert settings_document(pairs, {}).data == data


@pytest.mark.parametrize("pair", ["steps", "=20", "output.=1", ".crf=1", "loras..weight=1", "steps=[1"])
def test_wrong_settings(pair: str) -> None:
    """A setting without a key or a value, with a part missing, or in broken YAML is refused by its own text."""
    with pytest.raises(InvalidInput, match="--set"):
        settings_document([pair], {"steps": 1})


def test_problems_of_settings(folder: Path) -> None:
    """A wrong setting is told as the command line's, once for all jobs."""
    path = write_jobs(folder / "jobs.yaml", {"jobs": [dict(MINIMAL), dict(MINIMAL)]})
    (line,) = problems_in(path, settings=["stesp=3"])
    assert line == "command line: stesp: unknown key (did you mean steps?)"


def test_job_of_settings_alone(folder: Path) -> None:
    """Settings alone make one job, relative to the current folder."""
    document = Document(data={**MINIMAL, "preset": "draft"}, file=Path("command line"))
    (request,), problems = request_from_settings(document, name="shot")
    assert problems == []
    assert (request.spec.image, request.spec.steps) == (str(folder / "start.png"), 15)
    assert (request.default_name, request.default_dir) == ("shot", folder / "renders")


# -- settings inside of what jobs say


def test_settings_inside_of_every_layer(folder: Path) -> None:
    """A setting reaches a list wherever it stands: in the job, the defaults, the preset, or on the command line."""
    (folder / "look.yaml").write_text("loras: [preset.safetensors]\n", encoding="utf-8")
    jobs = [{"loras": [{"path": "own.safetensors", "exclude": "single*"}]}, {}]
    content = {"defaults": {**MINIMAL, "loras": ["a.safetensors", "b.safetensors"]}, "jobs": jobs}
    requests = requests_in(write_jobs(folder / "jobs.yaml", content), "loras.0.weight=0.5")
    requests += requests_in(write_jobs(folder / "c.yaml", {**MINIMAL, "preset": "look.yaml"}), "loras.0.weight=0.5")
    seen = [[(Path(lora.path).name, lora.weight) for lora in request.spec.loras or ()] for request in requests]
    assert seen == [
        [("own.safetensors", 0.5)],
        [("a.safetensors", 0.5), ("b.safetensors", 1)],
        [("preset.safetensors", 0.5)],
    ]
    assert requests[0].spec.loras is not None
    assert requests[0].spec.loras[0].exclude == ["single*"]
    document = settings_document(["loras.-1.weight=2"], {**MINIMAL, "loras": [{"path": "a"}, {"path": "b"}]})
    (request,), problems = request_from_settings(document, name="shot")
    assert problems == []
    assert [lora.weight for lora in request.spec.loras or ()] == [1, 2]


def test_settings_inside_keep_the_rest(folder: Path) -> None:
    """Keys beside the one that is set stay as the job has them, also of keys that layers replace as a whole."""
    job = {
        **MINIMAL,
        "guidance_schedule": {"shape": "roll-off", "end": 4},
        "step_cache": "magcache",
        "one_frame": {"target": 3, "controls": [{"image": "start.png", "index": 1}]},
        "output": {"crf": 20},
    }
    (request,) = requests_in(
        write_jobs(folder / "jobs.yaml", job),
        *("guidance_schedule.end=2", "step_cache.threshold=0.2", "one_frame.target=5", "one_frame.controls.0.index=2"),
        *("output.poster=true", "gates.black=off"),
    )
    said = request.spec.model_dump(exclude_unset=True)
    assert said["guidance_schedule"] == {"shape": "roll-off", "end": 2}
    assert said["step_cache"] == {"kind": "magcache", "threshold": 0.2}
    assert said["one_frame"] == {"target": 5, "controls": [{"image": str(folder / "start.png"), "index": 2}]}
    assert (said["output"], said["gates"]) == ({"crf": 20, "poster": True}, {"black": "off"})


def test_paths_set_inside(folder: Path) -> None:
    """A path that is set is relative to the current folder; those beside it stay relative to their files."""
    (folder / "deep").mkdir()
    job = {"image": "../start.png", "prompt": "x", "loras": ["one.safetensors", "two.safetensors"]}
    path = write_jobs(folder / "deep" / "jobs.yaml", job)
    (request,) = requests_in(path, "loras.1=here.safetensors", "loras.1.weight=0.5", "output.dir=out")
    places = [(Path(lora.path), lora.weight) for lora in request.spec.loras or ()]
    assert places == [(folder / "deep" / "one.safetensors", 1), (folder / "here.safetensors", 0.5)]
    assert request.spec.output is not None
    assert request.spec.output.dir == str(folder / "out")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("loras.2.weight=1", "loras[2].weight: loras has 2 entries, 0 to 1 ({file}:4)"),
        ("loras.-3.weight=1", "loras[-3].weight: loras has 2 entries, 0 to 1 ({file}:4)"),
        ("loras.one.weight=1", "loras.one.weight: 'one' is no entry of loras, which has 2 entries, 0 to 1 ({file}:4)"),
        ("loras.weight=1", "loras.weight: 'weight' is no entry of loras, which has 2 entries, 0 to 1 ({file}:4)"),
        ("loras.0.weigth=1", "loras[0].weigth: unknown key (did you mean weight?)"),
        ("loras.0.weight=9", "loras[0].weight: must be less than or equal to 4, not 9"),
        ("loras.1.weight.0=a", "loras[1].weight[0]: loras[1].weight is 2.0, which has nothing inside ({file}:4)"),
        ("loras.-1.path=gone", "loras[1].path: {folder}/gone: no such file"),
        ("timeline.1.at=1", "timeline[1].at: timeline has 1 entry, number 0 ({file}:7)"),
        ("output.0=1", "output[0]: output has keys, and no numbered entries ({file}:3)"),
        ("steps.x=1", "steps.x: steps is 4, which has nothing inside ({file}:6)"),
        ("stpes.x=1", "stpes: unknown key (did you mean steps?)"),
        ("video.audio=true", "video.path: missing"),
    ],
)  # fmt: skip
def test_settings_that_reach_nothing(folder: Path, setting: str, problem: str) -> None:
    """A setting that leads nowhere, or to a wrong value, is one problem that says what is there instead, and where."""
    text = (
        "image: start.png\nprompt: x\noutput: {crf: 20}\n"
        "loras: [style.safetensors, {path: style.safetensors, weight: 2}]\nsections: 1\nsteps: 4\n"
        "timeline: [{at: 0}]\n"
    )
    file = write_jobs(folder / "shot.yaml", text)
    (line,) = problems_in(file, settings=[setting])
    assert line == f"command line: {problem.format(file=file, folder=folder)}"


@pytest.mark.parametrize("setting", ["loras.0.weight=1", "timeline.-1.at=1"])
def test_settings_of_lists_that_are_not_there(folder: Path, setting: str) -> None:
    """Where a job has no such list that is said, with the job's place, once for all variants of a matrix."""
    content = {"jobs": [{**MINIMAL, "matrix": {"seed": [1, 2]}}]}
    file = write_jobs(folder / "shot.yaml", content)
    (line,) = problems_in(file, settings=[setting])
    assert line.endswith(f"{setting.partition('.')[0]} has no entries ({file}:2)")


def test_all_problems_of_settings_inside(folder: Path) -> None:
    """Every wrong setting is told in one pass, beside what is wrong with the files."""
    file = write_jobs(folder / "a.yaml", {**MINIMAL, "loras": ["style.safetensors"], "fps": 0})
    settings = ["loras.0.weight=9", "loras.5.weight=1", "output.crf=0", "stesp=3"]
    lines = problems_in(file, settings=settings)
    assert sorted(line.split(": ")[1] for line in lines) == [
        "fps", "loras[0].weight", "loras[5].weight", "output.crf", "stesp",
    ]  # fmt: skip


def test_settings_of_chosen_jobs_only(folder: Path) -> None:
    """A job that a setting does not fit stops no others, if those alone are chosen."""
    jobs = [{**MINIMAL, "name": "day"}, {**MINIMAL, "name": "night", "loras": ["style.safetensors"]}]
    requests = requests_in(write_jobs(folder / "jobs.yaml", {"jobs": jobs}), "loras.0.weight=0.5")
    assert [len(request.problems) for request in requests] == [1, 0]
    (night,) = selected(requests, ["night"])
    (plan,) = plan_renders([night])
    assert [lora.weight for lora in plan.job.loras] == [0.5]


def test_problems_keep_their_places_beside_settings(folder: Path) -> None:
    """What is wrong with an entry's own keys is told in its file though the command line set another of them."""
    file = write_jobs(folder / "shot.yaml", "image: start.png\nprompt: x\nsections: 1\nloras:\n- gone.safetensors\n")
    (line,) = problems_in(file, settings=["loras.0.weight=0.5"])
    assert line.startswith(f"{file}:5: loras[0].path: ")


def test_settings_of_a_key_that_is_wrong(folder: Path) -> None:
    """Where a list is wrong already that alone is told: its entries are not counted."""
    file = write_jobs(folder / "shot.yaml", {**MINIMAL, "loras": [{"weight": 1}, "style.safetensors"]})
    (line,) = problems_in(file, settings=["loras.1.weight=0.5"])
    assert "loras[0].path: missing" in line


@pytest.mark.parametrize(
    ("axis", "setting", "refused"),
    [
        ({"loras.0.weight": [0.5, 1]}, "loras.0.weight=2", True),
        ({"loras.0.weight": [0.5, 1]}, "loras.-1.weight=2", True),
        ({"loras.0.weight": [0.5, 1]}, "loras.0={path: style.safetensors}", True),
        ({"loras": [["style.safetensors"], [{"path": "style.safetensors", "weight": 2}]]}, "loras.0.weight=3", True),
        ({"loras.0.weight": [0.5, 1]}, "loras.0.trusted=true", False),
        ({"output.crf": [20, 30]}, "output.crf=9", True),
        ({"output.crf": [20, 30]}, "output.poster=true", False),
    ],
)
def test_settings_against_an_axis(folder: Path, axis: Mapping[str, Any], setting: str, refused: bool) -> None:
    """A setting inside that would undo an axis of a matrix is refused; one beside it is not."""
    file = write_jobs(folder / "shot.yaml", {**MINIMAL, "loras": ["style.safetensors"], "matrix": dict(axis)})
    if not refused:
        assert len(plan_files(file, settings=[setting])) == 2
        return
    (line,) = problems_in(file, settings=[setting])
    assert "goes against images or a matrix of a job" in line


# -- fuzzing

_WORDS = st.sampled_from([*JobSpec.model_fields, "version", "jobs", "defaults", "path", "weight", "crf", "dir", "kind"])
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["start.png", "style.safetensors", "off", "teacache", "auto", "tiny", "draft", ".", "..", "/"])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS | st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


_PARTS = st.sampled_from(["0", "1", "-1", "9", "at", "prompt", "path", "weight", "loras", "crf", "controls", "x"])
_KEYS = st.tuples(_WORDS, st.lists(_PARTS, min_size=1, max_size=4)).map(lambda key: ".".join([key[0], *key[1]]))


def _plan_or_refuse(path: Path, settings: Document | None = None) -> None:
    said = "planned"
    try:
        plan_renders(*load_requests([path], settings))
    except GoanError as error:
        said = str(error)
    assert said.strip()


@FUZZ
@given(job=st.dictionaries(_WORDS | st.text(max_size=5), _VALUES, max_size=6))
def test_random_jobs(folder: Path, job: dict[str, Any]) -> None:
    """Whatever keys and values a job holds, it is planned or refused with a GoanError."""
    _plan_or_refuse(write_jobs(folder / "jobs.yaml", yaml.safe_dump({**MINIMAL, **job}, allow_unicode=True)))


@settings(FUZZ, max_examples=60)
@given(job=st.dictionaries(_WORDS, _VALUES, max_size=4), keys=st.lists(_KEYS, max_size=3), value=_VALUES)
def test_random_settings(folder: Path, job: dict[str, Any], keys: list[str], value: Any) -> None:
    """Whatever a command line sets inside of whatever a job holds, it is planned or refused with a GoanError."""
    path = write_jobs(folder / "jobs.yaml", yaml.safe_dump({**MINIMAL, **job}, allow_unicode=True))
    _plan_or_refuse(path, Document(data=dict.fromkeys(keys, value), file=Path("command line")))


@FUZZ
@given(jobs=st.lists(_VALUES, max_size=3), defaults=_VALUES)
def test_random_batches(folder: Path, jobs: list[Any], defaults: Any) -> None:
    """Whatever a list of jobs and its defaults hold, they are planned or refused with a GoanError."""
    _plan_or_refuse(write_jobs(folder / "jobs.yaml", {"jobs": jobs, "defaults": defaults}))


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_random_files(folder: Path, content: bytes) -> None:
    """Whatever bytes a job file holds, it is planned or refused with a GoanError."""
    path = folder / "jobs.yaml"
    path.write_bytes(content)
    _plan_or_refuse(path)


@FUZZ
@given(text=st.text(alphabet="ab1:-[]{}&*!|>'\"#%@`,?~<=. \n\t", max_size=60))
def test_random_yaml(folder: Path, text: str) -> None:
    """Whatever YAML's own punctuation spells, it is planned or refused with a GoanError."""
    _plan_or_refuse(write_jobs(folder / "jobs.yaml", text))


def test_long_file_names(folder: Path) -> None:
    """A name longer than a file's can be is a problem of that file."""
    (line,) = problems_in(Path("a" * 300))
    assert line.startswith("a" * 300 + ": cannot be read")
