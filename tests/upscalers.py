"""Files of upscaling models in the layouts that people have, whose weights are set so that the result is known."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

Frames = NDArray[np.uint8]

_WIDTH, _GROWTH = 4, 32  # features of an ESRGAN and what each of its dense convolutions adds; spandrel knows only 32
# Layout of an ESRGAN -> its convolutions: first, those of the dense blocks, trunk, enlarging ones, last two.
ESRGAN_LAYOUTS = {
    "ESRGAN": ("model.0", "model.1.sub.0.RDB{}.conv{}.0", "model.1.sub.1", ("model.3",), "model.5", "model.7"),
    "BSRGAN": ("conv_first", "RRDB_trunk.0.RDB{}.conv{}", "trunk_conv", ("upconv1",), "HRconv", "conv_last"),
    "Real-ESRGAN": ("conv_first", "body.0.rdb{}.conv{}", "conv_body", ("conv_up1",), "conv_hr", "conv_last"),
    # Takes blocks of 2 x 2 pixels as one of four times the channels, and enlarges these twice.
    "Real-ESRGAN-x2": (
        *("conv_first", "body.0.rdb{}.conv{}", "conv_body"),
        *(("conv_up1", "conv_up2"), "conv_hr", "conv_last"),
    ),
}


def enlarged(frames: Frames, scale: int = 2) -> Frames:
    """Frames `(n, h, w, 3)` with every pixel a square of `scale`."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def doubling_file(path: Path) -> Path:
    """A Real-ESRGAN compact network that adds nothing to what it enlarges: `enlarged`, to the bit."""
    return _written(path, _compact(torch.zeros(12, 6, 3, 3)))


def between_columns_file(path: Path) -> Path:
    """A compact network whose result is `between_columns`."""
    last = torch.zeros(12, 6, 3, 3)
    for channel in range(3):
        for right in (1, 3):  # of the four pixels that one becomes
            last[4 * channel + right, channel, 1, 1] = -0.5
            last[4 * channel + right, channel + 3, 1, 1] = 0.5
    return _written(path, _compact(last))


def between_columns(frames: Frames) -> Frames:
    """Frames twice as large, every other column the mean of its neighbours, with black to the right of the frame."""
    large = enlarged(frames)
    neighbours = np.pad(frames[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0))).repeat(2, axis=1)
    large[:, :, 1::2] = (large[:, :, 1::2].astype(int) + neighbours) // 2
    return large


def negative_file(path: Path, layout: str = "ESRGAN", prefix: str = "") -> Path:
    """An ESRGAN whose result is `negative`, of the first pixel of each block of 2 x 2 for Real-ESRGAN-x2."""
    first, dense, trunk, ups, high, last = ESRGAN_LAYOUTS[layout]
    shuffled = 4 if len(ups) == 2 else 1
    tensors = _convolution(first, {(c, c * shuffled): 1.0 for c in range(3)}, (_WIDTH, 3 * shuffled))
    for block in (1, 2, 3):
        for conv in (1, 2, 3, 4, 5):
            shape = (_WIDTH if conv == 5 else _GROWTH, _WIDTH + (conv - 1) * _GROWTH)
            # x becomes x + 0.2 * bias in each block, and 1.2 x + 0.24 in the three of them.
            tensors |= _convolution(dense.format(block, conv), {}, shape, bias=float(block) if conv == 5 else 0.0)
    same = {(c, c): 1.0 for c in range(_WIDTH)}
    tensors |= _convolution(trunk, dict.fromkeys(same, 1 / 1.2), (_WIDTH, _WIDTH))  # added to x: 2 x + 0.2
    for name in (*ups, high):
        tensors |= _convolution(name, same, (_WIDTH, _WIDTH))
    tensors |= _convolution(last, {(c, 2 - c): -0.5 for c in range(3)}, (3, _WIDTH), bias=1.1)
    return _written(path, {prefix + name: tensor for name, tensor in tensors.items()})


def negative(frames: Frames) -> Frames:
    """Frames twice as large, as a negative whose red is the blue of what it was."""
    return 255 - enlarged(frames)[..., ::-1]


def _compact(last: Tensor) -> dict[str, Tensor]:
    """A compact network of six features, a pixel and its neighbour to the right, and this last convolution."""
    first = torch.zeros(6, 3, 3, 3)
    for channel in range(3):
        first[channel, channel, 1, 1] = first[channel + 3, channel, 1, 2] = 1
    return {
        "body.0.weight": first,
        "body.0.bias": torch.zeros(6),
        "body.1.weight": torch.ones(6),
        "body.2.weight": last,
        "body.2.bias": torch.zeros(12),
    }


def _convolution(
    name: str, taps: dict[tuple[int, int], float], shape: tuple[int, int], *, bias: float = 0.0
) -> dict[str, Tensor]:
    """A 3 x 3 convolution that looks at the pixel itself: (to, from) -> weight."""
    weight = torch.zeros(*shape, 3, 3)
    for (to, of), value in taps.items():
        weight[to, of, 1, 1] = value
    return {f"{name}.weight": weight, f"{name}.bias": torch.full((shape[0],), bias)}


def _written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path
