"""The start image: cropped, encoded, and its latent drawn by the seed alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from goan_cli.jobs.job import DecodeMode
from goan_cli.jobs.sizes import fit
from goan_cli.packs.find import find_pack
from goan_cli.render.decode import to_uint8, vae_decoder
from goan_cli.render.image import CLIP, ImageEncoder, clip_posterior, fitted_pixels, posterior, start_latent
from goan_cli.render.loading import load_vae
from goan_cli.tiny.measures import psnr_between
from goan_cli.tiny.rendering import pixels_of
from goan_cli.tiny.world import draw_scene, render_clip
from tests.helpers import CPU, relative_error

PACK = find_pack("tiny")


@pytest.fixture(scope="module")
def vae() -> Any:
    """The embedded pack's VAE."""
    return load_vae(PACK.vae, CPU, torch.float32)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """A random picture of 48 x 32 pixels."""
    return np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)


def _picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


@pytest.mark.parametrize("source", [(64, 48), (100, 30), (30, 100), (32, 32), (16, 16), (333, 127)])
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (16, 96)])
def test_fitted_to_the_render_size(tmp_path: Path, source: tuple[int, int], size: tuple[int, int]) -> None:
    """Any picture becomes exactly the render size in (height, width, 3) bytes."""
    pixels = fitted_pixels(_picture(tmp_path / "start.png", source), fit(source, size))
    assert pixels.shape == (size[1], size[0], 3)
    assert pixels.dtype == np.uint8


def test_same_size_is_left_alone(tmp_path: Path) -> None:
    """A picture that already has the render size is not resampled."""
    path = _picture(tmp_path / "start.png", (48, 32))
    assert np.array_equal(fitted_pixels(path, fit((48, 32), (48, 32))), np.asarray(Image.open(path)))


def test_the_centre_is_kept(tmp_path: Path) -> None:
    """What is cut off is the same on both sides."""
    picture = np.zeros((32, 96, 3), dtype=np.uint8)
    picture[:, 32:64] = 255
    Image.fromarray(picture).save(tmp_path / "start.png")
    assert bool((fitted_pixels(tmp_path / "start.png", fit((96, 32), (32, 32))) == 255).all())


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    """Grey, transparent, palette and CMYK pictures come out in RGB."""
    path = tmp_path / ("start.tiff" if mode == "CMYK" else "start.png")
    assert fitted_pixels(_picture(path, (40, 40), mode), fit((40, 40), (32, 32))).shape == (32, 32, 3)


def test_image_features(pixels: NDArray[np.uint8]) -> None:
    """SigLIP gives one row a patch, the same every time, and another for another picture."""
    encoder = ImageEncoder(model=PACK.image_encoder, processor=PACK.feature_extractor, device=CPU, dtype=torch.float32)
    features = encoder.encode(pixels)
    assert features.shape == (1, 4, 32)
    assert torch.equal(features, encoder.encode(pixels))
    assert relative_error(encoder.encode(255 - pixels), features) > 0.01


def test_posterior(vae: Any, pixels: NDArray[np.uint8]) -> None:
    """The posterior has one latent frame of an eighth of the size, in fp32."""
    mean, logvar = posterior(vae, pixels)
    assert mean.shape == logvar.shape == (1, 16, 1, 6, 4)
    assert mean.dtype == logvar.dtype == torch.float32


def _start(vae: Any, pixels: NDArray[np.uint8], seed: int) -> torch.Tensor:
    mean, logvar = posterior(vae, pixels)
    return start_latent(mean, logvar, scale=float(vae.config.scaling_factor), seed=seed)


def test_start_latent_is_a_draw_from_the_posterior(vae: Any, pixels: NDArray[np.uint8]) -> None:
    """The latent is scaled mean plus deviation times standard normal noise."""
    mean, logvar = posterior(vae, pixels)
    latent = _start(vae, pixels, 3)
    assert (latent.shape, latent.dtype, latent.device.type) == (mean.shape, torch.float32, "cpu")
    noise = (latent / vae.config.scaling_factor - mean) / (0.5 * logvar).exp()
    # 384 values: the mean within 4 of its deviations of 0, the deviation near 1.
    assert abs(float(noise.mean())) < 4 / 384**0.5
    assert 0.85 < float(noise.std()) < 1.15


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**63 - 1])
def test_start_latent_is_decided_by_the_seed(vae: Any, pixels: NDArray[np.uint8], seed: int) -> None:
    """Any seed of a job gives the same latent again, and another one another latent."""
    first = _start(vae, pixels, seed)
    assert torch.equal(first, _start(vae, pixels, seed))
    assert not torch.equal(first, _start(vae, pixels, seed ^ 5))


def test_start_latent_and_the_global_random_state(vae: Any, pixels: NDArray[np.uint8]) -> None:
    """The draw neither depends on torch's global random state nor moves it."""
    torch.manual_seed(1)
    first = _start(vae, pixels, 3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(_start(vae, pixels, 3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_start_latent_has_a_stream_of_its_own(vae: Any, pixels: NDArray[np.uint8]) -> None:
    """The draw is not the beginning of the section noise of the same seed, which must stay upstream's."""
    mean, logvar = posterior(vae, pixels)
    latent = _start(vae, pixels, 3)
    section_noise = torch.randn(mean.shape, generator=torch.Generator("cpu").manual_seed(3))
    from_sections = (mean + (0.5 * logvar).exp() * section_noise) * vae.config.scaling_factor
    assert not torch.allclose(latent, from_sections, rtol=0, atol=1e-3)


@pytest.mark.parametrize("count", [5, 17, 29])
def test_a_video_s_frames(vae: Any, count: int) -> None:
    """1 + 4 n frames become 1 + n latents, which decode to about the same frames."""
    scene = draw_scene(torch.Generator().manual_seed(3), duration=count)
    frames = pixels_of(render_clip(scene, count))
    mean, logvar = clip_posterior(vae, frames)
    assert mean.shape == logvar.shape == (1, 16, 1 + count // 4, 8, 8)
    with torch.inference_mode():
        again = to_uint8(vae.decode(mean, return_dict=False)[0]).numpy()
    assert psnr_between(again, frames) > 25


def test_frames_larger_than_a_tile(vae: Any) -> None:
    """Large frames are encoded in tiles, and an image after them is encoded whole."""
    picture = np.random.default_rng(2).integers(0, 256, (16, 320, 3), dtype=np.uint8)
    before = posterior(vae, picture)[0]
    mean, _ = clip_posterior(vae, np.repeat(picture[None], 5, axis=0))
    assert mean.shape == (1, 16, 2, 2, 40)
    assert torch.equal(posterior(vae, picture)[0], before)


def test_a_decode_before_changes_nothing(vae: Any) -> None:
    """A video's latents do not depend on how another one was decoded before."""
    frames = np.random.default_rng(2).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)
    first = clip_posterior(vae, frames)[0]
    vae_decoder(vae, DecodeMode.SINGLE)(first[:, :, :2])
    assert torch.equal(clip_posterior(vae, frames)[0], first)


def test_draws_of_a_video_are_its_own() -> None:
    """A video's latents are drawn from a stream that no picture of the job has."""
    mean, logvar = torch.zeros((1, 16, 3, 4, 4)), torch.zeros((1, 16, 3, 4, 4))
    video = start_latent(mean, logvar, scale=1.0, seed=7, picture=CLIP)
    assert not torch.equal(video, start_latent(mean, logvar, scale=1.0, seed=7))
    assert torch.equal(video, start_latent(mean, logvar, scale=1.0, seed=7, picture=CLIP))
    assert not torch.equal(video[:, :, 0], video[:, :, 1])
