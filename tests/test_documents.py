"""YAML with positions: what is read, what is refused, and how it is told."""

import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from goan_cli.checking import checked, nearest
from goan_cli.documents import Document, key_text, parse_document, read_document
from goan_cli.errors import GoanError, InvalidInput, InvalidJobs

HERE = Path("jobs.yaml")


def told(text: str) -> str:
    """What is said of a text that is refused."""
    with pytest.raises(InvalidJobs) as caught:
        parse_document(text, file=HERE)
    return str(caught.value)


def parsed_or_refused(text: str) -> str:
    """What is said of a text, or the file's name where it is parsed; other exceptions are failures."""
    try:
        document = parse_document(text, file=HERE)
    except GoanError as error:
        return str(error)
    return str(document.file)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("12:30", "12:30"),
        ("190:20:30", "190:20:30"),
        ("1_000", "1_000"),
        ("12", 12),
        ("-3", -3),
        ("+7", 7),
        ("0x1F", 31),
        ("0", 0),
        ("0042", 42),
        ("089", 89),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("-2.5e-3", -0.0025),
        (".inf", float("inf")),
        ("~", None),
        ("null", None),
        ("", None),
        ("2024-01-31", "2024-01-31"),
        ("1.2.3", "1.2.3"),
        ("'12'", "12"),
        ('"a\\nb"', "a\nb"),
        ("Größe 漢字 🙂", "Größe 漢字 🙂"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    """Scalars mean what YAML 1.2's core schema says: few words are booleans, and numbers are decimal."""
    read = parse_document(f"key: {text}\n").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_structures() -> None:
    """Blocks, flows, anchors, aliases and merge keys give the data they stand for; keys are text."""
    text = "base: &b {steps: 1, fps: 2}\njob:\n  <<: *b\n  steps: 3\nlist: [*b, 1]\n7: seven\n"
    base = {"steps": 1, "fps": 2}
    assert parse_document(text).data == {
        "base": base,
        "job": {"steps": 3, "fps": 2},
        "list": [base, 1],
        "7": "seven",
    }


def test_lines() -> None:
    """Each key has the line that it stands on; what has none takes that of what holds it."""
    document = parse_document("a: 1\njobs:\n  - x: 1\n    y:\n      z: 2\n  - {w: 1}\n", file=HERE)
    assert document.line(("a",)) == 1
    assert document.line(("jobs",)) == 2
    assert document.line(("jobs", 0, "x")) == 3
    assert document.line(("jobs", 0, "y", "z")) == 5
    assert document.line(("jobs", 0, "y", "q")) == 4
    assert document.line(("jobs", 1, "w")) == 6
    assert document.line(("jobs", 1, "v")) == 6
    assert document.line(("b",)) == 1


def test_line_of_a_key_over_a_merge() -> None:
    """A key that overrides a merged one has its own line, wherever the merge stands."""
    text = "base: &b\n  steps: 1\njob:\n  steps: 3\n  <<: *b\n"
    assert parse_document(text).line(("job", "steps")) == 4


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), None),
        (("size",), "size"),
        (("jobs", 0, "loras", 2, "path"), "jobs[0].loras[2].path"),
        ((0, "a"), "[0].a"),
    ],
)
def test_key_text(path: tuple[str | int, ...], text: str | None) -> None:
    """A key path is written as a user would write it."""
    assert key_text(path) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "jobs.yaml:3: a: given twice"),
        ("x:\n  a: 1\n  a: 1\n", "jobs.yaml:3: x.a: given twice"),
        ("'1': a\n1: b\n", "jobs.yaml:2: 1: given twice"),
        ("? [a, b]\n: c\n", "jobs.yaml:1: a key must be a plain word"),
        ("a: 1\n? {b: c}\n: d\n", "jobs.yaml:2: a key must be a plain word"),
        ("a: b: c\n", "jobs.yaml:1: not valid YAML"),
        ("a: 1\n\tb: 2\n", "jobs.yaml:2: not valid YAML"),
        ("\t- a\n", "jobs.yaml:1: not valid YAML"),
        ("a: 'open\nb: 1\n", "not valid YAML"),
        ("a: [1, 2\n", "not valid YAML"),
        ("a: *nothing\n", "jobs.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "jobs.yaml:2: not valid YAML"),
        ("a: !!python/object:os.system x\n", "jobs.yaml:1: a: not valid YAML"),
        ("a: !mine x\n", "jobs.yaml:1: a: not valid YAML"),
        ("a: 1\nb: !!int abc\n", "jobs.yaml:2: b: not valid YAML"),
        ("a: 1\nb: !!bool abc\n", "jobs.yaml:2: b: not valid YAML"),
        ("a: 1\nb: !!timestamp abc\n", "jobs.yaml:2: b: not valid YAML"),
        ("a: 1\nb: !!binary abc\n", "jobs.yaml:2: b: not valid YAML"),
        (f"a: 1\nb: {'9' * 5000}\n", "jobs.yaml:2: "),
        ("a: 1\nb: \x00\n", "jobs.yaml:2: not valid YAML"),
    ],
)
def test_refused_text(text: str, expected: str) -> None:
    """Broken YAML, duplicate keys and foreign tags are refused with the line that they stand on."""
    lines = told(text).splitlines()
    assert any(expected in line for line in lines), lines
    assert all(line.startswith("jobs.yaml") for line in lines), lines


