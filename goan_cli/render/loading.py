"""Encoders and VAE through transformers and diffusers, strictly: no weight may be left to chance.

The only module of a render that imports the two at its top. They take longer to import than torch, and a render whose
prompts and image are cached needs neither before its first step: import this module where a part is loaded.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.utils import logging as diffusers_logging
from transformers import AutoConfig, CLIPTextModel, CLIPTokenizer, LlamaModel, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

from goan_cli.errors import InvalidInput

# Both libraries report to the terminal while they load; what matters of it is checked below.
for _logging in (transformers_logging, diffusers_logging):
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()

_LLAMA_LAYERS_UNUSED = 2


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


def load_llama(folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Llama without its last two layers and final norm: its output is then `hidden_states[-3]` exactly.

    Raises InvalidInput for another kind of model.
    """
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    if config.model_type != "llama" or config.num_hidden_layers <= _LLAMA_LAYERS_UNUSED:
        raise InvalidInput(f"{folder / 'config.json'}: not a Llama text encoder: {json.dumps(config.model_type)}")
    config.num_hidden_layers -= _LLAMA_LAYERS_UNUSED
    llama = load_encoder(LlamaModel, folder, dtype, config=config)
    llama.norm = torch.nn.Identity()
    return llama


def stream_layers(model: Any, device: torch.device) -> None:  # noqa: ANN401
    """Have a model's layers, which stay in main memory, computed on `device`: slower, in the room of one layer."""
    cpu_offload(model, execution_device=device)


def load_clip(model: Path, tokenizer: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """CLIP's text model and its tokenizer."""
    return load_encoder(CLIPTextModel, model, dtype), CLIPTokenizer.from_pretrained(
        str(tokenizer), local_files_only=True
    )


def load_siglip(model: Path, processor: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """SigLIP's vision model and its image processor."""
    # The Pillow processor: torchvision has no build for some machines, and resizes differently.
    images = SiglipImageProcessorPil.from_pretrained(str(processor), local_files_only=True)
    return load_encoder(SiglipVisionModel, model, dtype), images


def load_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """The HunyuanVideo VAE."""
    try:
        vae, info = AutoencoderKLHunyuanVideo.from_pretrained(
            str(folder), torch_dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(f"{folder}: cannot be loaded as the VAE: {error}") from error
    _refuse_incomplete(folder, info)
    return vae.eval().requires_grad_(False).to(device)  # noqa: FBT003


def _refuse_incomplete(folder: Path, info: Any) -> None:  # noqa: ANN401
    """Raise InvalidInput where a library would have filled weights with random numbers."""
    absent = sorted(map(str, [*(info["missing_keys"] or ()), *(info["mismatched_keys"] or ())]))
    if absent:
        raise InvalidInput(f"{folder}: {len(absent)} weights are missing or of another shape: {', '.join(absent[:5])}")
