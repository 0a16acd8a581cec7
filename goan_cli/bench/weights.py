"""Random weights for benchmarks: a transformer that needs no checkpoint, and a LoRA for any."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from goan_cli.lora.adapter import read_adapter
from goan_cli.lora.bake import LoraFile
from goan_cli.lora.report import LoraSource
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import fp8_linear_names, use_fp8
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import empty_transformer
from goan_cli.render.streaming import streamed_tensors

RANK = 32
_LORA_UP = 0.002  # deviation of the up factors: changes of about a hundredth of the weights
_BIAS = 0.02
_MAIN_MEMORY = torch.device("cpu")


@torch.no_grad()
def synthetic_transformer(
    config: TransformerConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool = False,
    resident: Sequence[bool] | None = None,
) -> PackedTransformer:
    """Random weights that keep the size of what they are given, placed as `load_transformer` places a checkpoint's.

    Made on the device part by part, so that main memory never holds what stays there. A device makes the same ones
    every time; with `fp8` they are those of `dtype`, quantised.
    """
    model, generator = empty_transformer(config), torch.Generator(device).manual_seed(0)
    stacks = (model.transformer_blocks, model.single_transformer_blocks)
    conditioning = (model.time_text_embed, model.context_embedder, model.norm_out)
    for part in model.children():
        if part not in stacks:
            _fill(part, device, torch.float32 if part is model.proj_out else dtype, generator)
    for part in conditioning:
        part.to(_MAIN_MEMORY)
    blocks = tuple(model.own_blocks())
    for block, stays in zip(blocks, resident or [True] * len(blocks), strict=True):
        _fill(block, device, dtype, generator)
        if fp8:
            alone = nn.Module()
            alone.transformer_blocks = nn.ModuleList([block])
            use_fp8(alone)
        streamed = streamed_tensors(block)
        for name, tensor in chain(block.named_parameters(), block.named_buffers()):
            if name not in streamed or not stays:
                tensor.data = tensor.data.to(_MAIN_MEMORY)
    return model.requires_grad_(requires_grad=False).eval()


def _fill(part: nn.Module, device: torch.device, dtype: torch.dtype, generator: torch.Generator) -> None:
    part.to(dtype).to_empty(device=device)
    for name, tensor in part.named_parameters():
        if tensor.dim() > 1:
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
        elif name.endswith("weight"):
            tensor.fill_(1)
        else:
            tensor.normal_(0, _BIAS, generator=generator)


def lora_linears(config: TransformerConfig) -> list[str]:
    """What LoRAs usually change: the blocks' linears, but their modulation."""
    return fp8_linear_names(empty_transformer(config))


@contextmanager
def random_lora(config: TransformerConfig, linears: Sequence[str]) -> Iterator[LoraFile]:
    """A random LoRA on these linears, in diffusers' layout and bf16, for as long as it is needed."""
    shapes = {name: tuple(parameter.shape) for name, parameter in empty_transformer(config).named_parameters()}
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name in linears:
        rows, columns = shapes[f"{name}.weight"]
        down = torch.randn((RANK, columns), generator=generator) * columns**-0.5
        up = torch.randn((rows, RANK), generator=generator) * _LORA_UP
        tensors[f"transformer.{name}.lora_A.weight"] = down.bfloat16()
        tensors[f"transformer.{name}.lora_B.weight"] = up.bfloat16()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lora.safetensors"
        save_file(tensors, path)
        adapter = read_adapter(path, shapes, trusted=True)
        yield LoraFile(adapter=adapter, source=LoraSource(path=path, sha256="", weight=1.0))
