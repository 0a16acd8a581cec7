"""Upscaling: tiles make the same as the whole, memory that runs out makes them smaller, files are refused by name.

A module of this file stands in for spandrel where the loading is shown, with the part of its interface that goan
calls; where the library itself can be imported, one of its own architectures is loaded too.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from goan_cli.errors import EnvironmentFault, InvalidInput, OtherFormat, RenderFailed
from goan_cli.render.upscale import Upscaler, load_upscaler

CPU = torch.device("cpu")


def enlarge(pixels: Tensor) -> Tensor:
    """A model that sees the pixels around each: blurred, then twice as large."""
    kernel = torch.full((3, 1, 5, 5), 1 / 25)
    blurred = functional.conv2d(functional.pad(pixels, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return functional.interpolate(blurred, scale_factor=2, mode="nearest")


def upscaler(model: Callable[[Tensor], Tensor] = enlarge) -> Upscaler:
    """An upscaler on the CPU."""
    return Upscaler(model, scale=2, dtype=torch.float32, device=CPU)


def noise(height: int, width: int, count: int = 1) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Frames of noise."""
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def test_frames_are_enlarged() -> None:
    """Every frame comes out once, in order, as the model makes it, to the rounding of a level."""
    frames = noise(24, 40, 5)
    large = np.concatenate(list(upscaler().frames(iter([frames[:2], frames[2:]]))))
    assert large.shape == (5, 48, 80, 3)
    expected = enlarge(torch.from_numpy(frames).permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1) * 255
    assert np.abs(large - expected.numpy()).max() <= 0.51


@pytest.mark.parametrize(("height", "width"), [(300, 520), (100, 700), (64, 257)])
def test_tiles_make_the_same(height: int, width: int) -> None:
    """A frame larger than a tile is what the model makes of the whole, without a seam."""
    whole = upscaler()
    whole.tile = None
    frames = noise(height, width)
    tiled = next(upscaler().frames(iter([frames])))
    assert np.array_equal(tiled, next(whole.frames(iter([frames]))))


def test_memory_that_runs_out_makes_tiles_smaller() -> None:
    """Where a frame does not fit, smaller tiles are tried, and kept for the frames after it."""
    sizes: list[int] = []

    def narrow(pixels: Tensor) -> Tensor:
        sizes.append(max(pixels.shape[-2:]))
        if sizes[-1] > 200:
            raise torch.OutOfMemoryError("no room")
        return enlarge(pixels)

    small = upscaler(narrow)
    small.tile = None
    frames = noise(300, 500, 2)
    first, second = small.frames(iter([frames]))
    assert small.tile == 125
    assert sum(size > 200 for size in sizes) == 2  # a whole frame and half of one; the second frame fits at once
    assert first.shape == second.shape == (1, 600, 1000, 3)


def test_no_room_at_all() -> None:
    """Where not even small tiles fit, the render has failed, with what to do."""

    def never(pixels: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(RenderFailed, match="out of memory while upscaling"):
        list(upscaler(never).frames(iter([noise(64, 64)])))


def test_values_that_are_no_numbers() -> None:
    """A model that overflows fails the render, instead of making black frames."""
    with pytest.raises(RenderFailed, match="not finite"):
        list(upscaler(lambda pixels: enlarge(pixels) * float("nan")).frames(iter([noise(16, 16)])))


class _Model:
    """What spandrel's descriptors offer: callable, movable, with scale and channels."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        if "body.weight" not in state:
            raise ValueError("unsupported model")
        self.scale, self.input_channels, self.output_channels = 2, int(state["body.weight"].shape[1]), 3
        self.supports_half = self.supports_bfloat16 = True
        self.moved: tuple[object, ...] = ()

    def to(self, *where: object) -> "_Model":
        self.moved = where
        return self

    def eval(self) -> "_Model":
        return self

    def __call__(self, pixels: Tensor) -> Tensor:
        return enlarge(pixels)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in spandrel's place."""
    module = ModuleType("spandrel")
    parts: dict[str, Any] = {
        "canonicalize_state_dict": dict,
        "ImageModelDescriptor": _Model,
        "ModelLoader": lambda: SimpleNamespace(load_from_state_dict=_Model),
    }
    for name, part in parts.items():
        setattr(module, name, part)
    monkeypatch.setitem(sys.modules, "spandrel", module)


def model_file(path: Path, name: str = "body.weight", channels: int = 3) -> Path:
    """A model's file, of one tensor."""
    save_file({name: torch.zeros(4, channels, 3, 3)}, path)
    return path


@pytest.mark.usefixtures("stand_in")
def test_load(tmp_path: Path) -> None:
    """A model is loaded in full precision on a CPU, with its scale."""
    loaded = load_upscaler(model_file(tmp_path / "x2.safetensors"), CPU)
    assert loaded.scale == 2
    assert next(loaded.frames(iter([noise(8, 8)]))).shape == (1, 16, 16, 3)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("name", "channels"), [("other.weight", 3), ("body.weight", 1)], ids=["unknown", "grey"])
def test_models_that_do_not_serve(tmp_path: Path, name: str, channels: int) -> None:
    """A file that no architecture knows, or of one that wants no colour picture, is refused by name."""
    with pytest.raises(InvalidInput, match=r"x2\.safetensors: not "):
        load_upscaler(model_file(tmp_path / "x2.safetensors", name, channels), CPU)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("name", ["x2.pth", "x2.safetensors"])
def test_pickles_are_never_opened(tmp_path: Path, name: str) -> None:
    """A torch pickle is refused for what it is, whatever its name, and nothing in it runs."""
    path = tmp_path / name
    torch.save({"body.weight": torch.zeros(1)}, path)
    with pytest.raises(OtherFormat, match="pickle"):
        load_upscaler(path, CPU)


@pytest.mark.parametrize(
    ("failure", "words"), [(ImportError, "needs the library"), (RuntimeError, "cannot be imported")]
)
def test_without_spandrel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception], words: str
) -> None:
    """Without the library, or with one that does not go with this torch, one error says what to do."""

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "spandrel":
                raise failure("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(EnvironmentFault, match=words) as caught:
        load_upscaler(model_file(tmp_path / "x2.safetensors"), CPU)
    assert "install" in str(caught.value.hint)


def test_an_architecture_of_spandrel(tmp_path: Path) -> None:
    """With the library itself: a Real-ESRGAN compact network of random weights enlarges, the same in tiles."""
    try:
        importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"spandrel: {error}")
    from spandrel.architectures.Compact import Compact  # noqa: PLC0415

    torch.manual_seed(0)
    path = tmp_path / "compact.safetensors"
    network = Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=2)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    loaded = load_upscaler(path, CPU)
    assert loaded.scale == 2
    frames = noise(60, 300)
    tiled = next(loaded.frames(iter([frames])))
    loaded.tile = None
    whole = next(loaded.frames(iter([frames])))
    assert tiled.shape == whole.shape == (1, 120, 600, 3)
    assert np.abs(tiled.astype(int) - whole).max() <= 1
