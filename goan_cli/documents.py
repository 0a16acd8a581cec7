"""YAML files with positions: what is wrong is told with file, line and key.

YAML is read by the rules of version 1.2: only `true` and `false` are booleans (so `off` and `no` stay words)
and `12:30` is no number. Duplicate keys, runaway aliases, deep nesting and huge files are refused.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError

from goan_cli.errors import InvalidInput, InvalidJobs, Problem

Model = TypeVar("Model", bound=BaseModel)
KeyPath = tuple[str | int, ...]
# YAML data after parsing: dicts, lists and scalars; pydantic is what gives it types.
Data = Any

_MOST_BYTES = 4 << 20
_MOST_NODES = 200_000
_DEEPEST = 40

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Yaml12Loader(_Loader):  # type: ignore[misc, valid-type]  # the C loader exists on most machines only
    """The safe loader with YAML 1.2's idea of booleans and numbers."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith((":bool", ":int", ":float"))]
        for first, rules in _Loader.yaml_implicit_resolvers.items()
    }


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)$", "-+0123456789")
_resolve(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    "-+.0123456789",
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """Parsed data with the line (from 1) of each key path; `file` is None for text from a command line."""

    data: Data
    file: Path | None
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int | None:
        """The line of the nearest enclosing key that has one."""
        for length in range(len(path), -1, -1):
            if (line := self.lines.get(path[:length])) is not None:
                return line
        return None

    def problem(self, path: KeyPath, message: str, *, hint: str | None = None) -> Problem:
        """A problem at a key path of this document."""
        return Problem(message=message, file=self.file, line=self.line(path), key=key_text(path), hint=hint)


def key_text(path: KeyPath) -> str | None:
    """`("jobs", 0, "size")` as a user would write it: `jobs[0].size`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text or None


def read_document(path: Path) -> Document:
    """Read one YAML file. Raises InvalidInput or InvalidJobs for what cannot be read or parsed."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInput(f"{path}: larger than {_MOST_BYTES >> 20} MB; a job file holds settings only")
        return parse_document(path.read_text(encoding="utf-8-sig"), file=path)
    except FileNotFoundError as error:
        raise InvalidInput(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InvalidInput(f"{path}: is a folder, not a YAML file") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: not UTF-8 text, so no YAML file") from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_document(text: str, *, file: Path | None = None) -> Document:
    """Parse YAML text. Raises InvalidJobs naming each problem with its line."""
    try:
        loader = _Yaml12Loader(text)
        try:
            node = loader.get_single_node()
            walk = _Walk(loader=loader, file=file)
            data = walk.data(node, ()) if node is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = error.problem or error.context or "not YAML"
        raise InvalidJobs(
            [Problem(file=file, line=mark.line + 1 if mark else None, message=f"not valid YAML: {what}")]
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InvalidJobs([Problem(file=file, message=f"not valid YAML: {error}")]) from error
    if walk.problems:
        raise InvalidJobs(walk.problems)
    return Document(data=data, file=file, lines=walk.lines)


class _Construct(Protocol):
    def construct_object(self, node: yaml.Node, *, deep: bool) -> object: ...


class _Walk:
    """Turns nodes into data while noting lines; counts nodes so that aliases cannot explode."""

    def __init__(self, *, loader: _Construct, file: Path | None) -> None:
        self.loader = loader
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def data(self, node: yaml.Node, path: KeyPath) -> Data:
        self.count += 1
        if self.count > _MOST_NODES or len(path) > _DEEPEST:
            raise ValueError("too large or too deeply nested once its aliases are followed")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self.data(child, (*path, index)) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        return self.loader.construct_object(node, deep=True)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Data]:
        merged: dict[str, Data] = {}
        own: dict[str, Data] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    values = self.data(source, path)
                    if isinstance(values, dict):
                        merged = {**values, **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(file=self.file, line=line, message="a key must be a plain word"))
                continue
            key = cast("str", key_node.value)
            if key in own:
                here = key_text((*path, key))
                self.problems.append(Problem(file=self.file, line=line, key=here, message="given twice"))
            self.lines[(*path, key)] = line
            own[key] = self.data(value_node, (*path, key))
        return {**merged, **own}


@dataclass(frozen=True, kw_only=True)
class Checked(Generic[Model]):
    """Validated data, the problems found on the way, and the top-level keys that they touch.

    What is wrong is left out of `model`, so that what depends on the rest can be checked in the same pass; it is
    None only when nothing can be kept.
    """

    model: Model | None
    problems: list[Problem]
    flawed: frozenset[str]


def checked(model: type[Model], data: Data, document: Document, *, at: KeyPath = ()) -> Checked[Model]:
    """Validate `data`, which stands at `at` in the document; every problem carries its file, line and key."""
    if not isinstance(data, dict):
        kind = "nothing" if data is None else f"a {type(data).__name__}"
        problem = document.problem(at, f"expected keys and values here, found {kind}")
        return Checked(model=None, problems=[problem], flawed=frozenset(model.model_fields))
    try:
        return Checked(model=model.model_validate(data), problems=[], flawed=frozenset())
    except ValidationError as error:
        details = error.errors()
        problems = [_as_problem(model, detail, document, at) for detail in details]
    locations = [detail["loc"] for detail in details]
    flawed = frozenset(str(location[0]) for location in locations if location)
    for kept in (_without(data, locations), {key: value for key, value in data.items() if str(key) not in flawed}):
        try:
            return Checked(model=model.model_validate(kept), problems=problems, flawed=flawed)
        except ValidationError:
            continue
    return Checked(model=None, problems=problems, flawed=frozenset(model.model_fields))


def _without(data: Data, locations: Sequence[KeyPath]) -> Data:
    """A copy of nested dicts and lists without the values at these places."""
    here = {location[0] for location in locations if len(location) == 1}

    def inside(key: str | int, value: Data) -> Data:
        return _without(value, [location[1:] for location in locations if len(location) > 1 and location[0] == key])

    if isinstance(data, dict):
        return {key: inside(key, value) for key, value in data.items() if key not in here}
    if isinstance(data, list):
        return [inside(index, value) for index, value in enumerate(data) if index not in here]
    return data


def _as_problem(model: type[BaseModel], detail: Mapping[str, Any], document: Document, at: KeyPath) -> Problem:
    location = cast("KeyPath", tuple(detail["loc"]))
    path = (*at, *location)
    if detail["type"] == "extra_forbidden":
        names = _keys_at(model, location[:-1])
        return document.problem(path, "unknown key", hint=nearest(str(location[-1]), names))
    if detail["type"] == "missing":
        return document.problem(path, "missing, and nothing can stand in for it")
    message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    given = detail["input"]
    if detail["type"] == "value_error" or isinstance(given, dict | list):
        return document.problem(path, message)
    return document.problem(path, f"must be {message}, not {given!r}")


def _keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The field names of the model that `path` leads to."""
    current: type[BaseModel] = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        found = _model_in(annotation)
        if found is None:
            return []
        current = found
    return list(current.model_fields)


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def nearest(word: str, names: Sequence[str]) -> str | None:
    """A hint with the nearest valid name, or with all of them when none is near and they are few."""
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"valid: {', '.join(sorted(names))}" if 0 < len(names) <= 30 else None
