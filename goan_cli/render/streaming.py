"""Streaming: blocks that lie in main memory are copied to the device just before they run.

Each streamed block's weights lie in one slab, so that one copy brings them all, into a ring of slots on the device.
While a block computes the next ones are copied, and the first of the next step while the last of this one compute.
Nothing is copied back, and the host waits for nothing.
"""

import copy
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from goan_cli.render.memory import SLOTS, aligned

# The children of a block that only tables are made with: they stay where they are.
_CONDITIONING = ("norm1", "norm1_context", "norm")
_PAGE = 4096
_PORTABLE = 1  # cudaHostRegisterPortable


class Lane(Protocol):
    """Copies into slots beside the computing. Marks are points in the work given to the device."""

    def mark(self) -> object:
        """The point that computing has been queued up to."""

    def copy(self, slot: Tensor, slab: Tensor, after: object) -> object:
        """Copy once the mark `after` is reached; returns the mark of the copy's end."""

    def wait(self, mark: object) -> None:
        """Have the computing that is queued from now on wait for a mark."""

    def finish(self) -> None:
        """Wait, on the host, until no copy is under way."""


class HostLane:
    """On a CPU there is no beside: a copy is done at once."""

    def mark(self) -> None:
        """Nothing is ever queued."""

    def copy(self, slot: Tensor, slab: Tensor, after: object) -> None:  # noqa: ARG002 - all is done already
        """Copy now."""
        slot.copy_(slab)

    def wait(self, mark: object) -> None:
        """Nothing to wait for."""

    def finish(self) -> None:
        """Nothing to wait for."""


class CudaLane:
    """Copies on a stream of their own; marks are events, so that only the device waits."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def mark(self) -> torch.cuda.Event:
        """An event after all that is queued on the current stream."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(self, slot: Tensor, slab: Tensor, after: object) -> torch.cuda.Event:
        """Queue the copy on the lane's stream."""
        self._stream.wait_event(cast("torch.cuda.Event", after))
        with torch.cuda.stream(self._stream):
            slot.copy_(slab, non_blocking=True)
        # Should the ring be let go meanwhile, its memory is not given out before the copy is done.
        slot.record_stream(self._stream)
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, mark: object) -> None:
        """Queue the wait on the current stream."""
        torch.cuda.current_stream(self._device).wait_event(cast("torch.cuda.Event", mark))

    def finish(self) -> None:
        """Wait for the lane's stream."""
        self._stream.synchronize()


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where in a slab or slot a tensor of a block lies."""

    name: str
    start: int
    bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def within(self, memory: Tensor) -> Tensor:
        """The tensor in this slab or slot."""
        return memory[self.start : self.start + self.bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How the streamed tensors of a kind of block lie in a slab of `bytes` bytes."""

    kind: type[nn.Module]
    places: tuple[_Place, ...]
    bytes: int


class _Slab:
    """A streamed block's weights in main memory. The block's tensors are views of it, whatever writes them."""

    def __init__(self, block: nn.Module, *, pin_for: torch.device | None) -> None:
        self.block = block
        self.layout = _layout_of(block)
        self.memory = _pages(self.layout.bytes)
        self.adopt()
        self.pinned = False
        if pin_for is not None and _pinned(self.memory, pin_for):
            self.pinned = True
            # The memory must not go while a copy reads it, nor while it is registered; at exit it all goes at once.
            weakref.finalize(self, _unpin, self.memory, pin_for).atexit = False

    def adopt(self) -> None:
        """Bring in what lies elsewhere, for instance because the whole model was moved."""
        tensors = streamed_tensors(self.block)
        for place in self.layout.places:
            tensor, view = tensors[place.name], place.within(self.memory)
            if tensor.data_ptr() != view.data_ptr():
                view.copy_(tensor)
                tensor.data = view


class _Slot:
    """One block's room on the device, and for each kind of block a module whose weights are views of it."""

    def __init__(self, size: int, device: torch.device, usable: object) -> None:
        self.memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.holds: _Slab | None = None
        self.filled: object = None
        self.usable = usable
        self._shells: dict[_Layout, nn.Module] = {}

    def shell(self, slab: _Slab) -> nn.Module:
        """The module that runs in the place of the slab's block."""
        if slab.layout not in self._shells:
            self._shells[slab.layout] = _shell(slab, self.memory)
        return self._shells[slab.layout]


