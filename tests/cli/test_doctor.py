"""`goan doctor`."""

from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Goan


def test_doctor(goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that can render is told so: device, precision, packs, ffmpeg, memory."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = goan("doctor")
    assert (run.code, run.err) == (0, "")
    labels = {line.split()[0] for line in run.out.splitlines() if line.strip()}
    assert {"goan", "python", "torch", "cpu", "memory", "disk", "gpu", "pack", "ffmpeg"} <= labels
    assert "cpu in float32" in run.out
    assert "tiny (inverted), complete" in run.out


def test_doctor_without_ffmpeg(goan: Goan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an ffmpeg that runs, the machine cannot render: exit code 3, and the reason."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "gone"))
    run = goan("doctor")
    assert run.code == 3
    assert "cannot render" in run.out
