"""What a plan is conditioned on, encoded or taken from the cache; encoders load only for what is not in it."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goan_cli.errors import InvalidInput
from goan_cli.files import digest_of
from goan_cli.jobs.clips import clip_frames, frame_filters
from goan_cli.jobs.directing import Direction, Picture
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.job import Job
from goan_cli.jobs.sections import Family
from goan_cli.media.ffmpeg import ffmpeg_version
from goan_cli.model.transformer import TextConditioning
from goan_cli.packs.pack import Pack
from goan_cli.render.cache import EmbeddingCache
from goan_cli.render.conditioning import Conditioning, SectionConditioning, blended
from goan_cli.render.device import device_name
from goan_cli.render.events import Note, Stage
from goan_cli.render.identity import content_of
from goan_cli.render.image import CLIP, clip_posterior, filled_pixels, fitted_pixels, posterior, start_latent
from goan_cli.render.parts import Parts
from goan_cli.render.plan import RenderPlan
from goan_cli.render.text import Truncation

# Counts up when the encoders are run in another way; entries of other versions are not looked at.
_VERSION = 2
_TEXT_PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")

InStage = Callable[[Stage], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class _Pixels:
    """A picture `(h, w, 3)` or frames `(n, h, w, 3)`, uint8, by a digest of what decides them; `read` may take long."""

    digest: str
    read: Callable[[], NDArray[np.uint8]]


class Encoding:
    """Encodes plans' prompts and images. `stage` times what it does, `tell` hears of words that were cut off."""

    def __init__(self, parts: Parts, cache: EmbeddingCache, *, stage: InStage, tell: Callable[[Note], None]) -> None:
        self._parts = parts
        self._cache = cache
        self._stage = stage
        self._tell = tell

    def conditioning_for(self, plan: RenderPlan) -> Conditioning:
        """Text of both CFG branches, image features, and the latents that the plan's seed draws of its pictures."""
        job, pack, seed = plan.job, plan.pack, plan.job.sampling.seed
        text = lru_cache(maxsize=None)(partial(self._text, pack))  # one tensor for a text that many sections are told
        positive = text("prompt", job.prompt)
        negative = text("negative_prompt", job.negative_prompt) if job.is_guided else None
        told = [_told(text, direction) for direction in job.directions] if job.is_directed else []
        embeds, start, video = self._beginning(plan)
        end = None
        if job.end is not None:
            with self._stage(Stage.ENCODE):
                pixels = _pixels(job.end.picture)
            last, end = self._seen(pack, pixels, seed, 1)
            embeds, end = torch.lerp(embeds, last, 0.5 * job.end.strength), job.end.strength * end
        return Conditioning(
            positive=positive,
            negative=negative,
            image_embeds=embeds,
            start_latent=start,
            end_latent=end,
            video=video,
            controls=self._controls(plan),
            sections=self._sections(plan, told, embeds, start),
        )

    def _controls(self, plan: RenderPlan) -> Tensor | None:
        """The latents of one-frame inference's further pictures, one behind another."""
        one = plan.job.one_frame
        if one is None or not one.controls:
            return None
        latents = []
        for number, control in enumerate(one.controls, start=2):  # after the start and an end
            with self._stage(Stage.ENCODE):
                pixels = _pixels(control.picture)
            mean, logvar, scale = self._posterior(plan.pack, pixels)
            latents.append(start_latent(mean, logvar, scale=scale, seed=plan.job.sampling.seed, picture=number))
        return torch.cat(latents, dim=2)

    def _beginning(self, plan: RenderPlan) -> tuple[Tensor, Tensor, Tensor | None]:
        """Features and latent of what the video begins from, and the latents of a video that is gone on with."""
        job, pack, seed = plan.job, plan.pack, plan.job.sampling.seed
        if job.extension is None:
            with self._stage(Stage.ENCODE):
                pixels = _start_pixels(job)
            return *self._seen(pack, pixels, seed, 0), None
        with self._stage(Stage.ENCODE):
            frames, first_frame = _clip_pixels(job.extension)
        mean, logvar, scale = self._posterior(pack, frames)
        video, first = start_latent(mean, logvar, scale=scale, seed=seed, picture=CLIP), self._image(pack, first_frame)
        if job.extension.family is Family.F1:
            return first, video[:, :, :1], video
        with self._stage(Stage.ENCODE):
            pixels = _start_pixels(job) if job.has_start else first_frame
        embeds, start = self._seen(pack, pixels, seed, 0)
        # The first latent stands for a single frame, as only a video's start does.
        return torch.lerp(embeds, first, 0.5), start, video[:, :, 1:]

    def _sections(
        self,
        plan: RenderPlan,
        told: Sequence[tuple[TextConditioning, TextConditioning | None]],
        embeds: Tensor,
        start: Tensor,
    ) -> tuple[SectionConditioning, ...]:
        """What each section is conditioned on; those without a picture of their own look at the start."""
        seen: dict[Picture | None, tuple[Tensor, Tensor]] = {None: (embeds, start)}
        sections = []
        for direction, (positive, negative) in zip(plan.job.directions, told, strict=bool(told)):
            if direction.image is not None and direction.image not in seen:
                with self._stage(Stage.ENCODE):
                    pixels = _pixels(direction.image)
                number = 1 + len(seen)  # after the start and the end
                seen[direction.image] = self._seen(plan.pack, pixels, plan.job.sampling.seed, number)
            image_embeds, start_latent = seen[direction.image]
            sections.append(
                SectionConditioning(
                    positive=positive,
                    negative=negative,
                    image_embeds=image_embeds,
                    start_latent=start_latent,
                    guidance_scale=direction.guidance_scale,
                    true_cfg_scale=direction.true_cfg_scale,
                )
            )
        return tuple(sections)

    def _seen(self, pack: Pack, pixels: _Pixels, seed: int, picture: int) -> tuple[Tensor, Tensor]:
        """A picture's features and its latent."""
        embeds = self._image(pack, pixels)
        mean, logvar, scale = self._posterior(pack, pixels)
        return embeds, start_latent(mean, logvar, scale=scale, seed=seed, picture=picture)

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

    def _image(self, pack: Pack, pixels: _Pixels) -> Tensor:
        key = self._key(pack, ("image_encoder", "feature_extractor"), pixels=pixels.digest)
        if (found := self._cached(key, ("embeds",))) is not None:
            return found[0]["embeds"]
        with self._stage(Stage.LOAD):
            encoder = self._parts.image_encoder(pack)
        with self._stage(Stage.ENCODE):
            embeds = encoder.encode(pixels.read())
        self._keep(key, {"embeds": embeds}, {})
        return embeds

    def _posterior(self, pack: Pack, pixels: _Pixels) -> tuple[Tensor, Tensor, float]:
        """Mean and log-variance of the VAE's posterior, and the scale of its latents."""
        key = self._key(pack, ("vae",), pixels=pixels.digest)
        if (found := self._cached(key, ("mean", "logvar"), ("scale",))) is not None:
            tensors, texts = found
            return tensors["mean"], tensors["logvar"], float(texts["scale"])
        with self._stage(Stage.LOAD):
            vae = self._parts.vae(pack)
        with self._stage(Stage.ENCODE):
            read = pixels.read()
            mean, logvar = (posterior if read.ndim == 3 else clip_posterior)(vae, read)
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


