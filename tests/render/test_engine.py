"""The engine on the tiny pack: the same bits whatever came before, and a true account of what it does."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import goan_cli.render.engine as engine_module
import goan_cli.render.transformers as transformers_module
from goan_cli.errors import Interrupted, LoraRefused, QualityFailed, RenderFailed
from goan_cli.jobs.job import Gate, Gates
from goan_cli.jobs.sections import plan_sections
from goan_cli.lora.bake import bake, restore
from goan_cli.lora.report import BakeReport
from goan_cli.model.weights import parameters_of
from goan_cli.packs.find import find_pack
from goan_cli.render.device import Precision
from goan_cli.render.engine import Engine, Sampled
from goan_cli.render.events import (
    Baked,
    Event,
    Note,
    SectionFinished,
    Stage,
    StageFinished,
    StageStarted,
    StepFinished,
)
from goan_cli.render.plan import RenderPlan
from goan_cli.render.sampling import Progress
from tests.helpers import (
    GOLDEN,
    PARTS,
    TINY_MLP,
    TINY_QKV,
    TINY_SQUARE,
    factors,
    relative_error,
    tiny_plan,
    write_lora,
    write_tiny_manifest,
)

TINY = find_pack("tiny")
BF16 = Precision(transformer=torch.bfloat16, encoders=torch.float32)


def _loras(folder: Path) -> dict[str, Path]:
    """Two LoRAs of the tiny model that overlap, one that changes nothing, one that fails half way."""
    to_q, proj, fused = (
        "lora_unet_transformer_blocks_0_attn_to_q",
        "lora_unet_single_transformer_blocks_1_proj_mlp",
        "lora_unet_double_blocks_0_img_attn_qkv",
    )
    half = factors(to_q, TINY_SQUARE, seed=3) | factors(proj, TINY_MLP, seed=4)
    # `single_...` sorts before `transformer_...`, so the first is written before the second fails.
    half[f"{to_q}.lora_up.weight"][-1, -1] = math.nan
    zero = factors(to_q, TINY_SQUARE)
    zero[f"{to_q}.lora_up.weight"].zero_()
    files = {
        "a": factors(to_q, TINY_SQUARE, seed=1) | factors(proj, TINY_MLP, rank=3, seed=2, alpha=6.0),
        "b": factors(fused, TINY_QKV, rank=4, seed=5),
        "zero": zero,
        "half": half,
    }
    return {name: write_lora(folder / f"{name}.safetensors", tensors) for name, tensors in files.items()}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RenderPlan]:
    """Plans of the same short job with no LoRA, with each, and with both in either order."""
    folder = tmp_path_factory.mktemp("plans")
    loras = _loras(folder)
    recipes: dict[str, list[tuple[str, float]]] = {
        "base": [],
        "a": [("a", 1.0)],
        "a weak": [("a", 0.25)],
        "b": [("b", 1.0)],
        "ab": [("a", 0.5), ("b", 0.8)],
        "ba": [("b", 0.8), ("a", 0.5)],
        "zero": [("zero", 1.0)],
        "half": [("half", 1.0)],
    }
    return {
        name: tiny_plan(folder, name.replace(" ", "-"), [(loras[lora], weight) for lora, weight in recipe])
        for name, recipe in recipes.items()
    }


def _engine(precision: Precision | None = None) -> Engine:
    return Engine(device="cpu", precision=precision)


def _sampled(engine: Engine, plan: RenderPlan) -> Sampled:
    return engine.sample(plan, engine.conditioning_for(plan))


def _weights(engine: Engine) -> dict[str, Tensor]:
    loaded = engine._transformers._loaded
    assert loaded is not None
    return parameters_of(loaded.model)


def _assert_pristine(engine: Engine) -> None:
    """The engine's weights are the pack's, bit for bit."""
    (file,) = TINY.transformer.glob("*.safetensors")
    for name, tensor in load_file(file).items():
        parameter = _weights(engine)[name]
        assert torch.equal(parameter, tensor.to(parameter.dtype)), name


@pytest.fixture(scope="module")
def alone(plans: dict[str, RenderPlan]) -> dict[str, Tensor]:
    """The final latents of each job, each by an engine that has done nothing else."""
    return {name: _sampled(_engine(), plan).latents for name, plan in plans.items() if name not in ("zero", "half")}


# The same bits ----------------------------------------------------------------------------------------------


def test_the_jobs_differ(alone: dict[str, Tensor]) -> None:
    """Each recipe gives another picture: what follows could not pass by LoRAs doing nothing."""
    for name in ("a", "a weak", "b", "ab"):
        assert relative_error(alone[name], alone["base"]) > 1e-4
    assert relative_error(alone["a"], alone["a weak"]) > 1e-4


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(["base", "base"], id="twice"),
        pytest.param(["a", "base"], id="after a LoRA"),
        pytest.param(["a", "a"], id="a LoRA twice"),
        pytest.param(["a", "b", "a"], id="there and back"),
        pytest.param(["a", "a weak", "a"], id="another weight of the same file"),
        pytest.param(["ab", "ba", "b", "base", "ab"], id="several"),
        pytest.param(["base", "b", "ab", "a"], id="in one order"),
        pytest.param(["a", "ab", "b", "base"], id="in the reverse order"),
    ],
)
def test_history_leaves_no_trace(plans: dict[str, RenderPlan], alone: dict[str, Tensor], order: list[str]) -> None:
    """A job's latents do not depend on the jobs before it, to the last bit."""
    engine = _engine()
    for name in order:
        assert torch.equal(_sampled(engine, plans[name]).latents, alone[name]), name


