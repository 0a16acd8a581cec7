"""What fits where: which blocks stay on the device within a budget, and which are streamed to it. No torch.

Weights are counted exactly, from the configuration; activations are an estimate (see `activation_bytes`).
"""

from dataclasses import dataclass
from itertools import chain

from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.sections import CLEAN_2X, CLEAN_4X
from goan_cli.model.config import TransformerConfig

# A streamed block's tensors lie in one slab, each at a multiple of this many bytes.
ALIGNMENT = 256
# Of the device: CUDA's context, the libraries' workspaces, and what its allocator cannot give out.
OVERHEAD = 800_000_000
# Two slots are enough to copy one block while another computes; a third would cost a resident block.
SLOTS = 2
# What other programs may take of a device's free memory while a job renders, as a share of it.
_MARGIN = 0.02
# Bytes of a value of a precision's activations, norms and biases, and of its linears' weights outside fp8.
_WIDE = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 2}
_FP32 = 4
# Activations that are widened at a time while they are quantised (see `model.fp8`), in fp32.
_QUANTISED_AT_ONCE = (1 << 24) * _FP32
_SINUSOID = 256  # width of an embedded timestep


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """How many tokens a step has: noisy ones, the packed clean history, SigLIP's, and the prompt's."""

    noisy: int
    clean: int
    image: int
    text: int

    @property
    def packed(self) -> int:
        """Tokens of the image stream."""
        return self.noisy + self.clean

    @property
    def beside(self) -> int:
        """Tokens of the text stream."""
        return self.image + self.text

    @property
    def total(self) -> int:
        """Tokens that attend to each other."""
        return self.packed + self.beside


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Where everything is while a job samples, in bytes.

    `double_block` and `single_block` are one block's streamed weights; `resident` says for each block, in the order
    of execution, whether it stays on the device. `fixed` (embedders, projections) always does. `conditioning`
    (modulation, token refiner) lies in main memory, and `lent`, the largest module of it, is on the device only
    before sampling. `budget` None is no limit.
    """

    budget: int | None
    double_block: int
    single_block: int
    doubles: int
    resident: tuple[bool, ...]
    slots: int
    fixed: int
    conditioning: int
    lent: int
    tables: int
    activations: int
    decode: int
    overhead: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """Every block's streamed weights in the order of execution."""
        return tuple(self.double_block if n < self.doubles else self.single_block for n in range(len(self.resident)))

    @property
    def streams(self) -> bool:
        """Whether any block is streamed."""
        return not all(self.resident)

    @property
    def resident_bytes(self) -> int:
        """Weights of the blocks that stay on the device."""
        return sum(size for size, stays in zip(self.blocks, self.resident, strict=True) if stays)

    @property
    def pinned(self) -> int:
        """Main memory that is best pinned: the streamed blocks' weights."""
        return sum(self.blocks) - self.resident_bytes

    @property
    def slot(self) -> int:
        """The largest block that is streamed."""
        return max((size for size, stays in zip(self.blocks, self.resident, strict=True) if not stays), default=0)

    @property
    def ring(self) -> int:
        """Device memory that blocks are streamed through."""
        return self.slots * self.slot

    @property
    def weights(self) -> int:
        """Weights on the device for as long as sampling takes, without the ring."""
        return self.fixed + self.resident_bytes

    @property
    def work(self) -> int:
        """What changes hands: lent modules, then tables, ring and activations, then the VAE and its decode."""
        return max(self.lent, self.tables + self.ring + self.activations, self.decode)

    @property
    def total(self) -> int:
        """Device memory in all."""
        return self.weights + self.work + self.overhead

    @property
    def decode_room(self) -> int | None:
        """What the VAE may use after sampling, its weights included: the resident blocks stay. None is no limit."""
        return None if self.budget is None else self.budget - self.weights - self.overhead


def automatic_budget(free: int) -> int:
    """The budget of `auto` on a device with so many bytes free, where CUDA's context is among what is taken."""
    return round(free * (1 - _MARGIN)) + OVERHEAD // 2


