"""What `goan bench` measures: a pack's transformer as a render loads it, or one of random weights, made in place."""

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from goan_cli.bench.machine import synchronize
from goan_cli.bench.weights import lora_linears, random_lora, synthetic_transformer
from goan_cli.jobs.sections import Family
from goan_cli.jobs.sizes import nearest_bucket
from goan_cli.lora.bake import bake
from goan_cli.lora.report import BakeRecipe, LoraSource
from goan_cli.model.checkpoint import read_checkpoint, read_json
from goan_cli.model.config import TransformerConfig, read_config
from goan_cli.model.fp8 import E4M3, widened
from goan_cli.model.resident import ResidentWeights
from goan_cli.model.transformer import PackedTransformer
from goan_cli.packs.pack import Pack
from goan_cli.render.events import Stage, ignore
from goan_cli.render.execution import ResolvedExecution, attention_function, block_calls, keep_compiled_code
from goan_cli.render.memory import MemoryPlan
from goan_cli.render.streaming import BlockStream
from goan_cli.render.transformers import Transformers

Synthetic = Literal["full", "mid"]

# Blocks enough to tell the rate of all.
_SAMPLE = ("transformer_blocks.0.", "single_transformer_blocks.0.", "single_transformer_blocks.1.")
_PAGE = 4096
_MAIN_MEMORY = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class SubjectShape:
    """An architecture and the job that it is measured with: size (width, height), window, SigLIP's tokens, steps."""

    name: str
    config: TransformerConfig
    family: Family
    size: tuple[int, int]
    window: int
    image_tokens: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Rate:
    """So much, in so many seconds."""

    amount: int
    seconds: float

    @property
    def per_second(self) -> float:
        """The amount of one second."""
        return self.amount / self.seconds


class Subject(Protocol):
    """A transformer to measure. One is in memory at a time: let go of it before the next `load`."""

    shape: SubjectShape

    def load(self, execution: ResolvedExecution, memory: MemoryPlan) -> PackedTransformer:
        """The transformer, ready to sample."""

    @property
    def loaded(self) -> Rate | None:
        """Bytes of the checkpoint in the seconds of the last `load`, until each was in memory; None without one."""

    def bake(self) -> Rate:
        """Parameters in the seconds that a LoRA takes to be baked into them; the weights keep it."""


# What `--synthetic` builds: the released checkpoints' architecture, and one that a CPU computes in a second.
SYNTHETIC = MappingProxyType(
    {
        "full": SubjectShape(
            name="synthetic full",
            config=TransformerConfig(),
            family=Family.INVERTED,
            size=(640, 608),
            window=9,
            image_tokens=729,
            steps=25,
        ),
        "mid": SubjectShape(
            name="synthetic mid",
            config=TransformerConfig(
                num_attention_heads=4,
                num_layers=2,
                num_single_layers=4,
                text_embed_dim=512,
                pooled_projection_dim=128,
                image_proj_dim=256,
            ),
            family=Family.INVERTED,
            size=(192, 192),
            window=9,
            image_tokens=196,
            steps=25,
        ),
    }
)


