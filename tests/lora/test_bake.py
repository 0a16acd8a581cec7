"""The bake: exact sums, one rounding, no dependence on order or history, and a way back that is bit-exact."""

import json
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from goan_cli.errors import LoraRefused
from goan_cli.files import sha256_of
from goan_cli.lora.bake import LoraFile, bake, restore
from goan_cli.lora.report import BakeReport
from goan_cli.lora.scale import METADATA_KEY
from goan_cli.model.fp8 import E4M3, quantised, widened
from goan_cli.model.resident import ResidentWeights
from tests.helpers import CPU, factors, lora_file, relative_error, shapes_of, write_lora

DOUBLE = ("attn.to_q", "attn.to_k", "attn.to_v")
SINGLE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
TO_Q = "transformer_blocks.0.attn.to_q"
KEY = "lora_unet_transformer_blocks_0_attn_to_q"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Base = dict[str, Tensor]


def _base(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 0) -> Base:
    generator = torch.Generator().manual_seed(seed)
    return {f"{name}.weight": torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def _small(dtype: torch.dtype = torch.float32) -> Base:
    """A base of a few modules that fused and split files can change."""
    shapes = {f"transformer_blocks.0.{name}": (6, 5) for name in DOUBLE}
    shapes |= {f"single_transformer_blocks.0.{name}": (6, 5) for name in SINGLE[:3]}
    shapes |= {"single_transformer_blocks.0.proj_mlp": (11, 5), "proj_out": (8, 6)}
    return _base(shapes, dtype) | _base({"x_embedder.proj": (6, 3, 1, 2, 2)}, dtype, seed=1)


def _copy(base: Base) -> Base:
    return {name: tensor.clone() for name, tensor in base.items()}


class _Weights:
    """Parameters that go from recipe to recipe, as the engine takes them: restore what is stale, then bake."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.parameters = _copy(base)
        self.touched: set[str] = set()

    def take(self, loras: Sequence[LoraFile]) -> BakeReport | None:
        """Bring the parameters to a recipe."""
        wanted = {f"{target}.weight" for lora in loras for target in lora.adapter.targets}
        stale = self.touched - wanted
        restore(self.parameters, self.base.__getitem__, stale)
        self.touched -= stale
        return bake(self.parameters, self.base.__getitem__, loras, touched=self.touched) if loras else None


def _baked(base: Base, loras: Sequence[LoraFile]) -> Base:
    weights = _Weights(base)
    weights.take(loras)
    return weights.parameters


def _same(first: Base, second: Base) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four files that overlap in what they change: split, fused, another rank, a convolution."""
    folder, block, single = tmp_path_factory.mktemp("library"), "lora_unet_double_blocks_0", "lora_unet_single_blocks_0"
    return [
        write_lora(
            folder / "split.safetensors",
            factors(KEY, (6, 5), seed=1, alpha=1.5) | factors("lora_unet_proj_out", (8, 6), seed=2),
        ),
        write_lora(folder / "fused.safetensors", factors(f"{block}_img_attn_qkv", (18, 5), rank=3, seed=3, alpha=1.0)),
        write_lora(
            folder / "single.safetensors",
            factors(f"{single}_linear1", (29, 5), rank=4, seed=4) | factors(KEY, (6, 5), seed=5),
        ),
        write_lora(folder / "conv.safetensors", factors("lora_unet_x_embedder_proj", (6, 3, 1, 2, 2), seed=6)),
    ]


# What a change is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "metadata", "scale"),
    [
        pytest.param(None, None, 1.0, id="neither: alpha is the rank"),
        pytest.param(3.0, None, 0.75, id="alpha tensor"),
        pytest.param(None, {"lora_alpha": 2}, 0.5, id="metadata"),
        pytest.param(None, {"lora_alpha": 2, "use_rslora": True}, 1.0, id="metadata with rslora"),
        pytest.param(None, {"lora_alpha": 2, "alpha_pattern": {"to_q": 8}}, 2.0, id="pattern"),
        pytest.param(3.0, {"lora_alpha": 2}, 0.75, id="the tensor goes before the metadata"),
    ],
)
@pytest.mark.parametrize("weight", [1.0, 0.8, -2.0])
def test_scale(
    tmp_path: Path, alpha: float | None, metadata: dict[str, object] | None, scale: float, weight: float
) -> None:
    """The change is weight x alpha / rank x up @ down, alpha from the tensor, else the metadata, else the rank."""
    base, tensors = _small(), factors(KEY, (6, 5), rank=4, alpha=alpha)
    path = write_lora(
        tmp_path / "lora.safetensors", tensors, {METADATA_KEY: json.dumps(metadata)} if metadata else None
    )
    after = _baked(base, [lora_file(path, shapes_of(base), weight)])
    change = weight * scale * tensors[f"{KEY}.lora_up.weight"].double() @ tensors[f"{KEY}.lora_down.weight"].double()
    name = f"{TO_Q}.weight"
    assert relative_error(after[name], base[name].double() + change) < 1e-6
    assert _same({**after, name: base[name]}, base)


