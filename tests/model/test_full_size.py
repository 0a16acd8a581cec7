"""Loading at full size: what goes where, each tensor once and to the byte, and how much memory a load takes.

Files are sparse: their headers are there, and their tensors read as zeros.
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import E4M3
from goan_cli.model.resident import ResidentWeights
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import PristineReader, empty_transformer, load_transformer
from goan_cli.packs.find import FULL_SIZE
from goan_cli.render.memory import MemoryPlan, plan_memory, tokens_of
from goan_cli.tensorfile import TensorEntry
from tests.headers import full_size_tensors, write_headers, write_part, write_weights
from tests.helpers import write_config

META = torch.device("meta")
FULL = TransformerConfig()
# The smallest budget of each of these leaves some blocks of both kinds on the device, some in main memory.
BUDGETS = [None, 24_000_000_000, 12_000_000_000, 6_000_000_000]
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells of a process's memory on Linux only")
HALF_GB = 500_000_000


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model, and how often each tensor was read."""

    model: PackedTransformer
    reads: Counter[str]

    def bytes_on(self, device: str) -> int:
        """Of all parameters and buffers there."""
        return sum(tensor.nbytes for tensor in self.model.state_dict().values() if tensor.device.type == device)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each tensor is read from a checkpoint."""
    counted: Counter[str] = Counter()
    read = PristineReader.__call__

    def counting(self: PristineReader, name: str) -> Tensor:
        counted[name] += 1
        return read(self, name)

    monkeypatch.setattr(PristineReader, "__call__", counting)
    return counted


def plan(precision: str, budget: int | None) -> MemoryPlan:
    """Of a full-size job of 640 x 608 pixels."""
    tokens = tokens_of(size=(640, 608), window=9, image=729, text=200)
    return plan_memory(FULL, precision=precision, tokens=tokens, steps=25, budget=budget)


def load(part: Path, counted: Counter[str], memory: MemoryPlan, *, fp8: bool = False) -> Loaded:
    """A full-size transformer, loaded onto the meta device as a render would onto a card."""
    model, _ = load_transformer(
        part, device=META, dtype=torch.bfloat16, fp8=fp8, resident=memory.resident, config_file=None
    )
    return Loaded(model=model, reads=counted)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_parameter_is_placed_once(tmp_path: Path, reads: Counter[str], budget: int | None) -> None:
    """Three shards of bf16 are read tensor by tensor, once each, to where the memory plan has them, to the byte."""
    memory = plan("bf16", budget)
    loaded = load(write_part("transformer", tmp_path), reads, memory)
    assert loaded.reads == Counter(full_size_tensors("transformer").keys())
    assert loaded.bytes_on("meta") == memory.weights
    assert loaded.bytes_on("cpu") == memory.conditioning + memory.pinned
    dtypes = {name: parameter.dtype for name, parameter in loaded.model.named_parameters()}
    final = {"proj_out.weight", "proj_out.bias"}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == final
    assert {dtype for name, dtype in dtypes.items() if name not in final} == {torch.bfloat16}


def test_figures_of_the_design(tmp_path: Path, reads: Counter[str]) -> None:
    """25.75 GB in all; of these 18.2 GB on the device while sampling, and 7.5 GB that condition it in main memory."""
    loaded = load(write_part("transformer", tmp_path), reads, plan("bf16", None))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) == pytest.approx(25.75e9, abs=5e6)
    assert (loaded.bytes_on("meta"), loaded.bytes_on("cpu")) == (18_231_402_752, 7_517_620_224)
    stacks = (loaded.model.transformer_blocks, loaded.model.single_transformer_blocks)
    assert [len(stack) for stack in stacks] == [20, 40]
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == pytest.approx(12.874e9, rel=1e-4)


@pytest.mark.parametrize("budget", BUDGETS)
def test_fp8_is_placed_once(
    tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch, budget: int | None
) -> None:
    """In fp8 as well every tensor is read once; codes and scales lie where the plan has them, 9.2 GB without a limit.

    Quantising itself needs values, which the meta device has none of: it is left out.
    """
    stored: Counter[str] = Counter()

    def store(self: ResidentWeights, name: str, value: Tensor) -> None:
        assert value.shape == self[name].shape
        stored[name] += 1

    monkeypatch.setattr(ResidentWeights, "store", store)
    memory = plan("fp8", budget)
    loaded = load(write_part("transformer", tmp_path), reads, memory, fp8=True)
    assert loaded.reads == Counter(full_size_tensors("transformer").keys())
    assert loaded.bytes_on("meta") == memory.weights
    assert loaded.bytes_on("cpu") == memory.conditioning + memory.pinned
    codes = {name for name, tensor in loaded.model.state_dict().items() if tensor.dtype == E4M3}
    assert stored == Counter(codes)
    if budget is None:
        assert loaded.bytes_on("meta") == 9_180_061_952


def test_a_single_file_larger_than_memory(tmp_path: Path, reads: Counter[str]) -> None:
    """All 25.75 GB in one file are mapped, whatever the machine's memory: what lies there is the file itself."""
    file = write_headers(tmp_path / "FramePackI2V_HY_bf16.safetensors", full_size_tensors("transformer"))
    loaded = load(file, reads, plan("bf16", None))
    assert loaded.reads == Counter(full_size_tensors("transformer").keys())
    assert loaded.bytes_on("cpu") == 7_517_620_224
    _, last = max((parameter.data_ptr(), parameter) for parameter in loaded.model.parameters() if not parameter.is_meta)
    assert float(last.flatten()[-1]) == 0


