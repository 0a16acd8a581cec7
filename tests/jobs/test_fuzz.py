"""Fuzzed YAML: whatever a job file holds, it is planned or refused in words, and never a traceback."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goan_cli.errors import GoanError, InvalidJobs
from goan_cli.jobs.load import load_requests
from goan_cli.jobs.schema import BatchSpec, GatesSpec, JobEntry, LoraSpec, OutputSpec, StepCacheSpec
from goan_cli.render.plan import RenderPlan, plan_renders
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs, write_lora

FUZZ = settings(max_examples=900, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def stocked(folder: Path) -> Path:
    """The folder with stills to match, a preset, and a file that is no image."""
    (folder / "stills").mkdir()
    for name in ("a.png", "b.png", "b.jpg", "[c].png"):
        (folder / "stills" / name).write_bytes((folder / "start.png").read_bytes())
    (folder / "words.png").write_text("no image", encoding="utf-8")
    (folder / "look.yaml").write_text("steps: 3\ngates: {drift: warn}\n", encoding="utf-8")
    return folder


def planned_or_refused(folder: Path, content: str | bytes) -> list[RenderPlan]:
    """The plans of a file, none where it is refused; how it is refused and what planning leaves is checked."""
    path = folder / "jobs.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    before = sorted(folder.rglob("*"))
    plans: list[RenderPlan] = []
    refused: GoanError | None = None
    try:
        plans = plan_renders(*load_requests([path]))
    except GoanError as error:
        refused = error
    assert plans if refused is None else str(refused).strip()
    for problem in refused.problems if isinstance(refused, InvalidJobs) else ():
        assert problem.message.strip()
        # A preset's problem stands in the preset's file.
        assert problem.file in (path, folder / "look.yaml"), problem
    assert sorted(folder.rglob("*")) == before
    return plans


# -- data of the right shape, more or less

KEYS = sorted({name for model in (JobEntry, BatchSpec) for name in model.model_fields})
INNER_KEYS = sorted({name for model in (GatesSpec, LoraSpec, OutputSpec, StepCacheSpec) for name in model.model_fields})
TEXTS = st.sampled_from(
    [
        "", " ", "~", "~nobody", "~nobody/a.png", "a\0b", "\0", "..", "/", "./", "a/b", "name", "ends.", "é漢字",
        "\u2028", "\ufeff", "{seed}", "start.png", "words.png", "gone.png", "stills", "stills/a.png",
        "style.safetensors", "look.yaml", "./look.yaml", "gone.yaml", "jobs.yaml", "draft", "tiny", "./tiny", "auto",
        "off", "teacache", "fail", "warn", "null", "1", "1e3", "a: b", "- a", "&a", "*a", "!a", "%", "@", "`",
    ]
)  # fmt: skip
PATTERNS = st.sampled_from(["stills/a.png", "stills/[ab].png", "**/a.png", "./stills/b.*", "stills/**"])
ODD_PATTERNS = st.sampled_from(
    ["a" * 300,
        "stills/*", "stills/[", "stills/[]", "stills/[!a]*",
        "stills/[[]c].png", "stills/[b-a].png", "stills/{a,b}.png", "stills//a.png", "./stills/../stills/a.png", "***",
        "?", "*", "", "stills", "stills/", "stills/a.png/", "st\0ills/*", "~nobody/*", "gone/*.png", "*.{png}",
        "stills/\\a.png", "stills/(a|b).png", "stills/é*", "start.png/*", "[[:alpha:]]*.png", ".", "..",
    ]
)  # fmt: skip
INTEGERS = st.integers(-3, 40) | st.sampled_from([2**31, 2**63 - 1, 2**63, -(2**63), 10**40, -(10**300), 10**410])
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | st.text(max_size=8) | TEXTS
NAMES = st.sampled_from(KEYS) | st.sampled_from(INNER_KEYS) | st.text(max_size=5)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Good nineteen times out of twenty, else anything."""
    return st.integers(0, 19).flatmap(lambda die: JUNK if die == 19 else good)


def of(*good: Any) -> st.SearchStrategy[Any]:
    """Mostly one of these values."""
    return mostly(st.sampled_from(good))


