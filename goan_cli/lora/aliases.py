"""Which modules of the packed transformer a name in a LoRA file means: one alias table, no converters.

HunyuanVideo's and ComfyUI's fused modules become several targets, one below the other in the rows of the
change. Widths are never written here: each target takes as many rows as the model's own weight has.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """A row of the table: source spellings (the first is HunyuanVideo's own, `{n}` the block), targets in row order."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    swap_halves: bool = False


_DOUBLE = "transformer_blocks.{n}."
_SINGLE = "single_transformer_blocks.{n}."
_REFINER = "context_embedder.token_refiner.refiner_blocks.{n}."


def _stream(source: str, attention: tuple[str, str, str], out: str, feed: str, norm: str, norms: str) -> list[Rename]:
    """The rows of one stream (img or txt) of a double block."""
    block = f"double_blocks.{{n}}.{source}"
    return [
        Rename(sources=(f"{block}_attn_qkv",), targets=tuple(f"{_DOUBLE}attn.{name}" for name in attention)),
        Rename(sources=(f"{block}_attn_proj",), targets=(f"{_DOUBLE}attn.{out}",)),
        Rename(sources=(f"{block}_mlp.fc1", f"{block}_mlp.0"), targets=(f"{_DOUBLE}{feed}.net.0.proj",)),
        Rename(sources=(f"{block}_mlp.fc2", f"{block}_mlp.2"), targets=(f"{_DOUBLE}{feed}.net.2",)),
        Rename(sources=(f"{block}_mod.linear", f"{block}_mod.lin"), targets=(f"{_DOUBLE}{norm}.linear",)),
        *(
            Rename(
                sources=(f"{block}_attn_{letter}_norm", f"{block}_attn.norm.{word}_norm"),
                targets=(f"{_DOUBLE}attn.{norms}_{letter}",),
            )
            for letter, word in (("q", "query"), ("k", "key"))
        ),
    ]


def _embedder(source: str, target: str, *, mlp: bool) -> list[Rename]:
    """An embedder of two linears, in HunyuanVideo's spelling and ComfyUI's."""
    comfy = (f"{source}.in_layer", f"{source}.out_layer")
    own = (f"{source}.mlp.0", f"{source}.mlp.2") if mlp else comfy
    return [
        Rename(sources=tuple(dict.fromkeys((own[index], comfy[index]))), targets=(f"{target}.linear_{index + 1}",))
        for index in (0, 1)
    ]


RENAMES: tuple[Rename, ...] = (
    *_stream("img", ("to_q", "to_k", "to_v"), "to_out.0", "ff", "norm1", "norm"),
    *_stream(
        "txt", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context", "norm1_context", "norm_added"
    ),
    Rename(
        sources=("single_blocks.{n}.linear1",),
        targets=tuple(f"{_SINGLE}{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    ),
    Rename(sources=("single_blocks.{n}.linear2",), targets=(f"{_SINGLE}proj_out",)),
    Rename(
        sources=("single_blocks.{n}.modulation.linear", "single_blocks.{n}.modulation.lin"),
        targets=(f"{_SINGLE}norm.linear",),
    ),
    Rename(
        sources=("single_blocks.{n}.q_norm", "single_blocks.{n}.norm.query_norm"), targets=(f"{_SINGLE}attn.norm_q",)
    ),
    Rename(sources=("single_blocks.{n}.k_norm", "single_blocks.{n}.norm.key_norm"), targets=(f"{_SINGLE}attn.norm_k",)),
    *(
        Rename(
            sources=tuple(f"txt_in.individual_token_refiner.blocks.{{n}}.{name}" for name in names),
            targets=tuple(f"{_REFINER}{name}" for name in targets),
        )
        for names, targets in (
            (("self_attn_qkv",), ("attn.to_q", "attn.to_k", "attn.to_v")),
            (("self_attn_proj",), ("attn.to_out.0",)),
            (("mlp.fc1", "mlp.0"), ("ff.net.0.proj",)),
            (("mlp.fc2", "mlp.2"), ("ff.net.2",)),
            (("adaLN_modulation.1",), ("norm_out.linear",)),
            (("norm1",), ("norm1",)),
            (("norm2",), ("norm2",)),
        )
    ),
    Rename(sources=("txt_in.input_embedder",), targets=("context_embedder.proj_in",)),
    *_embedder("txt_in.t_embedder", "context_embedder.time_text_embed.timestep_embedder", mlp=True),
    *(
        Rename(
            sources=(f"txt_in.c_embedder.linear_{number}", f"txt_in.c_embedder.{comfy}"),
            targets=(f"context_embedder.time_text_embed.text_embedder.linear_{number}",),
        )
        for number, comfy in ((1, "in_layer"), (2, "out_layer"))
    ),
    *_embedder("time_in", "time_text_embed.timestep_embedder", mlp=True),
    *_embedder("guidance_in", "time_text_embed.guidance_embedder", mlp=True),
    *_embedder("vector_in", "time_text_embed.text_embedder", mlp=False),
    Rename(sources=("img_in.proj",), targets=("x_embedder.proj",)),
    Rename(sources=("final_layer.linear",), targets=("proj_out",)),
    Rename(sources=("final_layer.adaLN_modulation.1",), targets=("norm_out.linear",), swap_halves=True),
)


def alias_table(modules: Iterable[str]) -> Mapping[str, Alias]:
    """Flattened source name -> targets, for a model with these modules (`transformer_blocks.0.attn.to_q`, …)."""
    names = sorted(set(modules))
    own = {flattened(name): Alias(targets=(name,)) for name in names}
    return {**own, **{flattened(source): alias for source, alias in _sources(names, every_spelling=True)}}


def source_table(modules: Iterable[str]) -> Mapping[str, Alias]:
    """HunyuanVideo's own dotted name -> targets, for a model with these modules; each target once."""
    return dict(_sources(sorted(set(modules)), every_spelling=False))


def _sources(names: Sequence[str], *, every_spelling: bool) -> Iterator[tuple[str, Alias]]:
    present = set(names)
    blocks = {
        stack: sorted({int(found[1]) for name in names if (found := re.match(rf"{re.escape(stack)}(\d+)\.", name))})
        for stack in map(_stack, (_DOUBLE, _SINGLE, _REFINER))
    }
    for rename in RENAMES:
        for number in blocks[_stack(rename.targets[0])] if "{n}" in rename.targets[0] else [0]:
            targets = tuple(target.replace("{n}", str(number)) for target in rename.targets)
            if not present.issuperset(targets):
                continue
            for source in rename.sources if every_spelling else rename.sources[:1]:
                yield source.replace("{n}", str(number)), Alias(targets=targets, swap_halves=rename.swap_halves)


def _stack(pattern: str) -> str:
    """The part of a target before its block number."""
    return pattern.split("{", maxsplit=1)[0]
