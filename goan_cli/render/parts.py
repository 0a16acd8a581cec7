"""Encoders and VAE of packs, each loaded once, and on a small card only the one at work on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from goan_cli.packs.pack import Pack
from goan_cli.render.device import Precision, holds_llama, is_roomy
from goan_cli.render.image import ImageEncoder
from goan_cli.render.text import TextEncoders

# A kind of part and what it was loaded from, configurations too: packs that share these share the part.
_Key = tuple[str, *tuple[Path, ...]]
_TEXT = "text encoders"


class Parts:
    """Models, loaded when first asked for. `make_room` is called where a small card must first be emptied for one."""

    def __init__(self, device: torch.device, precision: Precision, *, make_room: Callable[[], None]) -> None:
        self.device = device
        self.precision = precision
        self._make_room = make_room
        self._loaded: dict[_Key, Any] = {}

    def text_encoders(self, pack: Pack) -> TextEncoders:
        """Llama and CLIP, on the device."""

        def load() -> TextEncoders:
            return TextEncoders(
                llama=pack.text_encoder,
                tokenizer=pack.tokenizer,
                clip=pack.text_encoder_2,
                clip_tokenizer=pack.tokenizer_2,
                device=self.device,
                dtype=self.precision.encoders,
                streamed=not holds_llama(self.device),
                llama_config=pack.config_of("text_encoder"),
                clip_config=pack.config_of("text_encoder_2"),
            )

        if not is_roomy(self.device):
            self._make_room()  # Llama is nearly as large as the transformer
        models = (pack.text_encoder, pack.tokenizer, pack.text_encoder_2, pack.tokenizer_2)
        configs = (pack.config_of("text_encoder"), pack.config_of("text_encoder_2"))
        return cast("TextEncoders", self._part((_TEXT, *models, *configs), load))

    def image_encoder(self, pack: Pack) -> ImageEncoder:
        """SigLIP, on the device."""

        config = pack.config_of("image_encoder")

        def load() -> ImageEncoder:
            return ImageEncoder(
                model=pack.image_encoder,
                processor=pack.feature_extractor,
                device=self.device,
                dtype=self.precision.encoders,
                config=config,
            )

        key: _Key = ("image encoder", pack.image_encoder, pack.feature_extractor, config)
        return cast("ImageEncoder", self._part(key, load))

    def vae(self, pack: Pack) -> Any:  # noqa: ANN401 - diffusers is untyped here
        """The VAE, on the device."""
        return self.vae_at(pack.vae, pack.config_of("vae"))

    def vae_at(self, path: Path, config: Path | None) -> Any:  # noqa: ANN401 - as of a pack
        """The VAE of a folder or file, with its configuration, on the device."""

        def load() -> Any:  # noqa: ANN401
            from goan_cli.render.loading import load_vae  # noqa: PLC0415 - imports diffusers: not before it is needed

            return load_vae(path, self.device, self.precision.encoders, config=config)

        return self._part(("vae", path, *(() if config is None else (config,))), load)

    def forget_text_encoders(self) -> None:
        """Let go of the largest parts besides the transformer, once every prompt is encoded."""
        for key in [key for key in self._loaded if key[0] == _TEXT]:
            del self._loaded[key]

    def step_aside(self) -> None:
        """On a card that cannot hold them all, put every part into main memory."""
        self._leave_only(None)

    def _part(self, key: _Key, load: Callable[[], Any]) -> Any:  # noqa: ANN401 - any of the models
        if key not in self._loaded:
            self._leave_only(None)
            self._loaded[key] = load()
        self._leave_only(self._loaded[key])
        return self._loaded[key]

    def _leave_only(self, wanted: Any) -> None:  # noqa: ANN401 - any of the models
        """On a card that cannot hold them all, bring `wanted` and put the others into main memory."""
        if is_roomy(self.device):
            return
        for part in self._loaded.values():
            if part is not wanted:
                part.to(torch.device("cpu"))
        torch.cuda.empty_cache()
        if wanted is not None:
            wanted.to(self.device)