# 1.05 B parameters, and an eighth of them.
TWO_GB = replace(FULL, num_attention_heads=12, num_layers=6, num_single_layers=12)
SMALLER = replace(FULL, num_attention_heads=8, num_layers=1, num_single_layers=4)

_MEASURED = """
import json, sys
from pathlib import Path
import torch
from goan_cli.model.weights import load_transformer

def status():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[0].startswith(("Vm", "Rss"))}

part, kind, dtype, stored = Path(sys.argv[1]), sys.argv[2], *(getattr(torch, name) for name in sys.argv[3:])
if kind == "llama":
    from goan_cli.render import loading
torch.set_num_threads(1)
torch.ones(1 << 16, dtype=stored).to(torch.float32).to(dtype)
before = status()
if kind == "llama":
    model = loading.load_llama(part, dtype)
else:
    model, _ = load_transformer(part, device=torch.device("cpu"), dtype=dtype, fp8=kind == "fp8")
after = status()
made = sum(tensor.nbytes for tensor in model.state_dict().values() if tensor.dtype != stored)
print(json.dumps([after["VmHWM"] - before["VmRSS"], made]))
"""


def measured(part: Path, kind: str, dtype: str, stored: str) -> tuple[int, int]:
    """What a load in a process of its own takes at its peak, and the bytes of the tensors that are no mapped file.

    The peak is the kernel's, of all memory beyond what was there before, the file's mapped pages included.
    """
    command = [sys.executable, "-c", _MEASURED, str(part), kind, dtype, stored]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    peak, made = json.loads(done.stdout)
    return peak, made


def write_shards(folder: Path, config: TransformerConfig) -> int:
    """A transformer in bf16 of shards of half a gigabyte at most; their size."""
    write_config(folder, config)
    tensors = {
        name: TensorEntry(dtype="BF16", shape=tuple(parameter.shape))
        for name, parameter in empty_transformer(config).named_parameters()
    }
    files = write_weights(folder, "diffusion_pytorch_model", tensors, largest=HALF_GB)
    return sum(file.stat().st_size for file in files)


@linux
def test_two_gigabytes_are_mapped(tmp_path: Path) -> None:
    """Loading 2 GB of shards on the CPU in their own dtype takes less than half a gigabyte, mapped pages included."""
    assert write_shards(tmp_path, TWO_GB) > 2e9
    assert len(list(tmp_path.glob("*.safetensors"))) >= 4
    peak, made = measured(tmp_path, "transformer", "bfloat16", "bfloat16")
    assert peak < HALF_GB
    assert made < 1e6


@linux
@pytest.mark.parametrize(("kind", "dtype"), [("transformer", "float16"), ("fp8", "bfloat16")])
def test_what_is_converted_is_held_once(tmp_path: Path, kind: str, dtype: str) -> None:
    """A load that converts or quantises takes what it makes and the mapped file, and no second copy of a part of it."""
    size = write_shards(tmp_path, SMALLER)
    peak, made = measured(tmp_path, kind, dtype, "bfloat16")
    assert size > 2e8
    assert made > 5e7
    assert peak < size + made + 5e7


@linux
def test_two_gigabytes_of_llama_are_mapped(tmp_path: Path) -> None:
    """So are the encoders: 2 GB of Llama's layers in fp16 take less than half a gigabyte to load."""
    full = full_size_tensors("text_encoder")
    kept = {
        name: entry for name, entry in full.items() if not name.startswith("layers.") or int(name.split(".")[1]) < 5
    }
    files = write_weights(tmp_path, "model", kept, largest=HALF_GB)
    config = json.loads((FULL_SIZE / "text_encoder.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}), encoding="utf-8")
    assert sum(file.stat().st_size for file in files) > 2e9
    peak, made = measured(tmp_path, "llama", "float16", "float16")
    assert peak < HALF_GB
    assert made < 1e6
