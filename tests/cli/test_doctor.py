"""`goan doctor`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from goan_cli.cli import machine
from goan_cli.cli.machine import Disk, MainMemory
from goan_cli.packs.manifest import own_folder
from tests.cli.conftest import Goan
from tests.cli.test_machine import GB, put_in_cards


@pytest.fixture(autouse=True)
def without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "nvidia_driver", lambda: None)


def as_json(goan: Goan, *, code: int = 0) -> dict[str, Any]:
    """What `--json` prints, of a run with this exit code that says nothing else."""
    run = goan("doctor", "--json")
    assert (run.code, run.err) == (code, "")
    found: dict[str, Any] = json.loads(run.out)
    return found


def test_doctor(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can render is told so: device, precision, packs, ffmpeg, memory."""
    run = goan("doctor")
    assert (run.code, run.err) == (0, "")
    labels = {line.split()[0] for line in run.out.splitlines() if line.strip()}
    assert {"goan", "python", "torch", "cpu", "memory", "disk", "gpu", "pack", "ffmpeg"} <= labels
    assert "cpu in float32" in run.out
    assert "tiny (inverted), complete" in run.out
    assert "everything in main memory" in run.out
    assert "goan models pull framepack-i2v downloads 42.4 GB" in run.out
    assert "only the packs for tests can render here now: tiny, tiny-f1" in run.out


