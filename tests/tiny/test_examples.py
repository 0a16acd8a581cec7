"""What the quick start needs beside the pack: its image and its LoRA."""

from pathlib import Path

import numpy as np
from PIL import Image

from goan_cli.jobs.images import image_size
from goan_cli.lora.adapter import read_adapter
from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.tiny.build import PACK
from goan_cli.tiny.examples import write_demo_lora, write_start_image

SHAPES = {name: entry.shape for name, entry in read_checkpoint(PACK / "transformer").entries.items()}
EXAMPLES = Path(__file__).parents[2] / "examples"


def test_start_image(tmp_path: Path) -> None:
    """The image is a picture in colour, of another shape than the render, so that the crop shows."""
    write_start_image(tmp_path / "start.png")
    assert image_size(tmp_path / "start.png") == (160, 120)
    with Image.open(tmp_path / "start.png") as image:
        assert image.mode == "RGB"
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 100


def test_demo_lora_fits(tmp_path: Path) -> None:
    """The LoRA that is written fits the tiny model with every key."""
    write_demo_lora(tmp_path / "demo.safetensors")
    adapter = read_adapter(tmp_path / "demo.safetensors", SHAPES)
    assert adapter.matched_keys == adapter.keys > 0
    assert adapter.skipped == {}


def test_shipped_example_lora_fits() -> None:
    """So does the one that lies in the examples folder."""
    adapter = read_adapter(EXAMPLES / "demo-lora.safetensors", SHAPES)
    assert adapter.matched_keys == adapter.keys > 0
