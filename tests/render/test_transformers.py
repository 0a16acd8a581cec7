"""The transformer that samples: whatever is streamed, compiled, quantised or baked, the bits are a fresh one's."""

import gc
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import goan_cli.render.transformers as transformers_module
from goan_cli.errors import EnvironmentFault, LoraRefused
from goan_cli.jobs.job import AttentionBackend
from goan_cli.lora.report import BakeReport
from goan_cli.model.calls import BlockCalls, compiled_calls
from goan_cli.model.fp8 import E4M3
from goan_cli.model.transformer import PackedTransformer
from goan_cli.render.budget import memory_of
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.engine import Engine
from goan_cli.render.events import Baked, Event
from goan_cli.render.execution import ResolvedExecution
from goan_cli.render.identity import bake_recipe
from goan_cli.render.lora_files import lora_file
from goan_cli.render.memory import SLOTS, MemoryPlan
from goan_cli.render.plan import RenderPlan
from goan_cli.render.sampling import sample_sections
from goan_cli.render.streaming import BlockStream
from goan_cli.render.transformers import Transformers
from tests.helpers import (
    CPU,
    TINY_CONFIG,
    TINY_MLP,
    TINY_QKV,
    TINY_SQUARE,
    factors,
    relative_error,
    tiny_plan,
    write_lora,
)

