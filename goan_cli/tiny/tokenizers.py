"""The tiny pack's tokenizers: real files, small vocabularies of the template's words and plain captions."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

# The stretches between the special tokens of HunyuanVideo's prompt template.
_TEMPLATE = (
    "system",
    (
        "\n\nDescribe the video by detailing the following aspects: "
        "1. The main content and theme of the video."
        "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
        "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
        "4. background environment, light, style and atmosphere."
        "5. camera angles, movements, and transitions used in the video:"
    ),
    "user",
    "\n\n",
)
_WORDS = (
    "a an the red green blue yellow purple white orange black grey circle square triangle star ball moves moving to "
    "left right up upwards down downwards bounces grows shrinks gets bigger smaller stands still does not move and "
    "then slowly quickly on over in background gradient plain dark light with glow glowing spins girl dances "
    "gracefully clear movements full of charm"
)
_SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<pad>",
)
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def _corpus() -> list[str]:
    # Words with and without the space that Llama-3's pre-tokenizer keeps with them.
    return [*_TEMPLATE, *_WORDS.split(), *(f" {word}" for word in _WORDS.split())]


def _prefix_merges(words: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Merges that build each word letter by letter from its start; a trainer would break ties at random."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        left = word[0]
        for letter in word[1:]:
            merges[left, letter] = None
            left += letter
    return list(merges)


def write_llama_tokenizer(folder: Path) -> int:
    """Write `tokenizer.json` with Llama-3's pre-tokenizer; returns the size of its vocabulary.

    As in Llama-3, a word that is in the vocabulary is one token whatever the merges say; every word of the prompt
    template is, as in the real one, so that its prefix has the same number of tokens.
    """
    folder.mkdir()
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = [word for text in _corpus() for word, _ in split.pre_tokenize_str(text)]
    merges = _prefix_merges(words)
    names = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[0]} $A", special_tokens=[(_SPECIAL[0], 0)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _SPECIAL[0],
        "eos_token": _SPECIAL[1],
        "pad_token": _SPECIAL[5],
        "model_max_length": 8192,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()


def write_clip_tokenizer(folder: Path) -> int:
    """Write CLIP's `vocab.json` and `merges.txt`; returns the size of the vocabulary, its last two special."""
    folder.mkdir()
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = [word for text in _corpus() for word, _ in split.pre_tokenize_str(text.lower())]
    merges = _prefix_merges([[*word[:-1], f"{word[-1]}</w>"] for word in words])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # CLIP's order: letters, letters that end a word, merges, and the two special tokens last.
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), *_CLIP_SPECIAL]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": _CLIP_SPECIAL[0],
        "eos_token": _CLIP_SPECIAL[1],
        "unk_token": _CLIP_SPECIAL[1],
        "pad_token": _CLIP_SPECIAL[1],
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return len(vocabulary)
