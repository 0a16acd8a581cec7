"""The table of where a job names files: the schema's every path is in it, and all of them are found and changed."""

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from goan_cli.jobs.fields import path_value
from goan_cli.jobs.paths import (
    PATHS,
    PATHS_OR_NAMES,
    Place,
    is_preset_file,
    looks_like_path,
    paths_at,
    with_paths,
)
from goan_cli.jobs.schema import JobEntry, JobSpec


def _places(annotation: Any, metadata: tuple[Any, ...], at: Place) -> Iterator[Place]:
    """Every place in a pydantic model that holds a path."""
    if any(getattr(each, "func", None) is path_value for each in metadata):
        yield at
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for key, field in annotation.model_fields.items():
            yield from _places(field.annotation, tuple(field.metadata), (*at, key))
        return
    below = (*at, "*") if typing.get_origin(annotation) is list else at
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        yield from _places(inner[0], inner[1:], at)
        return
    for each in inner:
        yield from _places(each, (), below)


# What entries of lists need beside a path.
_BESIDE: Mapping[Place, Mapping[str, Any]] = {
    ("timeline", "*"): {"at": 0},
    ("one_frame", "controls", "*"): {"index": 0},
}


def _nested(place: Place, text: str, at: Place = ()) -> Any:
    """What a job says that has a text at a place below `at`."""
    if not place:
        return text
    key, inner = place[0], _nested(place[1:], text, (*at, place[0]))
    return [inner] if key == "*" else {**_BESIDE.get(at, {}), key: inner}


@pytest.mark.parametrize("model", [JobSpec, JobEntry])
def test_every_path_is_known(model: type[BaseModel]) -> None:
    """Whatever the schema declares to be a path is in the table, and nothing else is."""
    places = list(_places(model, (), ()))
    assert set(places) == {*PATHS, *PATHS_OR_NAMES}
    assert len(places) == len(PATHS) + len(PATHS_OR_NAMES)


@pytest.mark.parametrize("place", PATHS, ids=".".join)
def test_paths(place: Place) -> None:
    """A path at each place is found and changed, in a job as a file has it and in a checked one, and nothing else."""
    given, changed = ({"prompt": "a.png", "model": "tiny", **_nested(place, text)} for text in ("a.png", "x/a.png"))

    def moved(path: str) -> str:
        return f"x/{path}"

    assert paths_at(given, place) == ["a.png"]
    assert with_paths(given, moved) == changed
    spec, expected = JobSpec.model_validate(given), JobSpec.model_validate(changed)
    assert paths_at(spec, place) == ["a.png"]
    assert with_paths(spec, moved).model_dump(exclude_unset=True) == expected.model_dump(exclude_unset=True)


@pytest.mark.parametrize("place", [*PATHS, *PATHS_OR_NAMES], ids=".".join)
def test_no_path(place: Place) -> None:
    """Where there is no path, nothing is found, and a checked job says no more than it did."""
    spec = JobSpec.model_validate({"prompt": "x", "image": None, "timeline": [{"at": 0}], "output": {}, "loras": []})
    assert paths_at(spec, place) == []
    assert with_paths(spec, str.upper).model_dump(exclude_unset=True) == spec.model_dump(exclude_unset=True)


def test_bare_paths() -> None:
    """A bare path stands for a LoRA or a video; what is no text is left to whoever checks it."""
    job = {"loras": ["a", {"path": "b"}, 3], "video": "c", "timeline": [{"loras": ["d"]}, None], "output": 4}
    expected = {"loras": ["A", {"path": "B"}, 3], "video": "C", "timeline": [{"loras": ["D"]}, None], "output": 4}
    assert with_paths(job, str.upper) == expected


@pytest.mark.parametrize(
    ("job", "seen"),
    [
        ({"model": "/a/packs/mine"}, {"model": "./mine"}),
        ({"model": "/a/x.yaml"}, {"model": "x.yaml"}),
        ({"model": "tiny"}, {"model": "tiny"}),
        ({"preset": "/a/x.yml"}, {"preset": "x.yml"}),
        ({"preset": "draft"}, {"preset": "draft"}),
    ],
)
def test_paths_or_names(job: Mapping[str, str], seen: Mapping[str, str]) -> None:
    """A model's or a preset's path is one still when it is short; the name of a known one is no path."""
    ((key, text),) = job.items()
    assert with_paths(dict(job), lambda path: Path(path).name) == seen
    assert paths_at(job, (key,)) == ([text] if "/" in text else [])


@pytest.mark.parametrize(
    ("model", "path"),
    [("tiny", False), ("framepack-i2v", False), ("./tiny", True), ("a/b", True), ("pack.yaml", True), ("..", True)],
)
def test_what_looks_like_a_path(model: str, path: bool) -> None:
    """A model with a slash, a leading dot or a YAML suffix is a path; everything else is a name."""
    assert looks_like_path(model) is path


@pytest.mark.parametrize(
    ("preset", "path"), [("draft", False), ("./draft", False), ("a.yaml", True), ("b/a.yml", True)]
)
def test_what_is_a_preset_file(preset: str, path: bool) -> None:
    """A preset with a YAML suffix is a file."""
    assert is_preset_file(preset) is path