class BlockStream:
    """A model's blocks, each ready when it is its turn: call it for the iterator of one step.

    The blocks are those of the model, in the order of execution. Those that are `resident` have their weights moved
    to `device`; the others' become views of slabs in main memory, under the same names and as the same tensors, so
    that what is written into them in place is what is copied. Call `refresh` after writing. Modulation stays where
    it is. A step may be abandoned at any block. For one thread, and one step at a time.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        resident: Sequence[bool],
        device: torch.device,
        *,
        slots: int = SLOTS,
        lane: Lane | None = None,
    ) -> None:
        self._blocks = tuple(blocks)
        self._device = device
        self._most_slots = slots
        self._lane: Lane = lane or (CudaLane(device) if device.type == "cuda" else HostLane())
        self._slabs: dict[int, _Slab] = {}
        self._ring: tuple[_Slot, ...] = ()
        self._queue: deque[_Slot] = deque()  # filled or being filled, in the order of their turn
        self._idle: deque[_Slot] = deque()  # to be filled
        self._running: _Slot | None = None
        self._next = 0  # which of the slabs is copied next
        self._turn = 0
        self.arrange(resident)

    @property
    def pageable(self) -> int:
        """How many slabs should be pinned and are not, because the machine refused: their copies hold the host up."""
        return sum(not slab.pinned for slab in self._slabs.values()) if self._device.type == "cuda" else 0

    @property
    def note(self) -> str | None:
        """What a user should know of how the blocks are streamed."""
        if not self.pageable:
            return None
        return (
            f"{self.pageable} of {len(self._slabs)} streamed blocks could not be pinned in main memory: slower copies"
        )

    @property
    def slot_bytes(self) -> int:
        """Device memory that the ring holds now."""
        return sum(slot.memory.nbytes for slot in self._ring)

    @property
    def slab_bytes(self) -> int:
        """Main memory of the streamed blocks."""
        return sum(slab.memory.nbytes for slab in self._slabs.values())

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def arrange(self, resident: Sequence[bool]) -> None:
        """Have these blocks resident and the others streamed; what is in its place already is not moved."""
        self.release()
        before, self._slabs = self._slabs, {}
        # First what leaves the device, to make room.
        for index, (block, stays) in enumerate(zip(self._blocks, resident, strict=True)):
            if not stays:
                pin_for = self._device if self._device.type == "cuda" and not self.pageable else None
                self._slabs[index] = before.get(index) or _Slab(block, pin_for=pin_for)
                self._slabs[index].adopt()
        for block, stays in zip(self._blocks, resident, strict=True):
            if stays:
                for tensor in streamed_tensors(block).values():
                    tensor.data = tensor.data.to(self._device)

    def __call__(self) -> Iterator[nn.Module]:
        """The blocks of one step in order, each to be run before the next is asked for."""
        turn = self._begin()
        for index, block in enumerate(self._blocks):
            slab = self._slabs.get(index)
            yield block if slab is None else self._ready(slab)
            if turn != self._turn:
                raise RuntimeError("another step was begun, or the weights were rewritten, within this step")
            # One block late: where a copy holds the host up, the block in between is at work meanwhile.
            self._fill()
            self._retire()
        self._fill()

    def refresh(self) -> None:
        """Forget what was copied ahead, because the weights in the slabs were written to. Waits for copies.

        The results of the step before must have been waited for when the writing begins.
        """
        self._turn += 1
        self._lane.finish()
        for slot in self._ring:
            slot.holds = None
        with torch.inference_mode(mode=False), torch.no_grad():
            for slab in self._slabs.values():
                slab.adopt()

    def release(self) -> None:
        """Give the ring's memory back; the next step takes it again."""
        self._turn += 1
        self._lane.finish()
        self._ring, self._running = (), None
        self._queue.clear()
        self._idle.clear()

    def _begin(self) -> int:
        self._turn += 1
        if self._slabs:
            if not self._ring:
                self._make_ring()
            self._retire()
            if self._queue and self._queue[0].holds is not next(iter(self._slabs.values())):
                # The last step was abandoned, or the weights were written to since.
                self._idle.extend(self._queue)
                self._queue.clear()
            if not self._queue:
                self._next = 0
            self._fill()
        return self._turn

    @torch.inference_mode(mode=False)
    def _make_ring(self) -> None:
        size = max(slab.layout.bytes for slab in self._slabs.values())
        # What had this memory before may still be at work.
        usable = self._lane.mark()
        count = min(self._most_slots, len(self._slabs))
        self._ring = tuple(_Slot(size, self._device, usable) for _ in range(count))
        self._idle.extend(self._ring)

    def _ready(self, slab: _Slab) -> nn.Module:
        if not self._queue:
            self._fill()  # a ring of one
        slot = self._running = self._queue.popleft()
        self._lane.wait(slot.filled)
        return slot.shell(slab)

    def _retire(self) -> None:
        """The block that ran last is queued as a whole: its slot may be filled after it."""
        if self._running is not None:
            self._running.usable = self._lane.mark()
            self._idle.append(self._running)
            self._running = None

    def _fill(self) -> None:
        """Copy the next blocks into the slots that are free."""
        slabs = tuple(self._slabs.values())
        while self._idle:
            slot, slab = self._idle.popleft(), slabs[self._next]
            if slot.holds is not slab:
                slot.filled = self._lane.copy(slot.memory[: slab.layout.bytes], slab.memory, slot.usable)
                slot.holds = slab
            self._queue.append(slot)
            self._next = (self._next + 1) % len(slabs)