GATE_KEYS = list(GatesSpec.model_fields)
WEIGHTS = of(0, 1, 0.5, -4, 4)
LORAS = mostly(
    st.sampled_from(["style.safetensors", "gone.safetensors"])
    | st.fixed_dictionaries(
        {"path": of("style.safetensors")},
        optional={"weight": WEIGHTS, "include": of("*", ["*"]), "exclude": of("single*"), "trusted": of("yes")},
    )
)
AXES = (
    st.sampled_from(
        [
            "seed", "prompt", "image", "size", "steps", "sections", "loras", "preset", "model", "output.crf",
            "output.dir", "loras.0", "loras.0.weight", "loras.1.path", "gates.black", "step_cache.threshold",
            "loras.9.weight", "loras.0.weight.x", "loras.weight", "output..crf", ".output", "output.", ".", "",
            "seed.x", "prompt.0", "max", "name", "images", "matrix", "version", "jobs", "defaults", "loras.-1.weight",
            "loras.٣.weight", "loras.²", "loras.0x0", "matrix.seed", "step_cache.kind.a.b.c", "stepz", "7",
        ]
    )
    | st.lists(NAMES | st.sampled_from(["0", "1", "00", "-1"]), min_size=1, max_size=4)
    .map(".".join)
)  # fmt: skip
MATRICES = st.fixed_dictionaries(
    {},
    optional={
        "max": of(2, 8, 300),
        "seed": mostly(st.lists(INTEGERS, min_size=1, max_size=3, unique=True)),
        "prompt": mostly(st.lists(TEXTS, min_size=1, max_size=3, unique=True)),
        "loras.0.weight": mostly(st.lists(WEIGHTS, min_size=1, max_size=2)),
        "output.crf": mostly(st.lists(of(1, 51), min_size=1, max_size=2)),
        "gates.black": of(["off", "warn"]),
    },
)
ODD_MATRICES = st.dictionaries(AXES, mostly(st.lists(of("a", 1, 0.5, 2, None), min_size=1, max_size=2)), max_size=3)
VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "name": of("shot", "night 1"),
    "preset": of("draft", "look.yaml"),
    "model": of("tiny", "./tiny"),
    "image": of("start.png", "stills/a.png", "words.png"),
    "images": mostly(PATTERNS | st.lists(PATTERNS, min_size=1, max_size=3) | ODD_PATTERNS),
    "matrix": mostly(MATRICES | ODD_MATRICES),
    "prompt": of("a ball"),
    "seconds": of(1, 0.1, 600),
    "sections": of(1, 2),
    "fps": of(1, 23.976, 120),
    "size": of("auto", [64, 64], [16, 4096], [65, 64], [64], [[64, 64]]),
    "seed": of(0, 2**63 - 1),
    "loras": mostly(st.lists(LORAS, max_size=3)),
    "output": mostly(st.fixed_dictionaries({}, optional={"dir": of("out", "start.png"), "crf": of(1, 20, 51)})),
    "gates": mostly(st.dictionaries(st.sampled_from(GATE_KEYS), of("fail", "warn", "off"), max_size=4)),
    "retry_seeds": of(0, 100),
    "step_cache": of("off", "teacache", {"threshold": 0.1}, {"kind": "off"}),
}


@st.composite
def jobs(draw: st.DrawFn) -> Any:
    """A job that might be right, with some keys wrong."""
    job: dict[str, Any] = dict(draw(st.sampled_from([MINIMAL, MINIMAL, {"prompt": "x"}, {}])))
    for key in draw(st.lists(st.sampled_from(list(VALUES)), max_size=4, unique=True)):
        job[key] = draw(VALUES[key])
        if key == "images" and draw(st.integers(0, 5)):
            job.pop("image", None)
    if draw(st.integers(0, 19)) == 19:
        job[draw(NAMES)] = draw(JUNK)
    return job if draw(st.integers(0, 19)) < 19 else draw(st.sampled_from([[job], None, "job"]))


@st.composite
def files(draw: st.DrawFn) -> str:
    """A job file: one job, or several with defaults."""
    content = draw(jobs())
    if draw(st.booleans()):
        content = {"jobs": draw(mostly(st.lists(jobs(), min_size=1, max_size=3)))}
        if draw(st.booleans()):
            content["defaults"] = draw(jobs())
    if isinstance(content, dict) and draw(st.integers(0, 5)) == 0:
        content["version"] = draw(of(1, 2))
    text: str = yaml.safe_dump(content, allow_unicode=draw(st.booleans()), sort_keys=False)
    return text


@FUZZ
@given(text=files())
def test_data_of_odd_shapes(stocked: Path, text: str) -> None:
    """Right and wrong keys with right and wrong values are plans, or problems that name the file."""
    planned_or_refused(stocked, text)


