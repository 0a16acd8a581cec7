"""Encoders and VAE, of transformers' and diffusers' classes, from any packaging: no weight may be left to chance.

A class is built without memory for its parameters, which then are the mapped files themselves or made from those.
The libraries' own loaders have no part in it: they fill what is missing with random numbers, and open pickles.

The only module of a render that imports the two at its top. They take longer to import than torch, and a render whose
prompts and image are cached needs neither before its first step: import this module where a part is loaded.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload, init_empty_weights
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, LlamaModel, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.utils import logging as transformers_logging

from goan_cli.errors import InvalidInput
from goan_cli.model.checkpoint import Checkpoint, read_checkpoint, read_json, refuse_quantised
from goan_cli.model.mapped import mapped_tensors
from goan_cli.packs.single_files import KeyMap, key_map

# Both libraries report to the terminal while they load; what matters of it is checked below.
for _logging in (transformers_logging, diffusers_logging):
    _logging.set_verbosity_error()
    _logging.disable_progress_bar()

_CLASSES: dict[str, Any] = {
    "text_encoder": LlamaModel,
    "text_encoder_2": CLIPTextModel,
    "image_encoder": SiglipVisionModel,
    "vae": AutoencoderKLHunyuanVideo,
}
_CALLED = {
    "text_encoder": "Llama text encoder",
    "text_encoder_2": "CLIP text encoder",
    "image_encoder": "SigLIP image encoder",
    "vae": "HunyuanVideo VAE",
}
# A prefix of all names in some releases of transformers, and where a whole model's configuration has this one's.
_PREFIX = {"text_encoder_2": "text_model.", "image_encoder": "vision_model."}
_NESTED = {"text_encoder": "text_config", "text_encoder_2": "text_config", "image_encoder": "vision_config"}
_LLAMA_LAYERS_UNUSED = 2
_SHOWN = 5


# Models of transformers and diffusers are Any here: neither library's types are part of its interface.
def load_llama(part: Path, dtype: torch.dtype, *, config: Path | None = None) -> Any:  # noqa: ANN401
    """Llama without its last two layers and final norm: its output is then `hidden_states[-3]` exactly.

    What it does without is not read. Raises InvalidInput for another kind of model.
    """
    return _load("text_encoder", part, dtype, config)


def stream_layers(model: Any, device: torch.device) -> None:  # noqa: ANN401
    """Have a model's layers, which stay in main memory, computed on `device`: slower, in the room of one layer."""
    cpu_offload(model, execution_device=device)


def load_clip(model: Path, tokenizer: Path, dtype: torch.dtype, *, config: Path | None = None) -> tuple[Any, Any]:
    """CLIP's text model and its tokenizer."""
    return _load("text_encoder_2", model, dtype, config), CLIPTokenizer.from_pretrained(
        str(tokenizer), local_files_only=True
    )


def load_siglip(model: Path, processor: Path, dtype: torch.dtype, *, config: Path | None = None) -> tuple[Any, Any]:
    """SigLIP's vision model, without its pooling head, and its image processor."""
    # The Pillow processor: torchvision has no build for some machines, and resizes differently.
    images = SiglipImageProcessorPil.from_pretrained(str(processor), local_files_only=True)
    return _load("image_encoder", model, dtype, config), images


def load_vae(part: Path, device: torch.device, dtype: torch.dtype, *, config: Path | None = None) -> Any:  # noqa: ANN401
    """The HunyuanVideo VAE."""
    return _load("vae", part, dtype, config).to(device)


