"""However a model's parts are packed, the render is the same bits."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from goan_cli.batch.run import render_jobs
from goan_cli.batch.survey import RunSettings
from goan_cli.render.engine import Engine
from tests.helpers import tiny_plan
from tests.packagings import (
    SINGLE_FILES,
    WEIGHTED,
    Entry,
    plain_folder,
    sharded,
    single_file,
    write_golden_manifest,
)

# Together they are every part as one file, none called as the classes call it.
COMFYUI = (
    "transformer: one file",
    "Llama: ComfyUI with the image encoder",
    "CLIP: ComfyUI",
    "SigLIP: ComfyUI without head",
    "VAE: LDM, convolutions",
)
WHOLE_MODELS = (
    "transformer: one file",
    "Llama: LLaVA of transformers since",
    "CLIP: the whole model",
    "SigLIP: the whole model",
    "VAE: Tencent's training",
)


def _rendered(folder: Path, parts: Mapping[str, Entry], *, sections: int = 1) -> tuple[Tensor, NDArray[np.uint8]]:
    """Latents and frames, by an engine that has loaded nothing before and finds nothing cached."""
    folder.mkdir(exist_ok=True)
    manifest = write_golden_manifest(folder / "golden.yaml", parts)
    plan = tiny_plan(folder, model=str(manifest), sections=sections)
    engine = Engine(device="cpu")
    latents = engine.sample(plan, engine.conditioning_for(plan)).latents
    return latents, np.concatenate(list(engine.frames(plan, latents)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, NDArray[np.uint8]]:
    """What the golden pack's own folders render."""
    return _rendered(tmp_path_factory.mktemp("plain"), {})


def _assert_the_same(made: tuple[Tensor, NDArray[np.uint8]], expected: tuple[Tensor, NDArray[np.uint8]]) -> None:
    assert bool(expected[0].isfinite().all())
    assert float(expected[0].std()) > 0.1
    assert torch.equal(made[0], expected[0])
    assert np.array_equal(made[1], expected[1])


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_single_file(tmp_path: Path, name: str, plain: tuple[Tensor, NDArray[np.uint8]]) -> None:
    """A part in one file renders the latents and frames of its folder, whatever its tensors are called there."""
    part = SINGLE_FILES[name].part
    _assert_the_same(_rendered(tmp_path, {part: single_file(tmp_path / "files", name)}), plain)


@pytest.mark.parametrize("part", WEIGHTED)
def test_every_part_is_seen(tmp_path: Path, part: str, plain: tuple[Tensor, NDArray[np.uint8]]) -> None:
    """A part rounded to 16 bits renders something else: the comparison of these tests reaches each of them."""
    made, _ = _rendered(tmp_path, {part: plain_folder(tmp_path / "rounded", part, dtype=torch.bfloat16)})
    assert not torch.equal(made, plain[0])


@pytest.mark.parametrize("part", WEIGHTED)
def test_sharded(tmp_path: Path, part: str, plain: tuple[Tensor, NDArray[np.uint8]]) -> None:
    """A part in shards with an index renders the latents and frames of its folder."""
    _assert_the_same(_rendered(tmp_path, {part: sharded(tmp_path / "shards", part)}), plain)


def test_sharded_llava(tmp_path: Path, plain: tuple[Tensor, NDArray[np.uint8]]) -> None:
    """Llama inside the shards of a LLaVA, described by its own configuration, renders the folder's."""
    packaging = SINGLE_FILES["Llama: LLaVA of transformers before 4.52"]
    entry = sharded(
        tmp_path / "shards", "text_encoder", renamed=lambda tensors: packaging.renamed(tensors) | dict(packaging.beside)
    )
    _assert_the_same(_rendered(tmp_path, {"text_encoder": entry}), plain)


@pytest.mark.parametrize("names", [COMFYUI, WHOLE_MODELS], ids=["ComfyUI", "whole models"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits(tmp_path: Path, dtype: torch.dtype, names: tuple[str, ...]) -> None:
    """Files of 16 bits, all parts at once, render what folders of the same 16 bits render."""
    folders = {part: plain_folder(tmp_path / "folders", part, dtype=dtype) for part in WEIGHTED}
    files = {SINGLE_FILES[name].part: single_file(tmp_path / "files", name, dtype=dtype) for name in names}
    assert files.keys() == folders.keys()
    made, expected = (_rendered(tmp_path / name, parts, sections=2) for name, parts in (("b", files), ("a", folders)))
    _assert_the_same(made, expected)


@pytest.mark.parametrize("names", [COMFYUI, WHOLE_MODELS], ids=["ComfyUI", "whole models"])
def test_whole_jobs(tmp_path: Path, names: tuple[str, ...]) -> None:
    """With every part in a file of its own, a job's kept latents and its MP4 are the folders', byte for byte."""
    files = {SINGLE_FILES[name].part: single_file(tmp_path / "files", name) for name in names}
    manifests = {
        "folders": write_golden_manifest(tmp_path / "folders.yaml"),
        "files": write_golden_manifest(tmp_path / "files.yaml", files),
    }
    plans = [tiny_plan(tmp_path, name, model=str(file), sections=2) for name, file in manifests.items()]
    outcomes = render_jobs(plans, RunSettings(device="cpu"))
    assert [outcome.end for outcome in outcomes] == ["done"] * 2
    videos = [plan.job.video.read_bytes() for plan in plans]
    assert videos[0] == videos[1]
    kept = [load_file(plan.job.latents) for plan in plans]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in kept[0].items())
