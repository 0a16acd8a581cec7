"""Prompts to conditioning with the embedded pack's encoders, and what is told of long ones."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaModel

from goan_cli.errors import InvalidInput
from goan_cli.packs.find import find_pack
from goan_cli.render.text import (
    CLIP_TOKENS,
    LLAMA_TOKENS,
    PREFIX_TOKENS,
    TEMPLATE,
    TextEncoders,
    Truncation,
    load_llama_tokenizer,
)
from tests.helpers import CPU, relative_error

PACK = find_pack("tiny")
# One token each for the tiny pack's Llama tokenizer when a space stands before them.
VOCABULARY = ("red", "ball", "moves", "left", "right", "circle", "green", "dark", "light", "slowly", "star")


@pytest.fixture(scope="module")
def encoders() -> TextEncoders:
    """The embedded pack's text encoders."""
    return TextEncoders(
        llama=PACK.text_encoder,
        tokenizer=PACK.tokenizer,
        clip=PACK.text_encoder_2,
        clip_tokenizer=PACK.tokenizer_2,
        device=CPU,
        dtype=torch.float32,
    )


def _words(count: int) -> list[str]:
    return [VOCABULARY[number % len(VOCABULARY)] for number in range(count)]


def _prompt(encoders: TextEncoders, tokens: int) -> list[str]:
    """Words that make a prompt of exactly so many Llama tokens."""
    first = len(encoders.tokenizer.encode(TEMPLATE.format(VOCABULARY[0])).ids) - PREFIX_TOKENS - 1
    words = _words(tokens - first + 1)
    assert len(encoders.tokenizer.encode(TEMPLATE.format(" ".join(words))).ids) == PREFIX_TOKENS + tokens + 1
    return words


def _cut(encoders: TextEncoders, prompt: str, encoder: str) -> Truncation | None:
    _, cuts = encoders.encode(prompt)
    return next((cut for cut in cuts if cut.encoder == encoder), None)


@pytest.mark.parametrize("prompt", ["", "red", "a red ball moves to the left", "{} {red} {0} }{", "ballé 🎈 球"])
def test_shapes(encoders: TextEncoders, prompt: str) -> None:
    """There is one row for each of the prompt's tokens and the closing one, and one pooled vector."""
    text, cuts = encoders.encode(prompt)
    own = len(encoders.tokenizer.encode(TEMPLATE.replace("{}", prompt)).ids) - PREFIX_TOKENS
    assert text.embeds.shape == (1, own, 48)
    assert text.pooled.shape == (1, 32)
    assert cuts == ()
    assert bool(text.embeds.isfinite().all())


def test_prompts_differ(encoders: TextEncoders) -> None:
    """Different prompts are told apart by both encoders."""
    first, second = (encoders.encode(prompt)[0] for prompt in ("a red ball", "a blue star"))
    assert relative_error(first.pooled, second.pooled) > 0.01
    assert relative_error(first.embeds[:, 1:3], second.embeds[:, 1:3]) > 0.01


def test_encoding_is_repeatable(encoders: TextEncoders) -> None:
    """The same prompt gives the same bits, whatever was encoded in between."""
    first, _ = encoders.encode("a red ball")
    encoders.encode("something else entirely")
    second, _ = encoders.encode("a red ball")
    assert torch.equal(first.embeds, second.embeds)
    assert torch.equal(first.pooled, second.pooled)


def test_features_are_the_third_hidden_state_from_the_end(encoders: TextEncoders) -> None:
    """The features are the whole Llama's `hidden_states[-3]` behind the prefix, though two layers are not loaded."""
    whole = LlamaModel.from_pretrained(str(PACK.text_encoder), dtype=torch.float32, local_files_only=True)
    ids = torch.tensor([encoders.tokenizer.encode(TEMPLATE.format("a red ball")).ids])
    with torch.inference_mode():
        expected = whole(input_ids=ids, output_hidden_states=True).hidden_states[-3][:, PREFIX_TOKENS:]
    assert relative_error(encoders.encode("a red ball")[0].embeds, expected) < 1e-6


@pytest.mark.parametrize(
    ("tokens", "dropped"), [(LLAMA_TOKENS - 1, 0), (LLAMA_TOKENS, 0), (LLAMA_TOKENS + 1, 1), (LLAMA_TOKENS + 40, 40)]
)
def test_llama_truncation(encoders: TextEncoders, tokens: int, dropped: int) -> None:
    """Up to 256 tokens nothing is lost; beyond, the number of dropped tokens and the first dropped words are told."""
    words = _prompt(encoders, tokens)
    prompt = " ".join(words)
    assert encoders.encode(prompt)[0].embeds.shape[1] == min(tokens + 1, LLAMA_TOKENS)
    lost = words[-dropped:]
    shown = " ".join(lost[:8]) + (" …" if dropped > 8 else "")
    expected = Truncation(encoder="Llama", dropped=dropped, words=shown) if dropped else None
    assert _cut(encoders, prompt, "Llama") == expected


