"""A job's `video`: what it comes to, and every problem at its place."""

from pathlib import Path
from typing import Any

import pytest

from goan_cli.jobs.job import Job
from goan_cli.jobs.sections import Family
from tests.clips import numbered_frames, write_clip
from tests.conftest import plan_files, problems_in, write_jobs


@pytest.fixture
def clip(folder: Path) -> Path:
    """A video of 21 frames in the folder of the job files."""
    return write_clip(folder / "clip.mp4", numbered_frames(21))


def _job(folder: Path, **keys: Any) -> Job:
    content = {"video": "clip.mp4", "prompt": "a ball", "sections": 1, "model": "tiny-f1", **keys}
    (plan,) = plan_files(write_jobs(folder / "job.yaml", content))
    return plan.job


def _problems(folder: Path, **keys: Any) -> list[str]:
    content = {"video": "clip.mp4", "prompt": "a ball", "sections": 1, "model": "tiny-f1", **keys}
    return problems_in(write_jobs(folder / "job.yaml", content))


def test_a_bare_path(folder: Path, clip: Path) -> None:
    """A path alone means: one video, half a second of cross-fade, no sound."""
    extension = _job(folder).extension
    assert extension is not None
    assert (extension.clip.path, extension.clip.frames, extension.family) == (clip, 21, Family.F1)
    assert (extension.join, extension.audio, extension.cross_fade) == (True, False, 0.5)


def test_keys_of_a_video(folder: Path, clip: Path) -> None:
    """What is given takes the place of the defaults; a time may have its unit."""
    keys = {"path": str(clip), "cross_fade": "0.2s", "audio": True}
    extension = _job(folder, video=keys).extension
    assert extension is not None
    assert (extension.cross_fade, extension.audio) == (0.2, True)


def test_the_video_decides_the_size(folder: Path, clip: Path) -> None:
    """Without a size, the bucket is that of the video, also where an image is begun from."""
    alone = _job(folder)
    with_image = _job(folder, model="tiny", image="start.png")
    assert alone.size == with_image.size
    assert alone.size[0] > alone.size[1]
    assert alone.image_fit.source == (48, 32)
    assert with_image.image_fit.source == (160, 120)


@pytest.mark.parametrize(("model", "join", "frames"), [("tiny-f1", True, 33), ("tiny", True, 33), ("tiny", False, 12)])
def test_length(folder: Path, clip: Path, model: str, join: bool, frames: int) -> None:
    """A section of window 3 makes twelve frames beside the 21 of the video."""
    assert clip.exists()
    assert _job(folder, model=model, video={"path": "clip.mp4", "join": join}).frames == frames


def test_rate_of_the_job(folder: Path, clip: Path) -> None:
    """A video of another rate is taken at the job's, and the plan says so."""
    assert clip.exists()
    content = {"video": "clip.mp4", "prompt": "a ball", "sections": 1, "model": "tiny", "fps": 15}
    (plan,) = plan_files(write_jobs(folder / "job.yaml", content))
    assert plan.job.extension is not None
    assert plan.job.extension.clip.frames in (10, 11)
    assert plan.notes == ("clip.mp4: 30 fps, taken at 15: frames are doubled or left out",)


def test_no_sound_to_keep(folder: Path, clip: Path) -> None:
    """A video without sound is no reason to fail: a note says so."""
    assert clip.exists()
    content = {"video": {"path": "clip.mp4", "audio": True}, "prompt": "a ball", "sections": 1}
    (plan,) = plan_files(write_jobs(folder / "job.yaml", content))
    assert plan.notes == ("clip.mp4: has no sound to keep",)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"video": "none.mp4"}, "video.path: {folder}/none.mp4: no such file"),
        ({"video": "start.png"}, "too short: 1 frame at 30 fps, of at least 5"),
        ({"video": "job.yaml"}, "not a video that ffmpeg can read"),
        ({"video": {"path": "clip.mp4", "cross_fade": -1}}, "video.cross_fade"),
        ({"video": {"path": "clip.mp4", "cross_fade": "soon"}}, "must be a time in seconds"),
        ({"video": {"path": "clip.mp4", "crossfade": 1}}, "video.crossfade"),
        ({"video": {"audio": True}}, "video.path"),
        ({"video": {"path": "clip.mp4", "join": False, "audio": True}}, "video.audio: goes with join"),
        ({"video": {"path": "clip.mp4", "join": False, "cross_fade": 1}}, "video.cross_fade: goes with join"),
        ({"video": {"path": "clip.mp4", "audio": True}, "output": {"format": "gif"}}, "video.audio: gif has no sound"),
        ({"image": "start.png"}, "image: given beside video"),
        ({"start": "grey"}, "start: given beside video"),
        ({"model": "tiny", "end_image": "start.png"}, "end_image: given beside video"),
        ({"size": [2048, 16]}, "would be cut off"),
    ],
)
def test_problems(folder: Path, clip: Path, keys: dict[str, Any], said: str) -> None:
    """One clear problem at its key."""
    assert clip.exists()
    (problem,) = _problems(folder, **keys)
    assert said.format(folder=folder) in problem


def test_a_loop_has_no_place(folder: Path, clip: Path) -> None:
    """What ends where a video begins cannot end on its start image."""
    assert clip.exists()
    (problem,) = _problems(folder, model="tiny", image="start.png", loop=True)
    assert "loop: given beside video" in problem


def test_nothing_to_begin_from(folder: Path) -> None:
    """A job without image, start and video is told of all three."""
    (problem,) = _problems(folder, video=None)
    assert "video: to go on with one" in problem
