"""What the examples need beside the pack: a start image and a LoRA."""

from pathlib import Path

import numpy as np
from PIL import Image

from goan_cli.jobs.images import image_size
from goan_cli.jobs.sizes import nearest_bucket
from goan_cli.tiny.examples import SIZE, write_examples

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_examples_are_what_is_written(tmp_path: Path) -> None:
    """The shipped image and LoRA are what the builder writes, pixel for pixel and byte for byte."""
    write_examples(tmp_path)
    with Image.open(tmp_path / "start.png") as written, Image.open(EXAMPLES / "start.png") as shipped:
        assert np.array_equal(np.asarray(written), np.asarray(shipped))
    assert (tmp_path / "dusk.safetensors").read_bytes() == (EXAMPLES / "dusk.safetensors").read_bytes()


def test_start_image_is_cropped_to_the_trained_size() -> None:
    """The image is of another shape than the render, which is the 64 x 64 that the pack knows."""
    assert image_size(EXAMPLES / "start.png") == SIZE
    assert nearest_bucket(SIZE[1], SIZE[0], 64) == (64, 64)
    with Image.open(EXAMPLES / "start.png") as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 100
