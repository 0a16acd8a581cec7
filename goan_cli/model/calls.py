"""How a block is called: as it is, or compiled, with one graph for all blocks of a kind."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from goan_cli.model.attention import Attend
from goan_cli.model.blocks import Kept
from goan_cli.model.fp8 import multiplies_in_fp8
from goan_cli.model.rope import Rope

_MOST_GRAPHS = 64

CallDouble = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor, Rope, Attend], tuple[Tensor, Tensor]]
CallSingle = Callable[[nn.Module, Tensor, Tensor, Rope, Attend, Kept | None], Tensor]


def _double(
    block: nn.Module,
    image: Tensor,
    text: Tensor,
    modulation: Tensor,
    text_modulation: Tensor,
    rope: Rope,
    attend: Attend,
) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = block(image, text, modulation, text_modulation, rope, attend)
    return out


def _single(
    block: nn.Module, tokens: Tensor, modulation: Tensor, rope: Rope, attend: Attend, kept: Kept | None
) -> Tensor:
    out: Tensor = block(tokens, modulation, rope, attend, kept)
    return out


@dataclass(frozen=True, kw_only=True)
class BlockCalls:
    """Functions that run a double and a single block; their arguments are those of the blocks' `forward`."""

    double: CallDouble = _double
    single: CallSingle = _single


@lru_cache
def compiled_calls(backend: str = "inductor") -> BlockCalls:
    """The same, compiled by torch: the graphs serve every block, model and number of tokens of this process.

    Weights are inputs of the graphs, so they may be rewritten in place. Token counts are dynamic from the start.
    """
    # A property of the device: compiled code may hold the answer. Said here, for saying it imports the compiler.
    torch.compiler.assume_constant_result(multiplies_in_fp8)
    # Graphs of other precisions, attention kernels and depths of a process; beyond the limit torch would give up.
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS  # noqa: SLF001 - torch's documented way
    double = torch.compile(_double, fullgraph=True, backend=backend)
    single = torch.compile(_single, fullgraph=True, backend=backend)

    def call_double(
        block: nn.Module,
        image: Tensor,
        text: Tensor,
        modulation: Tensor,
        text_modulation: Tensor,
        rope: Rope,
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        _mark_tokens(rope, image, text)
        return double(block, image, text, modulation, text_modulation, rope, attend)

    def call_single(
        block: nn.Module, tokens: Tensor, modulation: Tensor, rope: Rope, attend: Attend, kept: Kept | None
    ) -> Tensor:
        _mark_tokens(rope, tokens)
        if kept is not None:
            _mark_tokens(kept.rope, kept.tokens)
        return single(block, tokens, modulation, rope, attend, kept)

    return BlockCalls(double=call_double, single=call_single)


def _mark_tokens(rope: Rope, *tokens: Tensor) -> None:
    # A single token, or none, is a size that compilers treat apart.
    if len(rope) > 1:
        torch._dynamo.mark_dynamic(rope.table, 0)  # noqa: SLF001 - torch's documented way
    for each in tokens:
        if each.shape[1] > 1:
            torch._dynamo.mark_dynamic(each, 1)  # noqa: SLF001
