"""Keys with dots in them, which reach inside: `output.crf`, `loras.0.weight`, from a list's end `timeline.-1.at`."""

import copy
import re

from goan_cli.checking import shown
from goan_cli.documents import Data, KeyPath, key_text
from goan_cli.errors import InvalidInput

# More digits than any list has entries are a word.
_INDEX = re.compile(r"[0-9]{1,4}", re.ASCII)
_INDEX_FROM_END = re.compile(r"-?[0-9]{1,4}", re.ASCII)


def key_parts(key: str, *, from_end: bool = False) -> KeyPath:
    """`loras.0.weight` as a key path; the first part is always a word. `from_end` takes -1 for a number, too."""
    first, *rest = key.split(".")
    index = _INDEX_FROM_END if from_end else _INDEX
    return (first, *(int(part) if index.fullmatch(part) else part for part in rest))


def put(values: dict[str, Data], path: KeyPath, value: Data) -> KeyPath:
    """Set what `path` leads to, and return it with every index counted from the start.

    Keys that are not there yet become keys and values; entries of lists must be there. A bare path in a list is a
    LoRA's. Raises InvalidInput with what stands in the way.
    """
    holder: Data = values
    found: KeyPath = path[:1]
    for part in path[1:]:
        at = found[-1]
        inner = holder.get(at) if isinstance(holder, dict) else holder[at]
        if inner is None and isinstance(part, str):
            inner = {}
        elif isinstance(inner, str) and isinstance(at, int) and isinstance(part, str):
            inner = {"path": inner}
        place = _place(inner, part, found)
        holder[at] = inner
        holder, found = inner, (*found, place)
    holder[found[-1]] = copy.deepcopy(value)
    return found


def _place(inner: Data, part: str | int, path: KeyPath) -> str | int:
    """Where in `inner`, which stands at `path`, a part of a key leads to."""
    name = key_text(path)
    if isinstance(inner, dict):
        if isinstance(part, int):
            raise InvalidInput(f"{name} has keys, and no numbered entries")
        return part
    if isinstance(inner, list):
        if isinstance(part, str):
            raise InvalidInput(f"{part!r} is no entry of {name}, which has {_entries(len(inner))}")
        index = part + len(inner) if part < 0 else part
        if not 0 <= index < len(inner):
            raise InvalidInput(f"{name} has {_entries(len(inner))}")
        return index
    if inner is None:
        raise InvalidInput(f"{name} has {_entries(0)}")
    raise InvalidInput(f"{name} is {shown(inner)}, which has nothing inside")


def _entries(count: int) -> str:
    if count < 2:
        return "1 entry, number 0" if count else "no entries"
    return f"{count} entries, 0 to {count - 1}"
