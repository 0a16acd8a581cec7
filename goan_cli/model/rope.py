"""Rotary position embedding of the packed sequence: tables per section, applied in fp32.

Tables hold one cosine and one sine per (real, imaginary) pair.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from goan_cli.model.config import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Cosine and sine of every token's position side by side: `(tokens, head_dim / 2, 2)` in fp32."""

    table: Tensor

    def __len__(self) -> int:
        return len(self.table)

    @property
    def cos(self) -> Tensor:
        """`(tokens, head_dim / 2)`."""
        return self.table[..., 0]

    @property
    def sin(self) -> Tensor:
        """`(tokens, head_dim / 2)`."""
        return self.table[..., 1]

    def with_text(self, tokens: int) -> "Rope":
        """The same tables followed by `tokens` text rows, which are not rotated."""
        still = self.table.new_zeros((tokens, *self.table.shape[1:]))
        still[..., 0].fill_(1.0)  # made on the device: a copy from the host would wait for it, at every step
        return Rope(table=torch.cat((self.table, still)))

    def rows(self, kept: slice) -> "Rope":
        """The tables of some of the tokens."""
        return Rope(table=self.table[kept])


def joined(parts: Sequence[Rope]) -> Rope:
    """Several stretches of tokens one after another."""
    return Rope(table=torch.cat([part.table for part in parts]))


def rope_table(config: TransformerConfig, frames: Tensor, rows: int, columns: int, pool: int = 1) -> Rope:
    """Tables for latent frame indices `(frames,)` and a grid of `rows` x `columns` tokens at full resolution.

    With `pool` 2 or 4 the tables are padded by replication and averaged, to meet the clean-latent patches.
    """
    device = frames.device
    grid = torch.meshgrid(
        frames.float(),
        torch.arange(rows, device=device, dtype=torch.float32),
        torch.arange(columns, device=device, dtype=torch.float32),
        indexing="ij",
    )
    angles = []
    for positions, size in zip(grid, config.rope_axes_dim, strict=True):
        steps = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
        angles.append(positions.unsqueeze(-1) * (1.0 / config.rope_theta**steps))
    angle = rearrange(torch.cat(angles, dim=-1), "frames rows columns pairs -> 1 pairs frames rows columns")
    cos, sin = _pooled(angle.cos(), pool), _pooled(angle.sin(), pool)
    flat = "1 pairs frames rows columns -> (frames rows columns) pairs"
    return Rope(table=torch.stack((rearrange(cos, flat), rearrange(sin, flat)), dim=-1))


def _pooled(table: Tensor, pool: int) -> Tensor:
    return table if pool == 1 else F.avg_pool3d(pad_to_multiple(table, (pool, pool, pool)), pool)


def pad_to_multiple(x: Tensor, kernel: tuple[int, int, int]) -> Tensor:
    """Pad `(1, c, frames, rows, columns)` by replication at the end of each axis to a multiple of `kernel`."""
    frames, rows, columns = (-size % step for size, step in zip(x.shape[2:], kernel, strict=True))
    return F.pad(x, (0, columns, 0, rows, 0, frames), mode="replicate") if frames or rows or columns else x


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate `(1, tokens, heads, head_dim)` by its tokens' positions; computed in fp32, returned in x's dtype."""
    # Not by einops, through which compilers trace for seconds.
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which does not take complex numbers
        real, imaginary = pairs.unbind(-1)
        cos, sin = rope.cos.unsqueeze(1), rope.sin.unsqueeze(1)
        rotated = torch.stack((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)
    else:
        # A product of complex numbers is one pass over the tokens; its parts one by one are ten.
        turn = torch.view_as_complex(rope.table).unsqueeze(1)
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * turn)
    return rotated.flatten(-2).to(x.dtype)
