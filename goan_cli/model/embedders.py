"""What comes before the blocks: patches, clean latents, timestep and text conditioning, the token refiner."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.model.config import TransformerConfig
from goan_cli.model.layers import EPS, FeedForward, Modulation, SelfAttention, add_gated
from goan_cli.model.rope import pad_to_multiple

SINUSOID_WIDTH = 256
_LONGEST_PERIOD = 10_000


class PatchEmbed(nn.Module):
    """Noisy latents to tokens, a patch of 1 x 2 x 2 each."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(config.in_channels, config.width, (1, 2, 2), (1, 2, 2))

    def forward(self, latents: Tensor) -> Tensor:
        """`(1, 16, frames, h, w)` to `(1, tokens, width)`."""
        return _tokens(self.proj(latents))


class CleanPatchEmbed(nn.Module):
    """History latents to tokens: near ones at full resolution, farther ones packed 2x and 4x."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        channels, width = config.in_channels, config.width
        self.proj = nn.Conv3d(channels, width, (1, 2, 2), (1, 2, 2))
        self.proj_2x = nn.Conv3d(channels, width, (2, 4, 4), (2, 4, 4))
        self.proj_4x = nn.Conv3d(channels, width, (4, 8, 8), (4, 8, 8))

    def forward(self, latents: Tensor, pool: int) -> Tensor:
        """`(1, 16, frames, h, w)` to `(1, tokens, width)` by the patch of `pool` 1, 2 or 4."""
        proj = {1: self.proj, 2: self.proj_2x, 4: self.proj_4x}[pool]
        kernel = (pool, 2 * pool, 2 * pool)
        return _tokens(proj(pad_to_multiple(latents, kernel)))


class ImageProjection(nn.Module):
    """SigLIP features to tokens of the text stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.image_proj_dim, 3 * config.width)
        self.down = nn.Linear(3 * config.width, config.width)

    def forward(self, features: Tensor) -> Tensor:
        """`(1, n, image_proj_dim)` to `(1, n, width)`."""
        return self.down(F.silu(self.up(features)))


class TwoLinears(nn.Module):
    """Linear, SiLU, linear: how every scalar and pooled vector becomes a conditioning vector."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(size, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`(1, size)` to `(1, width)`."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TimeTextEmbed(nn.Module):
    """The conditioning vector: timestep, pooled text and (outside the refiner) guidance, summed."""

    def __init__(self, pooled: int, width: int, *, guidance: bool) -> None:
        super().__init__()
        self.timestep_embedder = TwoLinears(SINUSOID_WIDTH, width)
        if guidance:
            self.guidance_embedder = TwoLinears(SINUSOID_WIDTH, width)
        self.text_embedder = TwoLinears(pooled, width)

    def forward(self, timestep: Tensor, pooled: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Timestep and guidance `(1,)`, both times 1000, and pooled text `(1, d)`, to `(1, width)`."""
        out = self.timestep_embedder(sinusoid(timestep).to(pooled.dtype))
        if guidance is not None:
            out = out + self.guidance_embedder(sinusoid(guidance).to(pooled.dtype))
        return out + self.text_embedder(pooled)


class _RefinerBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = SelfAttention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.ff = FeedForward(width, config.mlp_width, silu=True)
        self.norm_out = Modulation(width, 2)

    def forward(self, text: Tensor, temb: Tensor) -> Tensor:
        gate_attention, gate_mlp = self.norm_out(temb).unbind(1)
        text = add_gated(text, self.attn(self.norm1(text)), gate_attention)
        return add_gated(text, self.ff(self.norm2(text)), gate_mlp)


class _RefinerBlocks(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.refiner_blocks = nn.ModuleList([_RefinerBlock(config) for _ in range(config.num_refiner_layers)])


class TokenRefiner(nn.Module):
    """Llama features to text tokens, refined for the timestep."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.time_text_embed = TimeTextEmbed(config.text_embed_dim, config.width, guidance=False)
        self.proj_in = nn.Linear(config.text_embed_dim, config.width)
        self.token_refiner = _RefinerBlocks(config)

    def forward(self, features: Tensor, timestep: Tensor) -> Tensor:
        """`(1, n, text_embed_dim)`, padding cropped away, to `(1, n, width)`."""
        # The mean in fp32, as the masked mean upstream is.
        temb = self.time_text_embed(timestep, features.float().mean(dim=1).to(features.dtype))
        text = self.proj_in(features)
        for block in self.token_refiner.refiner_blocks:
            text = block(text, temb)
        return text


def sinusoid(values: Tensor) -> Tensor:
    """`(1,)` to `(1, 256)` in fp32: cosines, then sines, of geometrically spaced frequencies."""
    half = SINUSOID_WIDTH // 2
    exponent = -math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=values.device) / half
    # Guidance reaches 10,000, where one unit in the last place of a frequency turns the angle by 6e-4. CPUs
    # differ in that place of fp32 `exp`, so it is taken in fp64 and rounded: the same on every machine.
    angles = values.float().unsqueeze(-1) * exponent.double().exp().float()
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def _tokens(patches: Tensor) -> Tensor:
    return rearrange(patches, "b width frames rows columns -> b (frames rows columns) width")
