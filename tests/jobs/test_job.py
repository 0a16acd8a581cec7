"""What a job says of its own files."""

from pathlib import Path

from tests.clips import numbered_frames, write_clip
from tests.conftest import MINIMAL, plan_files, write_jobs


def test_files_of_a_job(folder: Path) -> None:
    """A job's video and sidecar lie in its output folder under its name, dots and all."""
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**MINIMAL, "name": "v1.2 final", "output": {"dir": "out"}}))
    assert plan.job.video == folder / "out" / "v1.2 final.mp4"
    assert plan.job.sidecar == folder / "out" / "v1.2 final.json"
    assert plan.job.size == plan.job.image_fit.size


def test_decoding_beside_a_video(folder: Path) -> None:
    """A video that is gone on with is as much to decode as one more section; without one there is no more."""
    write_clip(folder / "clip.mkv", numbered_frames(20))
    keys = {"video": "clip.mkv", "prompt": "a ball", "sections": 1, "model": "tiny-f1"}
    (alone,) = plan_files(write_jobs(folder / "alone.yaml", dict(MINIMAL)))
    (beside,) = plan_files(write_jobs(folder / "beside.yaml", keys))
    assert alone.job.decoded_sections == alone.job.sections
    assert beside.job.decoded_sections.latent_frames == 1 + 2 * beside.job.sections.window
    assert beside.job.inputs == (folder / "clip.mkv",)
