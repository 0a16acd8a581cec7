"""What a job needs on the device, from its plan: what decides it, and that nothing real exceeds what was foreseen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from goan_cli.errors import EnvironmentFault
from goan_cli.packs.find import find_pack
from goan_cli.render.budget import foreseen_memory, memory_of, usual_memory
from goan_cli.render.engine import Engine
from goan_cli.render.loading import load_vae
from goan_cli.render.memory import OVERHEAD, Tokens, plan_memory
from goan_cli.render.sampling import _tables
from goan_cli.render.vae_memory import vae_shape
from tests.helpers import CPU, GOLDEN, PARTS, TINY_CONFIG, tiny_plan, write_tiny_manifest

PLENTY = 10**12
# 64 x 48 pixels and a window of 2: latents of 8 x 6, 12 tokens each; the history is 2 at 1x, 2 at 2x, 16 at 4x.
SIZE, WINDOW, NOISY = [64, 48], 2, 2 * 12
CLEAN = 2 * 12 + 1 * (2 * 2) + 4 * (1 * 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "fp8"])
@pytest.mark.parametrize(
    ("settings", "branches", "step_cache"),
    [
        ({}, 1, False),
        ({"true_cfg_scale": 2.5}, 2, False),
        ({"step_cache": "teacache"}, 1, True),
        ({"step_cache": {"kind": "magcache", "threshold": 0.2}, "true_cfg_scale": 2, "steps": 8}, 2, True),
    ],
)
def test_what_a_job_says(
    tmp_path: Path, precision: str, settings: dict[str, Any], branches: int, step_cache: bool
) -> None:
    """Size, window, steps, CFG and step cache of the job, and the tokens of its conditioning, decide the plan."""
    plan = tiny_plan(tmp_path, size=SIZE, window=WINDOW, **settings)
    expected = plan_memory(
        TINY_CONFIG,
        precision=precision,
        tokens=Tokens(noisy=NOISY, clean=CLEAN, image=9, text=20),
        steps=plan.job.sampling.steps,
        branches=branches,
        step_cache=step_cache,
        budget=None,
    )
    assert memory_of(plan, precision=precision, image=9, text=20, budget=None) == expected


@pytest.mark.parametrize("budget", [None, PLENTY])
def test_a_job_that_sets_nothing(tmp_path: Path, budget: int | None) -> None:
    """What is said of a pack is what a job with a square image needs that leaves all to it."""
    plan = tiny_plan(tmp_path, size="auto", sections=None, steps=None, window=None)
    assert (plan.job.size, plan.job.seconds) == ((64, 64), 5.0)
    expected = memory_of(plan, precision="bf16", image=4, text=256, budget=budget)
    assert usual_memory(plan.pack, precision="bf16", budget=budget) == expected


@pytest.mark.parametrize("key", ["sections", "seed", "fps", "prompt"])
def test_what_makes_no_difference(tmp_path: Path, key: str) -> None:
    """A longer video needs no more than a short one, nor does anything else that is sampled section by section."""
    values: dict[str, Any] = {"sections": 40, "seed": 8, "fps": 24, "prompt": "x"}
    first, second = (
        memory_of(tiny_plan(tmp_path, **settings), precision="bf16", image=9, text=20, budget=None)
        for settings in ({"sections": 3}, {"sections": 3, key: values[key]})
    )
    assert first == second


@torch.inference_mode()
def test_tables_take_what_was_foreseen(tmp_path: Path) -> None:
    """The tables of a job, of both CFG branches, take the bytes that its plan says."""
    plan, engine = tiny_plan(tmp_path, true_cfg_scale=2.0, negative_prompt="dark", steps=3), Engine(device="cpu")
    conditioning = engine.conditioning_for(plan)
    assert conditioning.negative is not None
    engine.sample(plan, conditioning)
    loaded = engine._transformers._loaded
    assert loaded is not None
    tables = _tables(loaded.model, conditioning.of(0, plan.job.sampling), [0.9, 0.6, 0.3])
    held = sum(tensor.nbytes for steps in tables for step in steps for tensor in vars(step).values())
    words = max(conditioning.positive.embeds.shape[1], conditioning.negative.embeds.shape[1])
    foreseen = memory_of(plan, precision="fp32", image=4, text=words, budget=None).tables
    fewer = abs(conditioning.positive.embeds.shape[1] - conditioning.negative.embeds.shape[1])
    assert foreseen - held == fewer * 3 * TINY_CONFIG.width * 4


def test_decoding_counts_where_there_is_a_budget(tmp_path: Path) -> None:
    """With a budget, decoding must fit in what sampling leaves: the VAE's weights in 16 bits and its smallest pass."""
    plan = tiny_plan(tmp_path, size=[512, 512], window=9)
    memory = memory_of(plan, precision="bf16", image=9, text=20, budget=PLENTY)
    weights = 2 * sum(parameter.numel() for parameter in load_vae(plan.pack.vae, CPU, torch.float32).parameters())
    assert memory.decode > weights
    assert memory_of(plan, precision="bf16", image=9, text=20, budget=None).decode == 0
    assert replace(memory, decode=0, budget=None, overhead=0) == memory_of(
        plan, precision="bf16", image=9, text=20, budget=None
    )
    single = tiny_plan(tmp_path, size=[512, 512], window=9, decode="single")
    assert memory_of(single, precision="bf16", image=9, text=20, budget=PLENTY).decode > memory.decode
    assert vae_shape(json.loads((plan.pack.vae / "config.json").read_text()), 2).value_bytes == 2


