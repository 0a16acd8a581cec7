"""The axes of a job that stands for several: the files that its `images` match, and the values of its `matrix`."""

import glob
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from goan_cli.documents import Data, Document, KeyPath
from goan_cli.errors import Problem
from goan_cli.files import is_folder
from goan_cli.jobs.fields import is_name
from goan_cli.jobs.keys import key_parts
from goan_cli.jobs.schema import RIVALS

_MOST_VARIANTS = 256
_MOST_IMAGES = 10_000
_MAX = "max"
_NEVER_AXES = ("name", "matrix", "images")
_LONGEST_LABEL = 24
_SLUG = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The values of one key, each with a label for file names, its text, and the place in the document it is from."""

    key: str
    short: str
    values: Sequence[Data]
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    places: Sequence[KeyPath]


def image_axis(
    data: Mapping[str, Data], document: Document, path: KeyPath, base: Path
) -> tuple[list[Axis], list[Problem]]:
    """The files that the patterns of `images` match, as an axis of the key `image`; labels are their stems."""
    patterns, at = data.get("images"), (*path, "images")
    if patterns is None:
        return [], []
    if "image" in data:
        return [], [document.problem(at, "given beside image; a job has one or the other")]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        return [], [document.problem(at, "must be a pattern such as stills/*.png, or a list of them")]
    files: dict[str, str] = {}
    for pattern in patterns:
        found = _matching(pattern, base)
        if not found:
            hint = f"a folder's pictures are {pattern.rstrip('/')}/*.png" if is_folder(base / pattern) else None
            return [], [document.problem(at, f"{pattern}: matches no file", hint=hint)]
        for file in found:
            files.setdefault(os.path.normpath(base / file), file)
    if len(files) > _MOST_IMAGES:
        return [], [document.problem(at, f"matches {len(files)} files, more than {_MOST_IMAGES}")]
    stems = Counter(Path(file).stem for file in files.values())
    # Two files of one stem differ in their suffix or their folder; and some names no result can have.
    labels = tuple(_stem_label(file, alone=stems[Path(file).stem] == 1) for file in files.values())
    texts = tuple(files.values())
    return [Axis(key="image", short="image", values=texts, labels=labels, texts=texts, places=[at] * len(texts))], []


def _matching(pattern: str, base: Path) -> list[str]:
    if "\0" in pattern:
        return []
    expanded = os.path.expanduser(pattern)  # noqa: PTH111 - a pattern is no path
    found = glob.glob(expanded, root_dir=base, recursive=True)  # noqa: PTH207 - pathlib's skips what it cannot read
    return sorted(file for file in found if (base / file).is_file())


def _stem_label(file: str, *, alone: bool) -> str:
    stem = Path(file).stem
    return stem if alone and is_name(stem) else _slug(file)


def matrix_axes(data: Mapping[str, Data], document: Document, path: KeyPath) -> tuple[list[Axis], list[Problem]]:
    """The axes of `matrix`, in their order, and all that is wrong with it."""
    matrix, at = data.get("matrix"), (*path, "matrix")
    if matrix is None:
        return [], []
    if not isinstance(matrix, dict):
        return [], [document.problem(at, "must be keys with lists of values, such as seed: [1, 2, 3]")]
    keys = [key for key in matrix if key != _MAX]
    problems = [] if keys else [document.problem(at, "has no keys", hint="for example seed: [1, 2, 3]")]
    axes: list[Axis] = []
    for key in keys:
        place = (*at, key)
        if wrong := _wrong_axis(key, matrix[key], axes, data):
            problems.append(document.problem(place, wrong))
            continue
        axis = _axis(key, keys, matrix[key], place)
        if twice := next((label for label, count in Counter(axis.labels).items() if count > 1), None):
            problems.append(document.problem(place, f"has {twice} twice"))
        axes.append(axis)
    return axes, problems


def _wrong_axis(key: str, values: Data, before: Sequence[Axis], data: Mapping[str, Data]) -> str | None:
    if key in _NEVER_AXES or not all(key.split(".")):
        return "cannot be an axis of a matrix"
    if key == "image" and data.get("images") is not None:
        return "given beside images; a job has one or the other"
    if not isinstance(values, list) or not values:
        return "must be a list of values"
    parts = key_parts(key)
    for other in (axis.key for axis in before):
        if key_parts(other)[: len(parts)] == parts or RIVALS.get(key) == other:
            return f"would undo {other}, which stands before it"
    return None


def _axis(key: str, keys: Sequence[str], values: Sequence[Data], place: KeyPath) -> Axis:
    last = key.rsplit(".", maxsplit=1)[-1]
    # The last word of a key says enough, unless another axis ends with the same.
    alone = sum(other.rsplit(".", maxsplit=1)[-1] == last for other in keys) == 1
    return Axis(
        key=key,
        short=last if alone else key,
        values=values,
        labels=tuple(_label(value) for value in values),
        texts=tuple(_text(value) for value in values),
        places=[(*place, index) for index in range(len(values))],
    )


def too_many(axes: Sequence[Axis], data: Mapping[str, Data], document: Document, path: KeyPath) -> list[Problem]:
    """A problem where a matrix makes more jobs than its `max` allows."""
    matrix = data.get("matrix")
    if not isinstance(matrix, dict):
        return []
    most = matrix.get(_MAX, _MOST_VARIANTS)
    if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= _MOST_IMAGES:
        return [document.problem((*path, "matrix", _MAX), f"must be a whole number from 1 to {_MOST_IMAGES}")]
    count = math.prod(len(axis.values) for axis in axes)
    if count <= most:
        return []
    return [document.problem((*path, "matrix"), f"makes {count} jobs, more than {most}", hint="max: allows more")]


def _label(value: Data) -> str:
    """A value in a file name: itself where it is short and plain, else its beginning and a digest of the rest."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str) and len(value) <= _LONGEST_LABEL and is_name(value) and " " not in value:
        return value
    return _slug(_text(value))


def _text(value: Data) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _slug(text: str) -> str:
    # Of a path the file's name says the most.
    plain = _SLUG.sub("-", Path(text).stem if "/" in text and " " not in text else text).strip("-.")[:_LONGEST_LABEL]
    return f"{plain.rstrip('-.')}+{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"
