"""The tiny tokenizers: built anew they are the shipped ones, and they do what the real ones do."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from goan_cli.render.text import load_llama_tokenizer
from goan_cli.tiny.parts import PACK
from goan_cli.tiny.tokenizers import write_clip_tokenizer, write_llama_tokenizer


def test_llama_tokenizer_is_reproducible(tmp_path: Path) -> None:
    """Built anew, the tokenizer encodes as the shipped one does, with the template's 95 tokens."""
    size = write_llama_tokenizer(tmp_path / "tokenizer")
    built, shipped = load_llama_tokenizer(tmp_path / "tokenizer"), load_llama_tokenizer(PACK / "tokenizer")
    assert size == shipped.get_vocab_size()
    for text in ("a red ball", "Ünïcode 🎈 and 12345 digits", "", "<|eot_id|>"):
        assert built.encode(text).ids == shipped.encode(text).ids


@pytest.mark.parametrize("text", ["a red ball", "Ünïcode 🎈, tabs\tand\nlines", "it's 12345"])
def test_llama_tokenizer_loses_nothing(text: str) -> None:
    """Every text comes back from its tokens."""
    tokenizer = load_llama_tokenizer(PACK / "tokenizer")
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_clip_tokenizer_is_reproducible(tmp_path: Path) -> None:
    """Built anew, the files are the shipped ones, byte for byte."""
    write_clip_tokenizer(tmp_path / "tokenizer_2")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "tokenizer_2" / name).read_bytes() == (PACK / "tokenizer_2" / name).read_bytes()


def test_clip_tokenizer_frames_the_prompt() -> None:
    """CLIP's tokens begin and end with its own two, the last two of the vocabulary, and are padded to 77."""
    tokenizer = CLIPTokenizer.from_pretrained(str(PACK / "tokenizer_2"), local_files_only=True)
    ids = tokenizer("A Red ball", padding="max_length", max_length=77, truncation=True).input_ids
    assert len(ids) == 77
    assert (ids[0], ids[4], ids[-1]) == (len(tokenizer) - 2, len(tokenizer) - 1, len(tokenizer) - 1)
    assert ids == tokenizer("a red BALL", padding="max_length", max_length=77, truncation=True).input_ids
