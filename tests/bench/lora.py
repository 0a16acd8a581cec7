"""Speed of the LoRA bake against diffusers' fuse_lora, and what baking saves per step: `make bench-lora`.

Everything is measured in one run on one machine and printed as ratios; nothing here is a test.
"""

import argparse
import dataclasses
import gc
import json
import multiprocessing
import platform
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from goan_cli.lora.adapter import read_adapter
from goan_cli.lora.bake import LoraFile, bake, restore
from goan_cli.lora.report import LoraSource
from goan_cli.model.config import TransformerConfig
from goan_cli.model.transformer import PackedTransformer, TextConditioning
from goan_cli.model.weights import WeightStore, empty_transformer, load_transformer
from goan_cli.tiny.parts import CONFIG as TINY

RANK = 32
TARGETS = (
    r"(single_)?transformer_blocks\.\d+\.(attn\.(to_[qkv]|add_[qkv]_proj|to_out\.0|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
)
# Full width, few blocks: 1.1 GB of block linears in bf16.
WIDE = TransformerConfig(num_layers=1, num_single_layers=3, num_refiner_layers=1)
# For the time of a step: narrow enough for a CPU, deep enough to be a model.
STEP = TransformerConfig(
    num_attention_heads=8,
    attention_head_dim=64,
    num_layers=3,
    num_single_layers=6,
    rope_axes_dim=(8, 28, 28),
    text_embed_dim=512,
    pooled_projection_dim=128,
    image_proj_dim=128,
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each measurement")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    console = Console(width=110)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    console.print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as folder:
        console.print(bake_table(Path(folder), device, options.runs))
        if device.type == "cpu" and _STATUS.exists():
            console.print(memory_table(Path(folder)))
        console.print(step_table(Path(folder), device, options.runs * 4, "a 66 M model", STEP))
        console.print(step_table(Path(folder), device, options.runs * 40, "the tiny pack", TINY))


def bake_table(folder: Path, device: torch.device, runs: int) -> Table:
    """Rates of bake, revert and their limits, in million parameters a second, medians of runs in turn."""
    base, lora = write_base(folder, WIDE), folder / "lora.safetensors"
    write_lora(lora, WIDE)
    store = WeightStore(base)
    shapes = store.checkpoint.shapes
    file = LoraFile(
        adapter=read_adapter(lora, shapes, trusted=True), source=LoraSource(path=lora, sha256="", weight=1.0)
    )
    names = file.adapter.parameters
    factors = {name: tensor.to(device) for name, tensor in load_file(lora).items()}
    with store.opened() as pristine:
        resident = {name: pristine(name).to(device, copy=True) for name in names}
        original = {name: pristine(name).to(device, copy=True) for name in names}
        count = sum(tensor.numel() for tensor in resident.values())
        fused = peft_model(base, factors, device)

        def addmm() -> None:
            for name in names:
                key = f"transformer.{name.removesuffix('.weight')}"
                down, up = factors[f"{key}.lora_A.weight"], factors[f"{key}.lora_B.weight"]
                torch.addmm(original[name], up, down, out=resident[name])

        def copy() -> None:
            for name in names:
                resident[name].copy_(original[name])

        timed = in_turn(
            {
                "goan bake (fp32, one rounding, report)": lambda: bake(resident, pristine, [file]),
                "diffusers fuse_lora (PEFT, bf16)": fused.fuse_lora,
                "limit: bare addmm in bf16": addmm,
                "goan revert": lambda: restore(resident, pristine, set(names)),
                "limit: copy": copy,
            },
            runs,
            device,
            after={"diffusers fuse_lora (PEFT, bf16)": fused.unfuse_lora},
        )
    table = Table(title=f"bake: {count / 1e6:.0f} M parameters, rank {RANK}, bf16", title_justify="left")
    for column in ("what", "M parameters/s", "to fuse_lora", "to copy"):
        table.add_column(column, justify="left" if column == "what" else "right")
    fuse, plain = timed["diffusers fuse_lora (PEFT, bf16)"], timed["limit: copy"]
    for what, seconds in timed.items():
        table.add_row(what, f"{count / seconds / 1e6:,.0f}", f"{fuse / seconds:.2f}x", f"{plain / seconds:.2f}x")
    return table


def memory_table(folder: Path) -> Table:
    """Private memory (beyond the mapped checkpoint) while a model loads with LoRAs baked on the way."""
    part = folder / "base"
    part.mkdir()
    (folder / "base.safetensors").rename(part / "base.safetensors")
    (part / "config.json").write_text(json.dumps(dataclasses.asdict(WIDE)))
    # In a process of its own, whose memory nothing else has touched.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        rows = pool.apply(memory_figures, (part, folder / "lora.safetensors"))
    table = Table(title="memory: load with the bake on the way, bf16 on the CPU", title_justify="left")
    table.add_column("what")
    table.add_column("MB", justify="right")
    for what, size in rows:
        table.add_row(what, f"{size / 1e6:,.0f}")
    return table


def memory_figures(part: Path, lora: Path) -> list[tuple[str, int]]:
    """Bytes: on disk, baked, private after the bake, and the peak beyond the baked weights."""
    store = WeightStore(part)
    adapter = read_adapter(lora, store.checkpoint.shapes, trusted=True)
    file = LoraFile(adapter=adapter, source=LoraSource(path=adapter.path, sha256="", weight=1.0))
    before = _private()
    model, store = load_transformer(part, device=torch.device("cpu"), dtype=torch.bfloat16, unread=adapter.parameters)
    parameters = dict(model.named_parameters())
    baked = sum(parameters[name].nbytes for name in adapter.parameters)
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], _private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with store.opened() as pristine:
        bake(parameters, pristine, [file])
    stop.set()
    watcher.join()
    return [
        ("checkpoint on disk, mapped", sum(each.stat().st_size for each in store.checkpoint.files)),
        ("of it baked, and so private", baked),
        ("private memory after the bake", _private() - before),
        ("peak during the bake, beyond the baked weights", peak[0] - before - baked),
    ]


