"""Encoders and VAE through transformers and diffusers, strictly: no weight may be left to chance."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from goan_cli.errors import InvalidInput

# Both libraries report to the terminal while they load; what matters of it is checked below.
for _logging in (transformers_logging, diffusers_logging):
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()

_TILE_ABOVE = 256  # pixels a side: real frames are larger, the tiny pack's are not


# Models of transformers and diffusers are Any here: neither library's types are part of its interface.
def load_encoder(model: Any, folder: Path, dtype: torch.dtype, *, config: Any = None) -> Any:  # noqa: ANN401
    """An encoder of class `model` from its folder, on the CPU. Raises InvalidInput when weights are missing."""
    options = {} if config is None else {"config": config}
    try:
        loaded, info = model.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{folder}: cannot be loaded as {model.__name__}: {error}") from error
    _refuse_incomplete(folder, info)
    return loaded.eval().requires_grad_(False)  # noqa: FBT003 - torch's own name


def load_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The HunyuanVideo VAE; on a GPU, frames beyond 256 pixels a side are decoded in tiles."""
    try:
        vae, info = AutoencoderKLHunyuanVideo.from_pretrained(
            str(folder), torch_dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{folder}: cannot be loaded as the VAE: {error}") from error
    _refuse_incomplete(folder, info)
    if device.type == "cuda":
        vae.enable_tiling(tile_sample_min_height=_TILE_ABOVE, tile_sample_min_width=_TILE_ABOVE)
    return vae.eval().requires_grad_(False).to(device)  # noqa: FBT003


def _refuse_incomplete(folder: Path, info: Any) -> None:  # noqa: ANN401
    """Raise InvalidInput where a library would have filled weights with random numbers."""
    absent = sorted(map(str, [*(info["missing_keys"] or ()), *(info["mismatched_keys"] or ())]))
    if absent:
        raise InvalidInput(f"{folder}: {len(absent)} weights are missing or of another shape: {', '.join(absent[:5])}")