def tokens_of(*, size: tuple[int, int], window: int, image: int, text: int) -> Tokens:
    """Tokens of a job of `size` (width, height) pixels, with `image` SigLIP tokens and at most `text` of the prompt."""
    columns, rows = (length // 8 for length in size)

    def packed(frames: int, pool: int) -> int:
        patch = 2 * pool
        return -(-frames // pool) * -(-rows // patch) * -(-columns // patch)

    clean = packed(2, 1) + packed(CLEAN_2X, 2) + packed(CLEAN_4X, 4)
    return Tokens(noisy=packed(window, 1), clean=clean, image=image, text=text)


def plan_memory(
    config: TransformerConfig,
    *,
    precision: str,
    tokens: Tokens,
    steps: int,
    branches: int = 1,
    step_cache: bool = False,
    budget: int | None,
    decode: int = 0,
) -> MemoryPlan:
    """The plan that keeps as many blocks on the device as `budget` bytes allow, None for no limit (main memory).

    `precision` is fp32, fp16, bf16 or fp8; `branches` 2 with true CFG; `decode` the least that decoding needs, the
    VAE's weights included. Raises EnvironmentFault where not even a ring of slots fits.
    """
    double, single = block_bytes(config, precision)
    conditioning, lent = _conditioning_bytes(config, precision)

    def plan(doubles: int, singles: int) -> MemoryPlan:
        resident = (*spread(doubles, config.num_layers), *spread(singles, config.num_single_layers))
        return MemoryPlan(
            budget=budget,
            double_block=double,
            single_block=single,
            doubles=config.num_layers,
            resident=resident,
            slots=0 if all(resident) else min(SLOTS, resident.count(False)),
            fixed=fixed_bytes(config, precision),
            conditioning=conditioning,
            lent=lent,
            tables=_table_bytes(config, precision, tokens.text) * steps * branches,
            activations=activation_bytes(config, precision, tokens, caches=branches if step_cache else 0),
            decode=decode,
            overhead=0 if budget is None else OVERHEAD,
        )

    everything = plan(config.num_layers, config.num_single_layers)
    if budget is None or everything.total <= budget:
        return everything
    chosen = plan(0, 0)
    if chosen.total > budget:
        raise EnvironmentFault(
            f"memory: {gigabytes(budget)} are too few: with every block streamed the job needs "
            f"{gigabytes(chosen.total)} on the device, {gigabytes(chosen.activations)} of it for activations",
            hint="a smaller size or window needs less",
        )
    room = budget - chosen.total
    return plan(*_most_residents((double, config.num_layers), (single, config.num_single_layers), room))


def _most_residents(double: tuple[int, int], single: tuple[int, int], room: int) -> tuple[int, int]:
    """How many double and single blocks, each given by (bytes, how many there are), may stay in so much room.

    The kind with more bytes still to be copied per block comes first: its copies are the harder to hide.
    """
    kinds, stay = (double, single), [0, 0]
    while True:
        to_copy = [size * (count - stays) / max(count, 1) for (size, count), stays in zip(kinds, stay, strict=True)]
        fitting = [kind for kind in (0, 1) if to_copy[kind] > 0 and kinds[kind][0] <= room]
        if not fitting:
            return stay[0], stay[1]
        kind = max(fitting, key=to_copy.__getitem__)
        stay[kind] += 1
        room -= kinds[kind][0]


def spread(count: int, total: int) -> tuple[bool, ...]:
    """Which of `total` places get one of `count`, as evenly as can be, also from the last round to the first."""
    return tuple(place * count % total < count for place in range(total))


def block_bytes(config: TransformerConfig, precision: str) -> tuple[int, int]:
    """A double and a single block's weights in the layout of a slab, without their modulation."""
    width, inner = config.width, config.mlp_width

    def linears(*shapes: tuple[int, int]) -> list[int]:
        return list(chain.from_iterable(_linear(inputs, outputs, precision) for inputs, outputs in shapes))

    square, up, down = (width, width), (width, inner), (inner, width)
    head = config.attention_head_dim * _WIDE[precision]
    double = [*linears(*[square] * 8, *[up, down] * 2), *[head] * 4]
    single = [*linears(*[square] * 3, up, (width + inner, width)), *[head] * 2]
    return sum(map(aligned, double)), sum(map(aligned, single))


def aligned(size: int) -> int:
    """Up to the next multiple of ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _linear(inputs: int, outputs: int, precision: str) -> tuple[int, ...]:
    """Bytes of its weight and bias; in fp8 of codes, a scale for each row, and bias."""
    bias = outputs * _WIDE[precision]
    if precision == "fp8":
        return inputs * outputs, outputs * _FP32, bias
    return inputs * outputs * _WIDE[precision], bias


def _parameters(*shapes: tuple[int, int]) -> int:
    """Parameters of linears, from inputs and outputs."""
    return sum(inputs * outputs + outputs for inputs, outputs in shapes)


def fixed_bytes(config: TransformerConfig, precision: str) -> int:
    """Embedders and projections that always stay: patches, clean latents, SigLIP; and the last one, in fp32."""
    width, patch = config.width, 4 * config.in_channels
    patches = [(patch, width)] * 2 + [(8 * patch, width), (64 * patch, width)]
    image = [(config.image_proj_dim, 3 * width), (3 * width, width)]
    return _parameters(*patches, *image) * _WIDE[precision] + _parameters((width, 4 * config.out_channels)) * _FP32


def _conditioning_bytes(config: TransformerConfig, precision: str) -> tuple[int, int]:
    """All modulation, timestep embeddings and the token refiner, which only tables are made with; the largest part."""
    width, inner, text = config.width, config.mlp_width, config.text_embed_dim
    square, embedded = (width, width), (_SINUSOID, width)
    norms = 2 * 2 * width
    refiner_block = norms + _parameters(*[square] * 4, (width, inner), (inner, width), (width, 2 * width))
    refiner = _parameters(embedded, square, (text, width), square, (text, width))
    refiner += config.num_refiner_layers * refiner_block
    embedding = _parameters(embedded, square, embedded, square, (config.pooled_projection_dim, width), square)
    double, single, last = (_parameters((width, parts * width)) for parts in (6, 3, 2))
    modulation = config.num_layers * 2 * double + config.num_single_layers * single + last
    wide = _WIDE[precision]
    return (refiner + embedding + modulation) * wide, max(refiner, embedding, double) * wide


def _table_bytes(config: TransformerConfig, precision: str, text: int) -> int:
    """One step's modulation and refined text of one CFG branch."""
    rows = config.num_layers * 12 + config.num_single_layers * 3 + 2
    return (rows + text) * config.width * _WIDE[precision]


def activation_bytes(config: TransformerConfig, precision: str, tokens: Tokens, *, caches: int = 0) -> int:
    """An estimate of what a step holds at its peak, uncompiled; compiled blocks hold less.

    With tokens n noisy, c clean, m text, image stream i = n + c, all s = i + m; w and h the widths of a token and of
    an MLP's inside, times the tokens:

    - throughout: noisy and clean tokens and both packed (n + c + i) w, SigLIP's, rope tables of i and of s rows in
      fp32, and for each step cache a residual and a modulated input (n + i) w;
    - in a double block, at the image MLP's GELU: image and text before and after attention 2 s w, the normed image
      i w, and the GELU's two sides 2 i h;
    - in a single block, at its GELU: what the double blocks made s w, tokens and normed tokens 2 s w, attention's
      output s w, and 2 s h; this is the larger one. A CPU's norm of 16-bit queries comes to the same, with two numbers
      in fp32 for each token and head;
    - fp8: at a single block's last linear h less, and then its concatenated input s (w + h), which is quantised to
      one byte a value, some at a time in fp32; or, where fp8 is for storage, the widest weight in fp32 and in 16 bits.

    Attention is never s x s.
    """
    width, inner, wide = config.width, config.mlp_width, _WIDE[precision]
    everything, packed = tokens.total, tokens.packed
    held = (tokens.noisy + tokens.clean + packed + tokens.image + caches * (tokens.noisy + packed)) * width * wide
    ropes = (packed + everything) * config.attention_head_dim * _FP32
    double = (2 * everything + packed) * width * wide + 2 * packed * inner * wide
    statistics = 2 * everything * config.num_attention_heads * _FP32
    single = 4 * everything * width * wide + 2 * everything * inner * wide + statistics
    if precision == "fp8":
        values = everything * (width + inner)
        before_last = 4 * everything * width * wide + everything * inner * wide + values * wide
        # Quotients, and where the device casts before it divides, what is divided.
        scales = 3 * everything * _FP32  # and what they are made from
        quantised = before_last + values + scales + 2 * min(values * _FP32, _QUANTISED_AT_ONCE)
        widened = before_last + everything * width * wide + width * (width + inner) * (_FP32 + wide)
        single = max(single, quantised, widened)
    return held + ropes + max(double, single)


def gigabytes(size: int) -> str:
    """Like `18.1 GB`; with more digits below 1 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e9:.2g} GB"


def describe(plan: MemoryPlan) -> str:
    """A plan in a line, for people."""
    stay, count = plan.resident.count(True), len(plan.resident)
    if plan.budget is None:
        return f"everything in main memory, {gigabytes(plan.weights + plan.conditioning + plan.work)}"
    weights = gigabytes(plan.resident_bytes)
    blocks = [f"{stay} of {count} blocks resident ({weights})" if stay else "no block resident"]
    if plan.streams:
        blocks.append(f"{count - stay} streamed through {plan.slots} slots ({gigabytes(plan.ring)})")
    else:
        blocks = [f"all {count} blocks resident ({weights})"]
    rest = [f"activations {gigabytes(plan.activations)}", f"{gigabytes(plan.total)} in all"]
    if plan.streams:
        rest.append(f"{gigabytes(plan.pinned)} of main memory pinned")
    return ", ".join([*blocks, *rest])