# -- good files, damaged

GOOD = (
    """\
version: 1
defaults: &look
  image: start.png
  prompt: "a ball, slowly"
  sections: 1
  loras: [{path: style.safetensors, weight: 0.5}]
  output: {dir: out, crf: 20}
jobs:
  - name: night
    seed: 7
  - &second
    <<: *look
    size: [64, 64]
    matrix:
      max: 8
      seed: [1, 2]
      loras.0.weight: [0, 0.5, 1]
  - images: [stills/a.png, "stills/b.*"]
    gates: {black: off, frozen: fail}
    retry_seeds: 2
""",
    """\
# one job
image: 'start.png'
prompt: >-
  a ball
  rolls
seconds: 0.5
fps: 24.0
step_cache: {kind: teacache, threshold: 0.15}
loras:
- style.safetensors
matrix:
  output.crf:
  - 18
  - 22
  negative_prompt:
  - blur
  - null
""",
    "images: stills/[ab].png\nprompt: x\nsections: 1\nmatrix: {seed: [1, 2, 3], steps: [2, 3]}\n",
    '{"image": "start.png", "prompt": "\\u00e9", "sections": 1, "gates": {"nan": "off"}}\n',
)
SNIPPETS = st.sampled_from(
    [
        b"&a ", b"*a", b"*look", b"<<: *look\n", b"<<: *second\n", b"<<: [*look, *second]", b"<<: 1\n", b"!!binary ",
        b"!!python/object/apply:os.getcwd []", b"!!set ", b"!!omap ", b"!!int ", b"!!float ", b"!!str ", b"!!null ",
        b"!!bool ", b"!!timestamp ", b"!x ", b"!<> ", b"? ", b"- ", b": ", b"|\n", b">+9\n", b"{", b"}", b"[", b"]",
        b"\t", b"\0", b"\x07", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc2\x85", b"\xed\xa0\x80", b"\r", b"\r\n",
        b"\n", b"%YAML 1.1\n---\n", b"%TAG ! x\n", b"---\n", b"...\n", b"'", b'"', b"#", b" #", b"~", b"1e999", b"0x",
        b"0o7", b".nan", b"\\", b"\\ud800", b"\\x00", b"  ", b"matrix: {seed: [1]}\n", b"images: stills/*\n",
    ]
)  # fmt: skip


def cut(text: bytes, start: int, stop: int, more: bytes) -> bytes:
    """Without a slice."""
    return text[:start] + text[stop:]


def doubled(text: bytes, start: int, stop: int, more: bytes) -> bytes:
    """With a slice twice."""
    return text[:stop] + text[start:]


def spliced(text: bytes, start: int, stop: int, more: bytes) -> bytes:
    """With something put in."""
    return text[:start] + more + text[start:]


def replaced(text: bytes, start: int, stop: int, more: bytes) -> bytes:
    """With something in place of a slice."""
    return text[:start] + more + text[stop:]


Mutation = Callable[[bytes, int, int, bytes], bytes]
MUTATIONS: tuple[Mutation, ...] = (cut, doubled, spliced, spliced, replaced)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file after a few mutations; whole words are more likely to be hit than halves."""
    text = draw(st.sampled_from(GOOD)).encode()
    for _ in range(draw(st.integers(1, 4))):
        places = [0, len(text), *(at for at, byte in enumerate(text) if byte in b" \n:,[]{}")]
        where = st.sampled_from(places) | st.integers(0, len(text))
        start, stop = sorted((draw(where), draw(where)))
        more = draw(SNIPPETS | st.binary(max_size=4) | st.text(max_size=4).map(str.encode))
        text = draw(st.sampled_from(MUTATIONS))(text, start, min(stop, start + 60), more)
    return text


@FUZZ
@given(text=damaged())
def test_damaged_files(stocked: Path, text: bytes) -> None:
    """Files that were cut, doubled and spliced are plans, or problems that name the file."""
    planned_or_refused(stocked, text)


@pytest.mark.parametrize("text", GOOD, ids=["batch", "block", "flow", "json"])
def test_files_before_they_are_damaged(stocked: Path, text: str) -> None:
    """The files that the fuzzing damages are good ones."""
    assert planned_or_refused(stocked, text)


# -- pinned


def test_yaml_bomb(folder: Path) -> None:
    """Aliases that would unfold to billions of values are refused at their line, wherever they stand."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    bomb = "\n".join(levels)
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", bomb))
    assert re.search(r"jobs\.yaml:\d+: not valid YAML: too large or too deeply nested once its aliases", line)
    deeper = "matrix:\n  " + bomb.replace("\n", "\n  ")
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", deeper))
    assert "too large" in line


