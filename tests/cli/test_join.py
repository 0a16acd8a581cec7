"""`goan join`: what it writes, what it says, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from goan_cli.output.video import read_video, write_video
from tests.cli.conftest import Goan, content_of


def clip(path: Path, frames: int = 10, *, fps: float = 30.0, level: int = 90) -> Path:
    """A grey video."""
    write_video(path, [np.full((frames, 48, 64, 3), level, np.uint8)], size=(64, 48), fps=fps)
    return path


def test_join(goan: Goan, tmp_path: Path) -> None:
    """Videos are joined in their order, and what was written is told."""
    first, second = clip(tmp_path / "a.mp4", level=50), clip(tmp_path / "b.mp4", level=150)
    run = goan("join", first, second, "--out", tmp_path / "c.mp4", "--cross-fade", "0.1", "--crf", "10")
    assert (run.code, run.err) == (0, "")
    assert f"wrote {tmp_path / 'c.mp4'}" in run.out
    assert "17 frames of 64x48, 0.57 s" in run.out
    assert "note" not in run.out
    means = read_video(tmp_path / "c.mp4").mean(axis=(1, 2, 3))
    assert means[0] == pytest.approx(50, abs=4)
    assert means[-1] == pytest.approx(150, abs=4)
    assert len(means) == 17


def test_never_overwrites(goan: Goan, tmp_path: Path) -> None:
    """What is there stays without --replace; an input stays in any case."""
    first, second, out = clip(tmp_path / "a.mp4"), clip(tmp_path / "b.mp4"), tmp_path / "c.mp4"
    out.write_bytes(b"precious")
    before = content_of(tmp_path)
    for target, options in ((out, ()), (first, ()), (first, ("--replace",))):
        assert goan("join", first, second, "--out", target, *options).code == 2
        assert content_of(tmp_path) == before
    assert goan("join", first, second, "--out", out, "--replace").code == 0
    assert len(read_video(out)) == 20


def test_refusals(goan: Goan, tmp_path: Path) -> None:
    """One video, another kind of file, another rate, a cross-fade that is too long: one error each, nothing written."""
    first, slow = clip(tmp_path / "a.mp4"), clip(tmp_path / "b.mp4", fps=24.0)
    before = content_of(tmp_path)
    for arguments, words in (
        ((first, "--out", tmp_path / "c.mp4"), "nothing to join"),
        ((first, first, "--out", tmp_path / "c.avi"), "named *.mp4"),
        ((first, slow, "--out", tmp_path / "c.mp4"), "different rates, 30 and 24"),
        ((first, first, "--out", tmp_path / "c.mp4", "--cross-fade", "1"), "too few to cross-fade 30"),
        ((first, tmp_path / "gone.mp4", "--out", tmp_path / "c.mp4"), "gone.mp4: no such file"),
    ):
        run = goan("join", *arguments)
        assert run.code == 2
        assert words in run.err
        assert run.err.count("error: ") == 1
    assert content_of(tmp_path) == before
