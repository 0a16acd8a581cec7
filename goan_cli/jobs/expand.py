"""A job of a file that stands for several: one for each image of a pattern, one for each cell of a matrix.

It is done on the plain data, before anything is checked, so that every variant is an ordinary job; values that
came from the matrix keep the lines that they stand on there.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from goan_cli.documents import Data, Document, KeyPath
from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.axes import Axis, image_axis, matrix_axes, too_many
from goan_cli.jobs.fields import is_name
from goan_cli.jobs.job import Variant
from goan_cli.jobs.keys import key_parts, put
from goan_cli.jobs.schema import RIVALS


@dataclass(frozen=True, kw_only=True)
class Expanded:
    """One job: its keys, the document that knows their lines, the name where it has none, and its matrix.

    `keys` are those of its matrix's axes, `flawed` those that a wrong matrix would have given.
    """

    data: Data
    document: Document
    default_name: str
    variant: Variant | None = None
    keys: tuple[str, ...] = ()
    flawed: frozenset[str] = frozenset()


class _Redirected(Mapping[KeyPath, int]):
    """A document's lines, where what lies below some keys was taken from other places."""

    def __init__(self, lines: Mapping[KeyPath, int], sources: Mapping[KeyPath, KeyPath]) -> None:
        self._lines = lines
        self._sources = sources

    def __getitem__(self, path: KeyPath) -> int:
        for length in range(len(path), 0, -1):
            if (source := self._sources.get(path[:length])) is not None:
                return self._lines[(*source, *path[length:])]
        return self._lines[path]

    def __iter__(self) -> Iterator[KeyPath]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


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
    images, problems = image_axis(data, document, path, base)
    axes, wrong = matrix_axes(data, document, path)
    problems += wrong or too_many([*images, *axes], data, document, path)
    alone = Expanded(data=rest, document=document, default_name=default_name, flawed=_promised(data))
    given = rest.get("name")
    if problems or not (images or axes) or (isinstance(given, str) and not is_name(given)):
        return [alone], problems
    stem = given if isinstance(given, str) else "" if images else default_name
    texts = tuple((axis.short, axis.texts) for axis in (*images, *axes))
    jobs = []
    for place in itertools.product(*(range(len(axis.values)) for axis in (*images, *axes))):
        chosen = list(zip((*images, *axes), place, strict=True))
        values = copy.deepcopy(rest)
        for axis, at in chosen:
            try:
                _put(values, defaults, axis.key, axis.values[at])
            except InvalidInput as error:
                message = f"this job has no {axis.key} that could be set"
                return [alone], [document.problem((*path, "matrix", axis.key), message, hint=error.message)]
        name = "-".join([*([stem] if stem else []), *_words(chosen, len(images))])
        if isinstance(given, str):
            values["name"] = name
        sources = {(*path, *key_parts(axis.key)): axis.places[at] for axis, at in chosen}
        jobs.append(
            Expanded(
                data=values,
                document=replace(document, lines=_Redirected(document.lines, sources)),
                default_name=name,
                variant=Variant(matrix=stem or default_name, axes=texts, place=place) if axes else None,
                keys=tuple(axis.key for axis in (*images, *axes)),
            )
        )
    return jobs, []


def _words(chosen: Sequence[tuple[Axis, int]], images: int) -> list[str]:
    """What of a variant its name says: an image's label alone, other axes with their key."""
    return [
        axis.labels[at] if number < images else f"{axis.short}={axis.labels[at]}"
        for number, (axis, at) in enumerate(chosen)
    ]


def _promised(data: Mapping[str, Data]) -> frozenset[str]:
    """The keys that `images` and `matrix` were to give."""
    matrix = data.get("matrix")
    keys = {str(key_parts(key)[0]) for key in matrix} if isinstance(matrix, dict) else set()
    return frozenset(keys | ({"image"} if data.get("images") is not None else set()))


def _put(values: dict[str, Data], defaults: Mapping[str, Data], key: str, value: Data) -> None:
    """Set a key with dots in it; what it reaches into may stand in the defaults. Raises as `keys.put`."""
    first, *inside = key_parts(key)
    if inside:
        values.setdefault(str(first), copy.deepcopy(defaults.get(str(first))))
    else:
        values.pop(RIVALS.get(key, ""), None)
    put(values, (first, *inside), value)
