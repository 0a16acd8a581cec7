"""What a render is conditioned on, as tensors that outlive the encoders."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from goan_cli.jobs.job import Sampling
from goan_cli.model.transformer import TextConditioning


@dataclass(frozen=True, kw_only=True)
class SectionConditioning:
    """What one section is conditioned on; `start_latent` is the picture that it looks at as the video's start."""

    positive: TextConditioning
    negative: TextConditioning | None
    image_embeds: Tensor
    start_latent: Tensor
    guidance_scale: float
    true_cfg_scale: float


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Text of both CFG branches (the negative one None where true CFG is off), image, and start latent.

    `image_embeds` `(1, s, d)` from SigLIP; `start_latent` and `end_latent` `(1, 16, 1, h, w)`, scaled, fp32.
    `controls` `(1, 16, n, h, w)` are the further pictures of one-frame inference, None without any.
    `video` `(1, 16, n, h, w)` are the latents of a video, in viewing order, that new sections go on from or lead up to.
    `sections`, in sampling order, take the place of the rest where sections are told different things; else empty.
    """

    positive: TextConditioning
    negative: TextConditioning | None
    image_embeds: Tensor
    start_latent: Tensor
    end_latent: Tensor | None = None
    video: Tensor | None = None
    controls: Tensor | None = None
    sections: tuple[SectionConditioning, ...] = ()

    def of(self, section: int, sampling: Sampling) -> SectionConditioning:
        """What a section, counted from 0 in sampling order, is conditioned on."""
        if self.sections:
            return self.sections[section]
        return SectionConditioning(
            positive=self.positive,
            negative=self.negative,
            image_embeds=self.image_embeds,
            start_latent=self.start_latent,
            guidance_scale=sampling.guidance_scale,
            true_cfg_scale=sampling.true_cfg_scale,
        )


def blended(earlier: TextConditioning, later: TextConditioning, share: float) -> TextConditioning:
    """Two prompts in one, `share` (0 to 1) of it the later: row by row, the shorter one followed by zeros."""
    rows = max(earlier.embeds.shape[1], later.embeds.shape[1])
    first, second = (F.pad(each.embeds, (0, 0, 0, rows - each.embeds.shape[1])) for each in (earlier, later))
    return TextConditioning(
        embeds=torch.lerp(first, second, share), pooled=torch.lerp(earlier.pooled, later.pooled, share)
    )


def placed(text: TextConditioning, device: torch.device, dtype: torch.dtype) -> TextConditioning:
    """The same conditioning on a device, in a dtype."""
    return TextConditioning(embeds=text.embeds.to(device, dtype), pooled=text.pooled.to(device, dtype))
