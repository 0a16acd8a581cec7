"""The values of a job file's keys: what each may be, in words about YAML for what it may not."""

import math
import re
import string
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, StrictStr

from goan_cli.checking import nearest, shown

MULTIPLE = 16

_LARGEST = 4096
_NAME = re.compile(r"[\w][\w .+@=,-]*", re.UNICODE)
# File systems take 255 bytes, and a result's files have endings of their own.
_LONGEST_NAME = 200
NAME_RULE = f"letters, digits, spaces and . _ - + @ = , and at most {_LONGEST_NAME} bytes"


def is_name(value: str) -> bool:
    """Whether a result can have this name on every file system."""
    fits = len(value.encode("utf-8", "replace")) <= _LONGEST_NAME
    return fits and _NAME.fullmatch(value) is not None and not value.endswith((".", " "))


def name_value(value: object) -> object:
    """A name that a result can have on every file system."""
    if isinstance(value, str) and not is_name(value):
        raise ValueError(f"must be usable as a file name: {NAME_RULE}")
    return value


TEMPLATE_FIELDS = ("name", "seed", "lora", "model", "width", "height", "steps")


def template_value(value: object) -> object:
    """A pattern of a result's name: text with fields in braces."""
    if not isinstance(value, str):
        return value
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError as error:
        raise ValueError(f"must be text with fields such as {{name}}-{{seed}}: {error}") from None
    for _, field, form, conversion in parts:
        if field is None:
            continue
        if field not in TEMPLATE_FIELDS:
            raise ValueError(f"{{{field}}} is no field of a name ({nearest(field, TEMPLATE_FIELDS)})")
        if form or conversion:
            raise ValueError(f"{{{field}}} takes nothing after the field's name")
    return value


def size_value(value: object) -> object:
    """`auto`, or a width and a height that a render can have."""
    if value is None or value == "auto":
        return value
    if not (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    ):
        raise ValueError(f"must be auto or [width, height], not {shown(value)}")
    for side in value:
        if side % MULTIPLE or not MULTIPLE <= side <= _LARGEST:
            around = {min(max(side // MULTIPLE * MULTIPLE + up, MULTIPLE), _LARGEST) for up in (0, MULTIPLE)}
            near = " and ".join(str(length) for length in sorted(around))
            raise ValueError(
                f"width and height must be multiples of {MULTIPLE} from {MULTIPLE} to {_LARGEST}; "
                f"{side} is not (near it: {near})"
            )
    return list(value)


STEP_CACHES = ("off", "teacache", "magcache")


def step_cache_value(value: object) -> object:
    """One word for a step cache stands for its keys."""
    if value is False:
        return {"kind": "off"}
    if isinstance(value, str) and value in STEP_CACHES:
        return {"kind": value}
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"must be off, teacache, magcache, or {{kind: teacache, threshold: 0.15}}, not {shown(value)}")
    return value


_MEMORY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(GB|GIB|MB|MIB|B)\s*", re.ASCII | re.IGNORECASE)
_UNITS = {"GB": 10**9, "GIB": 1 << 30, "MB": 10**6, "MIB": 1 << 20, "B": 1}


def memory_bytes(text: str | None) -> int | None:
    """The bytes of a budget such as 12GB, None for auto. Raises ValueError for what is neither."""
    if text is None or text == "auto":
        return None
    found = _MEMORY.fullmatch(text) if isinstance(text, str) else None
    size = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= size < math.inf:
        raise ValueError(f"must be auto or a size such as 12GB, not {shown(text)}")
    return round(size)


def memory_value(value: object) -> object:
    """`auto`, or a budget in bytes."""
    memory_bytes(value)  # type: ignore[arg-type]  # it says what is wrong with anything
    return value


def on_or_off_value(value: object) -> object:
    """YAML 1.1's habit: `true` and `false` where on and off are meant."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


def path_or_keys_value(value: object) -> object:
    """A bare path stands for a LoRA or a video with its defaults."""
    return {"path": value} if isinstance(value, str) else value


def patterns_value(value: object) -> object:
    """One pattern stands for a list of it."""
    return [value] if isinstance(value, str) else value


def number_value(value: object) -> object:
    """A number, whole or not; never a boolean."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"must be a number, not {shown(value)}")
    return value


def path_value(value: object) -> object:
    """A path that a file can have."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("no file name can hold a NUL character")
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"there is no user for {shown(value)}") from None
    return value


SECONDS = r"^\s*(\d+(?:\.\d+)?)\s*s?\s*$"
_SECONDS = re.compile(SECONDS, re.ASCII)


def seconds_value(value: object) -> object:
    """A time in seconds: 2.4, or 2.4s."""
    if isinstance(value, str) and (found := _SECONDS.fullmatch(value)):
        return float(found[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a time in seconds such as 2.4s, not {shown(value)}")
    return value


# Start pictures that need no file -> red, green, blue; noise is drawn from the job's seed.
COLOURS: dict[str, tuple[int, int, int]] = {"black": (0, 0, 0), "grey": (127, 127, 127), "white": (255, 255, 255)}
NOISE = "noise"
_HEX = re.compile(r"#[0-9a-f]{6}", re.IGNORECASE)


def start_value(value: object) -> object:
    """What a video begins from without an image: a colour by name or as #rrggbb, or noise."""
    word = {"gray": "grey"}.get(value, value) if isinstance(value, str) else value
    if word is None or word == NOISE or (isinstance(word, str) and word in COLOURS):
        return word
    if isinstance(word, str) and _HEX.fullmatch(word):
        return word.lower()
    names = ", ".join((*COLOURS, NOISE))
    raise ValueError(f"must be {names}, or a colour as '#3a6ea5' (in quotes), not {shown(value)}")


def colour_of(start: str) -> tuple[int, int, int] | None:
    """Red, green and blue of a start without an image, None for noise."""
    if start == NOISE:
        return None
    found = COLOURS.get(start)
    return found or (int(start[1:3], 16), int(start[3:5], 16), int(start[5:7], 16))


Number = Annotated[float, BeforeValidator(number_value)]
PathText = Annotated[StrictStr, BeforeValidator(path_value), Field(min_length=1)]
