"""Builds what the examples need beside the pack: a start image of its world, and its demonstration LoRAs.

Run as `python -m goan_cli.tiny.examples FOLDER` (`make tiny` does).
"""

import sys
from pathlib import Path
from shutil import copyfile

from goan_cli.tiny.parts import LORAS, PACK
from goan_cli.tiny.rendering import write_start_image
from goan_cli.tiny.world import Scene

# Wider than high and larger than the render, so that the quick start shows a crop.
SIZE = (140, 120)
START = Scene(
    shape="circle",
    colour="red",
    motion="right",
    x=19.0,
    y=34.0,
    radius=10.5,
    top=(0.34, 0.44, 0.54),
    bottom=(0.46, 0.56, 0.66),
)


def write_examples(folder: Path) -> None:
    """Write the start image, and copy the LoRAs from the pack."""
    width, height = SIZE
    write_start_image(folder / "start.png", START, height=height, width=width)
    copyfile(PACK / LORAS["dusk"], folder / "dusk.safetensors")


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))
