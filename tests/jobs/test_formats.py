"""Formats and codecs: every one has its row, and the defaults are among what may be asked for."""

from pathlib import Path
from typing import get_args

import pytest

from goan_cli.jobs.formats import CODECS, CRFS, SUFFIXES, Codec, Coding, Format, is_sequence
from goan_cli.jobs.schema import OutputSpec


@pytest.mark.parametrize("container", Format)
def test_every_format_has_its_rows(container: Format) -> None:
    """Each format has codecs and a suffix of its own, by which a result's files are told apart."""
    assert CODECS[container]
    assert SUFFIXES[container].startswith(".")
    assert sorted(SUFFIXES.values()) == sorted(set(SUFFIXES.values()))


def test_every_codec_belongs_somewhere() -> None:
    """No codec is left that no format takes, and a default quality is one that may be asked for."""
    assert {codec for codecs in CODECS.values() for codec in codecs} == set(Codec)
    assert all(lowest <= default <= highest for lowest, highest, default in CRFS.values())


def test_the_default_is_as_it_was() -> None:
    """Nothing asked for is H.264 in MP4 with crf 16."""
    assert Coding() == Coding(format=Format.MP4, codec=CODECS[Format.MP4][0], crf=CRFS[Codec.H264][2])
    assert Coding().crf == 16


@pytest.mark.parametrize(("key", "words"), [("format", Format), ("codec", Codec)])
def test_a_job_file_can_name_them_all(key: str, words: type[Format] | type[Codec]) -> None:
    """The words of a job file are those of the tables."""
    literal, _ = get_args(OutputSpec.model_fields[key].annotation)
    assert set(get_args(literal)) == {str(word) for word in words}


def test_sequences() -> None:
    """A folder of frames is known by its name, and is no picture's name."""
    assert is_sequence(Path(f"a{SUFFIXES[Format.PNG]}"))
    assert not is_sequence(Path("a.png"))
