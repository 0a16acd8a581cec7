"""The alias table: one row here for each row there, written from the table of names in the design."""

import json
from collections import defaultdict

import pytest

from goan_cli.lora.aliases import RENAMES, Alias, alias_table
from goan_cli.lora.keys import flattened
from tests.helpers import GOLDEN

FULL = [
    name.removesuffix(".weight")
    for name in json.loads((GOLDEN / "full_size_keys.json").read_text())
    if name.endswith(".weight")
]
TABLE = alias_table(FULL)
BLOCKS = {"transformer_blocks": 20, "single_transformer_blocks": 40, "refiner_blocks": 2}

_DOUBLE = "transformer_blocks.{n}."
_SINGLE = "single_transformer_blocks.{n}."
_REFINER = "context_embedder.token_refiner.refiner_blocks.{n}."
_REFINER_SOURCE = "txt_in.individual_token_refiner.blocks.{n}."
_TEXT_IN = "context_embedder.time_text_embed."
_TIME = "time_text_embed."

# The spellings of a source module (HunyuanVideo's, then ComfyUI's) and its targets in the order of its rows.
ROWS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("double_blocks.{n}.img_attn_qkv", "double_blocks.{n}.img_attn.qkv"),
        (f"{_DOUBLE}attn.to_q", f"{_DOUBLE}attn.to_k", f"{_DOUBLE}attn.to_v"),
    ),
    (
        ("double_blocks.{n}.txt_attn_qkv", "double_blocks.{n}.txt_attn.qkv"),
        (f"{_DOUBLE}attn.add_q_proj", f"{_DOUBLE}attn.add_k_proj", f"{_DOUBLE}attn.add_v_proj"),
    ),
    (("double_blocks.{n}.img_attn_proj", "double_blocks.{n}.img_attn.proj"), (f"{_DOUBLE}attn.to_out.0",)),
    (("double_blocks.{n}.txt_attn_proj", "double_blocks.{n}.txt_attn.proj"), (f"{_DOUBLE}attn.to_add_out",)),
    (("double_blocks.{n}.img_mlp.fc1", "double_blocks.{n}.img_mlp.0"), (f"{_DOUBLE}ff.net.0.proj",)),
    (("double_blocks.{n}.img_mlp.fc2", "double_blocks.{n}.img_mlp.2"), (f"{_DOUBLE}ff.net.2",)),
    (("double_blocks.{n}.txt_mlp.fc1", "double_blocks.{n}.txt_mlp.0"), (f"{_DOUBLE}ff_context.net.0.proj",)),
    (("double_blocks.{n}.txt_mlp.fc2", "double_blocks.{n}.txt_mlp.2"), (f"{_DOUBLE}ff_context.net.2",)),
    (("double_blocks.{n}.img_mod.linear", "double_blocks.{n}.img_mod.lin"), (f"{_DOUBLE}norm1.linear",)),
    (("double_blocks.{n}.txt_mod.linear", "double_blocks.{n}.txt_mod.lin"), (f"{_DOUBLE}norm1_context.linear",)),
    (
        ("double_blocks.{n}.img_attn_q_norm", "double_blocks.{n}.img_attn.norm.query_norm"),
        (f"{_DOUBLE}attn.norm_q",),
    ),
    (("double_blocks.{n}.img_attn_k_norm", "double_blocks.{n}.img_attn.norm.key_norm"), (f"{_DOUBLE}attn.norm_k",)),
    (
        ("double_blocks.{n}.txt_attn_q_norm", "double_blocks.{n}.txt_attn.norm.query_norm"),
        (f"{_DOUBLE}attn.norm_added_q",),
    ),
    (
        ("double_blocks.{n}.txt_attn_k_norm", "double_blocks.{n}.txt_attn.norm.key_norm"),
        (f"{_DOUBLE}attn.norm_added_k",),
    ),
    (
        ("single_blocks.{n}.linear1",),
        (f"{_SINGLE}attn.to_q", f"{_SINGLE}attn.to_k", f"{_SINGLE}attn.to_v", f"{_SINGLE}proj_mlp"),
    ),
    (("single_blocks.{n}.linear2",), (f"{_SINGLE}proj_out",)),
    (("single_blocks.{n}.modulation.linear", "single_blocks.{n}.modulation.lin"), (f"{_SINGLE}norm.linear",)),
    (("single_blocks.{n}.q_norm", "single_blocks.{n}.norm.query_norm"), (f"{_SINGLE}attn.norm_q",)),
    (("single_blocks.{n}.k_norm", "single_blocks.{n}.norm.key_norm"), (f"{_SINGLE}attn.norm_k",)),
    (
        (f"{_REFINER_SOURCE}self_attn_qkv", f"{_REFINER_SOURCE}self_attn.qkv"),
        (f"{_REFINER}attn.to_q", f"{_REFINER}attn.to_k", f"{_REFINER}attn.to_v"),
    ),
    ((f"{_REFINER_SOURCE}self_attn_proj", f"{_REFINER_SOURCE}self_attn.proj"), (f"{_REFINER}attn.to_out.0",)),
    ((f"{_REFINER_SOURCE}mlp.fc1", f"{_REFINER_SOURCE}mlp.0"), (f"{_REFINER}ff.net.0.proj",)),
    ((f"{_REFINER_SOURCE}mlp.fc2", f"{_REFINER_SOURCE}mlp.2"), (f"{_REFINER}ff.net.2",)),
    ((f"{_REFINER_SOURCE}adaLN_modulation.1",), (f"{_REFINER}norm_out.linear",)),
    ((f"{_REFINER_SOURCE}norm1",), (f"{_REFINER}norm1",)),
    ((f"{_REFINER_SOURCE}norm2",), (f"{_REFINER}norm2",)),
    (("txt_in.input_embedder",), ("context_embedder.proj_in",)),
    (("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.in_layer"), (f"{_TEXT_IN}timestep_embedder.linear_1",)),
    (("txt_in.t_embedder.mlp.2", "txt_in.t_embedder.out_layer"), (f"{_TEXT_IN}timestep_embedder.linear_2",)),
    (("txt_in.c_embedder.linear_1", "txt_in.c_embedder.in_layer"), (f"{_TEXT_IN}text_embedder.linear_1",)),
    (("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"), (f"{_TEXT_IN}text_embedder.linear_2",)),
    (("time_in.mlp.0", "time_in.in_layer"), (f"{_TIME}timestep_embedder.linear_1",)),
    (("time_in.mlp.2", "time_in.out_layer"), (f"{_TIME}timestep_embedder.linear_2",)),
    (("guidance_in.mlp.0", "guidance_in.in_layer"), (f"{_TIME}guidance_embedder.linear_1",)),
    (("guidance_in.mlp.2", "guidance_in.out_layer"), (f"{_TIME}guidance_embedder.linear_2",)),
    (("vector_in.in_layer",), (f"{_TIME}text_embedder.linear_1",)),
    (("vector_in.out_layer",), (f"{_TIME}text_embedder.linear_2",)),
    (("img_in.proj",), ("x_embedder.proj",)),
    (("final_layer.linear",), ("proj_out",)),
    (("final_layer.adaLN_modulation.1",), ("norm_out.linear",)),
)


