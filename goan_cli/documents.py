"""YAML files with positions, so that whatever is wrong can be told with file, line and key.

YAML is read by the rules of version 1.2: only `true` and `false` are booleans (`off` and `no` stay words), `0042`
is forty-two, and `12:30` and dates are text. Duplicate keys, runaway aliases, deep nesting, huge files and tags
other than the core ones are refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from goan_cli.errors import InvalidJobs, Problem

KeyPath = tuple[str | int, ...]
# YAML data after parsing: dicts, lists and scalars; pydantic is what gives it types.
Data = Any

_MOST_BYTES = 4 << 20
_MOST_NODES = 200_000
_DEEPEST = 40
_LONGEST_NUMBER = 400
_CORE = "tag:yaml.org,2002:"

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Yaml12Loader(_Loader):  # type: ignore[misc, valid-type]  # the C loader exists on most machines only
    """A loader with YAML 1.2's idea of booleans and numbers, and no dates."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in rules if tag.endswith((":null", ":merge"))]
        for first, rules in _Loader.yaml_implicit_resolvers.items()
    }


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Yaml12Loader.add_implicit_resolver(f"{_CORE}{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)$", "-+0123456789")
_resolve(
    "float",
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
    "-+.0123456789",
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """Parsed data with the line (from 1) of each key path; `file` is a name for text from a command line."""

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
    """Read one YAML file. Raises InvalidJobs for what cannot be read or parsed."""

    def refused(message: str) -> InvalidJobs:
        return InvalidJobs([Problem(file=path, message=message)])

    try:
        if path.exists() and not path.is_file():
            raise refused("is a folder, not a YAML file" if path.is_dir() else "is not a file")
        if path.stat().st_size > _MOST_BYTES:
            raise refused(f"larger than {_MOST_BYTES >> 20} MB; a job file holds settings only")
        return parse_document(path.read_text(encoding="utf-8-sig"), file=path)
    except FileNotFoundError as error:
        raise refused("no such file") from error
    except UnicodeDecodeError as error:
        raise refused("not UTF-8 text, so no YAML file") from error
    except OSError as error:
        raise refused(f"cannot be read: {error.strerror or error}") from error


def parse_document(text: str, *, file: Path | None = None) -> Document:
    """Parse YAML text. Raises InvalidJobs naming each problem with its line."""
    try:
        _refuse_deep_nesting(text)
        node = yaml.compose(text, Loader=_Yaml12Loader)
        walk = _Walk(file=file)
        data = walk.data(node, ()) if node is not None else None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: the character U+{ord(str(error.character)[0]):04X} is not allowed"
        raise InvalidJobs([Problem(file=file, line=line, message=message)]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = mark.line + 1 if mark else None
        what = error.problem or error.context or "not YAML"
        raise InvalidJobs([Problem(file=file, line=place, message=f"not valid YAML: {what}")]) from error
    except _Refused as error:
        raise InvalidJobs([Problem(file=file, line=error.line, message=f"not valid YAML: {error}")]) from error
    if walk.problems:
        raise InvalidJobs(walk.problems)
    return Document(data=data, file=file, lines=walk.lines)


class _Refused(Exception):
    """YAML that is well formed and not to be followed."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _refuse_deep_nesting(text: str) -> None:
    """Before anything recurses: composing nodes does so in C, where it would crash the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Yaml12Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise _Refused("too large or too deeply nested", event.start_mark.line + 1 if event.start_mark else 1)


class _Walk:
    """Turns nodes into data while noting lines; counts nodes so that aliases cannot explode."""

    def __init__(self, *, file: Path | None) -> None:
        self.file = file
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.count = 0
        self.depth = 0

    def data(self, node: yaml.Node, path: KeyPath) -> Data:
        line = node.start_mark.line + 1
        self.count += 1
        self.depth += 1
        if self.count > _MOST_NODES or self.depth > 2 * _DEEPEST:
            raise _Refused("too large or too deeply nested once its aliases are followed", line)
        self.lines.setdefault(path, line)
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.data(child, (*path, index)) for index, child in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return self._scalar(node.tag, str(node.value), path, line)
        finally:
            self.depth -= 1

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Data]:
        own: dict[str, Data] = {}
        merges: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == f"{_CORE}merge":
                merges += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, line, "a key must be a plain word")
                continue
            key = str(key_node.value)
            if key in own:
                self._problem((*path, key), line, "given twice")
            self.lines[(*path, key)] = line
            own[key] = self.data(value_node, (*path, key))
        # Keys of its own are stronger, and so are earlier merges; their lines were noted first, too.
        for source in merges:
            if isinstance(source, yaml.MappingNode):
                own = {**self._mapping_of_merge(source, path), **own}
            else:
                self._problem(path, source.start_mark.line + 1, "<< must name keys and values to merge")
        return own

    def _mapping_of_merge(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Data]:
        kept = dict(self.lines)
        values = self.data(node, path)
        self.lines.update(kept)
        return dict(values)

    def _scalar(self, tag: str, text: str, path: KeyPath, line: int) -> Data:
        kind = tag.removeprefix(_CORE)
        try:
            if kind in ("int", "float") and len(text) > _LONGEST_NUMBER:
                raise ValueError
            return _SCALARS[kind](text)
        except KeyError:
            self._problem(path, line, f"not valid YAML: the tag {tag} has no meaning here")
        except ValueError:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            self._problem(path, line, f"not valid YAML: {shown!r} is no {kind}")
        return None

    def _problem(self, path: KeyPath, line: int, message: str) -> None:
        self.problems.append(Problem(file=self.file, line=line, key=key_text(path), message=message))


def _bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _int(text: str) -> int:
    return int(text, 16) if text.lower().startswith("0x") else int(text, 10)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _null(_: str) -> None:
    return None


_SCALARS: Mapping[str, Callable[[str], Data]] = {
    "null": _null,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": str,
}
