"""Jobs as YAML: they read back as they were, and look as a person would write them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.documents import parse_document
from goan_cli.errors import InvalidInput
from goan_cli.recipes.yaml_text import comment_text, job_file_text

LONG = "A red circle moves to the right over a dark field, slowly at first; then it stops: and waits, for a while."
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**64), 2**64), st.floats(allow_nan=False, allow_infinity=False), _TEXTS
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_TEXTS, inner, max_size=4)),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["prompt", "image", "loras", "output"]), _VALUES, min_size=1))
def test_whatever_it_holds(job: dict[str, Any]) -> None:
    """Any keys and values read back as they were, by the rules that job files are read by."""
    assert parse_document(job_file_text([job])).data == job


@pytest.mark.parametrize(
    "word",
    [
        "off",
        "yes",
        "null",
        "~",
        "1e5",
        "1.5",
        "0x1F",
        "-3",
        ".5",
        "12:30",
        "2024-01-01",
        "true",
        "",
        " x ",
        "#a",
        "- b",
    ],
)
def test_texts_that_look_like_something_else(word: str) -> None:
    """Texts that YAML has other ideas about stay texts."""
    assert parse_document(job_file_text([{"prompt": word}])).data == {"prompt": word}


def test_a_job() -> None:
    """Long texts are folded blocks, lines are kept in blocks of their own, and short things stand in one line."""
    job = {
        "prompt": LONG,
        "negative_prompt": "blurry\nlow quality",
        "fps": 24.0,
        "size": [640, 608],
        "loras": ["a.safetensors", {"path": "b.safetensors", "weight": 0.5}],
        "output": {"dir": "renders", "crf": 18},
    }
    assert job_file_text([job], comments=["From a.mp4"]) == (
        "# From a.mp4\n"
        "prompt: >-\n"
        "  A red circle moves to the right over a dark field, slowly at first; then it stops: and waits, for a\n"
        "  while.\n"
        "negative_prompt: |-\n"
        "  blurry\n"
        "  low quality\n"
        "fps: 24\n"
        "size: [640, 608]\n"
        "loras:\n"
        "  - a.safetensors\n"
        "  - {path: b.safetensors, weight: 0.5}\n"
        "output: {dir: renders, crf: 18}\n"
    )


def test_several_jobs() -> None:
    """Several jobs are a list under `jobs`, with what they share under `defaults`; a single one has it itself."""
    several = parse_document(job_file_text([{"prompt": "a"}, {"prompt": "b"}], defaults={"model": "tiny"})).data
    assert several == {"defaults": {"model": "tiny"}, "jobs": [{"prompt": "a"}, {"prompt": "b"}]}
    single = parse_document(job_file_text([{"prompt": "a"}], defaults={"model": "tiny"})).data
    assert single == {"model": "tiny", "prompt": "a"}


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\u2029", "\0", "\x1b[31m"])
def test_comments_stay_comments(end: str) -> None:
    """Nothing in a comment ends it: what a hostile file has there becomes no key."""
    text = job_file_text([{"prompt": "a"}], comments=[f"torch 2{end}model: /somewhere"])
    assert parse_document(text).data == {"prompt": "a"}
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_long_comments_are_cut() -> None:
    """A comment has an end."""
    assert len(comment_text("x" * 10_000)) < 300


def test_what_no_yaml_can_hold() -> None:
    """A name with bytes that are no text is refused, not written wrongly."""
    with pytest.raises(InvalidInput, match="no YAML file can hold this job"):
        job_file_text([{"image": "pictures/\udcff.png"}])
