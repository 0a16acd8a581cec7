"""Which device renders, and in which precision."""

from dataclasses import dataclass

import torch

from goan_cli.errors import EnvironmentFault, InvalidInput

# Cards with less memory keep only the part at work on the device.
_ROOMY = 48 << 30
# Llama without its last two layers takes 15 GB in fp16.
_LLAMA = 17 << 30


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Dtype of the transformer's blocks, and of encoders and VAE."""

    transformer: torch.dtype
    encoders: torch.dtype


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there.

    Raises InvalidInput for another word and EnvironmentFault where CUDA is asked for and missing.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind == "cpu" and not number:
        return torch.device("cpu")
    if kind != "cuda" or (number and not number.isdecimal()):
        raise InvalidInput(f"--device {name}: no such device", hint="valid: auto, cpu, cuda, cuda:0, cuda:1, …")
    if not torch.cuda.is_available():
        build = "this torch is built without CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        raise EnvironmentFault(f"--device {name}: {build}", hint="goan doctor tells more; --device cpu renders slowly")
    index = int(number or 0)
    if index >= torch.cuda.device_count():
        raise EnvironmentFault(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def precision_for(device: torch.device) -> Precision:
    """bf16 from compute capability 8.0, fp16 on 7.x, fp32 below and on the CPU; encoders fp16 where they can."""
    if device.type == "cpu":
        return Precision(transformer=torch.float32, encoders=torch.float32)
    major, _ = torch.cuda.get_device_capability(device)
    return precision_of_capability(major)


def precision_of_capability(major: int) -> Precision:
    """The rule of `precision_for` by a CUDA device's major compute capability."""
    if major >= 8:
        return Precision(transformer=torch.bfloat16, encoders=torch.float16)
    if major == 7:
        return Precision(transformer=torch.float16, encoders=torch.float16)
    # Pascal and older run fp16 arithmetic at a fraction of fp32's rate.
    return Precision(transformer=torch.float32, encoders=torch.float32)


def is_roomy(device: torch.device) -> bool:
    """Whether all parts of a full-size model may stay on the device together."""
    return device.type == "cpu" or torch.cuda.get_device_properties(device).total_memory >= _ROOMY


def holds_llama(device: torch.device) -> bool:
    """Whether a full-size text encoder fits on the device by itself."""
    return device.type == "cpu" or torch.cuda.get_device_properties(device).total_memory >= _LLAMA


def device_name(device: torch.device) -> str:
    """The device as a sidecar names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
