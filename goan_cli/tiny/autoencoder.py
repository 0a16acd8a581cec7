"""Trains the tiny pack's autoencoder: single pictures first, through its newest taps alone, then clips."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from goan_cli.tiny.training import SEED, LossPart, Schedule, seeded, train
from goan_cli.tiny.world import between, draw_blank_scene, draw_scene, render_clip, shape_masks

PICTURES = Schedule(name="autoencoder-pictures", steps=1000, matrix_rate=3e-3, vector_rate=3e-3)
CLIPS = Schedule(name="autoencoder-clips", steps=1200, matrix_rate=2e-3, vector_rate=1e-3, decay_from=0.3)
_WIDTHS = (16, 32, 48, 48)
# Four channels a group at the widest, as the real one has: of a picture of one colour a group's norm leaves nothing but
# the direction between its channels, which for two channels is a sign.
_NORM_GROUPS = 4
_PICTURES_A_STEP = 16
# Clips of a step by their length in frames, so that every step costs about the same.
_CLIPS_A_STEP = {5: 6, 9: 4, 13: 3}
_LENGTHS = tuple(_CLIPS_A_STEP)
# A shape covers a tenth of the picture; unweighted, the loss is the background's.
_SHAPE_WEIGHT = 11.0
_KL_WEIGHT = 1e-4
_LONGEST = 121
_VALIDATION_CLIPS = 24
# The share of clips that begin from nothing.
_BLANK = 1 / 6


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Clips `(b, 3, t, 64, 64)` in [-1, 1], what is to be decoded of them, and what the shapes cover.

    `target` is as large as `clip`; `masks` `(b, 1, t, 64, 64)`.
    """

    clip: Tensor
    target: Tensor
    masks: Tensor


def train_autoencoder(folder: Path) -> tuple[AutoencoderKLHunyuanVideo, dict[str, dict[str, float]]]:
    """The autoencoder with `scaling_factor` set, and the held-out figures of both its stages."""
    vae = empty_autoencoder()
    validation = _batch(seeded(0, stream=1), clips=_VALIDATION_CLIPS, frames=9, blank=0)
    blanks = _batch(seeded(1, stream=1), clips=_VALIDATION_CLIPS, frames=1, blank=1)
    with as_pictures(vae):
        pictures = Examples(
            clip=validation.clip[:, :, :1], target=validation.target[:, :, :1], masks=validation.masks[:, :, :1]
        )
        seen = train(vae, PICTURES, partial(_picture_parts, vae), partial(_validate, vae, pictures, blanks), folder)
    figures = train(vae, CLIPS, partial(_clip_parts, vae), partial(_validate, vae, validation, blanks), folder)
    vae.register_to_config(scaling_factor=round(1 / figures["deviation"], 6))
    return vae.eval(), {"pictures": seen, "clips": figures}


def empty_autoencoder() -> AutoencoderKLHunyuanVideo:
    """The untrained autoencoder: every residual branch starts at zero, and only a kernel's newest tap is not.

    A causal kernel whose older taps are zero treats each frame as a picture of its own.
    """
    torch.manual_seed(SEED)
    vae = AutoencoderKLHunyuanVideo(block_out_channels=_WIDTHS, layers_per_block=1, norm_num_groups=_NORM_GROUPS)
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, HunyuanVideoCausalConv3d):
                weight = module.conv.weight
                weight[:, :, -1] *= weight.shape[2] ** 0.5
                weight[:, :, :-1] = 0
            if name.endswith(("conv2.conv", "to_out.0")):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
    return vae


def psnr(mean_squared_error: Tensor) -> Tensor:
    """Peak signal to noise ratio in dB of pictures in [0, 1]."""
    return -10 * mean_squared_error.clamp_min(1e-10).log10()


@contextmanager
def as_pictures(vae: nn.Module) -> Iterator[None]:
    """Within, single frames go through two-dimensional convolutions: a third of the work, and equal."""
    convolutions = [module for module in vae.modules() if isinstance(module, HunyuanVideoCausalConv3d)]
    for module in convolutions:
        module.forward = partial(_newest_tap, module)
    try:
        yield
    finally:
        for module in convolutions:
            del module.forward