def test_convolution(tmp_path: Path) -> None:
    """The change of a convolution is the product of the flattened factors in the kernel's shape."""
    base, tensors = _small(), factors("x", (6, 3, 1, 2, 2), rank=3)
    path = write_lora(
        tmp_path / "lora.safetensors",
        {key.replace("x.", "lora_unet_x_embedder_proj.", 1): tensor for key, tensor in tensors.items()},
    )
    after = _baked(base, [lora_file(path, shapes_of(base))])
    change = torch.einsum("or,rithw->oithw", tensors["x.lora_up.weight"], tensors["x.lora_down.weight"])
    torch.testing.assert_close(
        after["x_embedder.proj.weight"], base["x_embedder.proj.weight"] + change, rtol=1e-6, atol=1e-6
    )


def test_final_modulation_is_swapped(tmp_path: Path) -> None:
    """The change of HunyuanVideo's final modulation goes in with its halves exchanged, from `up` alone."""
    base = _base({"norm_out.linear": (8, 4)})
    tensors = factors("final_layer.adaLN_modulation.1", (8, 4), rank=2)
    path = write_lora(tmp_path / "lora.safetensors", tensors)
    up, down = (tensors[f"final_layer.adaLN_modulation.1.lora_{which}.weight"] for which in ("up", "down"))
    change = up @ down
    after = _baked(base, [lora_file(path, shapes_of(base))])
    expected = base["norm_out.linear.weight"] + torch.cat((change[4:], change[:4]))
    torch.testing.assert_close(after["norm_out.linear.weight"], expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    heights=st.lists(st.integers(1, 12), min_size=4, max_size=4),
    inputs=st.integers(1, 12),
    rank=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    alpha=st.one_of(st.none(), st.floats(0.25, 8)),
    single=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_split_equals_fused(
    tmp_path_factory: pytest.TempPathFactory,
    heights: list[int],
    inputs: int,
    rank: int,
    dtype: torch.dtype,
    alpha: float | None,
    single: bool,
    seed: int,
) -> None:
    """A fused q/k/v (and MLP) file changes the weights as the file split by rows does, for any widths and dtype."""
    source = "lora_unet_single_blocks_0_linear1" if single else "lora_unet_double_blocks_0_img_attn_qkv"
    stack = "single_transformer_blocks" if single else "transformer_blocks"
    targets = [f"{stack}.0.{name}" for name in (SINGLE if single else DOUBLE)]
    base = _base({target: (height, inputs) for target, height in zip(targets, heights, strict=False)}, seed=seed)
    fused = factors(source, (sum(heights[: len(targets)]), inputs), rank=rank, seed=seed, alpha=alpha)
    fused = {key: tensor if key.endswith("alpha") else tensor.to(dtype) for key, tensor in fused.items()}
    ups = fused[f"{source}.lora_up.weight"].split(heights[: len(targets)])
    split: dict[str, Tensor] = {}
    for target, up in zip(targets, ups, strict=True):
        module = f"transformer.{target}"
        split |= {f"{module}.lora_A.weight": fused[f"{source}.lora_down.weight"].clone(), f"{module}.lora_B.weight": up}
        if alpha is not None:
            split[f"{module}.alpha"] = torch.tensor(alpha)
    folder = tmp_path_factory.mktemp("split")
    shapes = shapes_of(base)
    whole, parts = (
        _baked(base, [lora_file(write_lora(folder / f"{name}.safetensors", tensors), shapes)])
        for name, tensors in (("fused", fused), ("split", split))
    )
    scale = 1.0 if alpha is None else alpha / rank
    for name, up in zip((f"{target}.weight" for target in targets), ups, strict=True):
        change = scale * up.double() @ fused[f"{source}.lora_down.weight"].double()
        # Products of up to 6 terms in fp32: a few units in the last place of the largest value.
        tolerance = 1e-6 * float(base[name].abs().max() + change.abs().max())
        assert float((whole[name] - parts[name]).abs().max()) <= tolerance
        assert float((whole[name] - (base[name].double() + change)).abs().max()) <= tolerance


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64]
)
def test_factors_are_multiplied_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """Factors of any float dtype are widened before they are multiplied."""
    base = _small()
    tensors = {key: tensor.to(dtype) for key, tensor in factors(KEY, (6, 5), rank=4).items()}
    path = write_lora(tmp_path / "lora.safetensors", tensors)
    after = _baked(base, [lora_file(path, shapes_of(base))])[f"{TO_Q}.weight"]
    change = tensors[f"{KEY}.lora_up.weight"].double() @ tensors[f"{KEY}.lora_down.weight"].double()
    assert relative_error(after, base[f"{TO_Q}.weight"].double() + change) < 1e-6