def _told(
    text: Callable[[str, str], TextConditioning], direction: Direction
) -> tuple[TextConditioning, TextConditioning | None]:
    """A section's text, of both CFG branches; `text` encodes what a key says."""
    positive = text("prompt", direction.prompt)
    if direction.share < 1:
        positive = blended(text("prompt", direction.earlier), positive, direction.share)
    negative = text("negative_prompt", direction.negative_prompt) if direction.true_cfg_scale != 1.0 else None
    return positive, negative


def _start_pixels(job: Job) -> _Pixels:
    if job.image is None:
        return _known(filled_pixels(job.start or "black", job.size, job.sampling.seed))
    return _pixels(Picture(path=job.image, fit=job.image_fit))


def _pixels(picture: Picture) -> _Pixels:
    try:
        return _known(fitted_pixels(picture.path, picture.fit))
    except InvalidInput as error:
        raise InvalidInput(f"{picture.path}: {error.message}", hint=error.hint) from error


def _known(pixels: NDArray[np.uint8]) -> _Pixels:
    digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return _Pixels(digest=digest, read=lambda: pixels)


def _clip_pixels(extension: Extension) -> tuple[_Pixels, _Pixels]:
    """The frames of a video that are encoded, and the first of them; decoded only where one is not in the cache."""
    clip, fit, seen = extension.clip, extension.fit, extension.seen
    content = content_of(clip.path)
    decisive = {"clip": content, "ffmpeg": ffmpeg_version(), "filters": frame_filters(clip, fit, *seen)}

    @cache
    def frames() -> NDArray[np.uint8]:
        found = np.stack(list(clip_frames(clip, fit, *seen)))
        if content_of(clip.path) != content:  # else what came of them would be kept as that of another file
            raise InvalidInput(f"{clip.path}: was changed while it was read")
        return found

    return (
        _Pixels(digest=digest_of(**decisive), read=frames),
        _Pixels(digest=digest_of(**decisive, frame=0), read=lambda: frames()[0]),
    )