def _numbers(target: str) -> range:
    """The block numbers of the full-size model that a target's `{n}` runs through."""
    stack = target.partition(".{n}")[0].rpartition(".")[2]
    return range(BLOCKS.get(stack, 1))


@pytest.mark.parametrize(("sources", "targets"), ROWS, ids=[row[0][0] for row in ROWS])
def test_rows(sources: tuple[str, ...], targets: tuple[str, ...]) -> None:
    """In every block of the full-size model each spelling means its targets, in the order of its rows."""
    for number in _numbers(targets[0]):
        expected = tuple(target.replace("{n}", str(number)) for target in targets)
        assert set(expected) <= set(FULL)
        for source in sources:
            assert TABLE[flattened(source.replace("{n}", str(number)))].targets == expected


def test_every_rename_is_tested() -> None:
    """Every row of the table, and every spelling in it, has its row here."""
    here = {(flattened(source), targets) for sources, targets in ROWS for source in sources}
    there = {(flattened(source), rename.targets) for rename in RENAMES for source in rename.sources}
    assert there <= here


def test_only_the_final_modulation_is_swapped() -> None:
    """HunyuanVideo's [shift, scale] is exchanged for the final layer alone, the refiner's gates are not."""
    swapped = {source for source, alias in TABLE.items() if alias.swap_halves}
    assert swapped == {"final_layer_adaLN_modulation_1"}


def test_packed_names_mean_themselves() -> None:
    """Each of the model's own module names, dotted or flattened, means that module."""
    assert len(FULL) == 717
    assert {name: TABLE[flattened(name)] for name in FULL} == {name: Alias(targets=(name,)) for name in FULL}


def test_no_collisions() -> None:
    """No source name of the full-size model means two different things, whichever rows made it."""
    meanings: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name in FULL:
        meanings[flattened(name)].add((name,))
    for rename in RENAMES:
        for number in _numbers(rename.targets[0]):
            targets = tuple(target.replace("{n}", str(number)) for target in rename.targets)
            for source in rename.sources:
                meanings[flattened(source.replace("{n}", str(number)))].add(targets)
    assert [source for source, targets in meanings.items() if len(targets) > 1] == []
    assert {source: alias.targets for source, alias in TABLE.items()} == {
        source: next(iter(targets)) for source, targets in meanings.items()
    }


def test_absent_blocks_have_no_aliases() -> None:
    """A model with fewer blocks knows no names of the others, so that their keys are unknown."""
    small = [name for name in FULL if not name.startswith("transformer_blocks.19.")]
    table = alias_table(small)
    assert "double_blocks_18_img_attn_qkv" in table
    assert "double_blocks_19_img_attn_qkv" not in table


def test_fused_names_need_all_their_targets() -> None:
    """Where one target of a fused module is missing, the fused name means nothing rather than a part."""
    table = alias_table([name for name in FULL if name != "transformer_blocks.3.attn.to_k"])
    assert "double_blocks_3_img_attn_qkv" not in table
    assert "double_blocks_3_img_attn_proj" in table


def test_block_numbers_are_whole() -> None:
    """Block 1 and block 10 are told apart, in flattened names too."""
    assert TABLE["double_blocks_1_img_mlp_0"].targets == ("transformer_blocks.1.ff.net.0.proj",)
    assert TABLE["double_blocks_10_img_mlp_0"].targets == ("transformer_blocks.10.ff.net.0.proj",)
