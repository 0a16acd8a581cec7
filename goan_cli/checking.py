"""YAML data against pydantic models: every problem at its file, line and key, in words about YAML."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from goan_cli.documents import Data, Document, KeyPath
from goan_cli.errors import Problem

Model = TypeVar("Model", bound=BaseModel)

_LONGEST_VALUE = 80
# What pydantic calls an error -> what was expected, in a user's words.
_EXPECTED: Mapping[str, str] = {
    "string_type": "text (in quotes, if it looks like something else)",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "string_too_short": "more than empty text",
    "finite_number": "a finite number",
}


def _version(value: object) -> object:
    if value != 1 or isinstance(value, bool | float):
        raise ValueError(f"must be 1, not {shown(value)}")
    return value


SchemaVersion = Annotated[Literal[1], BeforeValidator(_version)]


@dataclass(frozen=True, kw_only=True)
class Checked(Generic[Model]):
    """Validated data, the problems found on the way, and the top-level keys that they touch.

    What is wrong is left out of `model`, so that what depends on the rest can be checked in the same pass; it is
    None only when nothing can be kept. `flawed` holds the keys that unknown ones were probably meant to be, too.
    `kept` says, for each list from which entries were left out, which ones remain; `made_up` are the places where
    a model's `stand_ins` took a wrong or missing value's, so that the rest of its entry is kept.
    """

    model: Model | None
    problems: list[Problem]
    flawed: frozenset[str]
    kept: Mapping[KeyPath, tuple[int, ...]] = field(default_factory=dict)
    made_up: frozenset[KeyPath] = frozenset()


def checked(model: type[Model], data: Data, document: Document, *, at: KeyPath = ()) -> Checked[Model]:
    """Validate `data`, which stands at `at` in the document; every problem carries its file, line and key."""
    if not isinstance(data, dict):
        kind = {type(None): "nothing", list: "a list", str: "text"}.get(type(data), "a single value")
        problem = document.problem(at, f"expected keys and values here, found {kind}")
        return Checked(model=None, problems=[problem], flawed=frozenset(model.model_fields))
    try:
        return Checked(model=model.model_validate(data), problems=[], flawed=frozenset())
    except ValidationError as error:
        details = error.errors()
    problems = [_as_problem(model, detail, document, at) for detail in details]
    left_out, made_up = _repairs(model, [detail["loc"] for detail in details])
    flawed = {str(detail["loc"][0]) for detail in details if detail["loc"]}
    flawed |= {near for key in flawed if (near := nearest_name(key, list(model.model_fields)))}
    rest, kept = _without(_filled(data, made_up, ()), left_out, ())
    try:
        found = model.model_validate(rest)
        return Checked(model=found, problems=problems, flawed=frozenset(flawed), kept=kept, made_up=frozenset(made_up))
    except ValidationError:
        rest = {key: value for key, value in data.items() if str(key) not in flawed}
    try:
        return Checked(model=model.model_validate(rest), problems=problems, flawed=frozenset(flawed))
    except ValidationError:
        return Checked(model=None, problems=problems, flawed=frozenset(model.model_fields))


def _repairs(model: type[BaseModel], wrong: Sequence[KeyPath]) -> tuple[list[KeyPath], dict[KeyPath, Data]]:
    """Which places to leave out of data that is wrong at these, and which to fill, so that the rest is valid.

    Without what it requires an entry is left out as a whole, unless its model has a stand-in for it.
    """
    left_out: list[KeyPath] = []
    made_up: dict[KeyPath, Data] = {}
    for location in wrong:
        holder = _model_at(model, location[:-1])
        key = str(location[-1]) if location else ""
        field_of = holder.model_fields.get(key) if holder is not None else None
        stand_ins: Mapping[str, Data] = getattr(holder, "stand_ins", {})
        if key in stand_ins:
            made_up[location] = stand_ins[key]
        else:
            left_out.append(location[:-1] if field_of is not None and field_of.is_required() else location)
    return [location for location in left_out if location], made_up


def _filled(data: Data, values: Mapping[KeyPath, Data], at: KeyPath) -> Data:
    """A copy of nested dicts and lists with these values in their places."""
    if not any(place[: len(at)] == at for place in values):
        return data
    if isinstance(data, dict):
        own = {str(place[-1]): value for place, value in values.items() if place[:-1] == at}
        return {**{key: _filled(value, values, (*at, key)) for key, value in data.items()}, **own}
    if isinstance(data, list):
        return [_filled(value, values, (*at, index)) for index, value in enumerate(data)]
    return data


def _without(data: Data, locations: Sequence[KeyPath], at: KeyPath) -> tuple[Data, dict[KeyPath, tuple[int, ...]]]:
    """A copy of nested dicts and lists without the values at these places, and what lists keep."""
    gone = {location[0] for location in locations if len(location) == 1}
    kept: dict[KeyPath, tuple[int, ...]] = {}

    def inside(key: str | int, value: Data) -> Data:
        deeper = [location[1:] for location in locations if len(location) > 1 and location[0] == key]
        rest, more = _without(value, deeper, (*at, key)) if deeper else (value, {})
        kept.update(more)
        return rest

    if isinstance(data, dict):
        return {key: inside(key, value) for key, value in data.items() if key not in gone}, kept
    if isinstance(data, list):
        remaining = [index for index in range(len(data)) if index not in gone]
        if gone:
            kept[at] = tuple(remaining)
        return [inside(index, data[index]) for index in remaining], kept
    return data, kept


def _as_problem(model: type[BaseModel], detail: Mapping[str, Any], document: Document, at: KeyPath) -> Problem:
    location: KeyPath = tuple(detail["loc"])
    path = (*at, *location)
    kind, given = str(detail["type"]), detail["input"]
    if kind == "extra_forbidden":
        return document.problem(path, "unknown key", hint=nearest(str(location[-1]), _keys_at(model, location[:-1])))
    if kind == "missing":
        return document.problem(path, "missing")
    if kind == "value_error":
        return document.problem(path, str(detail["msg"]).removeprefix("Value error, "))
    if kind == "too_short":
        return document.problem(path, "must have at least one entry")
    if kind == "too_long":
        return document.problem(path, f"has too many entries (at most {detail['ctx']['max_length']})")
    expected = _EXPECTED.get(kind) or str(detail["msg"]).removeprefix("Input should be ")
    return document.problem(path, f"must be {expected}, not {shown(given)}")


def shown(value: object) -> str:
    """A value for a message: lists and mappings by kind, long ones cut."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _keys_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The field names of the model that `path` leads to."""
    found = _model_at(model, path)
    return [] if found is None else list(found.model_fields)


def _model_at(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel] | None:
    current: type[BaseModel] = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        found = _model_in(annotation)
        if found is None:
            return None
        current = found
    return current


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _model_in(inner)) is not None:
            return found
    return None


def nearest_name(word: str, names: Sequence[str]) -> str | None:
    """The name that a word was probably meant to be."""
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return close[0] if close else None


def nearest(word: str, names: Sequence[str]) -> str | None:
    """A hint with the nearest valid name, or with all of them when none is near and they are few."""
    if near := nearest_name(word, names):
        return f"did you mean {near}?"
    return f"valid: {', '.join(sorted(names))}" if 0 < len(names) <= 48 else None
