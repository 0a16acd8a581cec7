"""A job of a file that stands for several: one for each image of a pattern, one for each cell of a matrix.

It is done on the plain data, before anything is checked, so that every variant is an ordinary job; values that
came from the matrix keep the lines that they stand on there.
"""

import copy
import glob
import hashlib
import itertools
import json
import math
import os
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from goan_cli.documents import Data, Document, KeyPath
from goan_cli.errors import Problem
from goan_cli.jobs.job import Variant
from goan_cli.jobs.schema import is_name

_MOST_VARIANTS = 256
_MOST_IMAGES = 10_000
_MAX = "max"
_NEVER_AXES = ("name", "matrix", "images")
_LONGEST_LABEL = 24
_SLUG = re.compile(r"[^\w.+-]+")


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """One job: its keys, the document that knows their lines, the name where it has none, and its matrix."""

    data: Data
    document: Document
    default_name: str
    variant: Variant | None = None


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """The values of one key, a label of each for names and pictures, and the line that each stands on."""

    key: str
    short: str
    values: Sequence[Data]
    labels: tuple[str, ...]
    lines: Sequence[int | None]


def expanded(
    data: Data, document: Document, path: KeyPath, *, defaults: Mapping[str, Data], default_name: str, base: Path
) -> tuple[list[Expanded], list[Problem]]:
    """The jobs that the entry at `path` stands for, itself where it has neither `images` nor `matrix`.

    `defaults` are the file's, for axes such as `loras.0.weight` of LoRAs that stand there; `base` is the folder
    of patterns. An entry whose matrix is wrong stands for one job without it, so that its own problems are found.
    """
    if not isinstance(data, dict) or not {"images", "matrix"} & data.keys():
        return [Expanded(data=data, document=document, default_name=default_name)], []
    rest = {key: value for key, value in data.items() if key not in ("images", "matrix")}
    alone = [Expanded(data=rest, document=document, default_name=default_name)]
    images, problems = _images(data, document, path, base)
    axes, wrong = _axes(data.get("matrix"), document, (*path, "matrix"))
    problems += wrong or _too_many([*images, *axes], data.get("matrix"), document, path)
    if problems or not (images or axes):
        return alone, problems
    given = rest.get("name")
    stem = given if isinstance(given, str) else "" if images else default_name
    jobs = []
    for place in itertools.product(*(range(len(axis.values)) for axis in (*images, *axes))):
        chosen = [(axis, at) for axis, at in zip((*images, *axes), place, strict=True)]
        values = copy.deepcopy(rest)
        for axis, at in chosen:
            if wrong_way := _put(values, defaults, axis.key, axis.values[at]):
                return alone, [document.problem((*path, "matrix", axis.key), wrong_way)]
        words = [axis.labels[at] if axis in images else f"{axis.short}={axis.labels[at]}" for axis, at in chosen]
        name = "-".join([stem, *words] if stem else words)
        if isinstance(given, str):
            values["name"] = name
        lines = {(*path, *_parts(axis.key)): line for axis, at in chosen if (line := axis.lines[at]) is not None}
        texts = tuple((axis.short, tuple(_text(value) for value in axis.values)) for axis, _ in chosen)
        jobs.append(
            Expanded(
                data=values,
                document=replace(document, lines=ChainMap(lines, cast("dict[KeyPath, int]", document.lines))),
                default_name=name,
                variant=Variant(matrix=stem or default_name, axes=texts, place=place) if axes else None,
            )
        )
    return jobs, []


def _images(
    data: Mapping[str, Data], document: Document, path: KeyPath, base: Path
) -> tuple[list[_Axis], list[Problem]]:
    """The files that the patterns of `images` match, as an axis of the key `image`; labels are their stems."""
    patterns, at = data.get("images"), (*path, "images")
    if patterns is None:
        return [], []
    if "image" in data:
        return [], [document.problem(at, "given beside image; a job has one or the other")]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        return [], [document.problem(at, "must be a pattern such as stills/*.png, or a list of them")]
    files: list[str] = []
    for pattern in patterns:
        found = glob.glob(os.path.expanduser(pattern), root_dir=base, recursive=True) if "\0" not in pattern else []  # noqa: PTH111, PTH207 - a pattern is no path
        found = sorted(file for file in found if (base / file).is_file())
        if not found:
            folder = (base / pattern).is_dir() if "\0" not in pattern else False
            hint = f"a folder's pictures are {pattern.rstrip('/')}/*.png" if folder else None
            return [], [document.problem(at, f"{pattern}: matches no file", hint=hint)]
        files += [file for file in found if file not in files]
    stems = [Path(file).stem for file in files]
    # Two files of one stem differ in their suffix or their folder.
    labels = [stem if stems.count(stem) == 1 else _slug(file) for file, stem in zip(files, stems, strict=True)]
    line = document.line(at)
    return [_Axis(key="image", short="image", values=files, labels=tuple(labels), lines=[line] * len(files))], []


