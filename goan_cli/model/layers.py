"""Layers that the blocks are made of. Attribute names are the checkpoints' parameter names."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.model.attention import sdpa

EPS = 1e-6


class HeadNorm(nn.Module):
    """RMS norm over the head dimension, with a learned scale."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """`(..., head_dim)` to the same shape and dtype."""
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
            # torch has one kernel for it on CUDA; on a CPU it makes six passes, of which these two are enough.
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * (norm.square().div(x.shape[-1]).add(EPS).rsqrt() * self.weight)
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Modulation(nn.Module):
    """AdaLN: `parts` vectors of the token width from the conditioning vector."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, temb: Tensor) -> Tensor:
        """`(1, width)` to `(1, parts, width)`."""
        return rearrange(self.linear(F.silu(temb)), "b (parts width) -> b parts width", parts=self.parts)


class _Projection(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class FeedForward(nn.Module):
    """Two linears with tanh-GELU (blocks) or SiLU (refiner) between them; named `net.0.proj` and `net.2`."""

    def __init__(self, width: int, inner: int, *, silu: bool = False) -> None:
        super().__init__()
        self.silu = silu
        # The middle place is upstream's dropout, which has no parameters.
        self.net = nn.ModuleList([_Projection(width, inner), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x: Tensor) -> Tensor:
        """`(1, tokens, width)` to the same shape."""
        x = self.net[0](x)
        x = F.silu(x) if self.silu else F.gelu(x, approximate="tanh")
        return self.net[2](x)


class Qkv(nn.Module):
    """Query, key and value of the image (or joint) stream, with optional norms over each head."""

    def __init__(self, width: int, heads: int, *, norms: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.norm_q = HeadNorm(width // heads) if norms else nn.Identity()
        self.norm_k = HeadNorm(width // heads) if norms else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(1, tokens, width)` to three `(1, tokens, heads, head_dim)`, queries and keys normed."""
        query = split_heads(self.to_q(x), self.heads)
        key = split_heads(self.to_k(x), self.heads)
        return self.norm_q(query), self.norm_k(key), split_heads(self.to_v(x), self.heads)


class SelfAttention(Qkv):
    """Plain self-attention with an output projection (the token refiner's)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, norms=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """`(1, tokens, width)` to the same shape."""
        return self.to_out[0](sdpa(*self.project(x)))


class JointAttention(Qkv):
    """The double block's attention: image and text have weights of their own and attend jointly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, norms=True)
        self.add_q_proj = nn.Linear(width, width)
        self.add_k_proj = nn.Linear(width, width)
        self.add_v_proj = nn.Linear(width, width)
        self.norm_added_q = HeadNorm(width // heads)
        self.norm_added_k = HeadNorm(width // heads)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_add_out = nn.Linear(width, width)

    def project_text(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `project`, for the text stream."""
        query = split_heads(self.add_q_proj(x), self.heads)
        key = split_heads(self.add_k_proj(x), self.heads)
        return self.norm_added_q(query), self.norm_added_k(key), split_heads(self.add_v_proj(x), self.heads)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`(1, tokens, width)` to `(1, tokens, heads, head_dim)`."""
    return x.unflatten(-1, (heads, -1))  # not einops, through which compilers trace for seconds


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm over the width of `(1, tokens, width)`, then scale and shift, both `(1, width)`."""
    if len(x) == 1:
        # As the norm's own weight and bias: one pass over the tokens instead of three, and one rounding.
        return F.layer_norm(x, x.shape[-1:], (1 + scale).flatten(), shift.flatten(), EPS)
    return torch.addcmul(shift.unsqueeze(1), F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale.unsqueeze(1))


def add_gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """`x + update * gate` in one pass: both `(1, tokens, width)`, the gate `(1, width)`."""
    return torch.addcmul(x, update, gate.unsqueeze(1))


def linear_of_both(linear: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """`linear` of `first` and `second` `(1, tokens, ...)` side by side, mostly without putting them there.

    Rounded twice where the linear of their concatenation is rounded once.
    """
    if not isinstance(linear, nn.Linear) or torch.compiler.is_compiling():
        # A compiler fuses the concatenation; a quantised linear scales whole rows.
        return linear(torch.cat((first, second), dim=-1))
    columns = first.shape[-1]
    out = F.linear(first, linear.weight[:, :columns], linear.bias).flatten(0, 1)
    return out.addmm_(second.flatten(0, 1), linear.weight[:, columns:].T).unflatten(0, first.shape[:2])