@pytest.mark.parametrize(
    "alpha",
    [
        torch.tensor(3.0),
        torch.tensor([3.0]),
        torch.tensor(3.0, dtype=torch.bfloat16),
        torch.tensor(3.0, dtype=torch.float16),
        torch.tensor(3),
    ],
    ids=["0-dim", "one value", "bf16", "fp16", "integer"],
)
def test_spellings_of_alpha(tmp_path: Path, alpha: Tensor) -> None:
    """An alpha may have no axis or one, in any dtype."""
    base = _small()
    path = write_lora(tmp_path / "lora.safetensors", {**factors(KEY, (6, 5), rank=2), f"{KEY}.alpha": alpha})
    plain = write_lora(tmp_path / "plain.safetensors", factors(KEY, (6, 5), rank=2))
    shapes = shapes_of(base)
    assert _same(_baked(base, [lora_file(path, shapes)]), _baked(base, [lora_file(plain, shapes, weight=1.5)]))


# One rounding ---------------------------------------------------------------------------------------------


def test_one_rounding_in_bfloat16(tmp_path: Path) -> None:
    """Several changes are summed in fp32 and rounded to bf16 once; rounding after each would lose them."""
    base = {f"{TO_Q}.weight": torch.full((16, 16), 1.0, dtype=torch.bfloat16)}
    # 1 + 2^-9 rounds back to 1 in bf16, which has 7 bits behind the point; 1 + 3 x 2^-9 rounds to 1 + 2^-7.
    loras, shapes = [], shapes_of(base)
    for number in range(3):
        up, down = torch.zeros(16, 1), torch.full((1, 16), 2.0**-9)
        up[number:] = 1.0
        tensors = {f"{KEY}.lora_up.weight": up, f"{KEY}.lora_down.weight": down}
        loras.append(lora_file(write_lora(tmp_path / f"{number}.safetensors", tensors), shapes))
    after = _baked(base, loras)[f"{TO_Q}.weight"]
    sums = torch.tensor([1.0, 2.0, *[3.0] * 14]) * 2.0**-9
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, (1.0 + sums).bfloat16()[:, None].expand(16, 16))
    # The same changes one after another, rounded each time, would all be lost.
    assert bool((torch.tensor(1.0).bfloat16() + torch.tensor(2.0**-9).bfloat16() == 1.0).all())
    assert bool((after[2:] > 1.0).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), dtype=st.sampled_from((torch.bfloat16, torch.float16)), files=st.integers(1, 3))
def test_half_precision_is_the_rounded_float32_bake(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dtype: torch.dtype, files: int
) -> None:
    """A bake into half precision is, bit for bit, the fp32 bake of the same base cast once."""
    folder, base = tmp_path_factory.mktemp("rounding"), _base({TO_Q: (9, 7)}, dtype, seed)
    wide, shapes = {name: tensor.float() for name, tensor in base.items()}, shapes_of(base)
    loras = [
        lora_file(
            write_lora(folder / f"{n}.safetensors", factors(KEY, (9, 7), rank=3, seed=seed + n, size=0.01)), shapes, 0.7
        )
        for n in range(files)
    ]
    half, exact = _baked(base, loras), _baked(wide, loras)
    assert _same(half, {name: tensor.to(dtype) for name, tensor in exact.items()})


