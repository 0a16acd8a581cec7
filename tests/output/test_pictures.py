"""Section previews and kept latents."""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file

from goan_cli.output.pictures import write_latents, write_preview


def test_preview(tmp_path: Path) -> None:
    """A preview is a PNG eight times the size of the latents' strip, and nothing else is left."""
    strip = np.full((6, 24, 3), (250, 10, 10), dtype=np.uint8)
    write_preview(tmp_path / "shots" / "a.section-1.png", strip)
    with Image.open(tmp_path / "shots" / "a.section-1.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (192, 48))
        assert image.getpixel((100, 20)) == (250, 10, 10)
    assert [path.name for path in (tmp_path / "shots").iterdir()] == ["a.section-1.png"]


def test_latents(tmp_path: Path) -> None:
    """Latents are kept bit for bit, from any memory layout."""
    latents = np.random.default_rng(0).normal(size=(1, 16, 4, 6, 8)).astype(np.float32)
    write_latents(tmp_path / "a.latents.safetensors", latents.transpose(0, 1, 2, 4, 3))
    kept = load_file(tmp_path / "a.latents.safetensors")
    assert list(kept) == ["latents"]
    assert np.array_equal(kept["latents"], latents.transpose(0, 1, 2, 4, 3))
