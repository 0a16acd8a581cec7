"""The packed transformer: one forward over the clean history, the noisy section and the text.

Parameter names are exactly those of the FramePack checkpoints. Renders have a batch size of 1 and need no masks; a
training batch shares positions and text length, and needs none either: 1 in the shapes here may be b.
Source: FramePack (arXiv 2504.12626) on HunyuanVideo (arXiv 2412.03603).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from goan_cli.model.attention import Attend, sdpa
from goan_cli.model.blocks import DoubleBlock, Kept, SingleBlock
from goan_cli.model.calls import BlockCalls
from goan_cli.model.config import TransformerConfig
from goan_cli.model.embedders import CleanPatchEmbed, ImageProjection, PatchEmbed, TimeTextEmbed, TokenRefiner
from goan_cli.model.layers import Modulation, modulate
from goan_cli.model.rope import Rope, joined, rope_table
from goan_cli.model.step_cache import StepCache


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


@dataclass(frozen=True, kw_only=True)
class StepConditioning:
    """What a timestep, guidance and prompt come to: the same in every section, so made once for a job.

    AdaLN of the double blocks' image and text `(layers, 1, 6, width)`, of the single blocks
    `(layers, 1, 3, width)` and of the output `(1, 2, width)`; refined text `(1, n, width)`.
    """

    double: Tensor
    double_text: Tensor
    single: Tensor
    out: Tensor
    text_tokens: Tensor


class PackedTransformer(nn.Module):
    """The FramePack DiT: `step_conditionings` once a job, `context_for` once a section, `forward` every step.

    `block_source` yields the double blocks and then the single ones, each ready to run, None for the model's own;
    `calls` runs them, and `attend` is their attention. The weights behind `step_conditionings` may lie in main memory.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.block_source: Callable[[], Iterator[nn.Module]] | None = None
        self.calls = BlockCalls()
        self.attend: Attend = sdpa
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

    def own_blocks(self) -> Iterator[nn.Module]:
        """The blocks in order, where their weights are."""
        return chain(self.transformer_blocks, self.single_transformer_blocks)

    def step_conditionings(
        self, text: TextConditioning, timesteps: Sequence[Tensor], guidance: Tensor
    ) -> list[StepConditioning]:
        """One CFG branch's conditioning of each step; see `velocity_at` for `timesteps` and `guidance`.

        Each step is computed by itself, so that its bits do not depend on the others; each module's weights are
        brought to the device once, used for all steps, and not kept there.
        """
        device = self.device
        embed = _lent(self.time_text_embed, device)
        embedded = [embed(timestep, text.pooled, guidance) for timestep in timesteps]
        refine = _lent(self.context_embedder, device)
        refined = [refine(text.embeds, timestep) for timestep in timesteps]
        del embed, refine

        def modulated(modules: Sequence[nn.Module]) -> list[Tensor]:
            """For each step, what all modules make of it `(modules, 1, parts, width)`."""
            by_module = []
            for module in modules:
                modulation = _lent(module, device)
                by_module.append(torch.stack([modulation(temb) for temb in embedded]))
            return list(torch.stack(by_module, dim=1))

        doubles = [cast("DoubleBlock", block) for block in self.transformer_blocks]
        singles = [cast("SingleBlock", block) for block in self.single_transformer_blocks]
        return [
            StepConditioning(double=double, double_text=double_text, single=single, out=out[0], text_tokens=tokens)
            for double, double_text, single, out, tokens in zip(
                modulated([block.norm1 for block in doubles]),
                modulated([block.norm1_context for block in doubles]),
                modulated([block.norm for block in singles]),
                modulated([self.norm_out]),
                refined,
                strict=True,
            )
        ]

    def velocity_at(
        self,
        latents: Tensor,
        *,
        timestep: Tensor,
        guidance: Tensor,
        text: TextConditioning,
        context: SectionContext,
        cache: StepCache | None = None,
    ) -> Tensor:
        """One step without tables: `forward` with the conditioning of this timestep alone.

        `timestep` is 1000 sigma and `guidance` 1000 times the distilled scale, both `(1,)`.
        """
        (step,) = self.step_conditionings(text, [timestep], guidance)
        out: Tensor = self(latents, step=step, context=context, cache=cache)
        return out

    def forward(
        self, latents: Tensor, *, step: StepConditioning, context: SectionContext, cache: StepCache | None = None
    ) -> Tensor:
        """Velocity of the noisy latents `(1, 16, frames, h, w)`, same shape, in the final projection's dtype."""
        noisy = self.x_embedder(latents)
        image = torch.cat((context.clean_tokens, noisy), dim=1)

        residual = None
        if cache is not None:
            shift, scale, *_ = step.double[0].unbind(1)
            residual = cache.residual_to_reuse(lambda: modulate(image, shift, scale))
        if residual is None:
            out = self._blocks(image, step, context, kept=noisy.shape[1])
            if cache is not None:
                cache.keep(out - noisy)
        else:
            out = noisy + residual
        return self._unpatchify(out, step.out, latents)

    def _blocks(self, image: Tensor, step: StepConditioning, context: SectionContext, *, kept: int) -> Tensor:
        """All blocks over the packed image tokens and the text; returns the last `kept` of the image tokens."""
        text = torch.cat((context.image_tokens, step.text_tokens), dim=1)
        blocks, count = (self.block_source or self.own_blocks)(), image.shape[1]
        # The tables come first: a `zip` that ends with them has not asked for a block too many.
        for modulation, text_modulation, block in zip(step.double, step.double_text, blocks, strict=False):
            image, text = self.calls.double(block, image, text, modulation, text_modulation, context.rope, self.attend)
        tokens = torch.cat((image, text), dim=1)
        rope = context.rope.with_text(text.shape[1])
        rows, last = slice(count - kept, count), len(step.single) - 1
        for number, (modulation, block) in enumerate(zip(step.single, blocks, strict=False)):
            wanted = Kept(tokens=tokens[:, rows], rope=rope.rows(rows)) if number == last else None
            tokens = self.calls.single(block, tokens, modulation, rope, self.attend, wanted)
        next(blocks, None)  # a source that brings weights begins with the next step's
        return tokens

    def _unpatchify(self, tokens: Tensor, modulation: Tensor, latents: Tensor) -> Tensor:
        scale, shift = modulation.unbind(1)
        patches = self.proj_out(modulate(tokens, shift, scale).to(self.proj_out.weight.dtype))
        return rearrange(
            patches,
            "b (t h w) (c ph pw) -> b c t (h ph) (w pw)",
            t=latents.shape[2],
            h=latents.shape[3] // 2,
            ph=2,
            pw=2,
        )


def _lent(module: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """The module as a function whose weights are on `device`, for as long as the function is kept."""
    if all(parameter.device == device for parameter in module.parameters()):
        return module
    weights = {name: parameter.to(device) for name, parameter in module.named_parameters()}

    def call(*inputs: Tensor) -> Tensor:
        out: Tensor = functional_call(module, weights, inputs)
        return out

    return call