# Order and history ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_of_files(library: list[Path], dtype: torch.dtype) -> None:
    """The files of a recipe give bit-identical weights in every order."""
    base = _small(dtype)
    weights = (1.0, 0.3, -0.7, 1.9)
    loras = [lora_file(path, shapes_of(base), weight) for path, weight in zip(library, weights, strict=True)]
    first = _baked(base, loras)
    assert not _same(first, base)
    assert all(_same(_baked(base, order), first) for order in permutations(loras))


@settings(max_examples=15, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 2**16), min_size=2, max_size=5, unique=True), data=st.data(), rank=st.integers(1, 4)
)
def test_any_order_of_any_files(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[int], data: st.DataObject, rank: int
) -> None:
    """Random files that all change one weight give the same bits in a random order."""
    folder, base = tmp_path_factory.mktemp("order"), _base({TO_Q: (5, 4)})
    loras = [
        lora_file(
            write_lora(folder / f"{seed}.safetensors", factors(KEY, (5, 4), rank=rank, seed=seed, size=10.0)),
            shapes_of(base),
        )
        for seed in seeds
    ]
    assert _same(_baked(base, data.draw(st.permutations(loras))), _baked(base, loras))


@settings(max_examples=25, deadline=None)
@given(history=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=6), dtype=st.sampled_from(DTYPES))
def test_history_leaves_no_trace(library: list[Path], history: list[set[int]], dtype: torch.dtype) -> None:
    """After any course of recipes, the weights are bit for bit those of the last one baked alone."""
    base = _small(dtype)
    loras = [lora_file(path, shapes_of(base), 0.5 + number) for number, path in enumerate(library)]
    weights = _Weights(base)
    for chosen in history:
        weights.take([loras[number] for number in sorted(chosen)])
    assert _same(weights.parameters, _baked(base, [loras[number] for number in sorted(history[-1])]))
    assert weights.touched == {name for name in base if not torch.equal(weights.parameters[name], base[name])}


@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back(library: list[Path], dtype: torch.dtype) -> None:
    """Recipe A, then B, then A again gives A's bits; then nothing gives the base's."""
    base = _small(dtype)
    loras = [lora_file(path, shapes_of(base)) for path in library]
    weights = _Weights(base)
    seen = []
    for recipe in (loras[:2], loras[1:3], loras[:2], []):
        weights.take(recipe)
        seen.append(_copy(weights.parameters))
    assert _same(seen[0], seen[2])
    assert not _same(seen[0], seen[1])
    assert _same(seen[3], base)


def test_restore_writes_only_what_is_named() -> None:
    """Restoring writes the named weights back bit for bit, in place, and leaves the others."""
    base = _small(torch.bfloat16)
    parameters = {name: torch.full_like(tensor, 3.0) for name, tensor in base.items()}
    addresses = {name: tensor.data_ptr() for name, tensor in parameters.items()}
    restore(parameters, base.__getitem__, {"proj_out.weight", f"{TO_Q}.weight"})
    for name, tensor in parameters.items():
        expected = base[name] if name in ("proj_out.weight", f"{TO_Q}.weight") else torch.full_like(base[name], 3.0)
        assert torch.equal(tensor, expected)
        assert tensor.data_ptr() == addresses[name]