@pytest.mark.parametrize("merged", ["5", "word", "[1, 2]"])
def test_a_merge_of_no_keys(merged: str) -> None:
    """A merge key that merges no keys is told, not dropped."""
    assert "jobs.yaml:1: " in told(f"<<: {merged}\na: 1\n")


def test_all_duplicates_at_once() -> None:
    """Every duplicate of a file is told in one pass."""
    lines = told("a: 1\na: 2\nb: 1\nc: {d: 1, d: 2}\nb: 2\n").splitlines()
    assert [line.split(":")[1] for line in lines] == ["2", "4", "5"]


def _bomb(levels: int) -> str:
    names = "abcdefghijklmnop"[: levels + 1]
    rows = [f"{names[0]}: &{names[0]} [x, x, x, x, x, x, x, x, x]"]
    rows += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        _bomb(9),
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "[" * 1000 + "]" * 1000,
        "{a: " * 1000 + "1" + "}" * 1000,
        "- " * 1000 + "a\n",
        "a: &a {<<: *a}\n",
    ],
    ids=["billion-laughs", "list-of-itself", "keys-of-themselves", "brackets", "braces", "dashes", "merge-of-itself"],
)
def test_runaway_structures(text: str) -> None:
    """Aliases that explode or loop, and deep nesting, are refused in a message of one short line."""
    message = told(text)
    assert "too large or too deeply nested" in message
    assert len(message) < 200


