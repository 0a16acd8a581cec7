"""Kept latents decoded again: the render's very video, or another of the same latents, and clear refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from goan_cli.batch.job import render_job
from goan_cli.batch.redecode import Wanted, decode_again, plan_decoding
from goan_cli.errors import GoanError, Interrupted, InvalidInput, InvalidJobs
from goan_cli.jobs.formats import Codec, Coding, Format
from goan_cli.jobs.job import DecodeMode, Job
from goan_cli.output.latents import KeptLatents, read_latents
from goan_cli.output.recipe import embedded_recipe
from goan_cli.output.video import VideoInfo, read_video
from goan_cli.packs.find import find_pack
from goan_cli.packs.manifest import MANIFEST, SHIPPED
from goan_cli.render.engine import Engine
from tests.helpers import tiny_plan

CPU = torch.device("cpu")
Make = Callable[..., Job]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Renders a small job once for each set of keys."""
    shared = tmp_path_factory.mktemp("shared")
    jobs: dict[str, Job] = {}

    def make(**settings: Any) -> Job:
        key = json.dumps(settings, sort_keys=True)
        if key not in jobs:
            folder = tmp_path_factory.mktemp("render")
            output = {"dir": str(folder / "out"), "keep_latents": True, **settings.pop("output", {})}
            plan = tiny_plan(folder, **{"size": [48, 32], "sections": 2, "steps": 2, "output": output, **settings})
            render_job(Engine(device="cpu", cache=shared), plan)
            jobs[key] = plan.job
        return jobs[key]

    return make


def again(job: Job, out: Path, wanted: Wanted | None = None) -> VideoInfo:
    """A job's latents decoded to `out`."""
    return decode_again(plan_decoding(read_latents(job.latents), wanted or Wanted()), out, CPU)


def without_record(job: Job, folder: Path, name: str = "old") -> Path:
    """A copy of a job's latents as an earlier goan kept them."""
    path = folder / f"{name}.latents.safetensors"
    save_file(load_file(job.latents), path)
    return path