def test_written_in_place(library: list[Path]) -> None:
    """A bake writes into the parameters' own memory and never into what the reader returns."""
    base = _small()
    kept, weights = _copy(base), _Weights(base)
    addresses = {name: tensor.data_ptr() for name, tensor in weights.parameters.items()}
    weights.take([lora_file(path, shapes_of(base)) for path in library])
    assert {name: tensor.data_ptr() for name, tensor in weights.parameters.items()} == addresses
    assert _same(base, kept)


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_values_that_are_not_finite(tmp_path: Path, which: str, value: float) -> None:
    """NaN or infinity in a factor or an alpha is refused with the file and the key."""
    base, tensors = _small(), factors(KEY, (6, 5), alpha=1.0)
    key = f"{KEY}.{which}"
    tensors[key].view(-1)[-1] = value
    path = write_lora(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(LoraRefused) as caught:
        _baked(base, [lora_file(path, shapes_of(base))])
    assert caught.value.message.startswith(f"{path}: {key}")


@pytest.mark.parametrize("alpha", ["NaN", "Infinity"])
def test_metadata_alpha_that_is_not_finite(tmp_path: Path, alpha: str) -> None:
    """An alpha of NaN or infinity in the metadata is refused too."""
    base = _small()
    metadata = {METADATA_KEY: f'{{"lora_alpha": {alpha}}}'}
    with pytest.raises(LoraRefused, match="finite"):
        _baked(
            base,
            [lora_file(write_lora(tmp_path / "x.safetensors", factors(KEY, (6, 5)), metadata), shapes_of(base))],
        )


def test_merged_weight_that_overflows(tmp_path: Path) -> None:
    """A change that is finite in fp32 but overflows the weights' dtype is refused with the parameter."""
    base = _small(torch.float16)
    path = write_lora(tmp_path / "lora.safetensors", factors(KEY, (6, 5), size=1e6))
    with pytest.raises(LoraRefused, match=rf"the merged {TO_Q}\.weight is not finite in float16"):
        _baked(base, [lora_file(path, shapes_of(base))])


def _zero_up(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(tensor) if "up" in key else tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "weight"),
    [
        pytest.param(_zero_up, 1.0, id="up is zero, as before training"),
        pytest.param(lambda tensors: {**tensors, f"{KEY}.alpha": torch.tensor(0.0)}, 1.0, id="alpha is zero"),
        pytest.param(lambda tensors: tensors, 0.0, id="weight is zero"),
        pytest.param(lambda tensors: tensors, 1e-12, id="the change rounds to nothing"),
    ],
)
def test_a_lora_that_changes_nothing(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], weight: float
) -> None:
    """A LoRA that moves no weight at all is refused by its file name, and not rendered as if it acted."""
    base = {f"{TO_Q}.weight": torch.ones(6, 5)}
    path = write_lora(tmp_path / "idle.safetensors", change(factors(KEY, (6, 5))))
    with pytest.raises(LoraRefused, match=r"^idle\.safetensors: changes no weight at all"):
        _baked(base, [lora_file(path, shapes_of(base), weight)])


def test_a_lora_that_changes_nothing_beside_one_that_does(tmp_path: Path) -> None:
    """A file that adds nothing is refused also beside a file that acts: no LoRA is silently without effect."""
    base = _small()
    idle = write_lora(tmp_path / "idle.safetensors", _zero_up(factors("lora_unet_proj_out", (8, 6))))
    busy = write_lora(tmp_path / "busy.safetensors", factors(KEY, (6, 5)))
    with pytest.raises(LoraRefused, match=r"idle\.safetensors"):
        _baked(base, [lora_file(path, shapes_of(base)) for path in (idle, busy)])


def test_a_failed_bake_can_be_undone(tmp_path: Path) -> None:
    """What a bake wrote before it failed is in `touched`, so that restoring it gives the base's bits."""
    base = _small(torch.bfloat16)
    tensors = factors("lora_unet_proj_out", (8, 6)) | factors(KEY, (6, 5))
    tensors[f"{KEY}.lora_up.weight"][0, 0] = math.nan  # `proj_out` sorts before `transformer_blocks`
    path = write_lora(tmp_path / "lora.safetensors", tensors)
    weights = _Weights(base)
    with pytest.raises(LoraRefused):
        weights.take([lora_file(path, shapes_of(base))])
    assert not _same(weights.parameters, base)
    restore(weights.parameters, base.__getitem__, weights.touched)
    assert _same(weights.parameters, base)


# The report -----------------------------------------------------------------------------------------------


def test_report(tmp_path: Path) -> None:
    """The report names the files, every changed parameter, and how much of the change survived rounding."""
    base = {f"{TO_Q}.weight": torch.ones(4, 4, dtype=torch.bfloat16), "proj_out.weight": torch.full((4, 4), 2.0)}
    base["proj_out.weight"] = base["proj_out.weight"].bfloat16()
    up = torch.tensor([[0.25], [0.25], [2.0**-12], [0.0]])
    tensors = {
        f"{KEY}.lora_up.weight": up,
        f"{KEY}.lora_down.weight": torch.ones(1, 4),
        f"{KEY}.alpha": torch.tensor(1.0),
        **factors("lora_unet_proj_out", (4, 4), rank=3),
        "lora_te_x.alpha": torch.tensor(1.0),
    }
    path = write_lora(tmp_path / "lora.safetensors", tensors)
    weights = _Weights(base)
    report = weights.take([lora_file(path, shapes_of(base), 2.0)])
    assert report is not None
    (file,) = report.files
    assert (file.path, file.sha256, file.weight) == (path, sha256_of(path), 2.0)
    assert (file.keys, file.matched_keys, file.modules, file.ranks) == (6, 5, 2, (1, 3))
    assert list(file.skipped.values()) == [1]
    assert [parameter.name for parameter in report.parameters] == ["proj_out.weight", f"{TO_Q}.weight"]
    to_q = report.parameters[1]
    # Two rows of 4 move by 0.5, one by too little for bf16, one not at all.
    assert to_q.moved == 0.5
    assert to_q.relative_change == pytest.approx(math.sqrt(8 * 0.5**2 + 4 * 2.0**-22) / 4, rel=1e-5)
    moved = sum(int((weights.parameters[name] != base[name]).sum()) for name in base)
    assert report.moved == moved / 32
    change = (weights.parameters["proj_out.weight"].double() - 2).square().sum() + 2
    assert report.relative_change == pytest.approx(math.sqrt(float(change) / (16 + 64)), rel=0.02)
    assert report.dtype == "bfloat16"
    assert report.seconds >= 0