def expected_shapes(part: str, config: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor of a part other than the transformer, by its name in `key_map`, used in a render or not.

    Raises InvalidInput for a configuration that describes something else.
    """
    return _shapes(part, _whole(part, config))


def read_configuration(part: str, file: Path) -> Any:  # noqa: ANN401
    """What builds the part's class, from a JSON file of its own or of a model that it is a part of.

    Raises InvalidInput when it describes another class.
    """
    values = read_json(file)
    if part == "vae":
        key, expected = "_class_name", _CLASSES[part].__name__
    else:
        key, expected = "model_type", _CLASSES[part].config_class.model_type
        nested = values.get(_NESTED[part])
        if isinstance(nested, dict) and values.get(key) != expected:
            values = nested
    if (given := values.get(key, expected)) != expected:
        raise InvalidInput(f"{file}: not a {_CALLED[part]}: {json.dumps(given)}")
    if part == "vae":
        return values
    try:
        config = _CLASSES[part].config_class.from_dict(values)
    except Exception as error:  # the libraries check values with exceptions of many kinds
        raise _unusable(part, file, error) from error
    if part == "text_encoder" and config.num_hidden_layers <= _LLAMA_LAYERS_UNUSED:
        raise _unusable(part, file, f"num_hidden_layers = {config.num_hidden_layers}")
    return config


def _load(part: str, path: Path, dtype: torch.dtype, config: Path | None) -> Any:  # noqa: ANN401
    name = f"a {_CALLED[part]} ({_CLASSES[part].__name__})"
    try:
        checkpoint = read_checkpoint(path)
        keys = key_map(part, checkpoint.shapes)
        refuse_quantised(replace(checkpoint, entries={given: checkpoint.entries[given] for given in keys.names}))
    except InvalidInput as error:
        raise InvalidInput(f"{path}: cannot be loaded as {name}: {error.message}", hint=error.hint) from error
    config = config or path / "config.json"
    model = _used(part, config)
    needed = _shapes(part, model)
    _refuse_others(path, name, keys, known=expected_shapes(part, config), needed=needed)
    tensors = {bare: tensor.to(dtype) for bare, tensor in _read(checkpoint, keys, needed).items()}
    model.load_state_dict({own: tensors[bare] for bare, own in _names(part, model).items()}, assign=True)
    return model.eval().requires_grad_(False)  # noqa: FBT003 - torch's own name


def _whole(part: str, file: Path) -> Any:  # noqa: ANN401
    """The part's class with everything that a checkpoint may hold, on the meta device."""
    config = read_configuration(part, file)
    if part == "image_encoder":
        config.vision_use_head = True
    with torch.device("meta"):
        return _built(part, config, file)


def _used(part: str, file: Path) -> Any:  # noqa: ANN401
    """The part's class without what influences no result: parameters on the meta device, and buffers made."""
    config = read_configuration(part, file)
    if part == "image_encoder":
        config.vision_use_head = False  # the pooling comes after the last hidden state
    if part == "text_encoder":
        config.num_hidden_layers -= _LLAMA_LAYERS_UNUSED
    with init_empty_weights(include_buffers=False):
        model = _built(part, config, file)
    if part == "text_encoder":
        model.norm = torch.nn.Identity()
    return model


def _built(part: str, config: Any, file: Path) -> Any:  # noqa: ANN401
    try:
        return _CLASSES[part].from_config(config) if part == "vae" else _CLASSES[part](config)
    except Exception as error:  # as in `read_configuration`
        raise _unusable(part, file, error) from error


def _unusable(part: str, file: Path, reason: Exception | str) -> InvalidInput:
    if isinstance(reason, Exception):
        reason = f"{type(reason).__name__}: {' '.join(str(reason).split())}"
    return InvalidInput(f"{file}: not a usable configuration of a {_CALLED[part]}: {reason}")


def _names(part: str, model: Any) -> dict[str, str]:  # noqa: ANN401
    """Names of a model's parameters as `key_map` has them -> as this release of the library has them."""
    return {name.removeprefix(_PREFIX.get(part, "")): name for name, _ in model.named_parameters()}


def _shapes(part: str, model: Any) -> dict[str, tuple[int, ...]]:  # noqa: ANN401
    """The same names, and shapes."""
    return {bare: tuple(model.get_parameter(name).shape) for bare, name in _names(part, model).items()}


def _refuse_others(
    path: Path, name: str, keys: KeyMap, *, known: Collection[str], needed: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise InvalidInput, naming them, for weights that are missing, of another shape, or unknown."""
    faults = (
        ("missing", [bare for bare in needed if bare not in keys.shapes]),
        ("not of this architecture", [given for given, bare in keys.names.items() if bare not in known]),
        (
            "of another shape",
            [
                f"{bare} is {list(keys.shapes[bare])} instead of {list(shape)}"
                for bare, shape in needed.items()
                if bare in keys.shapes and keys.shapes[bare] != shape
            ],
        ),
    )
    told = [f"{len(each)} {what}: {_some(each)}" for what, each in faults if each]
    if told:
        raise InvalidInput(f"{path}: does not fit {name}: {'; '.join(told)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _read(checkpoint: Checkpoint, keys: KeyMap, needed: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors by name in `key_map`, mapped and not copied; what is not needed is not touched."""
    files = {file: mapped_tensors(file) for file in checkpoint.files}
    return {
        bare: files[checkpoint.file_of[given]][given].reshape(needed[bare])
        for given, bare in keys.names.items()
        if bare in needed
    }
