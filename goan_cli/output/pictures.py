"""Still pictures and tensors beside a video: section previews, kept latents."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
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