def shape_of(pack: Pack) -> SubjectShape:
    """A pack's transformer, with the pack's own size and window."""
    vision = read_json(pack.config_of("image_encoder"))
    height, width = nearest_bucket(608, 640, pack.resolution)
    return SubjectShape(
        name=pack.name,
        config=read_config(pack.config_of("transformer")),
        family=Family(pack.family),
        size=(width, height),
        window=pack.window,
        image_tokens=(int(vision.get("image_size", 384)) // int(vision.get("patch_size", 14))) ** 2,
        steps=pack.steps,
    )


class PackSubject:
    """A pack's transformer, loaded and baked by what loads and bakes it for a render."""

    def __init__(self, pack: Pack, device: torch.device, *, cache: Path | None) -> None:
        self.shape = shape_of(pack)
        self._pack = pack
        self._device = device
        self._seconds: dict[Stage, float] = {}
        self._transformers = Transformers(device, cache=cache, stage=self._stage, tell=ignore)
        self._how: tuple[ResolvedExecution, MemoryPlan] | None = None

    def load(self, execution: ResolvedExecution, memory: MemoryPlan) -> PackedTransformer:
        """The transformer, every page of it read."""
        self._transformers.forget()
        gc.collect()
        self._seconds[Stage.LOAD] = 0.0
        self._how = execution, memory
        model, _ = self._transformers.ready(self._pack, execution, memory, (), self._recipe())
        with self._stage(Stage.LOAD):
            _read_mapped(model)
        return model

    @property
    def loaded(self) -> Rate:
        """The checkpoint's bytes in the seconds of the last `load`."""
        size = sum(file.stat().st_size for file in read_checkpoint(self._pack.transformer).files)
        return Rate(amount=size, seconds=self._seconds[Stage.LOAD])

    def bake(self) -> Rate:
        """A random LoRA on all the blocks' linears, baked into the transformer that was loaded last."""
        if self._how is None:
            raise RuntimeError("nothing is loaded to bake into")
        execution, memory = self._how
        self._seconds[Stage.BAKE] = 0.0
        with random_lora(self.shape.config, lora_linears(self.shape.config)) as lora:
            recipe = self._recipe(lora.source)
            _, report = self._transformers.ready(self._pack, execution, memory, (lora,), recipe)
        values = sum(parameter.values for parameter in report.parameters) if report else 0
        return Rate(amount=values, seconds=self._seconds[Stage.BAKE])

    def _recipe(self, *loras: LoraSource) -> BakeRecipe:
        return BakeRecipe(base=self._pack.identity_of("transformer"), loras=loras)

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        started = time.perf_counter()
        yield
        synchronize(self._device)
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - started


class SyntheticSubject:
    """A transformer of random weights: no checkpoint, and nothing on disk but a small LoRA."""

    def __init__(self, size: Synthetic, device: torch.device, *, cache: Path | None) -> None:
        self.shape = SYNTHETIC[size]
        self._device = device
        if cache is not None:
            keep_compiled_code(cache)
        self._model: PackedTransformer | None = None
        self._stream: BlockStream | None = None
        self._dtype = torch.float32

    def load(self, execution: ResolvedExecution, memory: MemoryPlan) -> PackedTransformer:
        """The transformer, made anew; equal for equal dtypes and devices."""
        self._model, self._stream, self._dtype = None, None, execution.dtype
        gc.collect()
        model = synthetic_transformer(
            self.shape.config,
            device=self._device,
            dtype=execution.dtype,
            fp8=execution.fp8,
            resident=memory.resident,
        )
        model.calls = block_calls(execution, self._device)
        model.attend = attention_function(execution, self._device)
        if memory.streams:
            self._stream = BlockStream(tuple(model.own_blocks()), memory.resident, self._device)
            model.block_source = self._stream
        self._model = model
        return model

    @property
    def loaded(self) -> None:
        """There is no checkpoint."""
        return

    def bake(self) -> Rate:
        """A random LoRA on the linears of the first blocks, from copies of their weights in main memory."""
        if self._model is None:
            raise RuntimeError("nothing is loaded to bake into")
        linears = [name for name in lora_linears(self.shape.config) if name.startswith(_SAMPLE)]
        state = self._model.state_dict(keep_vars=True)
        pristine = {name: _wide(state, name, self._dtype) for name in (f"{linear}.weight" for linear in linears)}
        weights = ResidentWeights(state, dtype=self._dtype, device=self._device)
        with random_lora(self.shape.config, linears) as lora:
            synchronize(self._device)
            started = time.perf_counter()
            report = bake(weights, pristine.__getitem__, [lora], store=weights.store)
            synchronize(self._device)
            seconds = time.perf_counter() - started
        if self._stream is not None:
            self._stream.refresh()
        return Rate(amount=sum(parameter.values for parameter in report.parameters), seconds=seconds)


def _wide(state: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    """A copy of a weight in main memory, out of fp8 where it is kept so."""
    weight = state[name].detach()
    if weight.dtype == E4M3:
        weight = widened(weight, state[f"{name.removesuffix('weight')}scale"], dtype)
    return weight.to(_MAIN_MEMORY, copy=True)


def _read_mapped(model: nn.Module) -> None:
    """Touch every page in main memory: until then a mapped file is not read."""
    for tensor in model.state_dict().values():
        if tensor.device.type == "cpu":
            tensor.flatten().view(torch.uint8)[::_PAGE].sum()
