"""Upscaling of finished frames by a model that spandrel knows, one frame at a time, in tiles where memory is short."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from goan_cli.errors import EnvironmentFault, InvalidInput, RenderFailed
from goan_cli.jobs.post import EXTRA_HINT
from goan_cli.tensorfile import read_header

_CPU_TILE = 256  # main memory is not only ours, and a CPU gains nothing by larger ones
_SMALLEST_TILE = 64
_MARGIN = 32  # pixels around a tile that the model sees beside it, which are cut off again
_GRID = 32  # tiles begin at its multiples, so that models of blocks or windows of pixels see the same as in the whole


class Upscaler:
    """A model on a device; remembers the size of tiles that its memory holds. Frames become `scale` times as large."""

    def __init__(
        self, model: Callable[[Tensor], Tensor], *, scale: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.scale = scale
        self.tile = _CPU_TILE if device.type == "cpu" else None
        self._model, self._dtype, self._device = model, dtype, device

    def frames(self, chunks: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Chunks of frames `(n, h, w, 3)`, enlarged, one frame a chunk.

        Raises RenderFailed where not even a small tile fits into memory, or for pixels that are no numbers.
        """
        for chunk in chunks:
            for frame in chunk:
                yield self._enlarged(frame)[None]

    @torch.inference_mode()
    def _enlarged(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        pixels = torch.from_numpy(frame.copy()).to(self._device).permute(2, 0, 1)[None].to(self._dtype) / 255
        while True:
            try:
                large = self._in_tiles(pixels)
                break
            except torch.OutOfMemoryError as error:
                smaller = (self.tile or max(pixels.shape[-2:])) // 2 // _GRID * _GRID
                if smaller < _SMALLEST_TILE:
                    raise RenderFailed("out of memory while upscaling", hint="use a smaller model") from error
                self.tile = smaller
                torch.cuda.empty_cache()
        if not bool(large.isfinite().all()):
            raise RenderFailed("upscaled pixels are not finite", hint="the model overflows in this precision")
        levels = large[0].float().clamp(0, 1).mul(255).round().to(torch.uint8)
        result: NDArray[np.uint8] = levels.permute(1, 2, 0).contiguous().cpu().numpy()
        return result

    def _in_tiles(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        if self.tile is None or max(height, width) <= self.tile:
            return self._model(pixels)
        large = pixels.new_empty((1, 3, height * self.scale, width * self.scale))
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                bottom, right = min(top + self.tile, height), min(left + self.tile, width)
                first_row, first_column = max(top - _MARGIN, 0), max(left - _MARGIN, 0)
                seen = pixels[:, :, first_row : bottom + _MARGIN, first_column : right + _MARGIN]
                down, across = (top - first_row) * self.scale, (left - first_column) * self.scale
                tall, wide = (bottom - top) * self.scale, (right - left) * self.scale
                made = self._model(seen)[:, :, down : down + tall, across : across + wide]
                large[:, :, top * self.scale : bottom * self.scale, left * self.scale : right * self.scale] = made
        return large


def load_upscaler(path: Path, device: torch.device) -> Upscaler:
    """The model of a safetensors file, on a device: half precision on a GPU, where the model takes it.

    Raises InvalidInput for what is no such file or model, and EnvironmentFault where spandrel is not to be had.
    """
    read_header(path)
    spandrel = _spandrel()
    try:
        model = spandrel.ModelLoader().load_from_state_dict(load_file(path))
    except Exception as error:  # every architecture has its own way to say that it is not its file
        raise InvalidInput(f"{path}: not an upscaling model that spandrel knows: {error}") from error
    channels = (model.input_channels, model.output_channels)
    if not isinstance(model, spandrel.ImageModelDescriptor) or channels != (3, 3):
        raise InvalidInput(f"{path}: not a model that makes a colour picture of a colour picture")
    dtype = torch.float32
    if device.type != "cpu":
        dtype = torch.float16 if model.supports_half else torch.bfloat16 if model.supports_bfloat16 else dtype
    model.to(device, dtype).eval()
    return Upscaler(model, scale=int(model.scale), dtype=dtype, device=device)


def _spandrel() -> Any:  # noqa: ANN401 - an extra, whose types may not be there
    try:
        import spandrel  # noqa: PLC0415 - only who upscales has it
    except ImportError as error:
        raise EnvironmentFault(f"upscaling needs the library spandrel: {error}", hint=EXTRA_HINT) from error
    except RuntimeError as error:  # what a torchvision says that was built for another torch
        hint = "install the torchvision that belongs to this torch"
        raise EnvironmentFault(f"spandrel cannot be imported: {error}", hint=hint) from error
    return spandrel
