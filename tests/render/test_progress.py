"""Progress through a checkpoint file: every bit of it comes back, and a render goes on as if it had not stopped."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from goan_cli.errors import EnvironmentFault, Interrupted, InvalidInput
from goan_cli.lora.report import BakeReport
from goan_cli.model.step_cache import StepCacheState
from goan_cli.render.checkpoint import METADATA_KEY, CheckpointRecord, read_record
from goan_cli.render.device import Precision
from goan_cli.render.engine import Engine, Sampled
from goan_cli.render.events import Event, StepFinished
from goan_cli.render.plan import RenderPlan
from goan_cli.render.progress import read_progress, write_checkpoint
from goan_cli.render.sampling import Progress, SectionProgress
from goan_cli.render.unipc import UniPCState
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
BLANK = CheckpointRecord(
    name="job",
    identity="ab" * 32,
    seed=7,
    asked_seed=7,
    seed_drawn=False,
    sections=0,
    total=3,
    steps=4,
    computed_steps=(),
    machines=("cpu",),
)
PRECISIONS = {
    "float32": Precision(transformer=torch.float32, encoders=torch.float32),
    "bfloat16": Precision(transformer=torch.bfloat16, encoders=torch.float32),
}


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _between() -> Progress:
    """Progress between two sections."""
    state = torch.Generator().manual_seed(3).get_state()
    return Progress(history=_randn(1, 16, 4, 4, 4), noise_state=state, computed_steps=((0, 2), (0, 1)))


def _within(dtype: torch.dtype = torch.bfloat16) -> Progress:
    """Progress between two steps, with two branches' caches, one of which has seen nothing yet."""
    seen = StepCacheState(
        computed=(0, 1),
        step=2,
        accumulated=0.1 + 0.2,  # no short decimal: it must come back to the last bit
        previous_input=_randn(1, 6, 8, seed=1, dtype=dtype),
        residual=_randn(1, 6, 8, seed=2, dtype=dtype),
    )
    fresh = StepCacheState(computed=(), step=0, residual=None)
    sampler = UniPCState(done=2, x=_randn(1, 16, 2, 4, 4), predictions=(_randn(1, 16, 2, 4, 4, seed=4), _randn(3)))
    between = _between()
    return Progress(
        history=between.history,
        noise_state=between.noise_state,
        computed_steps=between.computed_steps,
        within=SectionProgress(sampler=sampler, caches=(seen, fresh)),
    )


def _tensors(progress: Progress) -> list[Tensor | None]:
    """Every tensor of a progress, in a fixed order."""
    found: list[Tensor | None] = [progress.history, progress.noise_state]
    if progress.within is not None:
        found += [progress.within.sampler.x, *progress.within.sampler.predictions]
        for cache in progress.within.caches:
            found += [cache.previous_input, cache.residual]
    return found


def _plain(progress: Progress) -> list[Any]:
    """Everything else of it."""
    within = progress.within
    caches = [(cache.computed, cache.step, cache.accumulated) for cache in within.caches] if within else None
    return [progress.computed_steps, within.sampler.done if within else None, caches]


@pytest.mark.parametrize(
    "progress",
    [
        Progress(history=torch.zeros((1, 16, 0, 4, 4)), noise_state=torch.Generator().get_state()),
        _between(),
        _within(),
        _within(torch.float32),
    ],
    ids=["nothing yet", "between sections", "between steps", "between steps in float32"],
)
def test_progress_comes_back(tmp_path: Path, progress: Progress) -> None:
    """Every tensor comes back with its bits, dtype and shape, and every number as it was."""
    path = tmp_path / "deep" / "a.safetensors"
    write_checkpoint(path, BLANK, progress)
    _, found = read_progress(path)
    assert _plain(found) == _plain(progress)
    for actual, wanted in zip(_tensors(found), _tensors(progress), strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None and wanted is not None:
            assert (actual.dtype, actual.shape) == (wanted.dtype, wanted.shape)
            assert torch.equal(actual, wanted)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_record_follows_the_progress(tmp_path: Path) -> None:
    """The record says how far the progress beside it is, whatever it said before."""
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, BLANK, _within())
    record, _ = read_progress(path)
    assert record == read_record(path)
    assert (record.sections, record.computed_steps) == (2, ((0, 2), (0, 1)))
    assert record.share == pytest.approx((2 + 2 / 4) / 3)
    write_checkpoint(path, record, _between())
    assert read_record(path).section_state is None
    assert read_record(path).share == pytest.approx(2 / 3)