def test_order_of_loras_in_a_job(alone: dict[str, Tensor]) -> None:
    """The order in which a job lists its LoRAs does not matter."""
    assert torch.equal(alone["ab"], alone["ba"])


def test_weights_come_back_in_bfloat16(plans: dict[str, RenderPlan]) -> None:
    """In bfloat16, where weights are no mapped file, recipes come and go as exactly."""
    first, again, fresh = _engine(BF16), _engine(BF16), _engine(BF16)
    expected = _sampled(fresh, plans["a"]).latents
    for name in ("b", "ab"):
        _sampled(first, plans[name])
    assert torch.equal(_sampled(first, plans["a"]).latents, expected)
    assert _weights(first)["transformer_blocks.0.attn.to_q.weight"].dtype == torch.bfloat16
    for name in ("a", "base"):
        _sampled(again, plans[name])
    _assert_pristine(again)


@pytest.mark.parametrize("precision", [None, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("failing", ["zero", "half"])
@pytest.mark.parametrize("before", [None, "b"])
def test_a_failed_bake_leaves_the_weights_pristine(
    plans: dict[str, RenderPlan], precision: Precision | None, failing: str, before: str | None
) -> None:
    """A LoRA that changes nothing, or fails half way, leaves the pack's own weights, whatever was baked before."""
    engine = _engine(precision)
    if before:
        _sampled(engine, plans[before])
    with pytest.raises(LoraRefused, match=rf"{failing}\.safetensors"):
        _sampled(engine, plans[failing])
    _assert_pristine(engine)


@pytest.mark.parametrize("after", ["base", "a", "b"])
@pytest.mark.parametrize("failing", ["zero", "half"])
def test_the_job_after_a_failed_bake(
    plans: dict[str, RenderPlan], alone: dict[str, Tensor], failing: str, after: str
) -> None:
    """The job after a failed one is bit for bit what it is alone, also with the LoRA from before the failure."""
    engine = _engine()
    _sampled(engine, plans["b"])
    with pytest.raises(LoraRefused):
        _sampled(engine, plans[failing])
    assert torch.equal(_sampled(engine, plans[after]).latents, alone[after])


@pytest.mark.parametrize("failing", ["restore", "bake"])
def test_the_job_after_an_unreadable_checkpoint(
    plans: dict[str, RenderPlan], alone: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Where the checkpoint cannot be read in the middle of a change, no later job renders half changed weights."""
    engine = _engine()
    _sampled(engine, plans["a"])
    reads = iter(range(2))

    def failing_reader(name: str) -> Tensor:
        # Reads from a network disk fail after the first: the weights are now half the old recipe's.
        if next(reads) == 1:
            raise OSError("stale file handle")
        loaded = engine._transformers._loaded
        assert loaded is not None
        with loaded.store.opened() as pristine:
            return pristine(name)

    if failing == "restore":
        monkeypatch.setattr(
            transformers_module,
            "restore",
            lambda parameters, _, names, store: restore(parameters, failing_reader, names, store=store),
        )
        changed = plans["base"]
    else:
        monkeypatch.setattr(
            transformers_module,
            "bake",
            lambda parameters, _, loras, base, touched, store: bake(
                parameters, failing_reader, loras, base=base, touched=touched, store=store
            ),
        )
        changed = plans["ab"]
    with pytest.raises(OSError, match="stale"):
        _sampled(engine, changed)
    monkeypatch.undo()
    assert torch.equal(_sampled(engine, plans["a"]).latents, alone["a"])


def test_packs_change_within_a_run(plans: dict[str, RenderPlan], alone: dict[str, Tensor], tmp_path: Path) -> None:
    """A job of another pack in between leaves no trace, and its LoRAs go with it."""
    other = tiny_plan(tmp_path, "other", model=str(write_tiny_manifest(tmp_path / "pack.yaml", family="f1")))
    engine = _engine()
    _sampled(engine, plans["a"])
    between = _sampled(engine, other)
    assert torch.equal(_sampled(_engine(), other).latents, between.latents)
    assert between.bake is None
    assert torch.equal(_sampled(engine, plans["a"]).latents, alone["a"])


def test_lora_of_a_deeper_pack(tmp_path: Path) -> None:
    """After a LoRA on a block that the next pack does not have, that pack's jobs render all the same."""
    parts = {part: GOLDEN / "packed" / part for part in PARTS}
    shallow = write_tiny_manifest(tmp_path / "pack.yaml", parts=parts)
    deep = write_lora(
        tmp_path / "deep.safetensors",
        factors("lora_unet_single_transformer_blocks_3_proj_mlp", TINY_MLP),
    )
    other = write_lora(tmp_path / "other.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", (64, 64)))
    engine, plan = _engine(), tiny_plan(tmp_path, "shallow", [(other, 1.0)], model=str(shallow))
    _sampled(engine, tiny_plan(tmp_path, "deep", [(deep, 1.0)]))
    assert torch.equal(_sampled(engine, plan).latents, _sampled(_engine(), plan).latents)


def test_global_random_state_has_no_part(plans: dict[str, RenderPlan], alone: dict[str, Tensor]) -> None:
    """A render neither depends on the global random states nor moves torch's."""
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    assert torch.equal(_sampled(_engine(), plans["base"]).latents, alone["base"])
    assert torch.equal(torch.get_rng_state(), before)


def test_frames_are_repeatable(plans: dict[str, RenderPlan], alone: dict[str, Tensor]) -> None:
    """The same latents decode to the same frames, by one engine and by another."""
    engine = _engine()
    first, second = (np.concatenate(list(engine.frames(plans["base"], alone["base"]))) for _ in range(2))
    third = np.concatenate(list(_engine().frames(plans["base"], alone["base"])))
    assert first.shape == (plans["base"].job.sections.frames, 32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


# The account ------------------------------------------------------------------------------------------------


@pytest.fixture
def events() -> list[Event]:
    """What a listener heard."""
    return []


def test_events_in_order(plans: dict[str, RenderPlan], events: list[Event], tmp_path: Path) -> None:
    """Stages begin and end in turn, each step and section is told once and in order, the bake inside its stage."""
    job = plans["a"].job
    lora = plans["a"].loras[0].adapter.path
    plan = tiny_plan(tmp_path, "two-sections", [(lora, 1.0)], sections=2, steps=3)
    assert job.sections.sections != plan.job.sections.sections
    engine = Engine(device="cpu", listener=events.append)
    list(engine.frames(plan, _sampled(engine, plan).latents))

    running: Stage | None = None
    stages: list[Stage] = []
    for event in events:
        match event:
            case StageStarted(stage=stage):
                assert running is None
                running = stage
                stages.append(stage)
            case StageFinished(stage=stage, seconds=seconds):
                assert running is stage
                assert seconds >= 0
                running = None
            case Baked():
                assert running is Stage.BAKE
            case StepFinished() | SectionFinished():
                assert running is Stage.SAMPLE
    assert running is None
    others = [stage for stage in stages if stage is not Stage.LOAD]
    assert list(dict.fromkeys(others)) == [Stage.ENCODE, Stage.BAKE, Stage.SAMPLE, Stage.DECODE]

    told: list[tuple[int, int | None]] = []
    for event in events:
        if isinstance(event, StepFinished):
            assert (event.sections, event.steps) == (2, 3)
            told.append((event.section, event.step))
        if isinstance(event, SectionFinished):
            assert (event.sections, event.computed_steps, event.preview) == (2, 3, None)
            told.append((event.section, None))
    assert told == [(1, 1), (1, 2), (1, 3), (1, None), (2, 1), (2, 2), (2, 3), (2, None)]
    assert sum(isinstance(event, Baked) for event in events) == 1


def test_timings_are_of_the_job(plans: dict[str, RenderPlan]) -> None:
    """The timings have every stage of the job, and begin anew with the next."""
    engine = _engine()
    engine.begin()
    list(engine.frames(plans["base"], _sampled(engine, plans["base"]).latents))
    assert set(engine.timings) == set(Stage)
    assert all(seconds >= 0 for seconds in engine.timings.values())
    engine.begin()
    assert engine.timings == {}


def test_bake_report_of_a_recipe_that_stays(plans: dict[str, RenderPlan]) -> None:
    """Each job with LoRAs has a report, also where its recipe was in the weights already; the base job has none."""
    engine = _engine()
    first, second, third = (_sampled(engine, plans[name]).bake for name in ("a", "a", "base"))
    assert first is not None
    assert second is not None
    assert (first.recipe, first.parameters) == (second.recipe, second.parameters)
    assert third is None


def test_bake_report_names_the_job_s_own_files(plans: dict[str, RenderPlan], tmp_path: Path) -> None:
    """A job whose LoRA is a copy of the one baked before has its own path in the report."""
    original = plans["a"].loras[0].adapter.path
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(original.read_bytes())
    engine = _engine()
    _sampled(engine, plans["a"])
    report = _sampled(engine, tiny_plan(tmp_path, "copied", [(copy, 1.0)])).bake
    assert report is not None
    assert [file.path for file in report.files] == [copy]


def test_truncated_prompts_are_told(events: list[Event], tmp_path: Path) -> None:
    """What an encoder cannot take of a prompt is a note that names the prompt, the encoder and the words."""
    plan = tiny_plan(tmp_path, "long", prompt="red " * 90, negative_prompt="dark " * 300, true_cfg_scale=2.0)
    Engine(device="cpu", listener=events.append).conditioning_for(plan)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [note.split(" cannot", maxsplit=1)[0] for note in notes] == [
        "prompt: CLIP",
        "negative_prompt: Llama",
        "negative_prompt: CLIP",
    ]
    assert "its last 15 tokens" in notes[0]
    assert "red red red" in notes[0]


def test_negative_prompt_is_encoded_with_true_cfg_only(tmp_path: Path) -> None:
    """The negative branch exists where true CFG is on, and follows the negative prompt."""
    engine = _engine()
    off = engine.conditioning_for(tiny_plan(tmp_path, "off", negative_prompt="dark"))
    dark, light = (
        engine.conditioning_for(tiny_plan(tmp_path, word, negative_prompt=word, true_cfg_scale=2.0)).negative
        for word in ("dark", "light")
    )
    assert off.negative is None
    assert dark is not None
    assert light is not None
    assert not torch.equal(dark.embeds, light.embeds)


def test_previews(plans: dict[str, RenderPlan], events: list[Event]) -> None:
    """With previews each section brings a strip of its frames, an eighth of the size; sampling is the same."""
    engine = Engine(device="cpu", listener=events.append, previews=True)
    latents = _sampled(engine, plans["base"]).latents
    strips = [event.preview for event in events if isinstance(event, SectionFinished)]
    assert [None if strip is None else strip.shape for strip in strips] == [(4, 2 * 4, 3)]
    assert torch.equal(latents, _sampled(_engine(), plans["base"]).latents)


def test_step_cache_is_told(tmp_path: Path, events: list[Event]) -> None:
    """With TeaCache the result and the events have the steps whose blocks ran."""
    plan = tiny_plan(tmp_path, "cached", sections=2, steps=16, step_cache={"kind": "teacache", "threshold": 10.0})
    sampled = _sampled(Engine(device="cpu", listener=events.append), plan)
    assert len(sampled.computed_steps) == 2
    for computed in sampled.computed_steps:
        assert (computed[0], computed[-1]) == (0, 15)
        assert 2 <= len(computed) < 16
        assert list(computed) == sorted(set(computed))
    told = [event.computed_steps for event in events if isinstance(event, SectionFinished)]
    assert told == [len(computed) for computed in sampled.computed_steps]


def test_out_of_memory_is_explained(
    plans: dict[str, RenderPlan], alone: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running out of memory fails the job with a word of advice, and the next job renders as ever."""
    engine = _engine()

    def exhausted(*_: object, **__: object) -> Iterator[None]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine_module, "sample_sections", exhausted)
    with pytest.raises(RenderFailed, match="out of memory") as caught:
        _sampled(engine, plans["base"])
    assert caught.value.hint
    monkeypatch.undo()
    assert torch.equal(_sampled(engine, plans["base"]).latents, alone["base"])


def test_frames_leave_the_caller_s_gradients_alone(plans: dict[str, RenderPlan], alone: dict[str, Tensor]) -> None:
    """Between two stretches of frames the caller's code is not in inference mode."""
    frames = _engine().frames(plans["base"], alone["base"])
    next(frames)
    inside = torch.is_inference_mode_enabled()
    # Not to leave the rest of the tests in it.
    assert list(frames) == []
    assert not inside


def test_latents_are_ordinary_tensors(plans: dict[str, RenderPlan], alone: dict[str, Tensor]) -> None:
    """The latents are fp32 on the CPU, the start latent first, finite and of the plan's length."""
    latents = alone["base"]
    assert (latents.dtype, latents.device.type) == (torch.float32, "cpu")
    assert latents.shape == (1, 16, plans["base"].job.sections.latent_frames, 4, 4)
    assert bool(latents.isfinite().all())
    start = _engine().conditioning_for(plans["base"]).start_latent
    assert torch.equal(latents[:, :, :1], start)


# Stopped --------------------------------------------------------------------------------------------------


def test_what_is_kept(plans: dict[str, RenderPlan], tmp_path: Path) -> None:
    """After every section the progress is handed out, with the report of the bake that it was made with."""
    plan = tiny_plan(tmp_path, loras=[(plans["a"].loras[0].adapter.path, 1.0)], sections=3)
    engine, kept = _engine(), list[tuple[Progress, BakeReport | None]]()
    sampled = engine.sample(
        plan, engine.conditioning_for(plan), keep=lambda progress, report: kept.append((progress, report))
    )
    assert [progress.sections for progress, _ in kept] == [1, 2, 3]
    assert torch.equal(kept[-1][0].history, sampled.latents)
    assert all(report == sampled.bake for _, report in kept)
    assert sampled.bake is not None


@pytest.mark.parametrize("section", [1, 2])
def test_stopped_in_a_section(plans: dict[str, RenderPlan], alone: dict[str, Tensor], section: int) -> None:
    """A stop in a section says in which, hands out how far it is, and leaves an engine that renders as ever."""
    plan = replace(
        plans["a"], job=replace(plans["a"].job, sections=plan_sections(plans["a"].job.sections.family, 2, 2))
    )
    engine, kept = _engine(), list[Progress]()
    asked = iter(range(1, 10))
    with pytest.raises(Interrupted, match=f"in section {section}"):
        engine.sample(
            plan,
            engine.conditioning_for(plan),
            keep=lambda progress, _: kept.append(progress),
            stop=lambda: next(asked) == section,  # it is asked once a section of two steps
        )
    assert kept[-1].within is not None
    assert kept[-1].within.sampler.done == 1
    assert kept[-1].sections == section - 1
    for name in ("a", "base"):
        assert torch.equal(_sampled(engine, plans[name]).latents, alone[name])


def test_stopped_by_who_keeps(plans: dict[str, RenderPlan], alone: dict[str, Tensor]) -> None:
    """Whoever is handed the progress may stop the render there, and the engine renders on as ever."""
    engine = _engine()

    def keep(*_: object) -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted, match="enough"):
        engine.sample(plans["a"], engine.conditioning_for(plans["a"]), keep=keep)
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(_sampled(engine, plans["a"]).latents, alone["a"])


def test_stopped_while_decoding(plans: dict[str, RenderPlan], tmp_path: Path) -> None:
    """A stop is looked at before every stretch of frames."""
    plan, engine = tiny_plan(tmp_path, sections=3), _engine()
    latents = _sampled(engine, plan).latents
    whole = list(engine.frames(plan, latents))
    assert len(whole) > 1
    asked = iter([False, True])
    frames = engine.frames(plan, latents, stop=lambda: next(asked))
    assert np.array_equal(next(frames), whole[0])
    with pytest.raises(Interrupted, match="decoding"):
        next(frames)


@pytest.mark.parametrize("gate", [Gate.WARN, Gate.OFF])
def test_pixels_that_are_not_finite(
    plans: dict[str, RenderPlan], alone: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """Where a job does not refuse them, pixels that are no numbers are grey, and infinite ones white or black."""
    plan = replace(plans["base"], job=replace(plans["base"].job, gates=Gates(nan=gate)))

    def overflowing(*_: object) -> Callable[[Tensor], Tensor]:
        values = torch.tensor([math.nan, math.inf, -math.inf]).view(1, 3, 1, 1, 1)
        return lambda latents: values.expand(1, 3, 4 * latents.shape[2] - 3, 32, 32)

    monkeypatch.setattr(engine_module, "vae_decoder", overflowing)
    frames = np.concatenate(list(_engine().frames(plan, alone["base"])))
    assert frames.shape == (plan.job.sections.frames, 32, 32, 3)
    assert np.array_equal(np.unique(frames.reshape(-1, 3), axis=0), [[128, 255, 0]])
    with pytest.raises(QualityFailed, match="decoded pixels are not finite"):
        list(_engine().frames(plans["base"], alone["base"]))


def test_times_so_far(plans: dict[str, RenderPlan]) -> None:
    """What has elapsed has the stage at work too; times from an earlier session are gone on with."""
    engine, seen = _engine(), list[dict[Stage, float]]()
    engine.begin({Stage.SAMPLE: 1000.0, Stage.DECODE: 2000.0})
    engine.sample(
        plans["base"],
        engine.conditioning_for(plans["base"]),
        keep=lambda *_: seen.append(engine.elapsed),
    )
    assert seen[0][Stage.SAMPLE] > 1000
    assert engine.timings[Stage.SAMPLE] >= seen[0][Stage.SAMPLE]
    assert engine.elapsed == engine.timings
    assert engine.timings[Stage.DECODE] == 2000


def test_encoded_beforehand(plans: dict[str, RenderPlan], alone: dict[str, Tensor], tmp_path: Path) -> None:
    """A plan that was encoded into the cache is sampled without its encoders, to the same bits."""
    engine, events = Engine(device="cpu", cache=tmp_path), list[Event]()
    engine.encode(plans["a"])
    engine.forget_text_encoders()
    engine.listener = events.append
    conditioning = engine.conditioning_for(plans["a"])
    assert not any(isinstance(event, StageStarted) and event.stage is Stage.LOAD for event in events)
    assert torch.equal(engine.sample(plans["a"], conditioning).latents, alone["a"])