@pytest.mark.parametrize(("tokens", "dropped"), [(75, 0), (76, 1), (100, 25)])
def test_clip_truncation(encoders: TextEncoders, tokens: int, dropped: int) -> None:
    """CLIP takes 77 tokens with its two own; what it drops is told as well."""
    whole = [word for word in VOCABULARY if len(encoders.clip_tokenizer(word).input_ids) == 3]
    words = [whole[number % len(whole)] for number in range(tokens)]
    assert len(encoders.clip_tokenizer(" ".join(words)).input_ids) == tokens + 2
    lost = words[CLIP_TOKENS - 2 :]
    shown = " ".join(lost[:8]) + (" …" if dropped > 8 else "")
    expected = Truncation(encoder="CLIP", dropped=dropped, words=shown) if dropped else None
    assert _cut(encoders, " ".join(words), "CLIP") == expected


def test_both_truncations(encoders: TextEncoders) -> None:
    """A prompt too long for both encoders is told of by both, Llama first."""
    _, cuts = encoders.encode(" ".join(_words(300)))
    assert [cut.encoder for cut in cuts] == ["Llama", "CLIP"]


def test_truncation_changes_no_row_before_it(encoders: TextEncoders) -> None:
    """The kept rows of a long prompt are those of the prompt cut there."""
    words = _prompt(encoders, LLAMA_TOKENS + 30)
    long, _ = encoders.encode(" ".join(words))
    short, _ = encoders.encode(" ".join(words[:-30]))
    assert relative_error(long.embeds, short.embeds) < 1e-5


def test_truncated_in_the_middle_of_a_character(encoders: TextEncoders) -> None:
    """Characters of several tokens are cut without harm, and what is lost is told in whole characters."""
    cut = _cut(encoders, "🎈" * 200, "Llama")
    assert cut is not None
    assert cut.dropped > 0
    assert set(cut.words) == {"🎈"}


# The tokenizer --------------------------------------------------------------------------------------------


def _tampered(folder: Path, **changes: Any) -> Path:
    """The tiny tokenizer with other top-level settings."""
    shutil.copytree(PACK.tokenizer, folder)
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return folder


def test_tokenizer_of_the_pack() -> None:
    """The embedded pack's tokenizer gives the template's prefix its 95 tokens."""
    prefix = TEMPLATE.partition("{}")[0]
    assert len(load_llama_tokenizer(PACK.tokenizer).encode(prefix).ids) == PREFIX_TOKENS == 95


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"pre_tokenizer": {"type": "Whitespace"}}, id="another pre-tokenizer"),
        pytest.param(
            {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}},
            id="SentencePiece's pre-tokenizer, as transformers puts in",
        ),
        pytest.param({"post_processor": None}, id="no begin-of-text token"),
        pytest.param({"added_tokens": []}, id="no special tokens"),
    ],
)
def test_wrong_tokenizer(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A tokenizer that gives the template's prefix another number of tokens is refused with both numbers."""
    with pytest.raises(InvalidInput, match=r"prefix has \d+ tokens instead of 95") as caught:
        load_llama_tokenizer(_tampered(tmp_path / "tokenizer", **changes))
    assert str(tmp_path / "tokenizer" / "tokenizer.json") in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", [None, "", "{}", "not JSON"])
def test_unreadable_tokenizer(tmp_path: Path, text: str | None) -> None:
    """A missing or damaged tokenizer is refused by its path."""
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"tokenizer\.json: not a usable tokenizer"):
        load_llama_tokenizer(tmp_path)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    """Truncation and padding that a tokenizer.json asks for do not cut or fill prompts."""
    truncation = {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 400},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 5,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    tokenizer = load_llama_tokenizer(_tampered(tmp_path / "tokenizer", truncation=truncation, padding=padding))
    assert len(tokenizer.encode(" red" * 200).ids) == 201


def test_another_encoder_is_refused() -> None:
    """A text encoder that is no Llama is refused by its configuration."""
    with pytest.raises(InvalidInput, match=r"config\.json: not a Llama text encoder: \"clip_text_model\""):
        TextEncoders(
            llama=PACK.text_encoder_2,
            tokenizer=PACK.tokenizer,
            clip=PACK.text_encoder_2,
            clip_tokenizer=PACK.tokenizer_2,
            device=CPU,
            dtype=torch.float32,
        )


def test_streamed_llama_makes_the_same(encoders: TextEncoders) -> None:
    """With Llama's layers brought one by one the features are the same bits, and it stays out of the device's way."""
    streamed = TextEncoders(
        llama=PACK.text_encoder,
        tokenizer=PACK.tokenizer,
        clip=PACK.text_encoder_2,
        clip_tokenizer=PACK.tokenizer_2,
        device=CPU,
        dtype=torch.float32,
        streamed=True,
    )
    assert all(parameter.is_meta for parameter in streamed.llama.parameters())
    streamed.to(CPU)
    for _ in range(2):
        (text, cuts), (expected, expected_cuts) = (each.encode("a red ball moves") for each in (streamed, encoders))
        assert torch.equal(text.embeds, expected.embeds)
        assert torch.equal(text.pooled, expected.pooled)
        assert cuts == expected_cuts
    assert all(parameter.is_meta for parameter in streamed.llama.parameters())
