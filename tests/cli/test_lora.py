"""`goan lora`: the commands, their exit codes, and what they leave."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from goan_cli.cli.app import main
from tests.helpers import GOLDEN, TINY_SQUARE, factors, write_lora

KEY = "lora_unet_transformer_blocks_0_attn_to_q"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `goan` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["goan", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA for the tiny pack."""
    return write_lora(tmp_path / "style.safetensors", factors(KEY, TINY_SQUARE, alpha=2.0))


def test_inspect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lora: Path) -> None:
    """A file's layout, rank, alpha and modules are shown, and with a model what it changes."""
    assert run(monkeypatch, "lora", "inspect", lora, "--model", "tiny") == 0
    said = capsys.readouterr().out
    for words in ("A, musubi-tuner on FramePack", "transformer_blocks_N_attn_to_q", "1 modules of the model"):
        assert words in said


def test_inspect_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lora: Path) -> None:
    """`--json` prints one object a file."""
    files = [lora, GOLDEN / "lora" / "musubi_loha.safetensors"]
    assert run(monkeypatch, "lora", "inspect", *files, "--json") == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["layout"], first["ranks"], first["alphas"]) == ("A", [2, 2], [2.0, 2.0])
    assert second["algorithms"] == ["LoHa"]


def test_inspect_tells_all_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, lora: Path
) -> None:
    """A damaged file among good ones is an error and exit code 2; the others are shown all the same."""
    (tmp_path / "bad.safetensors").write_bytes(b"GGUF" + bytes(30))
    assert run(monkeypatch, "lora", "inspect", tmp_path / "bad.safetensors", lora) == 2
    said = capsys.readouterr()
    assert "a GGUF file" in said.err
    assert "style.safetensors" in said.out


def test_inspect_loads_no_torch(lora: Path) -> None:
    """Looking into a file does not wait for torch."""
    code = "import sys; sys.argv = ['goan', 'lora', 'inspect', sys.argv[1], '--model', 'tiny']\n"
    code += "from goan_cli.cli.app import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    code += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(lora)], check=True, capture_output=True)


def test_bake_then_inspect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, lora: Path
) -> None:
    """A baked checkpoint is written whole, and is no LoRA any more."""
    assert run(monkeypatch, "lora", "bake", "--model", "tiny", "--lora", f"{lora}:0.5", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert "1 parameters changed" in capsys.readouterr().out
    baked = tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    assert run(monkeypatch, "lora", "inspect", baked, "--model", "tiny") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["lora", "bake", "--model", "tiny", "--lora", "gone.safetensors", "--out", "out"], "no such file"),
        (
            ["lora", "bake", "--model", "tiny", "--lora", "style.safetensors:9", "--out", "out"],
            "less than or equal to 4",
        ),
        (
            ["lora", "bake", "--model", "nope", "--lora", "style.safetensors", "--out", "out"],
            "no model pack named nope",
        ),
        (["lora", "convert", "style.safetensors", "--to", "comfy", "--out", "style.safetensors"], "is the file itself"),
        (["lora", "report"], "give a sidecar, or LoRAs"),
        (["lora", "report", "style.safetensors"], "not a sidecar"),
        (["lora", "report", "gone.json"], "not a sidecar"),
    ],
)
def test_bad_input(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    lora: Path,
    arguments: list[str],
    words: str,
) -> None:
    """One error, exit code 2, and nothing written."""
    monkeypatch.chdir(tmp_path)
    before = lora.read_bytes()
    assert run(monkeypatch, *arguments) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["style.safetensors"]
    assert lora.read_bytes() == before


def test_convert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, lora: Path
) -> None:
    """A converted file is the other layout's."""
    out = tmp_path / "comfy.safetensors"
    assert run(monkeypatch, "lora", "convert", lora, "--to", "comfy", "--out", out, "--model", "tiny") == 0
    assert run(monkeypatch, "lora", "inspect", out) == 0
    assert "double_blocks_N_img_attn_qkv" in capsys.readouterr().out


def test_report_and_plot(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, lora: Path
) -> None:
    """The change is shown block by block, and drawn as a picture when asked."""
    plot = tmp_path / "chart.png"
    assert run(monkeypatch, "lora", "report", "--lora", lora, "--plot", plot) == 0
    assert "transformer_blocks.0" in capsys.readouterr().out
    with Image.open(plot) as picture:
        assert len(picture.convert("RGB").resize((64, 8)).getcolors() or ()) > 2
