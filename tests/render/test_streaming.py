"""Streaming of blocks: the same results as with every block resident, whatever is streamed, abandoned or rewritten."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor, nn

from goan_cli.model.calls import compiled_calls
from goan_cli.model.fp8 import quantised, use_fp8
from goan_cli.model.transformer import CleanLatents, PackedTransformer, TextConditioning
from goan_cli.render.memory import block_bytes
from goan_cli.render.streaming import BlockStream, HostLane, streamed_tensors
from tests.helpers import CPU, SMALL, random_transformer

BLOCKS = SMALL.num_layers + SMALL.num_single_layers
SPLITS = list(product((False, True), repeat=BLOCKS))
STEPS = 3
PRECISIONS = ("fp32", "bf16", "fp8")


@dataclass
class LateLane:
    """A copy spoils its slot when it is queued and is done only when it is waited for: as late as a device may."""

    queued: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    done: int = 0

    def mark(self) -> None:
        pass

    def copy(self, slot: Tensor, slab: Tensor, after: object) -> int:  # noqa: ARG002 - computing is done when queued
        slot.fill_(0xFF)  # NaN in every dtype
        self.queued.append((slot, slab))
        return len(self.queued)

    def wait(self, mark: object) -> None:
        assert isinstance(mark, int)
        for slot, slab in self.queued[self.done : mark]:
            slot.copy_(slab)
        self.done = max(self.done, mark)

    def finish(self) -> None:
        self.wait(len(self.queued))


@dataclass
class LoggingLane(HostLane):
    """Numbers what happens: marks, copies as (slot, after, slab) and waits as the copy waited for."""

    clock: int = 0
    copies: list[tuple[int, object, int]] = field(default_factory=list)
    waits: list[tuple[int, object]] = field(default_factory=list)

    def mark(self) -> int:  # type: ignore[override]
        self.clock += 1
        return self.clock

    def copy(self, slot: Tensor, slab: Tensor, after: object) -> int:  # type: ignore[override]
        slot.copy_(slab)
        self.copies.append((slot.data_ptr(), after, slab.data_ptr()))
        return len(self.copies) - 1

    def wait(self, mark: object) -> None:
        self.clock += 1
        self.waits.append((self.clock, mark))


def model_in(precision: str) -> PackedTransformer:
    """A small random transformer with the dtypes that a precision gives it; bf16 around fp8."""
    model = random_transformer()
    if precision != "fp32":
        model.to(torch.bfloat16).proj_out.float()
    if precision == "fp8":
        use_fp8(model)
    return model


def blocks_of(model: PackedTransformer) -> list[nn.Module]:
    """The model's own blocks in the order of execution."""
    return [*model.own_blocks()]


def stream_of(
    model: PackedTransformer, resident: tuple[bool, ...] = (False,) * BLOCKS, **options: object
) -> BlockStream:
    """The model's blocks streamed as the model's source."""
    stream = BlockStream(blocks_of(model), resident, CPU, **options)  # type: ignore[arg-type]
    model.block_source = stream
    return stream


