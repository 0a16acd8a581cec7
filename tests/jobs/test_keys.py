"""Keys with dots: their parts, and what they lead to in plain data."""

import copy
from typing import Any

import pytest

from goan_cli.documents import KeyPath
from goan_cli.errors import InvalidInput
from goan_cli.jobs.keys import key_parts, put

DATA: dict[str, Any] = {"loras": ["a", {"path": "b", "weight": 2}], "output": {"crf": 20}, "seed": 5, "empty": []}


@pytest.mark.parametrize(
    ("key", "parts", "from_end"),
    [
        ("seed", ("seed",), ("seed",)),
        ("0.at", ("0", "at"), ("0", "at")),
        ("loras.0.weight", ("loras", 0, "weight"), ("loras", 0, "weight")),
        ("loras.01.weight", ("loras", 1, "weight"), ("loras", 1, "weight")),
        ("timeline.-1.at", ("timeline", "-1", "at"), ("timeline", -1, "at")),
        ("loras.--1", ("loras", "--1"), ("loras", "--1")),
        ("loras.12345", ("loras", "12345"), ("loras", "12345")),
        ("loras.\u0661", ("loras", "\u0661"), ("loras", "\u0661")),
        ("loras.1.5", ("loras", 1, 5), ("loras", 1, 5)),
    ],
)
def test_key_parts(key: str, parts: KeyPath, from_end: KeyPath) -> None:
    """Numbers of up to four ASCII digits are entries of lists, below zero only where that is asked for."""
    assert key_parts(key) == parts
    assert key_parts(key, from_end=True) == from_end


@pytest.mark.parametrize(
    ("path", "found", "changed"),
    [
        (("seed",), ("seed",), {"seed": 9}),
        (("new",), ("new",), {"new": 9}),
        (("new", "a", "b"), ("new", "a", "b"), {"new": {"a": {"b": 9}}}),
        (("output", "crf"), ("output", "crf"), {"output": {"crf": 9}}),
        (("loras", 1), ("loras", 1), {"loras": ["a", 9]}),
        (("loras", -2), ("loras", 0), {"loras": [9, {"path": "b", "weight": 2}]}),
        (("loras", -1, "weight"), ("loras", 1, "weight"), {"loras": ["a", {"path": "b", "weight": 9}]}),
        (("loras", 0, "weight"), ("loras", 0, "weight"), {"loras": [{"path": "a", "weight": 9}, DATA["loras"][1]]}),
    ],
)
def test_put(path: KeyPath, found: KeyPath, changed: dict[str, Any]) -> None:
    """A value comes to its place, keys on the way are made, a bare path becomes a LoRA's, and the rest stays."""
    data = copy.deepcopy(DATA)
    assert put(data, path, 9) == found
    assert data == {**DATA, **changed}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("loras", 2), "loras has 2 entries, 0 to 1"),
        (("loras", -3, "weight"), "loras has 2 entries, 0 to 1"),
        (("loras", "first"), "'first' is no entry of loras, which has 2 entries, 0 to 1"),
        (("loras", 1, 0), "loras[1] has keys, and no numbered entries"),
        (("empty", 0), "empty has no entries"),
        (("gone", -1), "gone has no entries"),
        (("seed", "x"), "seed is 5, which has nothing inside"),
        (("seed", 0), "seed is 5, which has nothing inside"),
    ],
)
def test_what_cannot_be_reached(path: KeyPath, words: str) -> None:
    """What a key cannot lead to is refused with what is there; nothing is changed."""
    data = copy.deepcopy(DATA)
    with pytest.raises(InvalidInput) as caught:
        put(data, path, 9)
    assert caught.value.message == words
    assert data == DATA


def test_values_are_copies() -> None:
    """What is put into several jobs is not shared between them."""
    value: dict[str, Any] = {}
    data: dict[str, Any] = {}
    put(data, ("a",), value)
    data["a"]["b"] = 1
    assert value == {}