BLOCKS = TINY_CONFIG.num_layers + TINY_CONFIG.num_single_layers
ALL, NONE = (True,) * BLOCKS, (False,) * BLOCKS
SPLITS = {"all streamed": NONE, "every other one streamed": (True, False) * (BLOCKS // 2)}
FP32 = ResolvedExecution(dtype=torch.float32, fp8=False, compiled=False, attention=AttentionBackend.AUTO)
EXECUTIONS = {
    "fp32": FP32,
    "bf16": replace(FP32, dtype=torch.bfloat16),
    "fp8": replace(FP32, fp8=True),
    "fp8 with bf16": replace(FP32, dtype=torch.bfloat16, fp8=True),
}
COMPILED = replace(FP32, compiled=True)
RECIPES = ("a", "b", "none", "a", "ab")
# Of a compiled job's latents from the uncompiled one's: some steps of a few units in the last place each.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RenderPlan]:
    """Jobs of one size: without LoRAs; with two that share no module but a block, alone and together.

    One acts on modulation, which is not streamed and not quantised; one is refused half way.
    """
    folder = tmp_path_factory.mktemp("plans")
    to_q, proj, norm, fused = (
        "lora_unet_transformer_blocks_0_attn_to_q",
        "lora_unet_single_transformer_blocks_1_proj_mlp",
        "lora_unet_transformer_blocks_0_norm1_linear",
        "lora_unet_double_blocks_0_img_attn_qkv",
    )
    width = TINY_CONFIG.width
    half = factors(to_q, TINY_SQUARE, seed=3) | factors(proj, TINY_MLP, seed=4)
    # `single_...` sorts before `transformer_...`, so the first is written before the second fails.
    half[f"{to_q}.lora_up.weight"][-1, -1] = math.nan
    files = {
        "a": factors(proj, TINY_MLP, rank=3, seed=2) | factors(norm, (6 * width, width), seed=6),
        "b": factors(fused, TINY_QKV, rank=4, seed=5),
        "half": half,
    }
    paths = {name: write_lora(folder / f"{name}.safetensors", tensors) for name, tensors in files.items()}
    recipes = {"none": (), "a": ("a",), "b": ("b",), "ab": ("a", "b"), "half": ("half",)}
    return {
        name: tiny_plan(folder, name, [(paths[lora], 1.0) for lora in loras], seed=11)
        for name, loras in recipes.items()
    }


@pytest.fixture(scope="module")
def conditioning(plans: dict[str, RenderPlan]) -> Conditioning:
    """What all the jobs are conditioned on."""
    return Engine(device="cpu").conditioning_for(plans["none"])


@dataclass
class Held:
    """The transformers of one process, and what they told."""

    conditioning: Conditioning
    told: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.transformers = Transformers(CPU, cache=None, stage=lambda _: nullcontext(), tell=self.told.append)

    def ready(
        self, plan: RenderPlan, execution: ResolvedExecution = FP32, resident: Sequence[bool] = ALL
    ) -> tuple[PackedTransformer, BakeReport | None]:
        """A plan's transformer with these blocks resident."""
        loras = [lora_file(lora) for lora in plan.loras]
        memory = _memory(plan, execution.short_precision, resident)
        return self.transformers.ready(plan.pack, execution, memory, loras, bake_recipe(plan))

    def latents(self, plan: RenderPlan, execution: ResolvedExecution = FP32, resident: Sequence[bool] = ALL) -> Tensor:
        """A plan's final latents, sampled with these blocks resident."""
        model, _ = self.ready(plan, execution, resident)
        (section,) = sample_sections(model, self.conditioning, plan.job.sections, plan.job.sampling)
        return section.progress.history


def _memory(plan: RenderPlan, precision: str, resident: Sequence[bool]) -> MemoryPlan:
    """A plan by hand: on a CPU nothing need be streamed."""
    whole = memory_of(plan, precision=precision, image=9, text=20, budget=None)
    return replace(whole, resident=tuple(resident), slots=0 if all(resident) else SLOTS)


@pytest.fixture
def held(conditioning: Conditioning) -> Held:
    """A process that has done nothing yet."""
    return Held(conditioning)


@pytest.fixture(scope="module", params=EXECUTIONS)
def fresh(
    request: pytest.FixtureRequest, plans: dict[str, RenderPlan], conditioning: Conditioning
) -> tuple[ResolvedExecution, dict[str, Tensor]]:
    """In each precision, every recipe's latents by a fresh transformer whose blocks are all resident."""
    execution = EXECUTIONS[request.param]
    return execution, {name: Held(conditioning).latents(plans[name], execution) for name in set(RECIPES)}


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles for this test anew, with a compiler that every machine has."""

    def calls(execution: ResolvedExecution, *_: object) -> BlockCalls:
        return compiled_calls("eager") if execution.compiled else BlockCalls()

    monkeypatch.setattr(transformers_module, "block_calls", calls)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


# The same bits ------------------------------------------------------------------------------------------------


def test_the_recipes_differ(fresh: tuple[ResolvedExecution, dict[str, Tensor]]) -> None:
    """Each recipe makes other latents in every precision: what follows could not pass by doing nothing."""
    _, latents = fresh
    for one, other in (("a", "none"), ("b", "none"), ("a", "b"), ("ab", "a"), ("ab", "b")):
        assert relative_error(latents[one], latents[other]) > 1e-3


@pytest.mark.parametrize("split", SPLITS)
def test_recipes_on_streamed_blocks(
    held: Held, plans: dict[str, RenderPlan], fresh: tuple[ResolvedExecution, dict[str, Tensor]], split: str
) -> None:
    """Recipes that come, go and come back on streamed blocks make the bits of fresh resident ones."""
    execution, latents = fresh
    for name in RECIPES:
        assert torch.equal(held.latents(plans[name], execution, SPLITS[split]), latents[name]), name


def test_recipes_on_resident_blocks(
    held: Held, plans: dict[str, RenderPlan], fresh: tuple[ResolvedExecution, dict[str, Tensor]]
) -> None:
    """So do recipes on resident ones."""
    execution, latents = fresh
    for name in RECIPES:
        assert torch.equal(held.latents(plans[name], execution), latents[name]), name


def test_blocks_move_between_jobs(
    held: Held, plans: dict[str, RenderPlan], fresh: tuple[ResolvedExecution, dict[str, Tensor]]
) -> None:
    """Jobs with other budgets have other blocks resident: from the same weights in memory, to the same bits."""
    execution, latents = fresh
    splits = (ALL, NONE, (True, False) * (BLOCKS // 2), (False, True) * (BLOCKS // 2), ALL, NONE)
    models = set[int]()
    for split in splits:
        for name in ("a", "none"):
            assert torch.equal(held.latents(plans[name], execution, split), latents[name]), (name, split)
            models.add(id(held.ready(plans[name], execution, split)[0]))
    assert len(models) == 1


def test_compiled_and_streamed(
    held: Held, plans: dict[str, RenderPlan], conditioning: Conditioning, compiling: None
) -> None:
    """After compiling, bakes act too: each recipe's latents are a fresh compiled transformer's, bit for bit, and an
    uncompiled one's within the tolerance.

    Three graphs serve every recipe, block and job, streamed or not; a job that is not compiled in between has the
    uncompiled bits, from the same weights in memory.
    """
    names = RECIPES[:4]
    compiled = {name: Held(conditioning).latents(plans[name], COMPILED) for name in names}
    plain = {name: Held(conditioning).latents(plans[name]) for name in names}
    models = set[int]()
    for split in (*SPLITS.values(), ALL):
        for name in names:
            assert torch.equal(held.latents(plans[name], COMPILED, split), compiled[name]), name
            assert relative_error(compiled[name], plain[name]) < CLOSE
            models.add(id(held.ready(plans[name], FP32, split)[0]))
        assert torch.equal(held.latents(plans["b"], FP32, split), plain["b"])
    assert len(models) == 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@pytest.mark.parametrize("name", ["fp8", "fp8 with bf16"])
@pytest.mark.parametrize("split", [ALL, NONE], ids=["resident", "streamed"])
def test_restored_fp8(held: Held, plans: dict[str, RenderPlan], name: str, split: tuple[bool, ...]) -> None:
    """Codes, scales and all else are a fresh transformer's after LoRAs have come and gone; between, they were not."""
    execution = EXECUTIONS[name]

    def state(process: Held, recipe: str) -> dict[str, Tensor]:
        model, _ = process.ready(plans[recipe], execution, split)
        bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16, E4M3: torch.uint8}
        return {key: tensor.view(bits[tensor.dtype]).clone() for key, tensor in model.state_dict().items()}

    expected = state(Held(held.conditioning), "none")
    changed = {"single_transformer_blocks.1.proj_mlp.weight", "transformer_blocks.0.norm1.linear.weight"}
    for recipe in ("a", "none", "b", "none"):
        found = state(held, recipe)
        assert found.keys() == expected.keys()
        different = {key for key, tensor in found.items() if not torch.equal(tensor, expected[key])}
        assert (different == set()) == (recipe == "none")
        if recipe == "a":
            assert different - {"single_transformer_blocks.1.proj_mlp.scale"} == changed


@pytest.mark.parametrize("name", ["fp32", "fp8 with bf16"])
def test_bakes_are_in_place(held: Held, plans: dict[str, RenderPlan], name: str) -> None:
    """Neither a bake nor moving on to another recipe gives a weight other memory, nor another object."""
    execution = EXECUTIONS[name]

    def places(recipe: str) -> dict[str, tuple[int, int]]:
        model, _ = held.ready(plans[recipe], execution, NONE)
        return {key: (id(tensor), tensor.data_ptr()) for key, tensor in model.state_dict(keep_vars=True).items()}

    first = places("none")
    for recipe in RECIPES:
        assert places(recipe) == first


# What goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "b"])
def test_a_refused_lora(
    held: Held, plans: dict[str, RenderPlan], fresh: tuple[ResolvedExecution, dict[str, Tensor]], before: str | None
) -> None:
    """After a LoRA that fails half way, on streamed blocks, the next jobs are as if it had not been."""
    execution, latents = fresh
    if before:
        held.latents(plans[before], execution, NONE)
    with pytest.raises(LoraRefused):
        held.ready(plans["half"], execution, NONE)
    for name in ("none", "b", "a"):
        assert torch.equal(held.latents(plans[name], execution, NONE), latents[name])


@pytest.mark.parametrize("split", [ALL, NONE], ids=["resident", "streamed"])
def test_an_execution_that_is_not_to_be_had(
    held: Held, plans: dict[str, RenderPlan], conditioning: Conditioning, split: tuple[bool, ...]
) -> None:
    """A job whose attention is not there fails before its LoRAs are baked, and leaves nothing of them to the next."""
    impossible = replace(FP32, attention=AttentionBackend.CUDNN)
    with pytest.raises(EnvironmentFault, match="cudnn"):
        held.ready(plans["a"], impossible, split)
    assert not any(isinstance(event, Baked) for event in held.told)
    for name in ("none", "a"):
        assert torch.equal(held.latents(plans[name], FP32, split), Held(conditioning).latents(plans[name]))


def test_a_step_that_was_left(held: Held, plans: dict[str, RenderPlan], conditioning: Conditioning) -> None:
    """A job that ends within a step, between two streamed blocks, leaves no block to the next one."""
    model, _ = held.ready(plans["a"], FP32, NONE)
    assert model.block_source is not None
    blocks = model.block_source()
    for _ in range(3):
        next(blocks)
    for name in ("a", "b"):
        assert torch.equal(held.latents(plans[name], FP32, NONE), Held(conditioning).latents(plans[name]))


# What is held, and told ---------------------------------------------------------------------------------------


def test_precisions_take_turns(held: Held, plans: dict[str, RenderPlan]) -> None:
    """Jobs of other precisions load anew, those that differ in compilation or budget alone do not."""
    first, _ = held.ready(plans["none"])
    assert held.ready(plans["none"], FP32, NONE)[0] is first
    for name in ("bf16", "fp8", "fp32"):
        model, _ = held.ready(plans["none"], EXECUTIONS[name])
        assert model is not first
        assert model.dtype == EXECUTIONS[name].dtype
        assert any(tensor.dtype == E4M3 for tensor in model.state_dict().values()) == EXECUTIONS[name].fp8


@pytest.mark.parametrize("split", [ALL, NONE], ids=["resident", "streamed"])
def test_what_is_forgotten_is_gone(held: Held, plans: dict[str, RenderPlan], split: tuple[bool, ...]) -> None:
    """A forgotten transformer's memory is free at once, for what is loaded next, and not when Python gets to it."""
    model, _ = held.ready(plans["a"], FP32, split)
    weights = weakref.ref(model.single_transformer_blocks[0])
    del model
    gc.disable()
    try:
        held.transformers.forget()
        assert weights() is None
    finally:
        gc.enable()
    assert not held.transformers.loaded


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp8 with bf16"])
def test_blocks_are_where_the_plan_has_them(held: Held, plans: dict[str, RenderPlan], name: str) -> None:
    """Until a block is streamed the model runs its own; then a stream has what the plan streams, and its ring."""
    execution, plan = EXECUTIONS[name], plans["none"]
    model, _ = held.ready(plan, execution)
    assert model.block_source is None
    for split in (NONE, *SPLITS.values(), ALL):
        memory = _memory(plan, execution.short_precision, split)
        held.latents(plan, execution, split)
        stream = model.block_source
        assert isinstance(stream, BlockStream)
        assert (stream.slab_bytes, stream.slot_bytes) == (memory.pinned, memory.ring)
        streamed = [shown is not block for shown, block in zip(stream(), model.own_blocks(), strict=True)]
        assert streamed == [not stays for stays in split]


def test_bakes_are_told_once(held: Held, plans: dict[str, RenderPlan]) -> None:
    """A bake is told when it is made; a job that finds its recipe in the weights has a report all the same."""
    reports = [held.ready(plans[name], FP32, NONE)[1] for name in ("a", "a", "none", "b")]
    assert [report is not None for report in reports] == [True, True, False, True]
    assert reports[0] == reports[1]
    assert [event.report for event in held.told if isinstance(event, Baked)] == [reports[0], reports[3]]


# Through the engine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "fp8"])
def test_precisions_of_jobs(
    plans: dict[str, RenderPlan], conditioning: Conditioning, precision: str, tmp_path: Path
) -> None:
    """An engine samples jobs in the precision they ask for, LoRAs and all, and each as a fresh engine does."""
    loras = {name: [(lora.use.path, lora.use.weight) for lora in plans[name].loras] for name in ("a", "b", "none")}
    jobs = {name: tiny_plan(tmp_path, name, loras[name], seed=11, precision=precision) for name in loras}
    engine = Engine(device="cpu")
    alone = {name: Engine(device="cpu").sample(jobs[name], conditioning).latents for name in jobs}
    for name in ("a", "b", "none", "a"):
        latents = engine.sample(jobs[name], conditioning).latents
        assert latents.dtype == torch.float32
        assert torch.equal(latents, alone[name])
    assert relative_error(alone["a"], alone["none"]) > 1e-3
    # On a CPU what suits the device is fp32; the others round, each so much, which these weights and noise amplify.
    usual = Engine(device="cpu").sample(plans["none"], conditioning).latents
    assert torch.equal(usual, alone["none"]) == (precision == "fp32")
    assert relative_error(alone["none"], usual) < {"fp32": 1e-9, "fp16": 2**-9, "bf16": 2**-5, "fp8": 2**-3}[precision]


def test_an_engine_that_streams(
    plans: dict[str, RenderPlan], conditioning: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine whose memory plan streams blocks makes the latents of one that does not."""
    engine, plain = Engine(device="cpu"), Engine(device="cpu")
    monkeypatch.setattr(engine._memory, "plan_sampling", lambda plan, _, precision: _memory(plan, precision, NONE))
    for name in RECIPES:
        expected = plain.sample(plans[name], conditioning).latents
        assert torch.equal(engine.sample(plans[name], conditioning).latents, expected)
