"""What the examples need beside the pack: two images, a video and a LoRA."""

from pathlib import Path

import numpy as np
from PIL import Image

from goan_cli.jobs.images import image_size
from goan_cli.jobs.sizes import nearest_bucket
from goan_cli.output.video import read_video
from goan_cli.tiny.examples import SIZE, write_examples
from goan_cli.tiny.measures import psnr_between

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_examples_are_what_is_written(tmp_path: Path) -> None:
    """The shipped images and LoRA are what the builder writes, pixel for pixel and byte for byte."""
    write_examples(tmp_path)
    for name in ("start.png", "stop.png"):
        with Image.open(tmp_path / name) as written, Image.open(EXAMPLES / name) as shipped:
            assert np.array_equal(np.asarray(written), np.asarray(shipped))
    written_clip, shipped_clip = (read_video(folder / "passing.mp4") for folder in (tmp_path, EXAMPLES))
    assert psnr_between(written_clip, shipped_clip) > 45  # another machine's encoder need not choose the same bits
    assert (tmp_path / "dusk.safetensors").read_bytes() == (EXAMPLES / "dusk.safetensors").read_bytes()


def test_start_image_is_cropped_to_the_trained_size() -> None:
    """The image is of another shape than the render, which is the 64 x 64 that the pack knows."""
    assert image_size(EXAMPLES / "start.png") == SIZE
    assert nearest_bucket(SIZE[1], SIZE[0], 64) == (64, 64)
    with Image.open(EXAMPLES / "start.png") as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 100