def test_report_counts_a_fused_module_once_per_target(library: list[Path]) -> None:
    """A fused module of one pair of factors counts as the modules that it changes."""
    base = _small()
    report = _Weights(base).take([lora_file(library[1], shapes_of(base))])
    assert report is not None
    assert report.files[0].modules == len(report.parameters) == 3


# Weights in fp8 -------------------------------------------------------------------------------------------


class _Fp8Weights:
    """As `_Weights`, the weights of the blocks' linears in fp8; `state` is what is resident."""

    def __init__(self, base: Base, dtype: torch.dtype = torch.bfloat16) -> None:
        self.base = base
        self.state: dict[str, Tensor] = {}
        for name, tensor in base.items():
            if "transformer_blocks." in name:
                self.state[name], self.state[name.replace("weight", "scale")] = quantised(tensor.to(dtype))
            else:
                self.state[name] = tensor.to(dtype, copy=True)
        self.parameters = ResidentWeights(self.state, dtype=dtype, device=CPU)
        self.touched: set[str] = set()

    def take(self, loras: Sequence[LoraFile]) -> BakeReport | None:
        """Bring the parameters to a recipe."""
        stale = self.touched - {f"{target}.weight" for lora in loras for target in lora.adapter.targets}
        self.restore(stale)
        if not loras:
            return None
        store = self.parameters.store
        return bake(self.parameters, self.base.__getitem__, loras, touched=self.touched, store=store)

    def restore(self, names: set[str]) -> None:
        """Bring these back to the base."""
        restore(self.parameters, self.base.__getitem__, names, store=self.parameters.store)
        self.touched -= names

    def bits(self) -> Base:
        """What is resident, codes as integers."""
        return {
            name: tensor.view(torch.uint8).clone() if tensor.dtype == E4M3 else tensor.clone()
            for name, tensor in self.state.items()
        }

    def values(self, name: str) -> Tensor:
        """What a weight's codes stand for."""
        return widened(self.state[name], self.state[name.replace("weight", "scale")], torch.float32)


def _fp8_bits(wide: Base) -> Base:
    """The bits that wide weights have in fp8, each quantised afresh."""
    return _Fp8Weights(wide, next(iter(wide.values())).dtype).bits()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpoint", [torch.float32, torch.bfloat16])
def test_fp8_is_the_quantised_bake(library: list[Path], dtype: torch.dtype, checkpoint: torch.dtype) -> None:
    """A bake into fp8 is, bit for bit and in place, the bake into the wide dtype quantised afterwards, once."""
    base = _small(checkpoint)
    loras = [lora_file(path, shapes_of(base)) for path in library]
    weights = _Fp8Weights(base, dtype)
    addresses = {name: tensor.data_ptr() for name, tensor in weights.state.items()}
    fresh = weights.bits()
    report = weights.take(loras)
    wide = _Weights({name: tensor.to(dtype) for name, tensor in base.items()})
    wide.base = base
    plain = wide.take(loras)
    assert _same(weights.bits(), _fp8_bits(wide.parameters))
    assert not _same(weights.bits(), fresh)
    assert report is not None
    assert plain is not None
    # The report is of the wide values, whatever they are quantised to.
    assert (report.dtype, report.moved, report.parameters) == (plain.dtype, plain.moved, plain.parameters)
    weights.take([])
    assert _same(weights.bits(), fresh)
    assert _same(fresh, _fp8_bits({name: tensor.to(dtype) for name, tensor in base.items()}))
    assert {name: tensor.data_ptr() for name, tensor in weights.state.items()} == addresses


