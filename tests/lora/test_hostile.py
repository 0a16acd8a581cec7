"""Files that must not be used: each refused with one clear message and exit code 2, and nothing written."""

import json
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from goan_cli.cli.app import main
from tests.helpers import TINY_CONFIG

WIDTH = TINY_CONFIG.width
TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


def pair(module: str = TO_Q, rows: int = WIDTH, columns: int = WIDTH, rank: int = 2) -> dict[str, Tensor]:
    """A good pair of factors."""
    return {f"{module}.lora_down.weight": torch.ones(rank, columns), f"{module}.lora_up.weight": torch.ones(rows, rank)}


def edited(change: Callable[[dict[str, Tensor]], Any]) -> bytes:
    """A good file after `change` has spoilt its tensors."""
    tensors = pair()
    change(tensors)
    return save(tensors)


def dotted(prefix: str, names: list[str], width: int = WIDTH) -> bytes:
    """PEFT pairs for these modules."""
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.ones(2, width)
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.ones(width, 2)
    return save(tensors)


def header(entries: Any, data: bytes = b"") -> bytes:
    """A file of this header, true or not."""
    text = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return struct.pack("<Q", len(text)) + text + data


def zipped() -> bytes:
    """What torch.save writes."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    """A picture."""
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def with_metadata(**metadata: Any) -> bytes:
    """A good diffusers file with PEFT's metadata."""
    tensors = {"transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, WIDTH)}
    tensors["transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.ones(WIDTH, 2)
    return save(tensors, metadata={"lora_adapter_metadata": json.dumps(metadata)})


GOOD = save(pair())
DOWN, UP, ALPHA = f"{TO_Q}.lora_down.weight", f"{TO_Q}.lora_up.weight", f"{TO_Q}.alpha"
ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
CUTS = sorted(random.Random(7).sample(range(9, len(GOOD) - 1), 10))

# What is wrong -> the file's bytes, and words of the message.
HOSTILE: dict[str, tuple[bytes, str]] = {
    # No safetensors at all
    "empty": (b"", "the file is empty"),
    "one byte": (b"\x01", "truncated"),
    "text": (b"a LoRA, honestly\n" * 9, "plain text"),
    "json": (b'{"lora": true}' * 9, "plain text"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
    "html without doctype": (b"\n <HTML><title>Sign in</title>", "HTML page"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    "pickle 2": (pickle.dumps({"a": 1}, protocol=2), "pickle"),
    "pickle 3": (pickle.dumps({"a": 1}, protocol=3), "pickle"),
    "pickle 4": (pickle.dumps({"a": 1}, protocol=4), "pickle"),
    "pickle 5": (pickle.dumps({"a": 1}, protocol=5), "pickle"),
    "torch zip": (zipped(), "zip archive"),
    "gguf": (b"GGUF" + bytes(64), "GGUF"),
    "png": (picture("PNG"), "PNG picture"),
    "jpeg": (picture("JPEG"), "JPEG picture"),
    "zeros": (bytes(4096), "not a usable safetensors"),
    "ones": (b"\xff" * 4096, "not a usable safetensors"),
    # Damaged headers
    **{f"cut at {cut}": (GOOD[:cut], "truncated") for cut in CUTS},
    "a byte too many": (GOOD + b"\0", "not a usable safetensors"),
    "header of 2**40 bytes": (struct.pack("<Q", 1 << 40) + b"{}", "not a usable safetensors"),
    "2**40 elements": (header({"a": {**ENTRY, "shape": [1 << 20, 1 << 20]}}, bytes(16)), "header is damaged"),
    "2**120 elements": (header({"a": {**ENTRY, "shape": [1 << 60, 1 << 60]}}, bytes(16)), "header is damaged"),
    "negative offsets": (header({"a": {**ENTRY, "data_offsets": [-16, 0]}}, bytes(16)), "header is damaged"),
    "overlapping tensors": (header({"a": ENTRY, "b": ENTRY}, bytes(16)), "header is damaged"),
    "header is a list": (header([1, 2]), "header is damaged"),
    "header is no json": (header(b"{" * 64), "header is damaged"),
    "header is no text": (header(b"\xff" * 64), "header is damaged"),
    "unknown dtype": (header({"a": {**ENTRY, "dtype": "Q4"}}, bytes(16)), "header is damaged"),
    # No LoRA in it
    "no tensors": (save({}), "holds no tensors"),
    "a checkpoint": (save({"transformer_blocks.0.attn.to_q.weight": torch.ones(4, 4)}), "checkpoint of whole weights"),
    "latents": (save({"latents": torch.ones(2)}), "no LoRA keys"),
    "text encoder only": (save(pair("lora_te1_layers_0_mlp_fc1")), "nothing in it acts"),
    "strange key beside good ones": (edited(lambda t: t.update({f"{TO_Q}.mystery": torch.ones(1)})), "not understood"),
    # Half, doubled and misshapen modules
    "down alone": (edited(lambda t: t.pop(UP)), "half a module"),
    "up alone": (edited(lambda t: t.pop(DOWN)), "half a module"),
    "alpha alone": (save({ALPHA: torch.tensor(1.0)}), "half a module"),
    "mid alone": (save({f"{TO_Q}.lora_mid.weight": torch.ones(2, 2, 1)}), "half a module"),
    "half a LoHa": (save({f"{TO_Q}.{name}": torch.ones(2, 2) for name in HADA[:3]}), "half a module"),
    "half a LoKr": (save({f"{TO_Q}.{name}": torch.ones(2, 2) for name in ("lokr_w1", "lokr_w2_a")}), "half a module"),
    "DoRA scale alone": (save({f"{TO_Q}.dora_scale": torch.ones(WIDTH, 1)}), "half a module"),
    "LoRA and LoHa at once": (edited(lambda t: t.update({f"{TO_Q}.hada_w1_a": torch.ones(2, 2)})), "no place beside"),
    "LoKr whole and factored": (
        save({f"{TO_Q}.{name}": torch.ones(2, 2) for name in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2")}),
        "both whole and in factors",
    ),
    "ranks differ": (edited(lambda t: t.update({UP: torch.ones(WIDTH, 3)})), "do not multiply"),
    "rank 0": (save({DOWN: torch.ones(0, WIDTH), UP: torch.ones(WIDTH, 0)}), "without values"),
    "one axis": (edited(lambda t: t.update({DOWN: torch.ones(WIDTH)})), "do not multiply"),
    "too wide": (save(pair(columns=WIDTH + 1)), f"is {WIDTH} x {WIDTH}"),
    "too high": (save(pair(rows=WIDTH + 1)), f"is {WIDTH} x {WIDTH}"),
    "fused too low": (
        save(pair("lora_unet_double_blocks_0_img_attn_qkv", rows=2 * WIDTH)),
        f"is {3 * WIDTH} x {WIDTH}",
    ),
    "LoHa halves differ": (
        save({f"{TO_Q}.{n}": torch.ones(*s) for n, s in zip(HADA, ((4, 2), (2, 4), (8, 2), (2, 4)), strict=True)}),
        "do not multiply",
    ),
    "another kernel": (
        save({
            "x_embedder.proj.lora_A.weight": torch.ones(2, 16, 2, 2, 1),
            "x_embedder.proj.lora_B.weight": torch.ones(WIDTH, 2, 1, 1, 1),
        }),
        "x_embedder.proj",
    ),
    "bias too long": (save({f"{TO_Q}.diff_b": torch.ones(WIDTH + 1)}), "does not fit the bias"),
    "two alphas": (edited(lambda t: t.update({ALPHA: torch.ones(2)})), "alpha holds 2 values"),
    "twice by prefix": (save({**pair(), **pair(TO_Q.replace("lora_unet_", "lycoris_"))}), "mean the same tensor"),
    "twice, fused and split": (
        save({**pair(), **pair("lora_unet_double_blocks_0_img_attn_qkv", rows=3 * WIDTH)}),
        "both change",
    ),
    # Values
    "NaN": (edited(lambda t: t[UP].fill_(float("nan"))), "NaN or infinite"),
    "one infinity": (edited(lambda t: t[DOWN].view(-1)[5:6].fill_(float("inf"))), "NaN or infinite"),
    "alpha is NaN": (edited(lambda t: t.update({ALPHA: torch.tensor(float("nan"))})), "NaN or infinite"),
    "integers": (edited(lambda t: t.update({UP: torch.ones(WIDTH, 2, dtype=torch.int8)})), "not floating point"),
    # Other models
    "SDXL": (dotted("lora_unet_", ["down_blocks_1_attentions_0_proj_in"]), "Stable Diffusion"),
    "Wan": (dotted("diffusion_model.", ["blocks.0.self_attn.q"]), "Wan"),
    "Qwen-Image": (dotted("transformer.", ["transformer_blocks.0.img_mlp.net.2"]), "Qwen-Image"),
    "Chroma": (dotted("diffusion_model.", ["distilled_guidance_layer.in_proj"]), "Chroma"),
    "FLUX.2": (dotted("transformer.", ["single_transformer_blocks.0.attn.to_qkv_mlp_proj"]), "FLUX.2"),
    "xlabs": (dotted("", ["double_blocks.0.processor.qkv_lora1"]), "xlabs"),
    "LTX": (dotted("transformer.", ["transformer_blocks.0.attn2.to_q"]), "LTX"),
    "CogVideoX": (dotted("transformer.", ["transformer_blocks.0.attn1.to_q"]), "CogVideoX"),
    "Z-Image": (dotted("diffusion_model.", ["layers.0.attention.to_q"]), "Z-Image"),
    "HiDream": (dotted("diffusion_model.", ["double_stream_blocks.0.block.attn1"]), "HiDream"),
    "a deeper model": (save(pair("lora_unet_transformer_blocks_7_attn_to_q")), "none of its 2 keys"),
    "HunyuanVideo 1.5": (save(pair(rows=2048, columns=2048)), "HunyuanVideo 1.5"),
    # Kinds and metadata
    "AdaLoRA": (edited(lambda t: t.update({f"{TO_Q}.lora_E": torch.ones(2, 1)})), "AdaLoRA"),
    "GLoRA": (edited(lambda t: t.update({f"{TO_Q}.a1.weight": torch.ones(2, 1)})), "GLoRA"),
    "OFT": (save({f"{TO_Q}.oft_blocks": torch.ones(2, 2, 2)}), "OFT"),
    "(IA)3": (save({f"{TO_Q}.ia3_l": torch.ones(2)}), "(IA)3"),
    "split dimensions": (edited(lambda t: t.update({f"{TO_Q}.lora_down.0.weight": torch.ones(2, 2)})), "split dim"),
    "PiSSA": (with_metadata(lora_alpha=2, init_lora_weights="pissa"), "pissa"),
    "OLoRA": (with_metadata(init_lora_weights="olora"), "olora"),
    "metadata of FLUX": (save(pair(), metadata={"modelspec.architecture": "flux-1-dev/lora"}), "FLUX.1"),
    "metadata is a list": (save(pair(), metadata={"lora_adapter_metadata": "[1]"}), "metadata"),
    "metadata with a broken pattern": (with_metadata(lora_alpha=2, alpha_pattern={"(": 1}), "metadata"),
}  # fmt: skip


def test_there_are_enough() -> None:
    """At least sixty ways to be wrong."""
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("wrong", HOSTILE)
def test_hostile_file(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear message that says what is wrong, exit code 2, little memory, and nothing written."""
    content, words = HOSTILE[wrong]
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("start.png")
    Path("bad.safetensors").write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    asked = [
        "--image",
        "start.png",
        "--prompt",
        "p",
        "--lora",
        "bad.safetensors",
        "--device",
        "cpu",
        "--set",
        "sections=1",
    ]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "argv", ["goan", "render", *asked])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert said.startswith("error: ")
    assert "bad.safetensors" in said
    assert words in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000