def test_doctor_without_ffmpeg(goan: Goan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an ffmpeg that runs, the machine cannot render: exit code 3, and the reason."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "gone"))
    run = goan("doctor")
    assert run.code == 3
    assert "cannot render" in run.out
    found = as_json(goan, code=3)
    assert (found["can_render"], found["problems"]) == (False, ["no ffmpeg, see above"])
    assert str(tmp_path / "gone") in found["ffmpeg"]["problem"]


def test_json(goan: Goan) -> None:
    """`--json` is one object with everything that the text tells."""
    found = as_json(goan)
    assert (found["version"], found["can_render"], found["problems"]) == (1, True, [])
    assert found["versions"]["torch"] == torch.__version__
    assert [disk["what"] for disk in found["disk"]] == ["here", "hub cache", "goan cache"]
    assert found["gpu"] == {"driver": None, "devices": [], "problem": "none that CUDA can see"}
    assert found["renders"] == {"device": "cpu", "transformer": "float32", "encoders": "float32"}
    assert found["attention"]["auto"] == "sdpa"
    packs = {pack["model"]: pack for pack in found["packs"]}
    assert list(packs) == ["tiny", "tiny-f1", "framepack-i2v", "framepack-f1"]
    assert packs["tiny"]["can_render"]
    assert packs["tiny"]["outlook"]["main_bytes"] > 0
    assert packs["framepack-f1"]["command"] == "goan models pull framepack-f1"


def test_a_card(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card is told with its memory, capability and driver, and what a render uses on it."""
    put_in_cards(monkeypatch)
    run = goan("doctor")
    assert (run.code, run.err) == (0, "")
    lines = [" ".join(line.split()) for line in run.out.splitlines()]
    assert "cuda:0 NVIDIA GeForce RTX 4090, 23.0 of 24.0 GB free, capability 8.9, driver 580.65.06" in lines
    assert "renders on cuda:0 in bfloat16, encoders and VAE in float16" in lines
    assert "parts one at a time on the device" in lines
    assert any(line.startswith("attention sdpa, cudnn") for line in lines)
    assert any(line.startswith("all 6 blocks resident") for line in lines)
    found = as_json(goan)
    assert found["gpu"]["driver"] == "580.65.06"
    assert found["gpu"]["devices"][0]["free"] == 23 * GB
    assert found["packs"][0]["outlook"]["device_bytes"] > 0


@pytest.mark.parametrize(
    ("total", "capability", "renders", "parts"),
    [
        (80 * GB, (9, 0), "cuda:0 in bfloat16", "together on the device"),
        (8 * GB, (7, 5), "cuda:0 in float16", "one at a time on the device, the text encoder layer by layer"),
        (12 * GB, (6, 1), "cuda:0 in float32", "one at a time on the device, the text encoder layer by layer"),
    ],
)
def test_cards_of_all_kinds(
    goan: Goan,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    capability: tuple[int, int],
    renders: str,
    parts: str,
) -> None:
    """Precision and where the parts are follow from the card."""
    put_in_cards(monkeypatch, free=total, total=total, capability=capability)
    run = goan("doctor")
    assert run.code == 0
    lines = [" ".join(line.split()) for line in run.out.splitlines()]
    assert f"parts {parts}" in lines
    assert any(line.startswith(f"renders on {renders}, ") for line in lines)


def test_a_card_that_fails(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first card on which nothing runs is what a render would fail on: exit code 3, and what to do."""
    put_in_cards(monkeypatch, count=2, broken=[0])
    run = goan("doctor")
    assert run.code == 3
    assert "cannot be used: CUDA error: no kernel image is available for execution" in run.out
    assert "cannot render: cuda:0 fails" in run.out
    assert as_json(goan, code=3)["can_render"] is False


def test_a_card_that_is_full(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no complete pack fits into what is free, nothing can render, and each pack says why."""
    put_in_cards(monkeypatch, free=GB // 10)
    run = goan("doctor")
    assert run.code == 3
    assert run.out.count("does not fit: ") == 2
    assert "this machine cannot render: no pack is complete and fits, see above" in run.out


def test_little_main_memory(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU main memory decides."""
    monkeypatch.setattr(machine, "main_memory", lambda: MainMemory(total=GB, free=1000))
    run = goan("doctor")
    assert run.code == 3
    assert "does not fit: needs 0.0092 GB of main memory, 1e-06 GB are free" in run.out


def test_unknown_memory(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that does not tell its memory is no reason to fail."""
    monkeypatch.setattr(machine, "main_memory", lambda: None)
    run = goan("doctor")
    assert run.code == 0
    assert ["memory", "unknown"] in [line.split() for line in run.out.splitlines()]


def test_little_disk(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that the disk has no room for is told before it is begun."""
    monkeypatch.setattr(machine, "disks", lambda: [Disk(what="hub cache", folder="/hub", free=20 * GB)])
    run = goan("doctor")
    assert run.code == 0
    assert "disk        20 GB free in the hub cache /hub" in run.out
    assert "pull framepack-i2v downloads 42.4 GB, and only 20.0 GB are free there" in run.out


def test_wrong_settings(goan: Goan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wrong file of settings, on which every render would fail, is told once, with its line."""
    monkeypatch.setenv("GOAN_CONFIG", str(tmp_path))
    (tmp_path / "config.yaml").write_text("pull: true\nmodels: 3\npuls: 1\n")
    run = goan("doctor")
    assert run.code == 3
    assert run.out.count(f"{tmp_path}/config.yaml:2: models: must be a list, not 3") == 1
    assert run.out.count("puls: unknown key") == 1
    assert "cannot render: the settings are wrong" in run.out
    assert "packs" not in as_json(goan, code=3)


def test_settings_are_named(goan: Goan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file of settings that is in force is named."""
    monkeypatch.setenv("GOAN_CONFIG", str(tmp_path))
    (tmp_path / "config.yaml").write_text("pull: true\n")
    assert as_json(goan)["config"] == {"file": str(tmp_path / "config.yaml")}


def test_a_torch_that_fails(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch cannot be imported, the reason is told instead of a traceback."""
    monkeypatch.setattr(machine, "torch_fault", lambda: "libcudart.so.13: cannot open shared object file")
    run = goan("doctor")
    assert run.code == 3
    assert "cannot be imported: libcudart.so.13" in run.out
    assert as_json(goan, code=3)["torch"] == {"problem": "libcudart.so.13: cannot open shared object file"}


def test_a_broken_pack_of_ones_own(goan: Goan) -> None:
    """A broken manifest is a line in the report, and the others are told all the same."""
    own_folder().mkdir(parents=True)
    (own_folder() / "bad.yaml").write_text("name: 3\nfamly: f1\n")
    run = goan("doctor")
    assert run.code == 0
    assert "pack        bad: " in run.out
    assert "famly: unknown key (did you mean family?)" in run.out
    assert "tiny (inverted), complete" in run.out
