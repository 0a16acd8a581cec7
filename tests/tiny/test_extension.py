"""Videos gone on with by the tiny packs, by what is seen in the frames: the motion goes on over the seam."""

from pathlib import Path
from typing import Any

import numpy as np

from goan_cli.batch.outcome import End
from goan_cli.batch.run import render_jobs
from goan_cli.batch.survey import RunSettings
from goan_cli.output.video import read_video
from goan_cli.tiny.measures import Track, colour_kept, psnr_between, track
from goan_cli.tiny.rendering import pixels_of, write_start_image
from goan_cli.tiny.world import Scene, render_clip
from tests.clips import Frames, write_clip
from tests.conftest import plan_files, write_jobs

INPUT = 33  # frames
NEW = 24  # of two sections of window 3
PACE = 0.6  # pixels a frame


def _scene(x: float) -> Scene:
    """A red circle that moves right from `x` as long as anyone looks."""
    return Scene(
        shape="circle",
        colour="red",
        motion="right",
        x=x,
        y=34.0,
        radius=9.0,
        top=(0.44, 0.50, 0.40),
        bottom=(0.56, 0.62, 0.52),
        way=100 * PACE,
        duration=100,
    )


def _made(folder: Path, clip: Frames, **keys: Any) -> Frames:
    write_clip(folder / "clip.mp4", clip)
    job = {"video": "clip.mp4", "prompt": "a red circle moves right", "seed": 3, "sections": 2, **keys}
    (plan,) = plan_files(write_jobs(folder / "job.yaml", job))
    (outcome,) = render_jobs([plan], RunSettings(device="cpu"))
    assert outcome.end is End.DONE, outcome.error
    frames = read_video(plan.job.video)
    assert len(frames) == plan.job.frames
    return frames


def _steps(found: Track) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.diff(found.x)


def test_gone_on_with(tmp_path: Path) -> None:
    """A forward model carries the circle on from where it is: no jump, one colour, still to the right."""
    clip = pixels_of(render_clip(_scene(14.0), INPUT))
    frames = _made(tmp_path, clip, model="tiny-f1")
    assert len(frames) == INPUT + NEW
    assert psnr_between(frames[: INPUT - 9], clip[: INPUT - 9]) > 35
    assert psnr_between(frames[INPUT - 9 : INPUT], clip[INPUT - 9 :]) > 28
    found = track(frames)
    assert colour_kept(found, "red")
    assert np.abs(_steps(found)).max() < 2 * PACE
    assert np.abs(np.diff(found.y)).max() < PACE
    # In the first third of a second after the seam it goes on, if more slowly, and never comes back.
    assert found.x[INPUT + 9] - found.x[INPUT - 1] > 0.3 * 10 * PACE
    assert found.x[-1] > found.x[INPUT + 9] - 1
    assert np.abs(np.diff(found.area)).max() < 0.1 * found.area[0]


def test_led_up_to(tmp_path: Path) -> None:
    """An inverted model begins with the image and brings the circle to where the video takes it over."""
    clip = pixels_of(render_clip(_scene(26.0), INPUT))
    write_start_image(tmp_path / "start.png", _scene(14.0))
    frames = _made(tmp_path, clip, model="tiny", image="start.png")
    assert len(frames) == NEW + INPUT
    assert psnr_between(frames[NEW + 13 :], clip[13:]) > 35
    assert psnr_between(frames[NEW : NEW + 13], clip[:13]) > 28
    found = track(frames)
    assert colour_kept(found, "red")
    assert abs(found.x[0] - 13.5) < 2
    assert np.abs(_steps(found)).max() < 3 * PACE
    assert np.abs(np.diff(found.y)).max() < PACE
    assert found.x[NEW - 1] - found.x[0] > 8
    # What a latent stands for, four frames, is as near as a section is told where the video is.
    assert abs(found.x[NEW - 1] - track(clip).x[0]) < 4 * PACE
    assert np.abs(np.diff(found.area)).max() < 0.1 * found.area[0]
