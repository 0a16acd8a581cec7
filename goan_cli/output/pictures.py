"""Still pictures and tensors beside a video: section previews, kept latents."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.numpy import save

from goan_cli.files import replaced_when_complete, write_bytes

_PREVIEW_SCALE = 8  # a latent pixel stands for 8 x 8 pixels


def write_preview(path: Path, strip: NDArray[np.uint8]) -> None:
    """A PNG of rough frames side by side `(h, w, 3)`, enlarged to the video's height."""
    image = Image.fromarray(strip)
    enlarged = image.resize((image.width * _PREVIEW_SCALE, image.height * _PREVIEW_SCALE), Image.Resampling.BICUBIC)
    with replaced_when_complete(path) as temporary:
        enlarged.save(temporary)


def write_latents(path: Path, latents: NDArray[np.float32]) -> None:
    """Final latents `(1, 16, n, h/8, w/8)` as safetensors, under the name `latents`."""
    write_bytes(path, save({"latents": np.ascontiguousarray(latents)}))


def write_bars(path: Path, title: str, bars: Sequence[tuple[str, float, float]]) -> None:
    """A chart as PNG: for each (label, value, share) a bar as long as the value, and both numbers."""
    row, left, bar = 18, 260, 480
    image = Image.new("RGB", (left + bar + 160, row * (len(bars) + 2)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((8, 4), title, fill="black")
    most = max((value for _, value, _ in bars), default=0.0) or 1.0
    for number, (label, value, share) in enumerate(bars, start=1):
        top = row * number + 8
        draw.text((8, top), label, fill="black")
        draw.rectangle([left, top, left + bar * value / most, top + row - 6], fill=(48, 120, 190))
        draw.text((left + bar * value / most + 6, top), f"{value:.3%}  ({share:.1%} moved)", fill="black")
    with replaced_when_complete(path) as temporary:
        image.save(temporary)