@pytest.mark.parametrize(
    ("wanted", "precision"),
    [("auto", "bf16"), ("fp32", "fp32"), ("fp16", "fp16"), ("bf16", "bf16"), ("fp8", "fp8")],
)
@pytest.mark.parametrize(("memory", "budget"), [("auto", None), ("12GB", 12 * 10**9)])
def test_foreseen(tmp_path: Path, wanted: str, precision: str, memory: str, budget: int | None) -> None:
    """Before anything is encoded: the job's own precision and budget, bf16 and none where it leaves them open."""
    plan = tiny_plan(tmp_path, precision=wanted, memory=memory)
    foreseen = foreseen_memory(plan)
    assert foreseen == memory_of(plan, precision=precision, image=4, text=256, budget=budget)
    assert foreseen.overhead == (0 if budget is None else OVERHEAD)


@pytest.mark.parametrize("where", ["tiny", "golden"])
def test_foreseen_tokens_are_no_fewer(tmp_path: Path, where: str) -> None:
    """The image has as many tokens as were foreseen, and no prompt, however long, has more."""
    model = "tiny"
    if where == "golden":
        parts = {part: GOLDEN / "packed" / part for part in PARTS}
        model = str(write_tiny_manifest(tmp_path / "pack.yaml", parts=parts))
    plan = tiny_plan(tmp_path, model=model, prompt="a red ball moves to the left " * 200)
    conditioning = Engine(device="cpu").conditioning_for(plan)
    words, image = conditioning.positive.embeds.shape[1], conditioning.image_embeds.shape[1]
    assert words <= 256
    assert foreseen_memory(plan) == memory_of(plan, precision="bf16", image=image, text=256, budget=None)


def test_a_pack_without_a_word_of_its_image_size(tmp_path: Path) -> None:
    """Where SigLIP's configuration does not say, it is taken for the published one's 384 pixels in patches of 14."""
    vision = shutil.copytree(find_pack("tiny").image_encoder, tmp_path / "vision")
    config = json.loads((vision / "config.json").read_text())
    for key in ("image_size", "patch_size"):
        del config[key]
    (vision / "config.json").write_text(json.dumps(config))
    model = write_tiny_manifest(tmp_path / "pack.yaml", parts={"image_encoder": vision})
    plan = tiny_plan(tmp_path, model=str(model))
    assert foreseen_memory(plan) == memory_of(plan, precision="bf16", image=729, text=256, budget=None)


def test_a_budget_that_is_too_small(tmp_path: Path) -> None:
    """A budget in which not even streaming fits is a fault that says what is needed, foreseen or not."""
    plan = tiny_plan(tmp_path, memory="100MB")
    for ask in (foreseen_memory, lambda plan: memory_of(plan, precision="bf16", image=4, text=9, budget=10**8)):
        with pytest.raises(EnvironmentFault, match="too few") as caught:
            ask(plan)
        assert caught.value.exit_code == 3
        assert caught.value.hint