def test_bomb_of_merges(folder: Path) -> None:
    """Merges that double with every level are refused, too."""
    levels = ["a0: &a0 {k: 1}"]
    levels += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}" for n in range(1, 40)]
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", "\n".join(levels)))
    assert "too large or too deeply nested" in line


@pytest.mark.parametrize("text", ["&a [*a]", "image: &a {b: *a}", "&a\n<<: *a\n"])
def test_values_inside_themselves(folder: Path, text: str) -> None:
    """A value that holds itself has no end, and is refused."""
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", text))
    assert re.search(r"jobs\.yaml:\d+: not valid YAML: ", line)


def test_huge_file(folder: Path) -> None:
    """A file of ten megabytes is refused, whatever is in it."""
    path = write_jobs(folder / "jobs.yaml", "image: start.png\nprompt: " + "x" * (10 << 20))
    (line,) = problems_in(path)
    assert line == f"{path}: larger than 4 MB; a job file holds settings only"


def test_large_file(folder: Path) -> None:
    """A prompt of a megabyte is a prompt."""
    prompt = "word " * (1 << 18)
    (plan,) = plan_files(write_jobs(folder / "jobs.yaml", {**MINIMAL, "prompt": prompt}))
    assert plan.job.prompt == prompt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image: start.png\nprompt: a\nprompt: b\n", ":3: prompt: given twice"),
        ("jobs:\n- seed: 1\n  seed: 1\n", ":3: jobs[0].seed: given twice"),
        ("matrix:\n  seed: [1]\n  steps: [2]\n  seed: [3]\n", ":4: matrix.seed: given twice"),
        ("gates: {nan: off, black: off, nan: warn}\n", ":1: gates.nan: given twice"),
        ("jobs: [{}]\njobs: [{}]\n", ":2: jobs: given twice"),
    ],
)
def test_keys_given_twice(folder: Path, text: str, expected: str) -> None:
    """A key that is given twice is one problem, at its second line."""
    (line,) = problems_in(write_jobs(folder / "jobs.yaml", text))
    assert line.endswith(expected)


def test_anchors_and_merges(folder: Path) -> None:
    """Anchors, aliases and merges work in jobs, lists of LoRAs and matrices; a job's own keys are stronger."""
    write_lora(folder / "other.safetensors", up=0.02)
    text = """\
defaults: &look
  image: start.png
  prompt: &words a ball
  sections: 1
  loras: &loras
    - &style {path: style.safetensors, weight: 0.5}
    - {<<: *style, path: other.safetensors}
jobs:
  - &first {name: first, seed: 1, steps: 3}
  - {<<: *first, name: second}
  - <<: [{steps: 4}, *first]
    name: third
    matrix: {seed: &seeds [8, 9]}
  - <<: *look
    name: fourth
    prompt: *words
    matrix:
      seed: *seeds
      loras.1.weight: [1]
"""
    plans = plan_files(write_jobs(folder / "jobs.yaml", text))
    made = [(plan.job.name, plan.job.sampling.seed, plan.job.sampling.steps) for plan in plans]
    assert made == [
        ("first", 1, 3),
        ("second", 1, 3),
        ("third-seed=8", 8, 4),
        ("third-seed=9", 9, 4),
        ("fourth-seed=8-weight=1", 8, 8),
        ("fourth-seed=9-weight=1", 9, 8),
    ]
    weights = [[(lora.path.stem, lora.weight) for lora in plan.job.loras] for plan in plans]
    assert weights == [[("style", 0.5), ("other", 0.5)]] * 4 + [[("style", 0.5), ("other", 1)]] * 2
    assert {plan.job.prompt for plan in plans} == {"a ball"}


def test_problems_behind_aliases(folder: Path) -> None:
    """A wrong value that is used twice is told at its own line, for each job that uses it."""
    text = "defaults: {image: start.png, prompt: x}\njobs:\n  - output: &out\n      crf: 99\n  - output: *out\n"
    lines = problems_in(write_jobs(folder / "jobs.yaml", text))
    places = [re.findall(r"jobs\.yaml:(\d+): (jobs\[\d\])\.output\.crf: must be less", line) for line in lines]
    assert places == [[("4", "jobs[0]")], [("4", "jobs[1]")]]
