"""What a job says of its own files."""

from pathlib import Path

from tests.conftest import MINIMAL, plan_files, write_jobs


def test_files_of_a_job(folder: Path) -> None:
    """A job's video and sidecar lie in its output folder under its name, dots and all."""
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**MINIMAL, "name": "v1.2 final", "output": {"dir": "out"}}))
    assert plan.job.video == folder / "out" / "v1.2 final.mp4"
    assert plan.job.sidecar == folder / "out" / "v1.2 final.json"
    assert plan.job.size == plan.job.image_fit.size
