"""What each algorithm makes of its factors, against the formula written out here."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from goan_cli.errors import LoraRefused
from goan_cli.files import sha256_of
from goan_cli.lora.adapter import Selection, read_adapter
from goan_cli.lora.bake import LoraFile, bake
from goan_cli.lora.report import LoraSource
from goan_cli.lora.scale import METADATA_KEY
from tests.helpers import shapes_of, write_lora

OUT, IN, RANK = 6, 8, 2
TO_Q, QKV = "transformer_blocks.0.attn.to_q", "lora_unet_double_blocks_0_img_attn_qkv"
CONV = "x_embedder.proj"
KEY = "lora_unet_transformer_blocks_0_attn_to_q"
CONV_KEY = "lora_unet_x_embedder_proj"
ALPHA = 3.0


def random(*shape: int, seed: int) -> Tensor:
    """Normal values in float64, so that the formulas here are the better ones."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def base() -> dict[str, Tensor]:
    """Attention of one double block with biases, a convolution, the final modulation, and a norm."""
    names = [f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]
    tensors = {f"{name}.weight": random(OUT, IN, seed=number) for number, name in enumerate(names)}
    tensors |= {f"{name}.bias": random(OUT, seed=10 + number) for number, name in enumerate(names)}
    tensors[f"{CONV}.weight"] = random(OUT, 3, 1, 2, 2, seed=20)
    tensors["norm_out.linear.weight"] = random(2 * OUT, IN, seed=21)
    tensors["norm_out.linear.bias"] = random(2 * OUT, seed=22)
    tensors["transformer_blocks.0.attn.norm_q.weight"] = random(4, seed=23)
    return tensors


