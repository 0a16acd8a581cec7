"""A rough picture straight from latents, without the VAE: a linear map found for HunyuanVideo by ComfyUI."""

import torch
from einops import rearrange
from torch import Tensor

_RGB_OF_CHANNEL = (
    (-0.0395, -0.0331, 0.0445),
    (0.0696, 0.0795, 0.0518),
    (0.0135, -0.0945, -0.0282),
    (0.0108, -0.0250, -0.0765),
    (-0.0209, 0.0032, 0.0224),
    (-0.0804, -0.0254, -0.0639),
    (-0.0991, 0.0271, -0.0669),
    (-0.0646, -0.0422, -0.0400),
    (-0.0696, -0.0595, -0.0894),
    (-0.0799, -0.0208, -0.0375),
    (0.1166, 0.1627, 0.0962),
    (0.1165, 0.0432, 0.0407),
    (-0.2315, -0.1920, -0.1355),
    (-0.0270, 0.0401, -0.0821),
    (-0.0616, -0.0997, -0.0727),
    (0.0249, -0.0469, -0.1703),
)
_BIAS = (0.0259, -0.0192, -0.0761)


def latents_to_rgb(latents: Tensor) -> Tensor:
    """`(1, 16, frames, h, w)` scaled latents to `(1, 3, frames, h, w)` in [0, 1], fp32."""
    weight = torch.tensor(_RGB_OF_CHANNEL, device=latents.device)
    bias = torch.tensor(_BIAS, device=latents.device).view(1, 3, 1, 1, 1)
    return (torch.einsum("bcthw,cr->brthw", latents.float(), weight) + bias).clamp(0, 1)


def filmstrip(latents: Tensor) -> Tensor:
    """All frames side by side as one uint8 picture `(h, frames x w, 3)`."""
    rgb = latents_to_rgb(latents)
    return (rearrange(rgb, "1 c t h w -> h (t w) c") * 255).round().to(torch.uint8).cpu()