_STATUS = Path("/proc/self/status")


def _private() -> int:
    """This process's anonymous memory in bytes (Linux)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024


def step_table(folder: Path, device: torch.device, runs: int, what: str, config: TransformerConfig) -> Table:
    """Time of one forward: base, baked, and the same LoRA as PEFT's dynamic layers."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    lora = folder / "step-lora.safetensors"
    write_lora(lora, config)
    # One model for base and baked, its weights rewritten in place between the two: what differs is the weights alone.
    model, dynamic = (random_model(config, device, dtype) for _ in range(2))
    parameters = dict(model.named_parameters())
    originals = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    file = LoraFile(
        adapter=read_adapter(lora, shapes, trusted=True), source=LoraSource(path=lora, sha256="", weight=1.0)
    )
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), dynamic)
    dynamic.to(device, dtype)
    step = forward_of(model, device, dtype)
    timed = in_turn(
        {"base": step, "baked": step, "PEFT dynamic layers": forward_of(dynamic, device, dtype)},
        runs,
        device,
        before={
            "base": lambda: restore(parameters, originals.__getitem__, set(file.adapter.parameters)),
            "baked": lambda: bake(parameters, originals.__getitem__, [file]),
        },
    )
    table = Table(title=f"one step of {what}, {runs} counted runs", title_justify="left")
    for column in ("weights", "s/step", "to base"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    for weights, seconds in timed.items():
        table.add_row(weights, f"{seconds:.4f}", f"{seconds / timed['base']:.3f}x")
    return table


def in_turn(
    actions: dict[str, Callable[[], object]],
    runs: int,
    device: torch.device,
    *,
    before: dict[str, Callable[[], object]] | None = None,
    after: dict[str, Callable[[], object]] | None = None,
) -> dict[str, float]:
    """Median seconds of each action, run in turn so that a drifting machine slows them all; one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for run in range(runs + 1):
        for name, action in actions.items():
            gc.collect()
            if before and name in before:
                before[name]()
                action()  # what came before has left the caches to itself
            _wait(device)
            started = time.perf_counter()
            action()
            _wait(device)
            if run:
                seconds[name].append(time.perf_counter() - started)
            if after and name in after:
                after[name]()
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_base(folder: Path, config: TransformerConfig) -> Path:
    """A random checkpoint in bf16."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: (torch.randn(parameter.shape, generator=generator) * 0.02).bfloat16()
        for name, parameter in empty_transformer(config).named_parameters()
    }
    path = folder / "base.safetensors"
    save_file(tensors, path)
    return path


def write_lora(path: Path, config: TransformerConfig) -> None:
    """A random rank-32 LoRA on all block linears, in diffusers' layout and bf16."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, parameter in empty_transformer(config).named_parameters():
        module = name.removesuffix(".weight")
        if name != module and re.fullmatch(TARGETS, module):
            rows, columns = parameter.shape
            down = torch.randn((RANK, columns), generator=generator) / columns**0.5
            up = torch.randn((rows, RANK), generator=generator) * 0.002
            tensors[f"transformer.{module}.lora_A.weight"] = down.bfloat16()
            tensors[f"transformer.{module}.lora_B.weight"] = up.bfloat16()
    save_file(tensors, path)


def peft_model(
    base: Path, factors: dict[str, torch.Tensor], device: torch.device
) -> HunyuanVideoFramepackTransformer3DModel:
    """diffusers' transformer on the same weights with the same LoRA attached."""
    with torch.device("meta"):
        model = HunyuanVideoFramepackTransformer3DModel(
            num_layers=WIDE.num_layers,
            num_single_layers=WIDE.num_single_layers,
            num_refiner_layers=WIDE.num_refiner_layers,
            has_image_proj=True,
            has_clean_x_embedder=True,
        )
    model.load_state_dict(load_file(base), assign=True)
    model.to(device)
    model.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), adapter_name="default")
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key, tensor in factors.items():
            module, _, kind = key.removeprefix("transformer.").removesuffix(".weight").rpartition(".")
            layer = getattr(modules[module], kind)["default"]
            layer.weight = torch.nn.Parameter(tensor.clone(), requires_grad=False)
    return model


def random_model(config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> PackedTransformer:
    """The same random weights every time."""
    torch.manual_seed(3)
    return PackedTransformer(config).to(device, dtype).eval()


def forward_of(model: PackedTransformer, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """One forward of a section of 5 latent frames of 32 x 32, without history: 1,280 tokens and 64 of text."""
    config = model.config
    generator = torch.Generator().manual_seed(4)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    latents = random(1, 16, 5, 32, 32)
    text = TextConditioning(embeds=random(1, 64, config.text_embed_dim), pooled=random(1, config.pooled_projection_dim))
    image = random(1, 16, config.image_proj_dim)
    timestep = torch.tensor([500.0], device=device)
    with torch.inference_mode():
        context = model.context_for(latent_indices=torch.arange(5), latent_size=(32, 32), clean=[], image_embeds=image)

    def step() -> object:
        with torch.inference_mode():
            return model.velocity_at(latents, timestep=timestep, guidance=timestep, text=text, context=context)

    return step


if __name__ == "__main__":
    main()
