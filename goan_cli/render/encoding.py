"""What a plan is conditioned on, encoded or taken from the cache; encoders load only for what is not in it."""

import hashlib
import json
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goan_cli.errors import InvalidInput
from goan_cli.files import digest_of
from goan_cli.model.transformer import TextConditioning
from goan_cli.packs.pack import Pack
from goan_cli.render.cache import EmbeddingCache
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.device import device_name
from goan_cli.render.events import Note, Stage
from goan_cli.render.image import fitted_pixels, posterior, start_latent
from goan_cli.render.parts import Parts
from goan_cli.render.plan import RenderPlan
from goan_cli.render.text import Truncation

# Counts up when the encoders are run in another way; entries of other versions are not looked at.
_VERSION = 2
_TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

InStage = Callable[[Stage], AbstractContextManager[None]]


class Encoding:
    """Encodes plans' prompts and images. `stage` times what it does, `tell` hears of words that were cut off."""

    def __init__(self, parts: Parts, cache: EmbeddingCache, *, stage: InStage, tell: Callable[[Note], None]) -> None:
        self._parts = parts
        self._cache = cache
        self._stage = stage
        self._tell = tell

    def conditioning_for(self, plan: RenderPlan) -> Conditioning:
        """Text of both CFG branches, image features, and the start latent that the plan's seed draws."""
        job, pack = plan.job, plan.pack
        positive = self._text(pack, "prompt", job.prompt)
        negative = None
        if job.sampling.true_cfg_scale != 1.0:
            negative = self._text(pack, "negative_prompt", job.negative_prompt)
        with self._stage(Stage.ENCODE):
            try:
                pixels = fitted_pixels(job.image, job.image_fit)
            except InvalidInput as error:
                raise InvalidInput(f"{job.image}: {error.message}", hint=error.hint) from error
        embeds = self._image(pack, pixels)
        mean, logvar, scale = self._posterior(pack, pixels)
        start = start_latent(mean, logvar, scale=scale, seed=job.sampling.seed)
        return Conditioning(positive=positive, negative=negative, image_embeds=embeds, start_latent=start)

    def _text(self, pack: Pack, what: str, prompt: str) -> TextConditioning:
        key = self._key(pack, _TEXT_PARTS, text=prompt)
        if (found := self._cached(key, ("embeds", "pooled"), ("cuts",))) is not None:
            tensors, texts = found
            cuts = tuple(Truncation(**cut) for cut in json.loads(texts["cuts"]))
            text = TextConditioning(embeds=tensors["embeds"], pooled=tensors["pooled"])
        else:
            with self._stage(Stage.LOAD):
                encoders = self._parts.text_encoders(pack)
            with self._stage(Stage.ENCODE):
                text, cuts = encoders.encode(prompt)
            noted = json.dumps([asdict(cut) for cut in cuts])
            self._keep(key, {"embeds": text.embeds, "pooled": text.pooled}, {"cuts": noted})
        for cut in cuts:
            self._tell(Note(text=f"{what}: {cut.encoder} cannot take its last {cut.dropped} tokens: {cut.words!r}"))
        return text

    def _image(self, pack: Pack, pixels: NDArray[np.uint8]) -> Tensor:
        key = self._key(pack, ("image_encoder", "feature_extractor"), pixels=_digest(pixels))
        if (found := self._cached(key, ("embeds",))) is not None:
            return found[0]["embeds"]
        with self._stage(Stage.LOAD):
            encoder = self._parts.image_encoder(pack)
        with self._stage(Stage.ENCODE):
            embeds = encoder.encode(pixels)
        self._keep(key, {"embeds": embeds}, {})
        return embeds

    def _posterior(self, pack: Pack, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor, float]:
        """Mean and log-variance of the VAE's posterior, and the scale of its latents."""
        key = self._key(pack, ("vae",), pixels=_digest(pixels))
        if (found := self._cached(key, ("mean", "logvar"), ("scale",))) is not None:
            tensors, texts = found
            return tensors["mean"], tensors["logvar"], float(texts["scale"])
        with self._stage(Stage.LOAD):
            vae = self._parts.vae(pack)
        with self._stage(Stage.ENCODE):
            mean, logvar = posterior(vae, pixels)
        scale = float(vae.config.scaling_factor)
        self._keep(key, {"mean": mean, "logvar": logvar}, {"scale": repr(scale)})
        return mean, logvar, scale

    def _keep(self, key: str, tensors: dict[str, Tensor], texts: dict[str, str]) -> None:
        kept_before = self._cache.keeps
        self._cache.write(key, tensors, texts)
        if kept_before and not self._cache.keeps:
            self._tell(Note(text="embeddings cannot be kept: the next run encodes again"))

    def _cached(
        self, key: str, tensors: Collection[str], texts: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """An entry that has all of these, else None: whatever else lies there is encoded anew."""
        found = self._cache.read(key)
        complete = found is not None and set(tensors) <= found[0].keys() and set(texts) <= found[1].keys()
        return found if complete else None

    def _key(self, pack: Pack, parts: tuple[str, ...], **content: str) -> str:
        """Everything that an embedding's bits depend on."""
        return digest_of(
            version=_VERSION,
            parts={part: pack.identity_of(part) for part in parts},
            device=device_name(self._parts.device),
            dtype=str(self._parts.precision.encoders),
            torch=torch.__version__,
            transformers=version("transformers"),
            diffusers=version("diffusers"),
            **content,
        )


def _digest(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
