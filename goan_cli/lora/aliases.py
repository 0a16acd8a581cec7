"""Which modules of the packed transformer a name in a LoRA file means: one alias table, no converters.

HunyuanVideo's and ComfyUI's fused modules become several targets, one below the other in the rows of the
change. Widths are never written here: each target takes as many rows as the model's own weight has.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from goan_cli.lora.keys import flattened


@dataclass(frozen=True, kw_only=True)
class Alias:
    """The targets of one source module, in the order of its rows.

    With `swap_halves`, the source's row halves are exchanged: HunyuanVideo's [shift, scale] is the packed
    model's [scale, shift].
    """

    targets: tuple[str, ...]
    swap_halves: bool = False


@dataclass(frozen=True, kw_only=True)
class Rename:
    """A row of the table: source spellings (flattened, `{n}` for the block) and the targets in row order."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    swap_halves: bool = False


_DOUBLE = "transformer_blocks.{n}."
_SINGLE = "single_transformer_blocks.{n}."
_REFINER = "context_embedder.token_refiner.refiner_blocks.{n}."


def _stream(source: str, attention: tuple[str, str, str], out: str, feed: str, norm: str, norms: str) -> list[Rename]:
    """The rows of one stream (img or txt) of a double block."""
    block, qk = f"double_blocks_{{n}}_{source}", ("q", "k")
    return [
        Rename(sources=(f"{block}_attn_qkv",), targets=tuple(f"{_DOUBLE}attn.{name}" for name in attention)),
        Rename(sources=(f"{block}_attn_proj",), targets=(f"{_DOUBLE}attn.{out}",)),
        Rename(sources=(f"{block}_mlp_fc1", f"{block}_mlp_0"), targets=(f"{_DOUBLE}{feed}.net.0.proj",)),
        Rename(sources=(f"{block}_mlp_fc2", f"{block}_mlp_2"), targets=(f"{_DOUBLE}{feed}.net.2",)),
        Rename(sources=(f"{block}_mod_linear", f"{block}_mod_lin"), targets=(f"{_DOUBLE}{norm}.linear",)),
        *(
            Rename(
                sources=(f"{block}_attn_{letter}_norm", f"{block}_attn_norm_{word}_norm"),
                targets=(f"{_DOUBLE}attn.{norms}_{letter}",),
            )
            for letter, word in zip(qk, ("query", "key"), strict=True)
        ),
    ]


def _two_linears(sources: Iterable[tuple[str, str]], target: str) -> list[Rename]:
    """An embedder of two linears; each pair is a spelling of the first and of the second."""
    first, second = zip(*sources, strict=True)
    return [
        Rename(sources=first, targets=(f"{target}.linear_1",)),
        Rename(sources=second, targets=(f"{target}.linear_2",)),
    ]


def _embedder(source: str, target: str, *, mlp: bool) -> list[Rename]:
    layers = (f"{source}_in_layer", f"{source}_out_layer")
    return _two_linears([(f"{source}_mlp_0", f"{source}_mlp_2"), layers] if mlp else [layers], target)


RENAMES: tuple[Rename, ...] = (
    *_stream("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1", "norm"),
    *_stream(
        "txt",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
        "to_add_out",
        "ff_context",
        "norm1_context",
        "norm_added",
    ),
    Rename(
        sources=("single_blocks_{n}_linear1",),
        targets=tuple(f"{_SINGLE}{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    ),
    Rename(sources=("single_blocks_{n}_linear2",), targets=(f"{_SINGLE}proj_out",)),
    Rename(
        sources=("single_blocks_{n}_modulation_linear", "single_blocks_{n}_modulation_lin"),
        targets=(f"{_SINGLE}norm.linear",),
    ),
    Rename(
        sources=("single_blocks_{n}_q_norm", "single_blocks_{n}_norm_query_norm"),
        targets=(f"{_SINGLE}attn.norm_q",),
    ),
    Rename(
        sources=("single_blocks_{n}_k_norm", "single_blocks_{n}_norm_key_norm"),
        targets=(f"{_SINGLE}attn.norm_k",),
    ),
    *(
        Rename(
            sources=tuple(f"txt_in_individual_token_refiner_blocks_{{n}}_{name}" for name in names),
            targets=tuple(f"{_REFINER}{name}" for name in targets),
        )
        for names, targets in (
            (("self_attn_qkv",), ("attn.to_q", "attn.to_k", "attn.to_v")),
            (("self_attn_proj",), ("attn.to_out.0",)),
            (("mlp_fc1", "mlp_0"), ("ff.net.0.proj",)),
            (("mlp_fc2", "mlp_2"), ("ff.net.2",)),
            (("adaLN_modulation_1",), ("norm_out.linear",)),
            (("norm1",), ("norm1",)),
            (("norm2",), ("norm2",)),
        )
    ),
    Rename(sources=("txt_in_input_embedder",), targets=("context_embedder.proj_in",)),
    *_embedder("txt_in_t_embedder", "context_embedder.time_text_embed.timestep_embedder", mlp=True),
    *_two_linears(
        [
            ("txt_in_c_embedder_linear_1", "txt_in_c_embedder_linear_2"),
            ("txt_in_c_embedder_in_layer", "txt_in_c_embedder_out_layer"),
        ],
        "context_embedder.time_text_embed.text_embedder",
    ),
    *_embedder("time_in", "time_text_embed.timestep_embedder", mlp=True),
    *_embedder("guidance_in", "time_text_embed.guidance_embedder", mlp=True),
    *_embedder("vector_in", "time_text_embed.text_embedder", mlp=False),
    Rename(sources=("img_in_proj",), targets=("x_embedder.proj",)),
    Rename(sources=("final_layer_linear",), targets=("proj_out",)),
    Rename(sources=("final_layer_adaLN_modulation_1",), targets=("norm_out.linear",), swap_halves=True),
)


def alias_table(modules: Iterable[str]) -> Mapping[str, Alias]:
    """Flattened source name -> targets, for a model with these modules (`transformer_blocks.0.attn.to_q`, …)."""
    names = sorted(set(modules))
    present = set(names)
    table = {flattened(name): Alias(targets=(name,)) for name in names}
    blocks = {
        stack: sorted({int(found[1]) for name in names if (found := re.match(rf"{re.escape(stack)}(\d+)\.", name))})
        for stack in (
            _DOUBLE.split("{", maxsplit=1)[0],
            _SINGLE.split("{", maxsplit=1)[0],
            _REFINER.split("{", maxsplit=1)[0],
        )
    }
    for rename in RENAMES:
        stack = rename.targets[0].split("{")[0]
        for number in blocks[stack] if "{n}" in rename.targets[0] else [0]:
            targets = tuple(target.replace("{n}", str(number)) for target in rename.targets)
            if present.issuperset(targets):
                for source in rename.sources:
                    alias = Alias(targets=targets, swap_halves=rename.swap_halves)
                    table[source.replace("{n}", str(number))] = alias
    return table


def _stack(pattern: str) -> str:
    """The part of a target before its block number."""
    return pattern.split("{", maxsplit=1)[0]