def _newest_tap(module: HunyuanVideoCausalConv3d, frames: Tensor) -> Tensor:
    reach = module.conv.kernel_size[1] // 2
    picture = F.pad(frames[:, :, 0], (reach,) * 4, mode="replicate")
    made = F.conv2d(picture, module.conv.weight[:, :, -1], module.conv.bias, module.conv.stride[1:])
    return rearrange(made, "b c h w -> b c 1 h w")


def _batch(generator: torch.Generator, *, clips: int, frames: int, blank: float = _BLANK) -> Examples:
    """Clips of which the share `blank` begins from nothing."""
    pictures, targets, masks = [], [], []
    for _ in range(clips):
        length = int(torch.randint(13, _LONGEST, (), generator=generator))
        from_nothing = between(generator, 0.0, 1.0) < blank
        scene = (draw_blank_scene if from_nothing else draw_scene)(generator, duration=length)
        clip = render_clip(scene, frames)
        pictures.append(clip)
        if from_nothing:
            # Noise does not fit into latents: its mean is asked for, which of a colour is the colour.
            clip = torch.cat((reduce(clip[:1], "t c h w -> t c 1 1", "mean").expand_as(clip[:1]), clip[1:]))
        targets.append(clip)
        masks.append(shape_masks(scene, frames))
    clip, target = (rearrange(torch.stack(made), "b t c h w -> b c t h w") * 2 - 1 for made in (pictures, targets))
    return Examples(clip=clip, target=target, masks=rearrange(torch.stack(masks), "b t h w -> b 1 t h w"))


def _picture_parts(vae: AutoencoderKLHunyuanVideo, step: int) -> list[LossPart]:
    generator = seeded(step, stream=2)
    examples = _batch(generator, clips=_PICTURES_A_STEP, frames=1)
    return [partial(_loss, vae, examples, generator, first=0)]


def _clip_parts(vae: AutoencoderKLHunyuanVideo, step: int) -> list[LossPart]:
    generator = seeded(step, stream=3)
    frames = _LENGTHS[step % len(_LENGTHS)]
    examples = _batch(generator, clips=_CLIPS_A_STEP[frames], frames=frames)
    # A renderer decodes from the middle of a video too: then the first latent stands for its newest frame alone.
    first = int(torch.randint(1, frames // 4 + 1, (), generator=generator)) if step % 2 else 0
    return [partial(_loss, vae, examples, generator, first=first)]


def _loss(vae: AutoencoderKLHunyuanVideo, examples: Examples, generator: torch.Generator, *, first: int) -> Tensor:
    """Weighted squared error of what is decoded from latent `first` on, and a little KL."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(examples.clip).latent_dist
        mean, deviation = posterior.mean.float(), (0.5 * posterior.logvar.float()).exp()
        latents = mean + deviation * torch.randn(mean.shape, generator=generator)
        decoded = vae.decode(latents[:, :, first:].bfloat16()).sample.float()
    weights = 1 + _SHAPE_WEIGHT * examples.masks[:, :, 4 * first :]
    error = (weights * (decoded - examples.target[:, :, 4 * first :]).square()).sum() / (3 * weights.sum())
    divergence = 0.5 * (mean.square() + deviation.square() - 1 - 2 * deviation.log()).mean()
    loss: Tensor = error + _KL_WEIGHT * divergence
    return loss


@torch.no_grad()
def _validate(vae: AutoencoderKLHunyuanVideo, examples: Examples, blanks: Examples) -> dict[str, float]:
    """PSNR in dB over whole frames (the mean over clips), over shapes and of blanks; the latents' deviation; fp32."""
    posterior = vae.encode(examples.clip).latent_dist
    error = (vae.decode(posterior.mean).sample.clamp(-1, 1) - examples.target).square() / 4
    empty = (vae.decode(vae.encode(blanks.clip).latent_dist.mean).sample.clamp(-1, 1) - blanks.target).square() / 4
    per_clip = psnr(reduce(error, "b c t h w -> b", "mean"))
    masks = examples.masks
    return {
        "psnr": per_clip.mean().item(),
        "psnr_worst": per_clip.min().item(),
        "psnr_shape": psnr((error * masks).sum() / (3 * masks.sum())).item(),
        "psnr_blank": psnr(reduce(empty, "b c t h w -> b", "mean")).mean().item(),
        "deviation": posterior.mean.std().item(),
        "posterior_deviation": math.exp(0.5 * posterior.logvar.mean().item()),
    }
