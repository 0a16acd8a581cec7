"""Around a job's results: the folder before it, what a killed run left, and what a finished one takes away."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from goan_cli.batch.lock import held
from goan_cli.batch.standing import own_checkpoints
from goan_cli.batch.stop import Stop
from goan_cli.errors import EnvironmentFault, GoanError, InvalidInput
from goan_cli.files import remove, remove_stray, write_text
from goan_cli.jobs.formats import SUFFIXES
from goan_cli.jobs.job import Job
from goan_cli.output.sidecar import read_sidecar, recorded_video
from goan_cli.render.checkpoint import checkpoint_files
from goan_cli.render.plan import RenderPlan

FAILURE_VERSION = 1


def ensure_writable(folder: Path) -> None:
    """Fail before hours of rendering, not after. Raises EnvironmentFault."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be made: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"{folder}: cannot be written to")


def remove_strays(job: Job) -> None:
    """Remove what a run of this job that was killed left half-written; the job's lock keeps others away."""
    for path in (*job.results, *(job.preview(section.number + 1) for section in job.sections.sections)):
        remove_stray(path)
    remove_stray(job.failure)
    for path in checkpoint_files(job.state_dir, job.name):
        remove_stray(path)


def clear_earlier(job: Job, identity: str) -> None:
    """Take away the sidecar, and what another recipe's job of this name left that is not written over."""
    try:
        earlier = read_sidecar(job.sidecar)
    except InvalidInput:
        earlier = {}
    if earlier and earlier.get("identity") != identity:
        for path in _earlier_results(job, earlier):
            if path not in job.results:
                remove(path)
    job.sidecar.unlink(missing_ok=True)


def _earlier_results(job: Job, earlier: Mapping[str, Any]) -> list[Path]:
    """What a sidecar of the job's name says that it stands for."""
    output = earlier["settings"].get("output")
    kept = output if isinstance(output, dict) else {}
    video = recorded_video(job.sidecar, earlier)
    found = [video] if video.suffix in (*SUFFIXES.values(), ".png") else []
    found += [
        path
        for path, key in ((job.latents, "keep_latents"), (job.contact_sheet, "contact_sheet"), (job.poster, "poster"))
        if kept.get(key)
    ]
    keep, sections = kept.get("keep"), earlier.get("sections")
    if not isinstance(keep, list) or not isinstance(sections, list):
        return found
    for place in range(1, len(sections) + 1):
        if "sections" in keep:
            found.append(video.with_name(f"{job.name}.section-{place}{video.suffix}"))
        if "preview" in keep:
            found.append(job.preview(place))
    return found


def remove_state(job: Job, checkpoints: Iterable[Path]) -> None:
    """A complete job has no failure, no rejected video, and none of its own checkpoints; other recipes' stay."""
    for path in (job.failure, job.rejected, *checkpoints):
        with suppress(OSError):
            remove(path)
    with suppress(OSError):
        job.state_dir.rmdir()  # only if nothing is in it


def tidy_up(plan: RenderPlan) -> None:
    """Take away what was left of an up-to-date job by a run that was killed after its last file."""
    job = plan.job
    if not job.state_dir.is_dir():
        return
    with suppress(GoanError), held(job.lock, wait=False, stop=Stop()) as is_ours:
        if is_ours:
            remove_state(job, own_checkpoints(plan))


def remember_failure(job: Job, error: Exception) -> None:
    """Leave a record for `goan status`; where the folder cannot be written, there is nothing to say it in."""
    said = str(error) if isinstance(error, GoanError) else f"unexpected {type(error).__name__}: {error}"
    content = {"version": FAILURE_VERSION, "name": job.name, "error": said, "time": time.time()}
    with suppress(GoanError):
        write_text(job.failure, json.dumps(content, indent=2) + "\n")