def stepper(model: PackedTransformer) -> Callable[[], Tensor]:
    """A function that runs one step after another, each on what the one before made, and returns the last result."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(model.dtype)

    with torch.inference_mode():
        context = model.context_for(
            latent_indices=torch.arange(2, 5),
            latent_size=(8, 8),
            clean=[CleanLatents(latents=random(1, 16, 2, 8, 8), indices=torch.arange(2), pool=1)],
            image_embeds=random(1, 5, SMALL.image_proj_dim),
        )
        text = TextConditioning(embeds=random(1, 7, SMALL.text_embed_dim), pooled=random(1, 16))
        timestep = torch.tensor([500.0]).to(model.dtype)
        (step,) = model.step_conditionings(text, [timestep], timestep)
    latents: Tensor = random(1, 16, 3, 8, 8)

    def run() -> Tensor:
        nonlocal latents
        with torch.inference_mode():
            latents = model(latents.to(model.dtype), step=step, context=context)
        return latents

    return run


def several(run: Callable[[], Tensor], count: int = STEPS) -> list[Tensor]:
    """The results of so many further steps."""
    return [run() for _ in range(count)]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    """Whether the results of all steps are the same, bit for bit."""
    return all(bool(torch.equal(one, other)) for one, other in zip(left, right, strict=True))


@pytest.fixture(scope="module", params=PRECISIONS)
def resident_run(request: pytest.FixtureRequest) -> tuple[PackedTransformer, list[Tensor]]:
    """A model in each precision, and its results with every block where it is."""
    model = model_in(request.param)
    return model, several(stepper(model))


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_split_never_changes_a_result(resident_run: tuple[PackedTransformer, list[Tensor]], slots: int) -> None:
    """Whichever blocks are streamed, through however many slots, every one of several steps is bit-equal."""
    model, expected = resident_run
    for resident in SPLITS:
        streamed = copy.deepcopy(model)
        stream_of(streamed, resident, slots=slots)
        assert equal(several(stepper(streamed)), expected), resident


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_copies_may_be_late(resident_run: tuple[PackedTransformer, list[Tensor]], slots: int) -> None:
    """A copy that is done only at the last moment is in time, and spoils nothing before."""
    model, expected = resident_run
    for resident in SPLITS:
        streamed = copy.deepcopy(model)
        stream_of(streamed, resident, slots=slots, lane=LateLane())
        assert equal(several(stepper(streamed)), expected), resident


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_copies_wait_for_the_block_before(slots: int) -> None:
    """What is copied into a slot waits for a mark that was set after the slot's last block had been queued."""
    model, lane = model_in("fp32"), LoggingLane()
    stream_of(model, slots=slots, lane=lane)
    several(stepper(model), 4)
    waited = {mark: clock for clock, mark in lane.waits}
    last: dict[int, int] = {}
    again = 0
    for number, (slot, after, _) in enumerate(lane.copies):
        if slot in last and last[slot] in waited:
            assert isinstance(after, int)
            assert after > waited[last[slot]]
            again += 1
        last[slot] = number
    assert again >= 3 * BLOCKS - slots


def test_each_block_is_copied_once_a_step() -> None:
    """A step copies every streamed block once, in order; with the last blocks the first of the next step are."""
    model, lane = model_in("fp32"), LoggingLane()
    stream = stream_of(model, (False, True, False, False), slots=2, lane=lane)
    run, blocks = stepper(model), blocks_of(model)
    order = [next(iter(streamed_tensors(blocks[index]).values())).data_ptr() for index in (0, 2, 3)]
    for step in range(1, 4):
        run()
        copied = [slab for _, _, slab in lane.copies]
        assert copied == (order * 4)[: 3 * step + 2]
    assert stream.note is None


def test_copies_are_queued_one_block_late() -> None:
    """A slot is filled again only when the block after its own is queued too, so that a slow copy idles nothing."""
    model, lane = model_in("fp32"), LoggingLane()
    blocks = stream_of(model, slots=2, lane=lane)()
    assert [len(lane.copies) for _ in blocks] == [2, 2, 3, 4]
    assert len(lane.copies) == BLOCKS + 2


def test_a_ring_for_all_copies_nothing_twice() -> None:
    """Where there are as many slots as streamed blocks, they stay in them."""
    model, lane = model_in("fp32"), LoggingLane()
    stream_of(model, (True, False, False, True), slots=3, lane=lane)
    several(stepper(model))
    assert len(lane.copies) == 2


def test_blocks_come_in_order() -> None:
    """The iterator gives the resident blocks themselves, and for a streamed one a module of its kind and weights."""
    model = model_in("bf16")
    resident = (True, False, False, True)
    stream = stream_of(model, resident)
    for _ in range(2):
        for given, block, stays in zip(stream(), blocks_of(model), resident, strict=True):
            assert (given is block) == stays
            assert type(given) is type(block)
            theirs = streamed_tensors(given)
            for name, tensor in streamed_tensors(block).items():
                assert torch.equal(theirs[name], tensor)
                assert type(theirs[name]) is type(tensor)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
def test_bytes_are_as_planned(precision: str) -> None:
    """Slabs have the planned size; the device holds the slots, and all that runs lies in them."""
    model = model_in(precision)
    double, single = block_bytes(SMALL, precision)
    stream = stream_of(model, (False, True, False, False))
    assert stream.slab_bytes == double + 2 * single
    assert stream.slot_bytes == 0
    several(stepper(model), 2)
    assert stream.slot_bytes == 2 * double
    storages = {}
    for given, stays in zip(stream(), (False, True, False, False), strict=True):
        for tensor in streamed_tensors(given).values() if not stays else ():
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    assert sum(storages.values()) == stream.slot_bytes
    assert len(storages) == 2