def test_files_of_earlier_versions(tmp_path: Path) -> None:
    """What TeaCache knew is read from files written before there was another cache, and is written as it was then."""
    path, within = tmp_path / "a.safetensors", _within().within
    assert within is not None
    tensors = {
        "history": torch.zeros((1, 16, 0, 4, 4)),
        "noise_state": torch.Generator().get_state(),
        "x": within.sampler.x,
        **{f"prediction.{number}": each for number, each in enumerate(within.sampler.predictions)},
        **{f"cache.0.{name}": _held(within.caches[0], name) for name in ("previous_input", "residual")},
    }
    caches = [
        {"computed": [0, 1], "step": 2, "accumulated": 0.1 + 0.2},
        {"computed": [], "step": 0, "accumulated": 0.0},
    ]
    record = replace(BLANK, section_state={"done": 2, "caches": caches})
    save_file(tensors, path, metadata={METADATA_KEY: record.as_text()})
    _, found = read_progress(path)
    assert _plain(found) == [(), 2, [((0, 1), 2, 0.1 + 0.2), ((), 0, 0.0)]]
    assert found.within is not None
    for name in ("previous_input", "residual"):
        assert torch.equal(_held(found.within.caches[0], name), tensors[f"cache.0.{name}"])
        assert getattr(found.within.caches[1], name) is None
    write_checkpoint(tmp_path / "b.safetensors", BLANK, found)
    assert read_record(tmp_path / "b.safetensors").section_state == {"done": 2, "caches": caches}
    assert load_file(tmp_path / "b.safetensors").keys() == tensors.keys()


def _held(cache: StepCacheState, name: str) -> Tensor:
    held = getattr(cache, name)
    assert isinstance(held, Tensor)
    return held


def test_views_and_the_same_tensor_twice(tmp_path: Path) -> None:
    """Views, transposed tensors, and one tensor in two places are written as what they show."""
    whole, x = _randn(1, 16, 8, 4, 4), _randn(4, 2).T
    progress = Progress(
        history=whole[:, :, 2:5],
        noise_state=_between().noise_state,
        within=SectionProgress(sampler=UniPCState(done=1, x=x, predictions=(x,)), caches=()),
    )
    write_checkpoint(tmp_path / "a.safetensors", BLANK, progress)
    _, found = read_progress(tmp_path / "a.safetensors")
    assert torch.equal(found.history, whole[:, :, 2:5])
    assert found.within is not None
    assert torch.equal(found.within.sampler.x, x)
    assert torch.equal(found.within.sampler.predictions[0], x)


