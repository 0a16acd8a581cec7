"""Builds what the examples need beside the pack: two images and a video of its world, and its demonstration LoRAs.

Run as `python -m goan_cli.tiny.examples FOLDER` (`make tiny` does).
"""

import sys
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

from goan_cli.output.video import write_video
from goan_cli.tiny.parts import LORAS, PACK
from goan_cli.tiny.rendering import pixels_of, write_start_image
from goan_cli.tiny.world import Scene, render_clip

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
# Where the circle stops on its way to the right.
STOP = replace(START, x=45.0)
# A video of it on its way, as one from anywhere else would be.
PASSING = replace(START, x=28.0, way=15.0, duration=25)
PASSING_FRAMES = 25


def write_examples(folder: Path) -> None:
    """Write the images and the video, and copy the LoRAs from the pack."""
    width, height = SIZE
    for name, scene in (("start", START), ("stop", STOP)):
        write_start_image(folder / f"{name}.png", scene, height=height, width=width)
    passing = pixels_of(render_clip(PASSING, PASSING_FRAMES, height=height, width=width))
    write_video(folder / "passing.mp4", [passing], size=SIZE, fps=30.0)
    copyfile(PACK / LORAS["dusk"], folder / "dusk.safetensors")


if __name__ == "__main__":
    write_examples(Path(sys.argv[1]))
