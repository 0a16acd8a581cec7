"""The parts of one pack, each loaded once, and on a small card only the one at work on the device."""

from collections.abc import Collection
from typing import Any, Protocol

import torch

from goan_cli.model.pack import Pack
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import WeightStore, load_transformer
from goan_cli.render.device import Precision, is_roomy
from goan_cli.render.image import ImageEncoder
from goan_cli.render.loading import load_vae
from goan_cli.render.text import TextEncoders


class _Movable(Protocol):
    def to(self, device: torch.device) -> object: ...


class Parts:
    """A pack's models, loaded when first asked for."""

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.pack = pack
        self.device = device
        self.precision = precision
        self._text: TextEncoders | None = None
        self._image: ImageEncoder | None = None
        self._vae: Any = None
        self._transformer: tuple[PackedTransformer, WeightStore] | None = None
        self._base_identity: str | None = None

    def text_encoders(self) -> TextEncoders:
        """Llama and CLIP, on the device."""
        if self._text is None:
            self._make_room(None)
            self._text = TextEncoders(
                llama=self.pack.text_encoder,
                tokenizer=self.pack.tokenizer,
                clip=self.pack.text_encoder_2,
                clip_tokenizer=self.pack.tokenizer_2,
                device=self.device,
                dtype=self.precision.encoders,
            )
        self._make_room(self._text)
        return self._text

    def image_encoder(self) -> ImageEncoder:
        """SigLIP, on the device."""
        if self._image is None:
            self._make_room(None)
            self._image = ImageEncoder(
                model=self.pack.image_encoder,
                processor=self.pack.feature_extractor,
                device=self.device,
                dtype=self.precision.encoders,
            )
        self._make_room(self._image)
        return self._image

    def vae(self) -> Any:  # noqa: ANN401 - diffusers is untyped here
        """The VAE, on the device."""
        if self._vae is None:
            self._make_room(None)
            self._vae = load_vae(self.pack.vae, self.device, self.precision.encoders)
        self._make_room(self._vae)
        return self._vae

    @property
    def has_transformer(self) -> bool:
        """Whether the transformer is loaded."""
        return self._transformer is not None

    def base_identity(self) -> str:
        """What tells this transformer's checkpoint from others."""
        if self._base_identity is None:
            self._base_identity = self.pack.identity_of("transformer")
        return self._base_identity

    def transformer(self, *, unread: Collection[str] = ()) -> tuple[PackedTransformer, WeightStore]:
        """The packed transformer, on the device, and the store of its pristine weights.

        If it is loaded only now, the parameters in `unread` are left for a bake to fill.
        """
        if self._transformer is None:
            self._make_room(None)
            self._transformer = load_transformer(
                self.pack.transformer, device=self.device, dtype=self.precision.transformer, unread=unread
            )
        self._make_room(self._transformer[0])
        return self._transformer

    def _make_room(self, wanted: _Movable | None) -> None:
        """On a card that cannot hold them all, bring `wanted` and put the others into main memory."""
        if is_roomy(self.device):
            return
        transformer = self._transformer[0] if self._transformer else None
        for part in (self._text, self._image, self._vae, transformer):
            if part is not None and part is not wanted:
                part.to(torch.device("cpu"))
        torch.cuda.empty_cache()
        if wanted is not None:
            wanted.to(self.device)
