"""The packed transformer: one forward over the clean history, the noisy section and the text.

Parameter names are exactly those of the FramePack checkpoints. Renders have a batch size of 1 and need no masks; a
training batch shares positions and text length, and needs none either: 1 in the shapes here may be b.
Source: FramePack (arXiv 2504.12626) on HunyuanVideo (arXiv 2412.03603).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from goan_cli.model.blocks import DoubleBlock, SingleBlock
from goan_cli.model.config import TransformerConfig
from goan_cli.model.embedders import CleanPatchEmbed, ImageProjection, PatchEmbed, TimeTextEmbed, TokenRefiner
from goan_cli.model.layers import Modulation, modulate
from goan_cli.model.rope import Rope, joined, rope_table
from goan_cli.model.step_cache import TeaCache


@dataclass(frozen=True, kw_only=True)
class CleanLatents:
    """History at one resolution: latents `(1, 16, n, h, w)`, indices `(n,)`, packed by `pool` 1, 2 or 4."""

    latents: Tensor
    indices: Tensor
    pool: int


@dataclass(frozen=True, kw_only=True)
class SectionContext:
    """What stays the same for all steps of a section.

    `clean_tokens` `(1, c, width)` in the order 4x, 2x, 1x; `image_tokens` `(1, s, width)`; `rope` for the
    clean and the noisy tokens together.
    """

    clean_tokens: Tensor
    image_tokens: Tensor
    rope: Rope


@dataclass(frozen=True, kw_only=True)
class TextConditioning:
    """One CFG branch's text: Llama features `(1, n, d)` without padding, and pooled CLIP `(1, p)`."""

    embeds: Tensor
    pooled: Tensor


class PackedTransformer(nn.Module):
    """The FramePack DiT. `context_for` once a section, then `forward` every step."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config)
        self.clean_x_embedder = CleanPatchEmbed(config)
        self.context_embedder = TokenRefiner(config)
        self.image_projection = ImageProjection(config)
        self.time_text_embed = TimeTextEmbed(config.pooled_projection_dim, config.width, guidance=True)
        self.transformer_blocks = nn.ModuleList([DoubleBlock(config) for _ in range(config.num_layers)])
        self.single_transformer_blocks = nn.ModuleList([SingleBlock(config) for _ in range(config.num_single_layers)])
        self.norm_out = Modulation(config.width, 2)
        self.proj_out = nn.Linear(config.width, 4 * config.out_channels)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the blocks; the final projection may be wider."""
        return self.x_embedder.proj.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.x_embedder.proj.weight.device

    def context_for(
        self,
        *,
        latent_indices: Tensor,
        latent_size: tuple[int, int],
        clean: Sequence[CleanLatents],
        image_embeds: Tensor,
    ) -> SectionContext:
        """Embed a section's history and image, and lay out its positions.

        `latent_indices` `(frames,)` of the noisy latents; `latent_size` their (h, w); `clean` in any order;
        `image_embeds` `(1, s, image_proj_dim)` from SigLIP.
        """
        rows, columns = latent_size[0] // 2, latent_size[1] // 2
        ordered = sorted(clean, key=lambda part: -part.pool)
        tokens = [self.clean_x_embedder(part.latents.to(self.device, self.dtype), part.pool) for part in ordered]
        tables = [rope_table(self.config, part.indices.to(self.device), rows, columns, part.pool) for part in ordered]
        noisy = rope_table(self.config, latent_indices.to(self.device), rows, columns)
        none = torch.zeros((len(image_embeds), 0, self.config.width), device=self.device, dtype=self.dtype)
        return SectionContext(
            clean_tokens=torch.cat([none, *tokens], dim=1),
            image_tokens=self.image_projection(image_embeds.to(self.device, self.dtype)),
            rope=joined([*tables, noisy]),
        )

    def forward(
        self,
        latents: Tensor,
        *,
        timestep: Tensor,
        guidance: Tensor,
        text: TextConditioning,
        context: SectionContext,
        cache: TeaCache | None = None,
    ) -> Tensor:
        """Velocity of the noisy latents `(1, 16, frames, h, w)`, same shape, in the final projection's dtype.

        `timestep` is 1000 sigma and `guidance` 1000 times the distilled scale, both `(1,)`.
        """
        noisy = self.x_embedder(latents)
        image = torch.cat((context.clean_tokens, noisy), dim=1)
        temb = self.time_text_embed(timestep, text.pooled, guidance)

        residual = None
        if cache is not None:
            first = cast("DoubleBlock", self.transformer_blocks[0])
            residual = cache.residual_to_reuse(first.modulated_input(image, temb))
        if residual is None:
            out = self._blocks(image, self._text_tokens(text, timestep, context), temb, context.rope)
            if cache is not None:
                cache.keep(out - image)
        else:
            out = image + residual
        return self._unpatchify(out[:, -noisy.shape[1] :], temb, latents)

    def _text_tokens(self, text: TextConditioning, timestep: Tensor, context: SectionContext) -> Tensor:
        return torch.cat((context.image_tokens, self.context_embedder(text.embeds, timestep)), dim=1)

    def _blocks(self, image: Tensor, text: Tensor, temb: Tensor, rope: Rope) -> Tensor:
        for block in self.transformer_blocks:
            image, text = block(image, text, temb, rope)
        tokens = torch.cat((image, text), dim=1)
        joint_rope = rope.with_text(text.shape[1])
        for block in self.single_transformer_blocks:
            tokens = block(tokens, temb, joint_rope)
        return tokens[:, : image.shape[1]]

    def _unpatchify(self, tokens: Tensor, temb: Tensor, latents: Tensor) -> Tensor:
        scale, shift = self.norm_out(temb)
        tokens = modulate(tokens, shift, scale)
        patches = self.proj_out(tokens.to(self.proj_out.weight.dtype))
        return rearrange(
            patches,
            "b (t h w) (c ph pw) -> b c t (h ph) (w pw)",
            t=latents.shape[2],
            h=latents.shape[3] // 2,
            ph=2,
            pw=2,
        )