def test_a_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    """Where the state folder cannot be, that is a fault of the machine."""
    (tmp_path / ".goan").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        write_checkpoint(tmp_path / ".goan" / "a.safetensors", BLANK, _between())


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _without(name: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        record, tensors = read_record(path), load_file(path)
        del tensors[name]
        save_file(tensors, path, metadata={METADATA_KEY: record.as_text()})

    return remove


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="gone"),
        pytest.param(_cut, id="cut off"),
        pytest.param(lambda path: path.write_bytes(b"x" * 100), id="garbage"),
        pytest.param(_without("history"), id="no history"),
        pytest.param(_without("noise_state"), id="no state of the noise"),
        pytest.param(_without("x"), id="no x"),
    ],
)
def test_what_cannot_be_gone_on_with(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A missing or damaged file, or one that lacks a tensor, is refused by its path."""
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, BLANK, _within())
    damage(path)
    with pytest.raises(InvalidInput, match=r"a\.safetensors"):
        read_progress(path)


# A render in pieces ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of embeddings for all these renders: encoding is not what is shown here."""
    return tmp_path_factory.mktemp("shared")


def _in_pieces(plan: RenderPlan, precision: Precision, cache: Path, path: Path) -> tuple[Sampled, list[float]]:
    """Sampled a step at a time, by a new engine each, with nothing but a file between them; and the shares done."""
    sections = len(plan.job.sections.sections)
    blank = replace(BLANK, total=sections, steps=plan.job.sampling.steps)
    shares: list[float] = []

    def keep(progress: Progress, _: BakeReport | None) -> None:
        write_checkpoint(path, blank, progress)
        shares.append(read_record(path).share)
        if progress.within is None and progress.sections < sections:
            raise Interrupted("after a section")

    while True:
        engine = Engine(device="cpu", precision=precision, cache=cache)
        after = read_progress(path)[1] if path.exists() else None
        with suppress(Interrupted):
            return engine.sample(plan, engine.conditioning_for(plan), after=after, keep=keep, stop=lambda: True), shares


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["one branch", "true CFG"])
@pytest.mark.parametrize("cache", ["every step", "TeaCache", "MagCache"])
@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_render_in_pieces(
    tmp_path: Path, embeddings: Path, model: str, cache: str, scale: float, precision: str
) -> None:
    """A render stopped behind every step and section, and gone on with elsewhere, has the bits of a whole one."""
    lora = write_lora(tmp_path / "lora.safetensors", factors(TO_Q, TINY_SQUARE, alpha=2.0))
    cached = cache != "every step"
    steps = 5 if cached else 3
    plan = tiny_plan(
        tmp_path,
        loras=[(lora, 1.0)],
        model=model,
        sections=2,
        steps=steps,
        true_cfg_scale=scale,
        step_cache={"kind": "teacache", "threshold": 0.3} if cache == "TeaCache" else "off",
    )
    if cache == "MagCache":
        plan = replace(plan, computes=(0, 2, 4))
    engine = Engine(device="cpu", precision=PRECISIONS[precision], cache=embeddings)
    whole = engine.sample(plan, engine.conditioning_for(plan))
    pieces, shares = _in_pieces(plan, PRECISIONS[precision], embeddings, tmp_path / "a.safetensors")
    assert shares == pytest.approx([step / (2 * steps) for step in range(1, 2 * steps + 1)])
    assert torch.equal(pieces.latents, whole.latents)
    assert pieces.computed_steps == whole.computed_steps
    assert [bool(computed) for computed in whole.computed_steps] == [cached] * 2
    if cached:
        # Some step between the first and the last is skipped, or nothing of the cache would be shown.
        assert all(len(computed) < steps for computed in whole.computed_steps)
    if cache == "MagCache":
        assert whole.computed_steps == ((0, 2, 4), (0, 2, 4))
    assert pieces.bake is not None
    assert whole.bake is not None
    assert pieces.bake.recipe == whole.bake.recipe


@pytest.mark.parametrize("sections", [1, 2])
def test_going_on_from_any_section(tmp_path: Path, embeddings: Path, sections: int) -> None:
    """From a file written after a section, the sections that are left are told, and nothing before them is sampled."""
    plan, path = tiny_plan(tmp_path, sections=3), tmp_path / "a.safetensors"
    blank = replace(BLANK, total=3, steps=2)

    def keep(progress: Progress, _: BakeReport | None) -> None:
        if progress.sections == sections:
            write_checkpoint(path, blank, progress)

    first = Engine(device="cpu", cache=embeddings)
    whole = first.sample(plan, first.conditioning_for(plan), keep=keep)
    told: list[tuple[int, int]] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepFinished):
            told.append((event.section, event.step))

    second = Engine(device="cpu", cache=embeddings, listener=listen)
    rest = second.sample(plan, second.conditioning_for(plan), after=read_progress(path)[1])
    assert torch.equal(rest.latents, whole.latents)
    assert told == [(section, step) for section in range(sections + 1, 4) for step in (1, 2)]