def test_slots_are_as_large_as_what_is_streamed() -> None:
    """With every double block resident, a slot has a single block's size."""
    model = model_in("bf16")
    stream = stream_of(model, (True, True, False, False))
    stepper(model)()
    assert stream.slot_bytes == 2 * block_bytes(SMALL, "bf16")[1]


def test_tensors_keep_their_names_and_identity() -> None:
    """The model's tensors stay the same objects; those of streamed blocks lie at multiples of 256 in a slab."""
    model = model_in("fp8")
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {name: tensor.clone() for name, tensor in before.items()}
    conditioning = {name: tensor.data_ptr() for name, tensor in before.items() if ".norm." in name or ".norm1" in name}
    stream_of(model)
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert all(torch.equal(after[name], value) for name, value in values.items())
    assert all(after[name].data_ptr() == place for name, place in conditioning.items())
    for block in blocks_of(model):
        tensors = [*streamed_tensors(block).values()]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        starts = [tensor.data_ptr() - tensors[0].data_ptr() for tensor in tensors]
        assert all(start % 256 == 0 for start in starts)
        assert all(start < stop for start, stop in pairwise(starts))


def test_modulation_is_not_streamed() -> None:
    """What stands for a streamed block has no modulation: it is on the meta device."""
    model = model_in("fp32")
    stream = stream_of(model)
    for given in stream():
        tensors = dict(given.named_parameters())
        assert {name.partition(".")[0] for name in tensors.keys() - streamed_tensors(given).keys()} <= {
            "norm1",
            "norm1_context",
            "norm",
        }
        assert all(tensor.is_meta == (name not in streamed_tensors(given)) for name, tensor in tensors.items())


