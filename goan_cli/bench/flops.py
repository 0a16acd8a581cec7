"""The work of one step in floating point operations, counted from the architecture. No torch."""

from dataclasses import dataclass

from goan_cli.model.config import TransformerConfig
from goan_cli.render.memory import Tokens


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Operations of a step's matrix products, an addition and a multiplication being two."""

    linears: int
    attention: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.linears + self.attention


def step_flops(config: TransformerConfig, tokens: Tokens, *, kept: int | None = None) -> StepFlops:
    """The blocks, patches and final projection of one step with one CFG branch.

    `kept` says for how many tokens the last block makes more than keys and values, None for all. What is made once a
    job or once a section, and whatever is no matrix product, is left out.
    """
    width, inner, everything = config.width, config.mlp_width, tokens.total
    last = everything if kept is None else kept
    doubles, singles = config.num_layers, config.num_single_layers

    # Multiplications of one token; a double block's text has as many as its image.
    double = 4 * width * width + 2 * width * inner
    keys_and_values, others = 2 * width * width, width * width + width * inner + (width + inner) * width
    patches = 4 * config.in_channels * width + width * 4 * config.out_channels
    linears = (
        doubles * everything * double
        + singles * everything * keys_and_values
        + ((singles - 1) * everything + last) * others
        + tokens.noisy * patches
    )
    # Queries times keys, and the result times values.
    attention = 2 * width * everything * ((doubles + singles - 1) * everything + last)
    return StepFlops(linears=2 * linears, attention=2 * attention)