@settings(max_examples=10, deadline=None)
@given(history=st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=6))
def test_history_leaves_no_trace_in_fp8(library: list[Path], history: list[set[int]]) -> None:
    """After any course of recipes, codes and scales are those of the last one baked alone."""
    base = _small(torch.bfloat16)
    loras = [lora_file(path, shapes_of(base), 0.5 + number) for number, path in enumerate(library)]
    weights, alone = _Fp8Weights(base), _Fp8Weights(base)
    for chosen in history:
        weights.take([loras[number] for number in sorted(chosen)])
    alone.take([loras[number] for number in sorted(history[-1])])
    assert _same(weights.bits(), alone.bits())


def test_a_failed_bake_into_fp8_can_be_undone(tmp_path: Path) -> None:
    """What a bake into fp8 wrote before it failed is in `touched`, and restoring it gives the base's codes."""
    base = _small(torch.bfloat16)
    fused = factors("lora_unet_double_blocks_0_img_attn_qkv", (18, 5))
    bad = factors("lora_unet_single_blocks_0_linear1", (29, 5))
    bad["lora_unet_single_blocks_0_linear1.lora_up.weight"][0, 0] = math.nan
    files = [write_lora(tmp_path / "lora.safetensors", fused), write_lora(tmp_path / "bad.safetensors", bad)]
    weights = _Fp8Weights(base)
    fresh = weights.bits()
    with pytest.raises(LoraRefused):
        weights.take([lora_file(path, shapes_of(base)) for path in files])
    assert weights.touched
    weights.restore(set(weights.touched))
    assert _same(weights.bits(), fresh)


class _CountedParameters(ResidentWeights):
    """Counts how many of the tensors that it made are alive at once."""

    made: list[weakref.ref[Tensor]]
    most = 0

    def __getitem__(self, name: str) -> Tensor:
        self.made = [each for each in getattr(self, "made", []) if each() is not None]
        tensor = super().__getitem__(name)
        self.made.append(weakref.ref(tensor))
        self.most = max(self.most, len(self.made))
        return tensor


def test_one_scratch_tensor_at_a_time(library: list[Path]) -> None:
    """A wide copy of a weight is let go before the next is made, baking and restoring."""
    base = {name: tensor for name, tensor in _small().items() if "transformer_blocks." in name}
    weights = _Fp8Weights(base)
    weights.parameters = counted = _CountedParameters(weights.state, dtype=torch.bfloat16, device=CPU)
    weights.take([lora_file(path, shapes_of(base)) for path in library[1:3]])
    assert len(weights.touched) > 3
    assert counted.most == 1
    weights.take([])
    assert counted.most == 1


@pytest.mark.parametrize("shape", [(1024, 1024), (2048, 1024), (1024, 4096), (3072, 3072)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fp8_keeps_a_lora(tmp_path: Path, shape: tuple[int, int], seed: int) -> None:
    """Of a change of 1 % of a weight, at least 99 % is in the fp8 weights when it is baked before they are quantised.

    Added to weights that are in fp8 already, it mostly rounds away: what is less than half a step leaves no trace.
    """
    name, rank = f"{TO_Q}.weight", 16
    base = {name: (_base({TO_Q: shape}, seed=seed)[name] * 0.02).bfloat16()}
    tensors = factors(KEY, shape, rank=rank, seed=seed + 100, size=0.01 * 0.02 / rank**0.5)
    change = tensors[f"{KEY}.lora_up.weight"].double() @ tensors[f"{KEY}.lora_down.weight"].double()
    assert 0.008 < change.norm() / base[name].double().norm() < 0.012

    def kept(after: Tensor) -> float:
        return float(((after.double() - before.double()) * change).sum() / change.square().sum())

    weights = _Fp8Weights(base)
    before, scale = weights.values(name), weights.state[f"{TO_Q}.scale"].clone()
    weights.take([lora_file(write_lora(tmp_path / "lora.safetensors", tensors), shapes_of(base))])
    assert 0.99 <= kept(weights.values(name)) <= 1.01
    merged = ((before + change.float()) / scale).clamp(-448, 448).to(E4M3)
    assert kept(widened(merged, scale, torch.float32)) < 0.4
