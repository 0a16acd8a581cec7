"""What a render is conditioned on, as tensors that outlive the encoders."""

from dataclasses import dataclass

import torch
from torch import Tensor

from goan_cli.model.transformer import TextConditioning


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Text of both CFG branches (the negative one None where true CFG is off), image, and start latent.

    `image_embeds` `(1, s, d)` from SigLIP; `start_latent` `(1, 16, 1, h, w)`, scaled, fp32.
    """

    positive: TextConditioning
    negative: TextConditioning | None
    image_embeds: Tensor
    start_latent: Tensor


def without_padding(embeds: Tensor, mask: Tensor) -> Tensor:
    """Drop the rows that the mask `(1, n)` leaves out: at batch 1 the same as masking them."""
    return embeds[:, : int(mask.sum())]


def placed(text: TextConditioning, device: torch.device, dtype: torch.dtype) -> TextConditioning:
    """The same conditioning on a device, in a dtype."""
    return TextConditioning(embeds=text.embeds.to(device, dtype), pooled=text.pooled.to(device, dtype))
