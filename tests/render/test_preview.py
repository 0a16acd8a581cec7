"""The rough picture from latents, against the recorded one."""

import pytest
import torch
from safetensors.torch import load_file

from goan_cli.render.preview import filmstrip, latents_to_rgb
from tests.helpers import GOLDEN


def test_golden_preview() -> None:
    """The linear map gives the recorded colours to 1e-5."""
    recorded = load_file(GOLDEN / "packed" / "latent_preview.safetensors")
    actual = latents_to_rgb(recorded["latents"])
    torch.testing.assert_close(actual, recorded["rgb"].to(actual.dtype), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_range_and_dtype(dtype: torch.dtype) -> None:
    """Colours are fp32 in [0, 1], however wild the latents."""
    latents = (torch.randn((1, 16, 3, 2, 2), generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    rgb = latents_to_rgb(latents)
    assert rgb.dtype == torch.float32
    assert (float(rgb.min()), float(rgb.max())) == (0.0, 1.0)


def test_filmstrip() -> None:
    """The frames stand side by side in order, as bytes in (height, width, channel)."""
    latents = torch.randn((1, 16, 3, 2, 5), generator=torch.Generator().manual_seed(1))
    strip, rgb = filmstrip(latents), latents_to_rgb(latents)
    assert (strip.shape, strip.dtype) == ((2, 15, 3), torch.uint8)
    for frame in range(3):
        expected = (rgb[0, :, frame] * 255).round().permute(1, 2, 0)
        assert torch.equal(strip[:, 5 * frame : 5 * frame + 5].float(), expected)
