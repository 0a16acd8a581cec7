"""Upscaling: tiles make the same as the whole, memory that runs out makes them smaller, files are refused by name.

Loading is shown with spandrel itself, and with files whose result is known from their weights.
"""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from goan_cli.errors import EnvironmentFault, InvalidInput, OtherFormat, RenderFailed
from goan_cli.render.upscale import Upscaler, load_upscaler
from tests.spandrel_alone import has_torchvision, spandrel_modules
from tests.upscalers import (
    ESRGAN_LAYOUTS,
    Frames,
    between_columns,
    between_columns_file,
    doubling_file,
    enlarged,
    negative,
    negative_file,
)

CPU = torch.device("cpu")


def enlarge(pixels: Tensor) -> Tensor:
    """A model that sees the pixels around each: blurred, then twice as large."""
    kernel = torch.full((3, 1, 5, 5), 1 / 25)
    blurred = functional.conv2d(functional.pad(pixels, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    return functional.interpolate(blurred, scale_factor=2, mode="nearest")


def upscaler(model: Callable[[Tensor], Tensor] = enlarge) -> Upscaler:
    """An upscaler on the CPU."""
    return Upscaler(model, scale=2, dtype=torch.float32, device=CPU)


def noise(height: int, width: int, count: int = 1) -> Frames:
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
    assert small.tile == 96
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


def test_the_library_leaves_nothing_behind() -> None:
    """What stands in for torchvision is gone when spandrel is imported; where it would be called, it raises."""
    before, found = set(sys.modules), find_spec("torchvision") is not None
    modules = spandrel_modules()
    assert "spandrel" in modules
    assert not {name for name in set(sys.modules) - before if name.partition(".")[0] in ("spandrel", "torchvision")}
    assert (find_spec("torchvision") is not None) == found  # which transformers goes by
    if has_torchvision():
        return
    with pytest.raises(NotImplementedError, match="normalize"):
        modules["spandrel.architectures.RestoreFormer"].tv_normalize(torch.zeros(3, 4, 4), [0.5], [0.5])


@pytest.mark.usefixtures("real_spandrel")
@pytest.mark.parametrize(
    ("make", "known"),
    [(doubling_file, enlarged), (between_columns_file, between_columns), (negative_file, negative)],
    ids=["compact-nearest", "compact-between", "esrgan"],
)
def test_known_pixels(tmp_path: Path, make: Callable[[Path], Path], known: Callable[[Frames], Frames]) -> None:
    """A model's frames are, to the last level, what its weights say, in tiles as well, in full precision on a CPU."""
    loaded = load_upscaler(make(tmp_path / "x2.safetensors"), CPU)
    assert loaded.scale == 2
    frames = noise(40, 300, 2) & np.uint8(254)  # a mean of even levels is one
    assert loaded.tile is not None
    assert loaded.tile < 300
    assert np.array_equal(np.concatenate(list(loaded.frames(iter([frames])))), known(frames))


@pytest.mark.usefixtures("real_spandrel")
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("layout", sorted(ESRGAN_LAYOUTS))
def test_layouts(tmp_path: Path, layout: str, prefix: str) -> None:
    """An ESRGAN is the same in the names of any of its repositories, and with what parallel training puts before."""
    loaded = load_upscaler(negative_file(tmp_path / "x2.safetensors", layout, prefix), CPU)
    frames = enlarged(noise(8, 12))  # the x2 layout sees the first pixel of each block
    assert loaded.scale == 2
    assert np.array_equal(next(loaded.frames(iter([frames]))), negative(frames))


@pytest.mark.usefixtures("real_spandrel")
def test_smaller_tiles_keep_to_blocks_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes pixels in blocks takes the same ones in the tiles that memory allows as in the whole."""
    loaded = load_upscaler(negative_file(tmp_path / "x2.safetensors", "Real-ESRGAN-x2"), CPU)
    model = loaded._model

    def narrow(pixels: Tensor) -> Tensor:
        if max(pixels.shape[-2:]) > 200:
            raise torch.OutOfMemoryError("no room")
        return model(pixels)

    monkeypatch.setattr(loaded, "_model", narrow)
    loaded.tile = None
    frames = noise(62, 500)
    large = next(loaded.frames(iter([frames])))
    assert loaded.tile is not None
    assert np.array_equal(large, negative(enlarged(frames[:, ::2, ::2])))


@pytest.mark.usefixtures("real_spandrel")
@pytest.mark.parametrize(
    ("name", "channels", "words"),
    [("other.weight", 3, "not an upscaling model"), ("body.0.weight", 1, "not a model that makes a colour picture")],
    ids=["unknown", "grey"],
)
def test_models_that_do_not_serve(tmp_path: Path, name: str, channels: int, words: str) -> None:
    """A file that no architecture knows, or of one that wants no colour picture, is refused by name."""
    path = tmp_path / "x2.safetensors"
    tensors = {name: torch.zeros(6, channels, 3, 3), "body.1.weight": torch.ones(6)}
    last = {"body.2.weight": torch.zeros(4 * channels, 6, 3, 3), "body.2.bias": torch.zeros(4 * channels)}
    save_file(tensors | last | {"body.0.bias": torch.zeros(6)}, path)
    with pytest.raises(InvalidInput, match=rf"x2\.safetensors: {words}"):
        load_upscaler(path, CPU)


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
        load_upscaler(doubling_file(tmp_path / "x2.safetensors"), CPU)
    assert "install" in str(caught.value.hint)


@pytest.mark.usefixtures("no_torchvision")
def test_without_torchvision(tmp_path: Path) -> None:
    """The library without what it needs is one error, with the command that gets both."""
    with pytest.raises(EnvironmentFault, match=r"needs the library spandrel: .*torchvision") as caught:
        load_upscaler(doubling_file(tmp_path / "x2.safetensors"), CPU)
    assert caught.value.hint == "pip install 'goan-cli[post]'"


@pytest.mark.usefixtures("real_spandrel")
def test_random_weights(tmp_path: Path) -> None:
    """A compact network of random weights enlarges, the same in tiles."""
    from spandrel.architectures.Compact import Compact  # noqa: PLC0415 - there for this test only

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
