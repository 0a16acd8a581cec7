"""Weights from memory-mapped safetensors: placed once, and re-read pristine whenever a bake needs them."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from goan_cli.errors import InvalidInput
from goan_cli.model.checkpoint import read_checkpoint, refuse_quantised
from goan_cli.model.config import TransformerConfig, read_config
from goan_cli.model.fp8 import E4M3, use_fp8
from goan_cli.model.mapped import mapped_tensors
from goan_cli.model.resident import ResidentWeights
from goan_cli.model.transformer import PackedTransformer

_SHOWN = 5


class WeightStore:
    """One part's checkpoint on disk. Reading maps the files; nothing is copied until it is used."""

    def __init__(self, part: Path) -> None:
        self.checkpoint = read_checkpoint(part)
        self.part = part
        refuse_quantised(self.checkpoint)

    @contextmanager
    def opened(self) -> Iterator["PristineReader"]:
        """Map the files afresh, so that what is read is what is on disk, whatever was written in memory."""
        mapped = {file: mapped_tensors(file) for file in self.checkpoint.files}
        yield PristineReader({name: mapped[file][name] for name, file in self.checkpoint.file_of.items()})


class PristineReader:
    """Reads tensors by name from freshly mapped files; what it returns must not be written to."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def __call__(self, name: str) -> Tensor:
        """The tensor as it is on disk, mapped and not copied."""
        return self._tensors[name]


# What only `step_conditionings` looks at: a quarter of the weights, and not on the device while it samples.
_CONDITIONING = re.compile(
    r"(time_text_embed|context_embedder|norm_out)\."
    r"|transformer_blocks\.\d+\.(norm1|norm1_context)\."
    r"|single_transformer_blocks\.\d+\.norm\."
)
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.")
_MAIN_MEMORY = torch.device("cpu")


def load_transformer(
    part: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool = False,
    resident: Sequence[bool] | None = None,
    unread: Collection[str] = (),
    config_file: Path | None = None,
) -> tuple[PackedTransformer, WeightStore]:
    """The packed transformer with its weights in place, and the store to re-read them from.

    Built on the meta device, then filled tensor by tensor. In main memory are what conditions the steps, and the
    blocks that `resident` (in the order of execution, None for all) leaves there; there, tensors that already have
    `dtype` are the mapped file itself (copy on write). The final projection is in fp32, with `fp8` the blocks'
    linears are quantised. Parameters in `unread` get memory and no values: a bake that follows fills them.
    `config_file` describes a single file, which is full-size without one.
    Raises InvalidInput when names or shapes are not those of the configuration.
    """
    store = WeightStore(part)
    config = read_config(config_file or part)
    model = empty_transformer(config)
    check_names_and_shapes({name: tuple(parameter.shape) for name, parameter in model.named_parameters()}, store)
    if fp8:
        use_fp8(model)
    with store.opened() as read:
        tensors, quantised = {}, []
        for name, empty in model.state_dict().items():
            home = device if _is_resident(name, config, resident) else _MAIN_MEMORY
            if name not in store.checkpoint.entries or empty.dtype == E4M3:
                tensors[name] = torch.empty_like(empty, device=home)
                quantised.append(name)
                continue
            kept = torch.float32 if name.startswith("proj_out.") else dtype
            if name in unread:
                tensors[name] = torch.empty_like(empty, device=home, dtype=kept)
            else:
                tensors[name] = read(name).to(home, kept)
        model.load_state_dict(tensors, assign=True)
        if fp8:
            weights = ResidentWeights(tensors, dtype=dtype, device=device)
            for name in quantised:
                if name in weights and name not in unread:
                    weights.store(name, read(name))
    model.requires_grad_(False)  # noqa: FBT003 - torch's own name
    return model.eval(), store


def _is_resident(name: str, config: TransformerConfig, resident: Sequence[bool] | None) -> bool:
    if _CONDITIONING.match(name):
        return False
    block = _BLOCK.match(name)
    if block is None or resident is None:
        return True
    return resident[int(block[2]) + (config.num_layers if block[1] else 0)]


def empty_transformer(config: TransformerConfig) -> PackedTransformer:
    """The architecture on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return PackedTransformer(config)


def check_names_and_shapes(expected: dict[str, tuple[int, ...]], store: WeightStore) -> None:
    """Compare a checkpoint's tensors with the architecture's. Raises InvalidInput naming the differences."""
    entries = store.checkpoint.entries
    missing = [name for name in expected if name not in entries]
    surplus = [name for name in entries if name not in expected]
    wrong = [
        f"{name} is {list(entries[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in entries and entries[name].shape != shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''}"
        for what, names in (
            ("missing", missing),
            ("not of this architecture", surplus),
            ("of another shape", wrong),
        )
        if names
    ]
    if faults:
        raise InvalidInput(f"{store.part}: does not fit the packed transformer: {'; '.join(faults)}")


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The resident parameters by name, to be written in place."""
    return dict(model.named_parameters())


def check_transformer(part: Path, config_file: Path | None = None) -> None:
    """Whether a part's tensors are those of its configuration; reads headers only. Raises InvalidInput."""
    parameters = empty_transformer(read_config(config_file or part)).named_parameters()
    check_names_and_shapes({name: tuple(parameter.shape) for name, parameter in parameters}, WeightStore(part))