def changed(kept: KeptLatents, **changes: Any) -> KeptLatents:
    """Kept latents with another record."""
    if kept.record is None:
        raise AssertionError("there is a record")
    return replace(kept, record=replace(kept.record, **changes))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model": "tiny-f1"},
        {"decode": "single", "fps": 24, "output": {"crf": 24}},
        {"post": {"interpolate": 60}},
        {"output": {"metadata": True}},
    ],
    ids=["overlap", "f1", "single", "interpolated", "with-recipe"],
)
def test_the_same_video(rendered: Make, tmp_path: Path, settings: dict[str, Any]) -> None:
    """With nothing asked for the video is the render's, to the last byte."""
    job = rendered(**settings)
    again(job, tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == job.video.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.mp4"]


def test_another_quality(rendered: Make, tmp_path: Path) -> None:
    """Another crf makes a smaller file of the same frames, whose recipe says so."""
    job = rendered(output={"metadata": True})
    video = again(job, tmp_path / "coarse.mp4", Wanted(coding=Coding(crf=40)))
    assert video.frames == job.sections.frames
    assert (tmp_path / "coarse.mp4").stat().st_size < job.video.stat().st_size
    before, after = read_video(job.video).astype(int), read_video(tmp_path / "coarse.mp4").astype(int)
    assert before.shape == after.shape
    assert 0 < np.abs(before - after).mean() < 12
    recipe = embedded_recipe(tmp_path / "coarse.mp4")
    assert recipe is not None
    assert recipe["output"]["crf"] == 40
    assert recipe["prompt"] == job.prompt


def test_another_decode(rendered: Make, tmp_path: Path) -> None:
    """Decoded each latent once, it is the video that a render with `decode: single` would have made."""
    job = rendered()
    single = rendered(decode="single")
    again(job, tmp_path / "single.mp4", Wanted(decode=DecodeMode.SINGLE))
    assert np.array_equal(read_video(tmp_path / "single.mp4"), read_video(single.video))


def test_another_rate(rendered: Make, tmp_path: Path) -> None:
    """The same frames at another rate: as many, shown for longer."""
    job = rendered()
    video = again(job, tmp_path / "slow.mp4", Wanted(fps=12.0))
    assert (video.frames, video.fps) == (job.sections.frames, 12.0)
    assert np.abs(read_video(tmp_path / "slow.mp4").astype(int) - read_video(job.video)).mean() < 3


def test_interpolated_afterwards_and_not(rendered: Make, tmp_path: Path) -> None:
    """Frames can be made between those of a finished render, and left out of one that had them."""
    job, smooth = rendered(), rendered(post={"interpolate": 60})
    again(job, tmp_path / "smooth.mp4", Wanted(interpolate=60.0))
    assert np.array_equal(read_video(tmp_path / "smooth.mp4"), read_video(smooth.video))
    again(smooth, tmp_path / "plain.mp4", Wanted(interpolate=0.0))
    assert np.array_equal(read_video(tmp_path / "plain.mp4"), read_video(job.video))
    with pytest.raises(InvalidInput, match="30 frames a second already"):
        plan_decoding(read_latents(job.latents), Wanted(interpolate=20.0))


def test_another_kind_of_file(rendered: Make, tmp_path: Path) -> None:
    """A webm has as many frames, of the same size."""
    job = rendered()
    video = again(job, tmp_path / "a.webm", Wanted(coding=Coding(format=Format.WEBM, codec=Codec.VP9, crf=20)))
    assert read_video(tmp_path / "a.webm").shape == (video.frames, 32, 48, 3)


def test_tiles(rendered: Make, tmp_path: Path) -> None:
    """A tile that holds a frame makes the same bytes; smaller ones nearly the same pixels."""
    job = rendered()
    again(job, tmp_path / "one.mp4", Wanted(tile=(128, 128)))
    assert (tmp_path / "one.mp4").read_bytes() == job.video.read_bytes()
    noise = np.random.default_rng(0).normal(size=(1, 16, 2, 16, 17)).astype(np.float32)
    wide = replace(changed(read_latents(job.latents), window=1), latents=noise)
    for name, tile in (("whole.mp4", None), ("tiled.mp4", (128, 128))):
        decode_again(plan_decoding(wide, Wanted(tile=tile)), tmp_path / name, CPU)
    tiled, whole = read_video(tmp_path / "tiled.mp4").astype(int), read_video(tmp_path / "whole.mp4").astype(int)
    assert tiled.shape == whole.shape == (5, 128, 136, 3)
    assert 0 < np.abs(tiled - whole).mean() < 6


@pytest.mark.parametrize("tile", [(64, 128), (128, 130)])
def test_tiles_that_cannot_be(rendered: Make, tile: tuple[int, int]) -> None:
    """Tiles too small or of odd sizes are refused with what they may be."""
    with pytest.raises(InvalidInput, match="at least 128 pixels a side, and multiples of 8"):
        plan_decoding(read_latents(rendered().latents), Wanted(tile=tile))


def test_old_latents(rendered: Make, tmp_path: Path) -> None:
    """Latents without a record need a model and a window, and one error says so; with both, the frames are the same."""
    job = rendered()
    kept = read_latents(without_record(job, tmp_path))
    for wanted in (Wanted(), Wanted(model="tiny"), Wanted(window=9)):
        with pytest.raises(InvalidInput) as caught:
            plan_decoding(kept, wanted)
        assert caught.value.hint == "give --model and --window"
    decode_again(plan_decoding(kept, Wanted(model="tiny", window=job.sections.window)), tmp_path / "a.mp4", CPU)
    assert np.array_equal(read_video(tmp_path / "a.mp4"), read_video(job.video))


def test_old_latents_beside_a_sidecar(rendered: Make, tmp_path: Path) -> None:
    """A sidecar beside old latents says the rest, if it is theirs."""
    job = rendered(fps=24)
    path = without_record(job, tmp_path)
    (tmp_path / "old.json").write_bytes(job.sidecar.read_bytes())
    decode_again(plan_decoding(read_latents(path), Wanted()), tmp_path / "a.mp4", CPU)
    assert np.array_equal(read_video(tmp_path / "a.mp4"), read_video(job.video))
    (tmp_path / "old.json").write_bytes(rendered(seed=8).sidecar.read_bytes())
    assert read_latents(path).record is None


def test_another_vae(rendered: Make) -> None:
    """A pack whose VAE is another one is refused, unless it is asked for; then it is noted."""
    kept = changed(read_latents(rendered().latents), vae="another")
    with pytest.raises(InvalidInput, match="another VAE") as caught:
        plan_decoding(kept, Wanted())
    assert "--model tiny" in str(caught.value.hint)
    assert "not the one" in plan_decoding(kept, Wanted(model="tiny")).notes[0]


def vae_alone(folder: Path) -> Path:
    """A tiny pack of which the VAE alone is there."""
    folder.mkdir()
    shutil.copy(SHIPPED["tiny"], folder / MANIFEST)
    shutil.copytree(find_pack("tiny").vae, folder / "vae")
    return folder


def test_the_vae_alone(rendered: Make, tmp_path: Path) -> None:
    """Where a pack's other parts are nowhere, its VAE makes the render's bytes all the same, and is known as that."""
    job, folder = rendered(), vae_alone(tmp_path / "pack")
    kept = changed(read_latents(job.latents), model=str(folder))
    for each, wanted in ((kept, Wanted()), (read_latents(job.latents), Wanted(model=str(folder)))):
        decoding = plan_decoding(each, wanted)
        assert decoding.notes == ()
        decode_again(decoding, tmp_path / "again.mp4", CPU)
        assert (tmp_path / "again.mp4").read_bytes() == job.video.read_bytes()
        (tmp_path / "again.mp4").unlink()


def test_the_vae_is_missing(rendered: Make, tmp_path: Path) -> None:
    """A pack without its VAE is refused for that alone."""
    folder = vae_alone(tmp_path / "pack")
    shutil.rmtree(folder / "vae")
    with pytest.raises(InvalidJobs) as caught:
        plan_decoding(read_latents(rendered().latents), Wanted(model=str(folder)))
    assert [problem.key for problem in caught.value.problems] == ["vae"]


def test_a_video_that_is_gone_on_with(rendered: Make) -> None:
    """Of a render that goes on with a video only the new part is in its latents, which is noted."""
    kept = read_latents(rendered().latents)
    assert not plan_decoding(kept, Wanted()).notes
    (note,) = plan_decoding(changed(kept, goes_on=True), Wanted()).notes
    assert "only what is new" in note


def test_a_model_that_is_not_there(rendered: Make, tmp_path: Path) -> None:
    """A pack that is nowhere is told as a render tells it."""
    with pytest.raises(GoanError, match="nowhere"):
        plan_decoding(read_latents(rendered().latents), Wanted(model=str(tmp_path / "nowhere")))


def test_frames_that_do_not_fit(rendered: Make) -> None:
    """A window that does not divide the latents, or a single picture, is refused."""
    kept = read_latents(rendered().latents)
    with pytest.raises(InvalidInput, match="latent frames are not a first one and sections of 7"):
        plan_decoding(kept, Wanted(window=7))
    with pytest.raises(InvalidInput, match="single picture"):
        plan_decoding(replace(kept, latents=kept.latents[:, :, :1]), Wanted())


def test_stopped(rendered: Make, tmp_path: Path) -> None:
    """Asked to stop, it leaves nothing."""
    decoding = plan_decoding(read_latents(rendered().latents), Wanted())
    with pytest.raises(Interrupted):
        decode_again(decoding, tmp_path / "a.mp4", CPU, stop=lambda: True)
    assert not list(tmp_path.iterdir())
