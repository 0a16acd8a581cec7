"""The smoke render: it passes on the shipped packs, and each check fails when it should."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goan_cli.batch import job
from goan_cli.errors import EnvironmentFault, RenderFailed
from goan_cli.tiny import smoke
from goan_cli.tiny.measures import Frames, fallen_share, track
from goan_cli.tiny.rendering import pixels_of
from goan_cli.tiny.smoke import run_smoke
from goan_cli.tiny.world import render_clip


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_shipped_packs_pass(tmp_path: Path, model: str) -> None:
    """Both families move the shape as told, keep its colour and the start image, and take the LoRA."""
    checks = run_smoke(tmp_path, model=model, device="cpu")
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 7
    assert {file.name for file in tmp_path.glob("*.mp4")} == {"plain.mp4", "dusk.mp4"}
    assert (tmp_path / "plain.sheet.png").is_file()


def clip(motion: str, *, colour: str = "red", dusk: bool = False) -> Frames:
    """The smoke scene as the world draws it, with another motion, colour or light."""
    scene = replace(smoke.SCENE, motion=motion, colour=colour, way=12.0, duration=24, dusk=dusk)
    return pixels_of(render_clip(scene, 25))


def failed(frames: Frames) -> set[str]:
    """The names of the checks that a clip fails."""
    return {check.name for check in smoke._clip_checks(frames) if not check.passed}


def test_checks_see_what_is_wrong() -> None:
    """The right clip passes; a wrong direction, colour, first frame or a vanished shape is told by its name."""
    assert failed(clip("right")) == set()
    assert failed(clip("left")) == {"the shape moves as told"}
    assert failed(clip("still")) == {"the shape moves as told"}
    assert "its colour stays" in failed(clip("right", colour="green"))
    inverted = (255 - clip("right")).astype(np.uint8)
    assert "the first frame is the start image" in failed(inverted)
    gone = clip("right")
    gone[10:] = gone[10:, :1, :1]
    assert failed(gone) >= {"the shape moves as told", "its colour stays"}


def test_lora_check_needs_an_effect() -> None:
    """The same video twice is no effect; dusk as the world draws it is the whole of it."""
    plain, dusk = track(clip("right")), track(clip("right", dusk=True))
    assert fallen_share(plain, plain) == 0
    assert fallen_share(plain, dusk) == pytest.approx(1, abs=0.1)
    assert not smoke._lora_check(plain, plain).passed
    assert smoke._lora_check(plain, dusk).passed


def test_a_job_that_fails_is_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A render that fails is told with its reason, and nothing is read from the file that is not there."""

    def broken(*_: object, **__: object) -> None:
        raise RenderFailed("the encoder burnt down")

    monkeypatch.setattr(job, "write_video", broken)
    checks = run_smoke(tmp_path, device="cpu")
    assert [check.passed for check in checks] == [False, False]
    assert "burnt down" in checks[0].seen


def test_a_folder_that_cannot_be_made_is_the_environment_s_fault(tmp_path: Path) -> None:
    """A file where the folder should be is no failed check."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(EnvironmentFault, match="taken"):
        run_smoke(tmp_path / "taken", device="cpu")
