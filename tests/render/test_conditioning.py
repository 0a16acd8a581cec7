"""Conditioning tensors, placed on a device."""

import torch

from goan_cli.model.transformer import TextConditioning
from goan_cli.render.conditioning import placed


def test_placed() -> None:
    """Text moves to a device and a dtype as a whole; the original stays as it was."""
    text = TextConditioning(embeds=torch.ones(1, 2, 3), pooled=torch.ones(1, 4))
    moved = placed(text, torch.device("cpu"), torch.bfloat16)
    assert (moved.embeds.dtype, moved.pooled.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (text.embeds.dtype, text.pooled.dtype) == (torch.float32, torch.float32)
