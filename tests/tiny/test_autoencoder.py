"""The tiny autoencoder: how it starts, how it is trained, and what the shipped one can do."""

import pytest
import torch
from einops import rearrange

from goan_cli.render.loading import load_vae
from goan_cli.tiny.autoencoder import as_pictures, empty_autoencoder, psnr
from goan_cli.tiny.from_nothing import blank_scene
from goan_cli.tiny.parts import PACK
from goan_cli.tiny.training import seeded
from goan_cli.tiny.world import draw_scene, render_clip
from tests.helpers import CPU, relative_error


def clip_of(seed: int, frames: int) -> torch.Tensor:
    """A held-out clip `(1, 3, t, 64, 64)` in [-1, 1]."""
    scene = draw_scene(seeded(seed, stream=50), duration=48)
    return rearrange(render_clip(scene, frames) * 2 - 1, "t c h w -> 1 c t h w")


def test_a_new_one_takes_each_frame_alone() -> None:
    """Before any training only the newest tap of a causal kernel acts, and every residual branch is silent."""
    vae = empty_autoencoder()
    kernels = {name: weight for name, weight in vae.named_parameters() if weight.dim() == 5 and weight.shape[2] == 3}
    assert len(kernels) > 30
    for name, weight in kernels.items():
        assert not weight[:, :, :-1].any()
        assert weight[:, :, -1].any() != name.endswith("conv2.conv.weight")


@torch.no_grad()
def test_picture_training_runs_the_same_network() -> None:
    """Single frames through two-dimensional convolutions come out as through the class's own, and only inside."""
    vae = empty_autoencoder().eval()
    # Residual branches start at zero; with random ones every convolution counts.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in vae.named_parameters():
        if "conv2.conv.weight" in name:
            parameter[:, :, -1] = torch.randn(parameter[:, :, -1].shape, generator=generator) * 0.1
    picture = clip_of(2, 1)
    own = vae(picture).sample
    with as_pictures(vae):
        flat = vae(picture).sample
    assert relative_error(flat, own) < 1e-4
    assert torch.equal(vae(picture).sample, own)


@torch.no_grad()
@pytest.mark.parametrize("start", ["black", "grey", "white", "#3a6ea5"])
def test_a_video_s_first_frame_is_the_colour_that_it_begins_from(start: str) -> None:
    """A picture of one colour, encoded alone as the renderer does, and decoded before the latents of what appears."""
    vae = load_vae(PACK / "vae", CPU, torch.float32)
    clip = rearrange(render_clip(blank_scene(start, 1), 13) * 2 - 1, "t c h w -> 1 c t h w")
    first = vae.encode(clip[:, :, :1]).latent_dist.mean
    later = vae.encode(clip).latent_dist.mean[:, :, 1:]
    decoded = vae.decode(torch.cat((first, later), dim=2)).sample.clamp(-1, 1)
    assert psnr((decoded[:, :, 0] - clip[:, :, 0]).square().mean() / 4).item() > 18


@torch.no_grad()
def test_latents_are_scaled_to_one() -> None:
    """The scaling factor brings the latents of held-out clips to a deviation of about one."""
    vae = load_vae(PACK / "vae", CPU, torch.float32)
    latents = torch.cat([vae.encode(clip_of(seed, 9)).latent_dist.mean for seed in range(6)])
    assert 0.8 < float(latents.std() * vae.config.scaling_factor) < 1.2


def test_psnr() -> None:
    """An error of a tenth is 20 dB."""
    assert psnr(torch.tensor(0.01)).item() == 20
