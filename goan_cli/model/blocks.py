"""The two kinds of transformer block. Image tokens come before text tokens everywhere."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.model.config import TransformerConfig
from goan_cli.model.layers import FeedForward, JointAttention, Modulation, Qkv, attend, modulate
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

    def modulated_input(self, image: Tensor, temb: Tensor) -> Tensor:
        """What the image stream's attention sees: TeaCache's measure of how much a step changes."""
        shift, scale, *_ = self.norm1(temb)
        return modulate(image, shift, scale)

    def forward(self, image: Tensor, text: Tensor, temb: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Image `(1, n, width)` and text `(1, m, width)` to the same shapes; `rope` has n rows."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.norm1(temb)
        text_shift_a, text_scale_a, text_gate_a, text_shift_m, text_scale_m, text_gate_m = self.norm1_context(temb)

        query, key, value = self.attn.project(modulate(image, shift_a, scale_a))
        text_query, text_key, text_value = self.attn.project_text(modulate(text, text_shift_a, text_scale_a))
        attended = attend(
            torch.cat((apply_rope(query, rope), text_query), dim=1),
            torch.cat((apply_rope(key, rope), text_key), dim=1),
            torch.cat((value, text_value), dim=1),
        )
        image_out, text_out = attended.split((image.shape[1], text.shape[1]), dim=1)

        image = image + self.attn.to_out[0](image_out) * gate_a
        text = text + self.attn.to_add_out(text_out) * text_gate_a
        image = image + self.ff(modulate(image, shift_m, scale_m)) * gate_m
        text = text + self.ff_context(modulate(text, text_shift_m, text_scale_m)) * text_gate_m
        return image, text


class SingleBlock(nn.Module):
    """Single-stream block: attention and MLP in parallel from one norm, over image and text together."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_width
        self.norm = Modulation(width, 3)
        self.attn = Qkv(width, config.num_attention_heads, norms=True)
        self.proj_mlp = nn.Linear(width, inner)
        self.proj_out = nn.Linear(width + inner, width)

    def forward(self, tokens: Tensor, temb: Tensor, rope: Rope) -> Tensor:
        """Tokens `(1, n + m, width)` to the same shape; `rope` has n + m rows (see `Rope.with_text`)."""
        shift, scale, gate = self.norm(temb)
        normed = modulate(tokens, shift, scale)
        query, key, value = self.attn.project(normed)
        attended = attend(apply_rope(query, rope), apply_rope(key, rope), value)
        mlp = F.gelu(self.proj_mlp(normed), approximate="tanh")
        return tokens + self.proj_out(torch.cat((attended, mlp), dim=-1)) * gate