def streamed_tensors(block: nn.Module) -> dict[str, Tensor]:
    """A block's parameters and buffers by name, but those that only tables are made with."""
    named: Iterator[tuple[str, Tensor]] = chain(block.named_parameters(), block.named_buffers())
    return {name: tensor for name, tensor in named if name.partition(".")[0] not in _CONDITIONING}


def _layout_of(block: nn.Module) -> _Layout:
    places, start = [], 0
    for name, tensor in streamed_tensors(block).items():
        places.append(
            _Place(name=name, start=start, bytes=tensor.nbytes, shape=tuple(tensor.shape), dtype=tensor.dtype)
        )
        start += aligned(tensor.nbytes)
    return _Layout(kind=type(block), places=tuple(places), bytes=start)


@torch.inference_mode(mode=False)
def _shell(slab: _Slab, memory: Tensor) -> nn.Module:
    """A copy of the slab's block, made without copying its weights: they are in `memory`, modulation is nowhere."""
    places = {place.name: place for place in slab.layout.places}
    tensors: dict[int, Tensor] = {}
    for name, tensor in chain(slab.block.named_parameters(), slab.block.named_buffers()):
        made = places[name].within(memory) if name in places else torch.empty_like(tensor, device="meta")
        is_parameter = isinstance(tensor, nn.Parameter)
        tensors[id(tensor)] = nn.Parameter(made, requires_grad=False) if is_parameter else made
    # deepcopy takes what it finds here for copied already.
    return copy.deepcopy(slab.block, tensors)


def _pages(size: int) -> Tensor:
    """Main memory that begins a page, since pages are locked whole and each by one slab only."""
    pages = -(-size // _PAGE) * _PAGE
    memory = torch.empty(pages + _PAGE, dtype=torch.uint8)
    start = -memory.data_ptr() % _PAGE
    return memory[start : start + size]


def _pinned(memory: Tensor, device: torch.device) -> bool:
    """Lock memory in place, so that the device reads it by itself. False where the machine refuses.

    torch's own pinned memory is rounded up to a power of two, which would be an eighth more for a full-size block.
    """
    with torch.cuda.device(device):
        try:
            refused = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE))
        except RuntimeError:
            return False
    if refused:
        # CUDA keeps the refusal as its last error, and torch would raise it at the next kernel: let that be this one.
        with suppress(RuntimeError):
            torch.zeros(1, device=device)
    return not refused


def _unpin(memory: Tensor, device: torch.device) -> None:
    torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
