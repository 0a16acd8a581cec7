"""The two kinds of transformer block. Image tokens come before text tokens everywhere.

A block's AdaLN is not run here: what it makes of a timestep is the same in every section, and comes ready-made.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.model.attention import Attend
from goan_cli.model.config import TransformerConfig
from goan_cli.model.layers import (
    FeedForward,
    JointAttention,
    Modulation,
    Qkv,
    add_gated,
    linear_of_both,
    modulate,
    split_heads,
)
from goan_cli.model.rope import Rope, apply_rope


class DoubleBlock(nn.Module):
    """Dual-stream block: separate weights for image and text, one joint attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_width
        self.norm1 = Modulation(width, 6)
        self.norm1_context = Modulation(width, 6)
        self.attn = JointAttention(width, config.num_attention_heads)
        self.ff = FeedForward(width, inner)
        self.ff_context = FeedForward(width, inner)

    def forward(
        self, image: Tensor, text: Tensor, modulation: Tensor, text_modulation: Tensor, rope: Rope, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """Image `(1, n, width)` and text `(1, m, width)` to the same shapes.

        What `norm1` and `norm1_context` make of the timestep is `(1, 6, width)` each; `rope` has n rows.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(1)
        text_shift_a, text_scale_a, text_gate_a, text_shift_m, text_scale_m, text_gate_m = text_modulation.unbind(1)

        image_out, text_out = self._attended(
            modulate(image, shift_a, scale_a), modulate(text, text_shift_a, text_scale_a), rope, attend
        )
        image = add_gated(image, image_out, gate_a)
        text = add_gated(text, text_out, text_gate_a)
        del image_out, text_out  # the MLP is where a block holds the most
        image = add_gated(image, self.ff(modulate(image, shift_m, scale_m)), gate_m)
        text = add_gated(text, self.ff_context(modulate(text, text_shift_m, text_scale_m)), text_gate_m)
        return image, text

    def _attended(self, image: Tensor, text: Tensor, rope: Rope, attend: Attend) -> tuple[Tensor, Tensor]:
        """Joint attention of both normed streams, projected."""
        query, key, value = self.attn.project(image)
        text_query, text_key, text_value = self.attn.project_text(text)
        attended = attend(
            torch.cat((apply_rope(query, rope), text_query), dim=1),
            torch.cat((apply_rope(key, rope), text_key), dim=1),
            torch.cat((value, text_value), dim=1),
        )
        image_out, text_out = attended.split((image.shape[1], text.shape[1]), dim=1)
        return self.attn.to_out[0](image_out), self.attn.to_add_out(text_out)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The tokens `(1, k, width)` that are looked at after the last block, and their positions.

    Views of all tokens rather than bounds of them: compiled code takes views of any size, and bounds as constants.
    """

    tokens: Tensor
    rope: Rope


class SingleBlock(nn.Module):
    """Single-stream block: attention and MLP in parallel from one norm, over image and text together."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_width
        self.norm = Modulation(width, 3)
        self.attn = Qkv(width, config.num_attention_heads, norms=True)
        self.proj_mlp = nn.Linear(width, inner)
        self.proj_out = nn.Linear(width + inner, width)

    def forward(
        self, tokens: Tensor, modulation: Tensor, rope: Rope, attend: Attend, kept: Kept | None = None
    ) -> Tensor:
        """Tokens `(1, n + m, width)` to the same shape, or those `kept` of them where the others are not looked at.

        What `norm` makes of the timestep is `(1, 3, width)`; `rope` has n + m rows (see `Rope.with_text`).
        """
        shift, scale, gate = modulation.unbind(1)
        normed = modulate(tokens, shift, scale)
        key = apply_rope(self.attn.norm_k(split_heads(self.attn.to_k(normed), self.attn.heads)), rope)
        value = split_heads(self.attn.to_v(normed), self.attn.heads)
        if kept is not None:
            tokens, rope = kept.tokens, kept.rope
            normed = modulate(tokens, shift, scale)
        query = apply_rope(self.attn.norm_q(split_heads(self.attn.to_q(normed), self.attn.heads)), rope)
        attended = attend(query, key, value)
        del query, key, value  # the MLP is where a block holds the most
        mlp = F.gelu(self.proj_mlp(normed), approximate="tanh")
        return add_gated(tokens, linear_of_both(self.proj_out, attended, mlp), gate)