def changed(model: PackedTransformer) -> None:
    """Write another value in place into a weight of every block, as a bake does."""
    generator = torch.Generator().manual_seed(5)
    for block in blocks_of(model):
        tensors = streamed_tensors(block)
        weight = torch.randn(tensors["attn.to_q.weight"].shape, generator=generator)
        if "attn.to_q.scale" in tensors:
            weight, scale = quantised(weight)
            tensors["attn.to_q.scale"].copy_(scale)
        tensors["attn.to_q.weight"].copy_(weight)
        tensors["attn.to_q.bias"].add_(1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("late", [False, True])
def test_a_bake_in_place_acts(precision: str, late: bool) -> None:
    """After `refresh` the next step runs on what was written, the blocks that had been copied ahead included."""
    model, streamed = model_in(precision), model_in(precision)
    stream = stream_of(streamed, (False, True, False, False), lane=LateLane() if late else HostLane())
    run, run_streamed = stepper(model), stepper(streamed)
    assert equal(several(run_streamed), several(run))
    changed(streamed)
    stream.refresh()
    changed(model)
    assert equal(several(run_streamed), several(run))


def test_a_bake_needs_the_refresh() -> None:
    """Without it the blocks that were copied ahead are the old ones."""
    model, streamed = model_in("fp32"), model_in("fp32")
    stream_of(streamed)
    run, run_streamed = stepper(model), stepper(streamed)
    several(run_streamed), several(run)
    changed(streamed)
    changed(model)
    assert not torch.equal(run_streamed(), run())


def test_refresh_brings_in_what_was_moved() -> None:
    """A weight that was put elsewhere is in its slab again, with its new value."""
    model, streamed = model_in("fp32"), model_in("fp32")
    stream = stream_of(streamed)
    stepper(streamed)()
    for each in (model, streamed):
        weight = blocks_of(each)[0].get_parameter("attn.to_q.weight")
        weight.data = weight.data * 2
    stream.refresh()
    assert torch.equal(stepper(streamed)(), stepper(model)())
    weight.mul_(0.5)
    stream.refresh()
    assert torch.equal(stepper(streamed)(), stepper(model_in("fp32"))())


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("blocks", range(BLOCKS + 1))
@pytest.mark.parametrize("late", [False, True])
def test_an_abandoned_step(slots: int, blocks: int, late: bool) -> None:
    """After a step that was left at any block, the next begins with the first block and is bit-equal."""
    model, streamed = model_in("fp32"), model_in("fp32")
    stream = stream_of(streamed, (False, False, True, False), slots=slots, lane=LateLane() if late else HostLane())
    run, run_streamed = stepper(model), stepper(streamed)
    left: list[Iterator[nn.Module]] = []
    for _ in range(2):
        assert torch.equal(run_streamed(), run())
        left.append(iter(stream()))  # kept, as an exception's traceback may keep it
        for _ in range(blocks):
            next(left[-1])
    assert equal(several(run_streamed), several(run))


def test_an_exception_in_a_block() -> None:
    """A step that a block ends leaves nothing behind."""
    model, streamed = model_in("fp32"), model_in("fp32")
    stream_of(streamed, slots=2)
    run, run_streamed = stepper(model), stepper(streamed)
    attend = streamed.attend

    def failing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.shape[1] == key.shape[1] and not failures:
            failures.append("once")
            raise MemoryError
        return attend(query, key, value)

    failures: list[str] = []
    streamed.attend = failing
    with pytest.raises(MemoryError):
        run_streamed()
    assert equal(several(run_streamed), several(run))


def test_two_steps_at_once_are_refused() -> None:
    """An iterator that another one has overtaken says so instead of handing out wrong weights."""
    stream = stream_of(model_in("fp32"))
    overtaken = stream()
    next(overtaken)
    next(stream())
    with pytest.raises(RuntimeError, match="another step"):
        next(overtaken)


def test_the_ring_can_be_given_back() -> None:
    """After `release` no slot is held, and the next step makes them again."""
    model, streamed = model_in("bf16"), model_in("bf16")
    stream = stream_of(streamed)
    run, run_streamed = stepper(model), stepper(streamed)
    run_streamed()
    stream.release()
    assert stream.slot_bytes == 0
    run()
    assert equal(several(run_streamed), several(run))


def test_rearranging() -> None:
    """Another split of the same blocks keeps the results, and the slabs of those that were streamed before."""
    model, streamed = model_in("bf16"), model_in("bf16")
    stream = stream_of(streamed, (False, False, True, True))
    run, run_streamed = stepper(model), stepper(streamed)
    assert torch.equal(run_streamed(), run())
    first = next(iter(streamed_tensors(blocks_of(streamed)[0]).values()))
    place = first.data_ptr()
    double, single = block_bytes(SMALL, "bf16")
    for resident, size in (((False, True, False, True), double + single), ((True,) * 4, 0), ((False,) * 4, None)):
        stream.arrange(resident)
        assert stream.slab_bytes == (2 * (double + single) if size is None else size)
        assert resident[0] or size is None or first.data_ptr() == place
        assert torch.equal(run_streamed(), run())


def test_rearranging_brings_in_what_was_moved() -> None:
    """A block that stays streamed has its weights in its slab again, even if the split is the same."""
    model, streamed = model_in("fp32"), model_in("fp32")
    stream = stream_of(streamed)
    stepper(streamed)()
    for each in (model, streamed):
        weight = blocks_of(each)[0].get_parameter("attn.to_q.weight")
        weight.data = weight.data * 2
    stream.arrange((False,) * BLOCKS)
    assert torch.equal(stepper(streamed)(), stepper(model)())


def test_compiled_blocks_serve_streamed_ones() -> None:
    """The graphs of the resident blocks run the streamed ones too, again after the ring was made anew."""
    model, streamed = model_in("fp32"), model_in("fp32")
    model.calls = streamed.calls = compiled_calls("eager")
    run, run_streamed = stepper(model), stepper(streamed)
    expected = several(run)
    stream = stream_of(streamed, (True, False, False, True))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert torch.equal(run_streamed(), expected[0])
    stream.release()
    assert equal(several(run_streamed, 2), expected[1:])
    changed(streamed)
    stream.refresh()
    changed(model)
    assert torch.equal(run_streamed(), run())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_no_streamed_block() -> None:
    """With every block resident the iterator is the model's own."""
    model = model_in("fp32")
    stream = stream_of(model, (True,) * BLOCKS)
    assert [*stream()] == blocks_of(model)
    assert (stream.slot_bytes, stream.slab_bytes, stream.note) == (0, 0, None)