def _axes(matrix: Data, document: Document, at: KeyPath) -> tuple[list[_Axis], list[Problem]]:
    if matrix is None:
        return [], []
    if not isinstance(matrix, dict):
        return [], [document.problem(at, "must be keys with lists of values, such as seed: [1, 2, 3]")]
    problems = []
    keys = [key for key in matrix if key != _MAX]
    if not keys:
        problems.append(document.problem(at, "has no keys", hint="for example seed: [1, 2, 3]"))
    axes = []
    for key in keys:
        values, place = matrix[key], (*at, key)
        if key in _NEVER_AXES or not all(key.split(".")):
            problems.append(document.problem(place, "cannot be an axis of a matrix"))
        elif not isinstance(values, list) or not values:
            problems.append(document.problem(place, "must be a list of values"))
        else:
            labels = tuple(_label(value) for value in values)
            if twice := next((label for label in labels if labels.count(label) > 1), None):
                problems.append(document.problem(place, f"has {twice} twice"))
            lines = [document.lines.get((*place, index)) for index in range(len(values))]
            axes.append(_Axis(key=key, short=_short(key, keys), values=values, labels=labels, lines=lines))
    return axes, problems


def _too_many(axes: Sequence[_Axis], matrix: Data, document: Document, path: KeyPath) -> list[Problem]:
    most = matrix.get(_MAX, _MOST_VARIANTS) if isinstance(matrix, dict) else _MOST_IMAGES
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        return [document.problem((*path, "matrix", _MAX), "must be a whole number of at least 1")]
    count = math.prod(len(axis.values) for axis in axes)
    if count <= most:
        return []
    if isinstance(matrix, dict):
        return [document.problem((*path, "matrix"), f"makes {count} jobs, more than {most}", hint="max: allows more")]
    return [document.problem((*path, "images"), f"matches {count} files, more than {most}")]


def _put(values: dict[str, Data], defaults: Mapping[str, Data], key: str, value: Data) -> str | None:
    """Set a key with dots in it; what it reaches into may stand in the defaults. Returns what is wrong."""
    first, *rest = _parts(key)
    if not rest:
        values[key] = copy.deepcopy(value)
        return None
    values.setdefault(str(first), copy.deepcopy(defaults.get(str(first))))
    holder: Data = values
    at: str | int = first
    for part in rest:
        inner = holder[at]
        if inner is None and isinstance(part, str):
            inner = {}
        elif isinstance(inner, str) and isinstance(at, int) and isinstance(part, str):
            inner = {"path": inner}  # a LoRA may be a bare path
        holder[at] = inner
        fits = isinstance(inner, dict) if isinstance(part, str) else isinstance(inner, list) and part < len(inner)
        if not fits:
            return f"this job has no {key} that could be set"
        if isinstance(part, str):
            inner.setdefault(part, None)
        holder, at = inner, part
    holder[at] = copy.deepcopy(value)
    return None


def _parts(key: str) -> list[str | int]:
    """`loras.0.weight` as a key path."""
    return [int(part) if part.isascii() and part.isdecimal() else part for part in key.split(".")]


def _short(key: str, keys: Sequence[str]) -> str:
    """The last word of a key, with what stands before it only where another axis ends with the same."""
    last = key.rsplit(".", maxsplit=1)[-1]
    return last if sum(other.rsplit(".", maxsplit=1)[-1] == last for other in keys) == 1 else key


def _label(value: Data) -> str:
    """A value in a file name: itself where it is short and plain, else its beginning and a digest of the rest."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str) and len(value) <= _LONGEST_LABEL and is_name(value) and " " not in value:
        return value
    return _slug(_text(value))


def _text(value: Data) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _slug(text: str) -> str:
    # Of a path the file's name says the most.
    plain = _SLUG.sub("-", Path(text).stem if "/" in text and " " not in text else text).strip("-.")[:_LONGEST_LABEL]
    return f"{plain.rstrip('-.')}+{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"
