"""What lies in an output folder: finished jobs, begun ones, failed ones, from their own files. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from goan_cli.batch.lock import is_held
from goan_cli.errors import InvalidInput
from goan_cli.files import is_folder, sha256_of
from goan_cli.jobs.formats import is_sequence
from goan_cli.jobs.job import STATE_DIR
from goan_cli.output.sidecar import read_sidecar, recorded_video
from goan_cli.render.checkpoint import CheckpointRecord, checkpoint_files, job_name, read_record

_FAILED = ".failed.json"


class Found(StrEnum):
    """How a job of a folder is."""

    DONE = "done"
    RUNNING = "running"
    PARTIAL = "partial"
    FAILED = "failed"
    DAMAGED = "damaged"


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """One job of a folder; `share` is how much of its sampling is done, 0 to 1, `detail` says what else there is."""

    name: str
    state: Found
    share: float
    detail: str


def folder_status(folder: Path, *, verify: bool = False) -> list[JobStatus]:
    """All jobs that left something in a folder, by name; `verify` reads every video to compare its hash.

    Raises InvalidInput where there is no such folder.
    """
    if not is_folder(folder):
        raise InvalidInput(f"{folder}: no such folder")
    finished = _finished(folder, verify=verify)
    begun, failed = _begun(folder / STATE_DIR, folder), _failed(folder / STATE_DIR, folder)
    running = {lock.stem for lock in (folder / STATE_DIR).glob("*.lock") if is_held(lock)}
    names = sorted({*finished, *begun, *failed, *running})
    return [_status(name, finished.get(name), begun.get(name), failed.get(name), name in running) for name in names]


def _status(
    name: str, finished: JobStatus | None, begun: CheckpointRecord | None, failed: str | None, running: bool
) -> JobStatus:
    earlier = ", with an earlier result" if finished else ""
    share = begun.share if begun else 0.0
    if running:
        return JobStatus(name=name, state=Found.RUNNING, share=share, detail=_progress(begun) + earlier)
    if failed is not None:
        return JobStatus(name=name, state=Found.FAILED, share=share, detail=failed + earlier)
    if begun is not None:
        return JobStatus(name=name, state=Found.PARTIAL, share=share, detail=_progress(begun) + earlier)
    return finished or JobStatus(name=name, state=Found.DAMAGED, share=0.0, detail="nothing of it can be read")


def _progress(begun: CheckpointRecord | None) -> str:
    if begun is None:
        return "nothing is saved yet"
    if begun.complete:
        return "sampled, to be decoded"
    within = f", and {begun.section_state['done']} of {begun.steps} steps" if begun.section_state else ""
    return f"{begun.sections} of {begun.total} sections are sampled{within}"


def _finished(folder: Path, *, verify: bool) -> dict[str, JobStatus]:
    found = {}
    for file in folder.glob("*.json"):
        try:
            content = read_sidecar(file)
        except InvalidInput:
            continue  # some other JSON
        found[file.stem] = _result(file, content, verify=verify)
    return found


def _result(file: Path, content: Mapping[str, Any], *, verify: bool) -> JobStatus:
    recorded = content["video"]
    video = recorded_video(file, content)
    state, detail = Found.DONE, f"{recorded['frames']} frames, {recorded['seconds']:.2f} s"
    if not (video.is_dir() if is_sequence(video) else video.is_file()):
        state, detail = Found.DAMAGED, f"{video.name} is gone"
    elif verify:
        try:
            if sha256_of(video) != recorded["sha256"]:
                state, detail = Found.DAMAGED, f"{video.name} is not what was written"
        except OSError as error:
            state, detail = Found.DAMAGED, f"{video.name} cannot be read: {error.strerror or error}"
    return JobStatus(name=file.stem, state=state, share=1.0, detail=detail)


def _is_over(state: Path, name: str, folder: Path) -> bool:
    """Whether a job of this name was finished after a state was written: then it is of another recipe, or mended."""
    try:
        return (folder / f"{name}.json").stat().st_mtime_ns > state.stat().st_mtime_ns
    except OSError:
        return False


def _begun(folder: Path, results: Path) -> dict[str, CheckpointRecord]:
    """The furthest readable checkpoint of each job, of those that are newer than a result of it."""
    found: dict[str, CheckpointRecord] = {}
    for file in checkpoint_files(folder):
        name = job_name(file)
        if _is_over(file, name, results):
            continue
        try:
            record = read_record(file)
        except InvalidInput:
            continue
        if name not in found or record.share > found[name].share:
            found[name] = record
    return found


def _failed(folder: Path, results: Path) -> dict[str, str]:
    found = {}
    for file in folder.glob(f"*{_FAILED}"):
        if _is_over(file, file.name.removesuffix(_FAILED), results):
            continue
        try:
            found[file.name.removesuffix(_FAILED)] = str(json.loads(file.read_text(encoding="utf-8"))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
