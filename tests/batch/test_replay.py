"""Rendering from a sidecar alone: the same bits, or what was different."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from goan_cli.batch.replay import replay
from goan_cli.batch.run import render_jobs
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import InvalidInput, InvalidJobs
from goan_cli.render.plan import RenderPlan
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora


@pytest.fixture
def rendered(tmp_path: Path) -> RenderPlan:
    """A finished job with a LoRA, true CFG and a step cache."""
    lora = write_lora(tmp_path / "a.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE))
    settings = {"true_cfg_scale": 2.0, "negative_prompt": "dark", "step_cache": "teacache", "steps": 4, "fps": 12.5}
    plan = tiny_plan(tmp_path, "job", [(lora, 0.7)], **settings)
    (outcome,) = render_jobs([plan], RunSettings(device="cpu"))
    assert outcome.error is None
    return plan


def test_the_same_again(tmp_path: Path, rendered: RenderPlan) -> None:
    """From the sidecar alone come the same latents, frames and file, and the result stays as it was."""
    before = rendered.job.sidecar.read_bytes()
    found = replay(rendered.job.sidecar, tmp_path / "again", device="cpu")
    assert (found.same, found.latents, found.frames, found.video) == (True, True, True, True)
    assert (found.causes, found.psnr) == ((), None)
    assert (tmp_path / "again" / "job.mp4").read_bytes() == rendered.job.video.read_bytes()
    assert rendered.job.sidecar.read_bytes() == before


def test_another_image_is_named(tmp_path: Path, rendered: RenderPlan) -> None:
    """Where the image has changed since, the result differs, and the image is named as a cause."""
    Image.new("RGB", (48, 40), "green").save(rendered.job.pictures[0])
    found = replay(rendered.job.sidecar, tmp_path / "again", device="cpu")
    assert (found.same, found.latents, found.frames, found.video) == (False, False, False, False)
    assert found.causes == ("another image",)
    assert found.psnr is not None
    assert 1 < found.psnr < 40


def test_other_versions_are_named(tmp_path: Path, rendered: RenderPlan) -> None:
    """Versions that differ are named, also when the result is the same."""
    content = json.loads(rendered.job.sidecar.read_text())
    content["versions"]["torch"] = "1.0"
    content["device"] = "NVIDIA Abacus"
    rendered.job.sidecar.write_text(json.dumps(content))
    found = replay(rendered.job.sidecar, tmp_path / "again", device="cpu")
    assert found.same
    assert found.causes[0] == "another device: NVIDIA Abacus then, cpu now"
    assert found.causes[1].startswith("torch 1.0 then, ")


def test_a_rejected_seed_is_not_tried_again(tmp_path: Path) -> None:
    """A result of a later seed is rendered from that seed, not from the one that was rejected."""
    plan = tiny_plan(tmp_path, "job")
    plan = replace(plan, job=replace(plan.job, retry_seeds=3))
    render_jobs([plan], RunSettings(device="cpu"))
    content = json.loads(plan.job.sidecar.read_text())
    content["asked_seed"] = 3
    plan.job.sidecar.write_text(json.dumps(content))
    found = replay(plan.job.sidecar, tmp_path / "again", device="cpu")
    assert found.same
    assert found.outcome.plan.job.sampling.seed == 7


def test_what_cannot_be_replayed(tmp_path: Path, rendered: RenderPlan) -> None:
    """No sidecar, a sidecar without digests, and one whose image is gone are refused with a reason."""
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(InvalidInput, match="not a sidecar"):
        replay(other, tmp_path / "again", device="cpu")
    content = json.loads(rendered.job.sidecar.read_text())
    del content["frames_sha256"]
    other.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match="no digests"):
        replay(other, tmp_path / "again", device="cpu")
    rendered.job.pictures[0].unlink()
    with pytest.raises(InvalidJobs, match=r"start\.png"):
        replay(rendered.job.sidecar, tmp_path / "again", device="cpu")
    assert not (tmp_path / "again").exists()