def changed(
    folder: Path, tensors: dict[str, Tensor], weight: float = 1.0, **selection: tuple[str, ...]
) -> dict[str, Tensor]:
    """The change of every parameter that a file of these tensors changes."""
    path = write_lora(folder / "lora.safetensors", {name: tensor.float() for name, tensor in tensors.items()})
    before = {name: tensor.float() for name, tensor in base().items()}
    after = {name: tensor.clone() for name, tensor in before.items()}
    adapter = read_adapter(path, shapes_of(before), selection=Selection(**selection))
    file = LoraFile(adapter=adapter, source=LoraSource(path=path, sha256=sha256_of(path), weight=weight))
    bake(after, before.__getitem__, [file])
    return {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal to float32's precision of the weights that the change was added to."""
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("weight", [1.0, 0.5, -2.0])
def test_loha(tmp_path: Path, weight: float) -> None:
    """LoHa is the product, value by value, of two low-rank matrices."""
    a, b, c, d = (random(*shape, seed=30 + n) for n, shape in enumerate([(OUT, RANK), (RANK, IN)] * 2))
    tensors = {
        f"{KEY}.hada_{name}": tensor
        for name, tensor in zip(("w1_a", "w1_b", "w2_a", "w2_b"), (a, b, c, d), strict=True)
    }
    changes = changed(tmp_path, {**tensors, f"{KEY}.alpha": torch.tensor(ALPHA)}, weight)
    assert_close(changes[f"{TO_Q}.weight"], weight * ALPHA / RANK * (a @ b) * (c @ d))


def test_loha_tucker(tmp_path: Path) -> None:
    """LoHa's Tucker form goes round a core, whose first factors are (rank, out) and (rank, in)."""
    t1, t2 = random(RANK, RANK, 1, 2, 2, seed=40), random(RANK, RANK, 1, 2, 2, seed=41)
    a, b, c, d = (random(*shape, seed=42 + n) for n, shape in enumerate([(RANK, OUT), (RANK, 3)] * 2))
    names = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    tensors = {f"{CONV_KEY}.hada_{name}": value for name, value in zip(names, (a, b, c, d, t1, t2), strict=True)}
    expected = torch.einsum("ijxyz,jr,ip->prxyz", t1, b, a) * torch.einsum("ijxyz,jr,ip->prxyz", t2, d, c)
    assert_close(changed(tmp_path, tensors)[f"{CONV}.weight"], expected)


@pytest.mark.parametrize("factored", ["none", "w1", "w2", "both"])
def test_lokr(tmp_path: Path, factored: str) -> None:
    """LoKr is a Kronecker product; alpha counts only where a factor is low-rank."""
    w1_a, w1_b, w2_a, w2_b = (
        random(2, RANK, seed=50),
        random(RANK, 4, seed=51),
        random(3, RANK, seed=52),
        random(RANK, 2, seed=53),
    )
    tensors: dict[str, Tensor] = {f"{KEY}.alpha": torch.tensor(ALPHA)}
    tensors |= (
        {f"{KEY}.lokr_w1_a": w1_a, f"{KEY}.lokr_w1_b": w1_b}
        if factored in ("w1", "both")
        else {f"{KEY}.lokr_w1": w1_a @ w1_b}
    )
    tensors |= (
        {f"{KEY}.lokr_w2_a": w2_a, f"{KEY}.lokr_w2_b": w2_b}
        if factored in ("w2", "both")
        else {f"{KEY}.lokr_w2": w2_a @ w2_b}
    )
    scale = 1.0 if factored == "none" else ALPHA / RANK
    assert_close(changed(tmp_path, tensors)[f"{TO_Q}.weight"], scale * torch.kron(w1_a @ w1_b, w2_a @ w2_b))


def test_lokr_tucker_convolution(tmp_path: Path) -> None:
    """A LoKr of a convolution keeps its kernel in the second factor, here in Tucker form."""
    w1, core = random(2, 1, seed=60), random(RANK, RANK, 1, 2, 2, seed=61)
    a, b = random(RANK, 3, seed=62), random(RANK, 3, seed=63)
    tensors = {f"{CONV_KEY}.lokr_{name}": value for name, value in {"w1": w1, "t2": core, "w2_a": a, "w2_b": b}.items()}
    inner = torch.einsum("ijxyz,jr,ip->prxyz", core, b, a).contiguous()
    assert_close(changed(tmp_path, tensors)[f"{CONV}.weight"], torch.kron(w1.reshape(2, 1, 1, 1, 1), inner))


def test_locon_mid(tmp_path: Path) -> None:
    """LoCon's middle tensor holds the kernel between two 1x1 factors."""
    up, mid, down = (
        random(OUT, RANK, 1, 1, 1, seed=70),
        random(RANK, RANK, 1, 2, 2, seed=71),
        random(RANK, 3, 1, 1, 1, seed=72),
    )
    tensors = {
        f"{CONV_KEY}.lora_up.weight": up,
        f"{CONV_KEY}.lora_mid.weight": mid,
        f"{CONV_KEY}.lora_down.weight": down,
    }
    expected = torch.einsum("mnxyz,im,nj->ijxyz", mid, up.flatten(1), down.flatten(1))
    assert_close(changed(tmp_path, tensors)[f"{CONV}.weight"], expected)


def low_rank(rows: int, seed: int = 80) -> tuple[Tensor, Tensor]:
    """up and down."""
    return random(rows, RANK, seed=seed) * 0.3, random(RANK, IN, seed=seed + 1)


@pytest.mark.parametrize("weight", [1.0, 0.25, -1.0])
@pytest.mark.parametrize("by", ["rows", "columns"])
def test_dora_of_a_fused_module(tmp_path: Path, by: str, weight: float) -> None:
    """DoRA norms the whole fused weight, by rows or by columns, and user weight moves along W' - W."""
    up, down = low_rank(3 * OUT)
    whole = torch.cat([base()[f"transformer_blocks.0.attn.to_{letter}.weight"] for letter in "qkv"])
    magnitude = random(*((3 * OUT, 1) if by == "rows" else (1, IN)), seed=83).abs() + 0.5
    tensors = {f"{QKV}.lora_up.weight": up, f"{QKV}.lora_down.weight": down, f"{QKV}.dora_scale": magnitude}
    adapted = whole + up @ down
    norm = adapted.norm(dim=1, keepdim=True) if by == "rows" else adapted.norm(dim=0, keepdim=True)
    expected = weight * (magnitude * adapted / norm - whole)
    changes = changed(tmp_path, tensors, weight)
    for number, letter in enumerate("qkv"):
        rows = expected[number * OUT : (number + 1) * OUT]
        assert_close(changes[f"transformer_blocks.0.attn.to_{letter}.weight"], rows)


def test_dora_by_columns_of_a_convolution(tmp_path: Path) -> None:
    """A column of a convolution is an input channel with its whole kernel."""
    up, down = random(OUT, RANK, 1, 1, 1, seed=90), random(RANK, 3, 1, 2, 2, seed=91)
    magnitude = random(1, 3, 1, 1, 1, seed=92).abs() + 0.5
    tensors = {
        f"{CONV_KEY}.lora_up.weight": up,
        f"{CONV_KEY}.lora_down.weight": down,
        f"{CONV_KEY}.dora_scale": magnitude,
    }
    whole = base()[f"{CONV}.weight"]
    adapted = whole + (up.flatten(1) @ down.flatten(1)).reshape(whole.shape)
    norm = adapted.pow(2).sum(dim=(0, 2, 3, 4), keepdim=True).sqrt()
    assert_close(changed(tmp_path, tensors)[f"{CONV}.weight"], magnitude * adapted / norm - whole)


@pytest.mark.parametrize("magnitudes", [1, 4, 5, 7])
def test_dora_magnitudes_that_fit_nothing(tmp_path: Path, magnitudes: int) -> None:
    """Magnitudes of neither the rows nor the columns are refused."""
    up, down = low_rank(OUT)
    tensors = {
        f"{KEY}.lora_up.weight": up,
        f"{KEY}.lora_down.weight": down,
        f"{KEY}.dora_scale": torch.ones(1, magnitudes),
    }
    with pytest.raises(LoraRefused, match="fit neither rows nor columns"):
        changed(tmp_path, tensors)


def test_swap_of_every_form(tmp_path: Path) -> None:
    """HunyuanVideo's [shift, scale] becomes [scale, shift] in weight, bias, full differences and DoRA alike."""
    key = "diffusion_model.final_layer.adaLN_modulation.1"
    diff, bias = random(2 * OUT, IN, seed=100), random(2 * OUT, seed=101)
    changes = changed(tmp_path, {f"{key}.diff": diff, f"{key}.diff_b": bias})
    assert_close(changes["norm_out.linear.weight"], torch.cat((diff[OUT:], diff[:OUT])))
    assert_close(changes["norm_out.linear.bias"], torch.cat((bias[OUT:], bias[:OUT])))

    up, down = low_rank(2 * OUT, seed=102)
    magnitude = random(2 * OUT, 1, seed=104).abs() + 0.5
    dora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.dora_scale": magnitude}
    whole = base()["norm_out.linear.weight"]
    adapted = whole + torch.cat(((up @ down)[OUT:], (up @ down)[:OUT]))
    swapped = torch.cat((magnitude[OUT:], magnitude[:OUT]))
    expected = swapped * adapted / adapted.norm(dim=1, keepdim=True) - whole
    assert_close(changed(tmp_path, dora)["norm_out.linear.weight"], expected)


def test_biases_of_a_fused_module(tmp_path: Path) -> None:
    """A fused bias difference is cut like the weight's rows; a LoRA's own bias is scaled like the LoRA."""
    up, down = low_rank(3 * OUT, seed=110)
    bias = random(3 * OUT, seed=112)
    key = "transformer.double_blocks.0.img_attn_qkv"
    tensors = {
        f"{key}.lora_B.weight": up,
        f"{key}.lora_A.weight": down,
        f"{key}.lora_B.bias": bias,
        f"{key}.alpha": torch.tensor(ALPHA),
    }
    changes = changed(tmp_path, tensors, 0.5)
    for number, letter in enumerate("qkv"):
        expected = 0.5 * ALPHA / RANK * bias[number * OUT : (number + 1) * OUT]
        assert_close(changes[f"transformer_blocks.0.attn.to_{letter}.bias"], expected)


def test_norm_difference(tmp_path: Path) -> None:
    """A norm's weight has one axis and takes a difference of one axis."""
    diff = random(4, seed=120)
    changes = changed(tmp_path, {"diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff": diff}, 0.5)
    assert_close(changes["transformer_blocks.0.attn.norm_q.weight"], 0.5 * diff)


def test_include_and_exclude_cut_fused_modules(tmp_path: Path) -> None:
    """Patterns choose among the targets of a fused module; the others keep their weights bit for bit."""
    up, down = low_rank(3 * OUT, seed=130)
    tensors = {f"{QKV}.lora_up.weight": up, f"{QKV}.lora_down.weight": down}
    everything = changed(tmp_path, tensors)
    chosen = changed(tmp_path, tensors, include=("transformer_blocks.*",), exclude=("*.to_k",))
    assert chosen.keys() == {f"{TO_Q}.weight", "transformer_blocks.0.attn.to_v.weight"}
    assert all(torch.equal(chosen[name], everything[name]) for name in chosen)
    with pytest.raises(LoraRefused, match="leave nothing"):
        changed(tmp_path, tensors, include=("single_transformer_blocks.*",))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_narrow_factors(tmp_path: Path, dtype: torch.dtype) -> None:
    """fp8 and half-precision factors are what they are, and multiplied in fp32."""
    up, down = (factor.float().to(dtype) for factor in low_rank(OUT, seed=140))
    path = write_lora(tmp_path / "narrow.safetensors", {f"{KEY}.lora_up.weight": up, f"{KEY}.lora_down.weight": down})
    before = {name: tensor.float() for name, tensor in base().items()}
    after = {name: tensor.clone() for name, tensor in before.items()}
    file = LoraFile(adapter=read_adapter(path, shapes_of(before)), source=LoraSource(path=path, sha256="x", weight=1.0))
    bake(after, before.__getitem__, [file])
    assert_close(after[f"{TO_Q}.weight"] - before[f"{TO_Q}.weight"], up.double() @ down.double())


def test_patterns_match_the_file_s_own_names(tmp_path: Path) -> None:
    """PEFT's alpha patterns name the modules that were trained, fused ones too."""
    up, down = low_rank(3 * OUT, seed=150)
    key = "transformer.double_blocks.0.img_attn_qkv"
    tensors = {f"{key}.lora_B.weight": up.float(), f"{key}.lora_A.weight": down.float()}
    metadata = {METADATA_KEY: json.dumps({"lora_alpha": RANK, "alpha_pattern": {"img_attn_qkv": 4 * RANK}})}
    path = write_lora(tmp_path / "a.safetensors", tensors, metadata)
    before = {name: tensor.float() for name, tensor in base().items()}
    after = {name: tensor.clone() for name, tensor in before.items()}
    file = LoraFile(adapter=read_adapter(path, shapes_of(before)), source=LoraSource(path=path, sha256="x", weight=1.0))
    bake(after, before.__getitem__, [file])
    assert_close(after[f"{TO_Q}.weight"] - before[f"{TO_Q}.weight"], 4 * (up @ down)[:OUT])


def test_low_rank_of_a_norm(tmp_path: Path) -> None:
    """A weight of one axis has no low-rank change."""
    key = "transformer_blocks.0.attn.norm_q"
    tensors = {f"{key}.lora_A.weight": torch.ones(2, 1), f"{key}.lora_B.weight": torch.ones(4, 2)}
    with pytest.raises(LoraRefused, match="a weight of one axis"):
        changed(tmp_path, tensors)


def test_lycoris_scale_is_said(tmp_path: Path) -> None:
    """Where LyCORIS's merge and training differ, the file's strength is not passed over in silence."""
    factors = [random(*shape, seed=160 + n).float() for n, shape in enumerate([(OUT, RANK), (RANK, IN)] * 2)]
    key = "lycoris_transformer_blocks_0_attn_to_q"
    tensors = dict(zip((f"{key}.hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b")), factors, strict=True))
    for alpha, warnings in ((RANK, 0), (RANK / 2, 1)):
        path = write_lora(tmp_path / "a.safetensors", {**tensors, f"{key}.alpha": torch.tensor(float(alpha))})
        assert len(read_adapter(path, shapes_of(base())).warnings) == warnings
