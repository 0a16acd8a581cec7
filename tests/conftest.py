"""What many tests need: a folder with a start image and a LoRA, and what planning says of a job file."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings as hypothesis_settings
from PIL import Image
from safetensors.numpy import save_file

from goan_cli.errors import InvalidJobs
from goan_cli.jobs.load import load_requests, settings_document
from goan_cli.render.plan import RenderPlan, plan_renders
from goan_cli.tiny.training import SAFE_ISA
from tests.helpers import TINY_CONFIG
from tests.spandrel_alone import TORCHVISION, spandrel_modules, taken_out

# As `make tiny` does, and before oneDNN is first used: with AMX it gets gradients of bf16 convolutions wrong.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", SAFE_ISA)

# A shell starts what runs in its background deaf to SIGINT, and so would be the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests' tensors are too small to share out, and threads that wait for one another on a busy machine make
# the tiny pack's renders fifty times slower.
torch.set_num_threads(1)

# How long an example takes depends on the machine, and is no property of the code.
hypothesis_settings.register_profile("goan", deadline=None)
hypothesis_settings.load_profile("goan")

GOLDEN = Path(__file__).parent / "data" / "golden"
TARGET = "lora_unet_transformer_blocks_0_attn_to_q"  # a square linear of the tiny model
WIDTH = TINY_CONFIG.width
# A job that the folder's files complete; one section keeps it short.
MINIMAL: Mapping[str, Any] = {"image": "start.png", "prompt": "a ball", "sections": 1}


@pytest.fixture(autouse=True)
def embedding_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of embeddings of the test's own."""
    cache = tmp_path_factory.mktemp("embeddings")
    monkeypatch.setenv("GOAN_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True)
def models_of_the_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No models and settings but the test's own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GOAN_CONFIG", str(home / "config"))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    for variable in ("GOAN_MODELS", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, holding a start image and a LoRA for the tiny model."""
    monkeypatch.chdir(tmp_path)
    Image.linear_gradient("L").resize((160, 120)).convert("RGB").save(tmp_path / "start.png")
    write_lora(tmp_path / "style.safetensors")
    return tmp_path


@pytest.fixture(scope="session")
def imported_spandrel() -> dict[str, ModuleType]:
    """The library's modules, of which none stands in `sys.modules`."""
    return spandrel_modules()


@pytest.fixture
def real_spandrel(imported_spandrel: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself can be imported, torchvision or not."""
    for name, module in imported_spandrel.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library is there, but not what it needs: it cannot be imported."""
    before = taken_out("spandrel")
    monkeypatch.setitem(sys.modules, TORCHVISION, None)
    yield
    taken_out("spandrel")
    sys.modules.update(before)


def write_lora(path: Path, *, up: float = 0.01, target: str = TARGET, width: int = WIDTH, drop: str = "") -> Path:
    """A rank-2 LoRA in kohya's layout for one linear; `drop` leaves out the keys that end with it."""
    tensors = {
        f"{target}.lora_down.weight": np.full((2, width), 0.1, dtype=np.float32),
        f"{target}.lora_up.weight": np.full((width, 2), up, dtype=np.float32),
        f"{target}.alpha": np.array(2.0, dtype=np.float32),
    }
    kept = {key: tensor for key, tensor in tensors.items() if not drop or not key.endswith(drop)}
    save_file(kept, path)
    return path


def write_jobs(path: Path, content: object) -> Path:
    """A job file of data, or of text as it is."""
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def plan_files(*files: Path, settings: Sequence[str] = (), out: Path | None = None) -> list[RenderPlan]:
    """Plans of job files, with `--set` settings on top."""
    overrides = settings_document(settings, {}) if settings else None
    requests, problems = load_requests(files, overrides)
    return plan_renders(requests, problems, out=out)


def problems_in(*files: Path, settings: Sequence[str] = ()) -> list[str]:
    """What is wrong with job files, one line a problem."""
    with pytest.raises(InvalidJobs) as caught:
        plan_files(*files, settings=settings)
    return [str(problem) for problem in caught.value.problems]