@pytest.mark.parametrize("text", ["'[' * 100_000", "'{a: ' * 100_000", "'- ' * 100_000"])
def test_very_deep_nesting(text: str) -> None:
    """A file far deeper than any stack is refused too: in a process of its own, since the parser is in C."""
    script = (
        "from goan_cli.documents import parse_document\n"
        "from goan_cli.errors import GoanError\n"
        f"try:\n    parse_document({text})\n"
        "except GoanError:\n    print('refused')\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "refused")


def test_many_aliases_within_reason() -> None:
    """A list of jobs that share their keys by aliases is no bomb."""
    text = "base: &b {steps: 1}\njobs:\n" + "  - *b\n" * 5000
    assert len(parse_document(text).data["jobs"]) == 5000


@pytest.mark.parametrize("content", [b"\xff\xfea\x00", b"caf\xe9: 1\n", b"\x80", b"a: \xed\xa0\x80\n"])
def test_not_utf_8(tmp_path: Path, content: bytes) -> None:
    """A file in another encoding is refused as such, by name."""
    path = tmp_path / "jobs.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"jobs\.yaml: not UTF-8"):
        read_document(path)


def test_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    """A byte order mark and Windows line ends are no part of the data."""
    path = tmp_path / "jobs.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    document = read_document(path)
    assert document.data == {"a": 1, "b": "x"}
    assert document.line(("b",)) == 2


def test_huge_file(tmp_path: Path) -> None:
    """A file of many megabytes is refused before it is read."""
    path = tmp_path / "jobs.yaml"
    with path.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(InvalidInput, match="larger than 4 MB"):
        read_document(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(InvalidInput, match=r"gone\.yaml: no such file"):
        read_document(tmp_path / "gone.yaml")
    with pytest.raises(InvalidInput, match="is a folder"):
        read_document(tmp_path)


@settings(max_examples=200)
@given(text=st.text(max_size=80) | st.text(alphabet="ab01:-[]{}&*!|>'\"#%@`,?~<=. \n\t", max_size=60))
def test_any_text(text: str) -> None:
    """Any text is parsed, or refused with a GoanError."""
    said = parsed_or_refused(text)
    assert "jobs.yaml" in said


_TAGS = st.sampled_from(["int", "float", "bool", "null", "str", "binary", "timestamp", "seq", "map", "set", "omap"])


@settings(max_examples=150)
@given(tag=_TAGS | st.just("merge"), text=st.text(alphabet="abc019:-.[]{} ", max_size=12))
def test_any_tag(tag: str, text: str) -> None:
    """Any standard tag on any value is parsed, or refused with a GoanError."""
    said = parsed_or_refused(f"a: !!{tag} {text}\n")
    assert "jobs.yaml" in said


class Inner(BaseModel):
    """A nested model."""

    model_config = ConfigDict(extra="forbid")
    width: int = 1


class Outer(BaseModel):
    """A model with all that `checked` meets."""

    model_config = ConfigDict(extra="forbid")
    name: str = "x"
    count: int = Field(1, ge=1)
    inner: Inner | None = None
    rows: list[Inner] = Field(default_factory=list)


def test_checked_data() -> None:
    """Valid data gives the model, and no problem."""
    result = checked(Outer, {"name": "a", "inner": {"width": 3}}, Document(data={}, file=HERE))
    assert result.model == Outer(name="a", inner=Inner(width=3))
    assert (result.problems, result.flawed) == ([], frozenset())


def test_checked_data_keeps_the_rest() -> None:
    """What is wrong is left out, so that the rest can be used, and its keys are called flawed."""
    document = parse_document("nmae: a\ncount: 0\ninner: {width: 2, widht: 3}\n", file=HERE)
    result = checked(Outer, document.data, document)
    assert result.model == Outer(inner=Inner(width=2))
    assert result.flawed == {"nmae", "name", "count", "inner"}
    assert sorted(map(str, result.problems)) == [
        "jobs.yaml:1: nmae: unknown key (did you mean name?)",
        "jobs.yaml:2: count: must be greater than or equal to 1, not 0",
        "jobs.yaml:3: inner.widht: unknown key (did you mean width?)",
    ]


class Named(BaseModel):
    """A model with a required key that has a stand-in, and one that has none."""

    stand_ins: ClassVar[Mapping[str, int]] = {"at": 7}
    at: int
    name: str
    rows: list[Inner] = Field(default_factory=list)


class Listing(BaseModel):
    """Entries that lack something."""

    entries: list[Named] = Field(default_factory=list)
    one: Named | None = None
    count: int = 1


def test_checked_entries_without_what_they_require() -> None:
    """An entry without a required key is left out alone, and with a stand-in kept, so that the rest is looked at."""
    entries = [
        {"at": 1, "name": 5},
        {"at": "soon", "name": "b", "rows": [{"width": "x"}, {"width": 2}]},
        {"name": "c"},
        {"at": 4},
        {"at": 5, "name": "e"},
    ]
    data = {"entries": entries, "one": {"at": 1}, "count": 3}
    result = checked(Listing, data, Document(data=data, file=HERE))
    made = [Named(at=7, name="b", rows=[Inner(), Inner(width=2)]), Named(at=7, name="c"), Named(at=5, name="e")]
    assert result.model == Listing(entries=made, count=3)
    assert result.kept == {("entries",): (1, 2, 4)}
    assert result.made_up == {("entries", 1, "at"), ("entries", 2, "at")}
    assert [problem.key for problem in result.problems] == [
        *("entries[0].name", "entries[1].at", "entries[1].rows[0].width", "entries[2].at", "entries[3].name"),
        "one.name",
    ]
    assert data["entries"] == entries


@pytest.mark.parametrize(("data", "kind"), [(None, "nothing"), ([], "a list"), (7, "a single value"), ("x", "text")])
def test_checked_data_without_keys(data: Any, kind: str) -> None:
    """Data that is no mapping is one problem, and every key counts as flawed."""
    result = checked(Outer, data, Document(data=data, file=HERE), at=("jobs", 1))
    assert result.model is None
    assert result.flawed == set(Outer.model_fields)
    (problem,) = result.problems
    assert str(problem).startswith("jobs.yaml: jobs[1]: expected keys and values here, found")
    assert kind in str(problem)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("stesp", "did you mean steps?"),
        ("STEPS", "valid: fps, steps"),
        ("zzz", "valid: fps, steps"),
        ("", "valid: fps, steps"),
    ],
)
def test_nearest(word: str, hint: str) -> None:
    """The hint is the nearest name, or all names where none is near."""
    assert nearest(word, ["steps", "fps"]) == hint


def test_nearest_of_many_or_none() -> None:
    """No hint lists more names than a line holds, nor none at all."""
    assert nearest("zzz", [f"name{n}" for n in range(50)]) is None
    assert nearest("zzz", []) is None
