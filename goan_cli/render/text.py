"""Prompts to conditioning: Llama's hidden states under HunyuanVideo's template, and CLIP's pooled vector."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from goan_cli.errors import InvalidInput
from goan_cli.model.transformer import TextConditioning

# The instruction that HunyuanVideo was trained under (diffusers' DEFAULT_PROMPT_TEMPLATE), and its tokens.
TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)
PREFIX_TOKENS = 95
LLAMA_TOKENS = 256
CLIP_TOKENS = 77
_WORDS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Tokens that an encoder could not take, and the first words lost."""

    encoder: str
    dropped: int
    words: str


class TextEncoders:
    """Both text encoders with their tokenizers, loaded once.

    With `streamed`, Llama stays in main memory, and each of its layers is on the device while it computes.
    A model in a file of its own is described by its configuration's JSON file.
    """

    def __init__(
        self,
        *,
        llama: Path,
        tokenizer: Path,
        clip: Path,
        clip_tokenizer: Path,
        device: torch.device,
        dtype: torch.dtype,
        streamed: bool = False,
        llama_config: Path | None = None,
        clip_config: Path | None = None,
    ) -> None:
        from goan_cli.render import loading  # noqa: PLC0415 - imports transformers, which cached prompts do not need

        self.device = device
        self.tokenizer = load_llama_tokenizer(tokenizer)
        self.streamed = streamed
        self.llama = loading.load_llama(llama, dtype, config=llama_config)
        if streamed:
            loading.stream_layers(self.llama, device)
        else:
            self.llama.to(device)
        clip_model, self.clip_tokenizer = loading.load_clip(clip, clip_tokenizer, dtype, config=clip_config)
        self.clip = clip_model.to(device)

    def to(self, device: torch.device) -> None:
        """Move both encoders; a streamed one is never there for longer than it computes."""
        self.device = device
        if not self.streamed:
            self.llama.to(device)
        self.clip.to(device)

    @torch.inference_mode()
    def encode(self, prompt: str) -> tuple[TextConditioning, tuple[Truncation, ...]]:
        """Llama features `(1, n, d)` of the prompt's own tokens and pooled CLIP `(1, p)`, and what was cut off."""
        embeds, cut = self._llama_features(prompt)
        pooled, clip_cut = self._clip_pooled(prompt)
        text = TextConditioning(embeds=embeds, pooled=pooled)
        return text, tuple(item for item in (cut, clip_cut) if item is not None)

    def _llama_features(self, prompt: str) -> tuple[Tensor, Truncation | None]:
        encoding = self.tokenizer.encode(TEMPLATE.format(prompt))
        ids = torch.tensor([encoding.ids[: PREFIX_TOKENS + LLAMA_TOKENS]], device=self.device)
        # Causal attention: the padding that upstream adds on the right changes no row on its left.
        features: Tensor = self.llama(input_ids=ids, use_cache=False).last_hidden_state
        return features[:, PREFIX_TOKENS:], _llama_truncation(encoding, prompt)

    def _clip_pooled(self, prompt: str) -> tuple[Tensor, Truncation | None]:
        inputs = self.clip_tokenizer(
            prompt, padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
        )
        pooled: Tensor = self.clip(inputs.input_ids.to(self.device)).pooler_output
        every = self.clip_tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(every) <= CLIP_TOKENS:
            return pooled, None
        lost = every[CLIP_TOKENS - 1 : -1]
        words = str(self.clip_tokenizer.decode(lost))
        return pooled, Truncation(encoder="CLIP", dropped=len(lost), words=_first_words(words))


def load_llama_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of `tokenizer.json` as it is written there.

    transformers' LlamaTokenizerFast would replace its byte-level pre-tokenizer without a word (issue 45488).
    Raises InvalidInput when the template's prefix does not have the tokens it must have.
    """
    file = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise InvalidInput(f"{file}: not a usable tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    count = len(tokenizer.encode(TEMPLATE.split("{}", maxsplit=1)[0]).ids)
    if count != PREFIX_TOKENS:
        raise InvalidInput(
            f"{file}: the prompt template's prefix has {count} tokens instead of {PREFIX_TOKENS}",
            hint="this is not the Llama-3 tokenizer of HunyuanVideo, or it lost its pre-tokenizer",
        )
    return tokenizer


def _llama_truncation(encoding: Encoding, prompt: str) -> Truncation | None:
    # The template's closing token comes after the prompt, and is no loss.
    dropped = len(encoding.ids) - 1 - PREFIX_TOKENS - LLAMA_TOKENS
    if dropped <= 0:
        return None
    first_lost = encoding.offsets[PREFIX_TOKENS + LLAMA_TOKENS][0] - len(TEMPLATE.split("{}", maxsplit=1)[0])
    return Truncation(encoder="Llama", dropped=dropped, words=_first_words(prompt[first_lost:]))


def _first_words(text: str) -> str:
    words = text.split()
    return " ".join(words[:_WORDS_SHOWN]) + (" …" if len(words) > _WORDS_SHOWN else "")
