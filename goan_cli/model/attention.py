"""Attention kernels: torch's own, and libraries that a user may have installed."""

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from goan_cli.errors import EnvironmentFault, InvalidInput

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# From Hopper on cuDNN's kernel is the fastest of torch's; where it takes an input not, the next one does.
_CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_CUDNN_FROM = 9  # major compute capability
# Name in a job: the module that must be importable, the version that diffusers wants of it, and what installs it.
_LIBRARIES = {
    "flash": ("flash_attn", Version("2.6.3"), "goan-cli[flash]"),
    "sage": ("sageattention", Version("2.1.1"), "goan-cli[sage]"),
}


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over `(1, tokens, heads, head_dim)`, unmasked, by the kernel that torch chooses.

    Queries may be fewer than keys. Returns `(1, query tokens, width)`.
    """
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


def attention(name: str, device: torch.device) -> Attend:
    """The function for `auto`, `sdpa`, `cudnn`, `flash` or `sage` on a device; shapes as in `sdpa`.

    `sage` is approximate, the others agree up to rounding. Raises EnvironmentFault where the device or a library
    is missing, and InvalidInput for another name.
    """
    on_cuda = device.type == "cuda"
    if name == "sdpa" or (name == "auto" and not on_cuda):
        return sdpa
    if name == "auto":
        return _cudnn_first if torch.cuda.get_device_capability(device)[0] >= _CUDNN_FROM else sdpa
    if name not in ("cudnn", *_LIBRARIES):
        raise InvalidInput(f"attention {name}: no such backend", hint="valid: auto, sdpa, cudnn, flash, sage")
    if not on_cuda:
        raise EnvironmentFault(f"attention {name} needs a CUDA device", hint="attention: sdpa runs everywhere")
    if name == "cudnn":
        return _cudnn
    module, least, extra = _LIBRARIES[name]
    if importlib.util.find_spec(module) is None:
        raise EnvironmentFault(f"attention {name} needs the package {module}", hint=f"pip install '{extra}'")
    with suppress(PackageNotFoundError):  # built in place, without a record of it
        if Version(found := version(module.replace("_", "-"))) < least:
            raise EnvironmentFault(
                f"attention {name} needs {module} {least} or newer, not {found}", hint=f"pip install -U '{extra}'"
            )
    return partial(_dispatched, name)


def _cudnn_first(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
        return sdpa(query, key, value)


def _cudnn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(query, key, value)


def _dispatched(backend: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Through diffusers, which knows these libraries' interfaces and checks what they can take."""
    from diffusers.models.attention_dispatch import (  # noqa: PLC0415 - diffusers takes seconds to import
        AttentionBackendName,
        dispatch_attention_fn,
    )

    out: Tensor = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(backend))
    return out.flatten(2)
