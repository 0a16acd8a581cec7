"""The parts of packs, each loaded once, and on a small card only the one at work on the device."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import torch

from goan_cli.model.pack import Pack
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import WeightStore, load_transformer
from goan_cli.render.device import Precision, is_roomy
from goan_cli.render.image import ImageEncoder
from goan_cli.render.loading import load_vae
from goan_cli.render.text import TextEncoders

# A kind of part and the folders that it was loaded from: packs that share folders share the part.
_Key = tuple[str, *tuple[Path, ...]]
_TEXT, _TRANSFORMER = "text encoders", "transformer"


class Parts:
    """Models, loaded when first asked for; of transformers, which fill the memory, one at a time."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.precision = precision
        self._loaded: dict[_Key, Any] = {}
        self._store: WeightStore | None = None

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
            )

        key: _Key = (_TEXT, pack.text_encoder, pack.tokenizer, pack.text_encoder_2, pack.tokenizer_2)
        return cast("TextEncoders", self._part(key, load))

    def image_encoder(self, pack: Pack) -> ImageEncoder:
        """SigLIP, on the device."""

        def load() -> ImageEncoder:
            return ImageEncoder(
                model=pack.image_encoder,
                processor=pack.feature_extractor,
                device=self.device,
                dtype=self.precision.encoders,
            )

        return cast("ImageEncoder", self._part(("image encoder", pack.image_encoder, pack.feature_extractor), load))

    def vae(self, pack: Pack) -> Any:  # noqa: ANN401 - diffusers is untyped here
        """The VAE, on the device."""
        return self._part(("vae", pack.vae), lambda: load_vae(pack.vae, self.device, self.precision.encoders))

    def has_transformer(self, pack: Pack) -> bool:
        """Whether the pack's transformer is loaded."""
        return (_TRANSFORMER, pack.transformer) in self._loaded

    def transformer(self, pack: Pack, *, unread: Collection[str] = ()) -> tuple[PackedTransformer, WeightStore]:
        """The packed transformer, on the device, and the store of its pristine weights.

        If it is loaded only now, another pack's is let go, and the parameters in `unread` are left for a bake.
        """

        def load() -> PackedTransformer:
            self._forget(_TRANSFORMER)
            model, self._store = load_transformer(
                pack.transformer, device=self.device, dtype=self.precision.transformer, unread=unread
            )
            return model

        model = cast("PackedTransformer", self._part((_TRANSFORMER, pack.transformer), load))
        return model, cast("WeightStore", self._store)

    def forget_text_encoders(self) -> None:
        """Let go of the largest parts besides the transformer, once every prompt is encoded."""
        self._forget(_TEXT)

    def _forget(self, kind: str) -> None:
        for key in [key for key in self._loaded if key[0] == kind]:
            del self._loaded[key]

    def _part(self, key: _Key, load: Callable[[], Any]) -> Any:  # noqa: ANN401 - any of the models
        if key not in self._loaded:
            self._make_room(None)
            self._loaded[key] = load()
        self._make_room(self._loaded[key])
        return self._loaded[key]

    def _make_room(self, wanted: Any) -> None:  # noqa: ANN401 - any of the models
        """On a card that cannot hold them all, bring `wanted` and put the others into main memory."""
        if is_roomy(self.device):
            return
        for part in self._loaded.values():
            if part is not wanted:
                part.to(torch.device("cpu"))
        torch.cuda.empty_cache()
        if wanted is not None:
            wanted.to(self.device)
