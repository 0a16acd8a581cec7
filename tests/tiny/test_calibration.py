"""The calibrations that ship with the tiny packs, the script that makes them, and what MagCache does with them."""

import json
from pathlib import Path

import numpy as np
import pytest

from goan_cli.documents import Data
from goan_cli.packs.find import find_pack
from goan_cli.packs.magnitudes import magnitudes_file, ratios_for
from goan_cli.render.engine import Engine
from goan_cli.tiny import calibration
from goan_cli.tiny.calibration import calibrate, scene_plan
from goan_cli.tiny.measures import psnr_between
from goan_cli.tiny.rendering import plan_scene, rendered
from goan_cli.tiny.smoke import PROMPT, SCENE
from tests.helpers import write_tiny_manifest


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_what_ships(model: str) -> None:
    """Each shipped pack has calibrations of its own weights, for its default steps and for FramePack's 25."""
    pack = find_pack(model)
    for steps in (pack.steps, 25):
        found = ratios_for(pack, steps)
        assert (found.steps, found.window) == (steps, pack.window)
        assert found.ratios[0] == 1.0
        assert found.spread < 0.05


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_other_scenes_give_the_same_ratios(model: str) -> None:
    """One short video says what the shipped calibration says, within the spread of single sections."""
    shipped = ratios_for(find_pack(model), 8)
    found = calibrate(Engine(device="cpu"), model, 8, clips=1, sections=2)
    assert found.samples == 2
    np.testing.assert_allclose(found.ratios, shipped.ratios, rtol=0, atol=2 * shipped.spread)
    assert (found.transformer, found.window, found.shift) == (shipped.transformer, shipped.window, shipped.shift)


def test_scenes_at_the_packs_size(tmp_path: Path) -> None:
    """The scenes are planned at the pack's resolution, so that a calibration is for what the pack renders."""
    manifest = write_tiny_manifest(tmp_path / "large.yaml")
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "defaults": {"window": 2, "steps": 5, "resolution": 640}}))
    plan = scene_plan(tmp_path, str(manifest), find_pack(str(manifest)), 3, steps=6, sections=2)
    assert plan.job.size in {(640, 608), (608, 640)}
    assert plan.job.image_fit.source == (640, 640)
    assert (plan.job.sampling.steps, len(plan.job.sections.sections)) == (6, 2)
    assert plan.job.sampling.step_cache is None


def test_script_writes_beside_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script writes the calibrations of a pack's default steps and of the others to the pack's file."""
    manifest = write_tiny_manifest(tmp_path / "mine.yaml")
    monkeypatch.setattr(calibration, "EMBEDDED", {str(manifest): manifest})
    monkeypatch.setattr(calibration, "_STEPS", 3)
    calibration.main()
    pack = find_pack(str(manifest))
    assert magnitudes_file(pack) == tmp_path / "mine.magcache.json"
    assert [ratios_for(pack, steps).samples for steps in (2, 3)] == [32, 32]


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_magcache_against_the_exact_render(tmp_path: Path, model: str) -> None:
    """MagCache computes fewer steps, stays near the exact render, and nearer at a lower threshold."""
    engine = Engine(device="cpu")

    def frames(step_cache: Data) -> tuple[int, np.ndarray]:
        settings: dict[str, Data] = {"model": model, "steps": 25, "sections": 1, "step_cache": step_cache}
        plan = plan_scene(tmp_path, "scene", SCENE, PROMPT, settings=settings)
        return len(plan.computes or range(25)), rendered(engine, plan)

    _, exact = frames("off")
    made = [frames({"kind": "magcache", "threshold": threshold}) for threshold in (0.1, 0.4)]
    counts = [count for count, _ in made]
    near = [psnr_between(clip, exact) for _, clip in made]
    assert 8 < counts[1] < counts[0] < 25
    assert near[0] > near[1] > 35
