"""After a matrix's last variant: its contact sheet and its table, from the variants' own files. No torch."""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goan_cli.batch.outcome import End, Outcome
from goan_cli.errors import GoanError
from goan_cli.files import write_text
from goan_cli.jobs.job import Job, Variant
from goan_cli.output.matrix import Cell, reduced, table_text, write_matrix_sheet
from goan_cli.output.sidecar import read_sidecar, value_at
from goan_cli.output.video import read_frames
from goan_cli.render.events import Note
from goan_cli.render.plan import RenderPlan

_SHOWN = (End.DONE, End.UP_TO_DATE)
# Columns of the table besides the axes, and where a sidecar has them.
_COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rendered_seed", ("settings", "seed")),
    ("video", ("video", "file")),
    ("seconds_per_step", ("seconds_per_step",)),
    ("frames_sha256", ("frames_sha256",)),
)


def matrices(plans: Sequence[RenderPlan]) -> dict[tuple[Path, str], list[int]]:
    """The places of the variants of each matrix that is whole among the plans, by folder and name.

    Where only some of a matrix's variants were asked for, the sheet of all of them stays as it is.
    """
    found: dict[tuple[Path, str], list[int]] = {}
    whole: dict[tuple[Path, str], int] = {}
    for place, plan in enumerate(plans):
        variant = plan.job.variant
        if variant is not None:
            key = (plan.job.output.dir, variant.matrix)
            found.setdefault(key, []).append(place)
            whole[key] = math.prod(len(values) for _, values in variant.axes)
    return {key: places for key, places in found.items() if len(places) == whole[key]}


def complete_matrix(outcomes: Sequence[Outcome]) -> list[Note]:
    """Write the sheet and the table of a matrix whose variants all have ended, and say so."""
    try:
        return [Note(text=f"matrix: {path}") for path in write_matrix(outcomes)]
    except Exception as error:  # the videos are there; nothing that befalls a picture of them may end the run
        return [Note(text=f"the matrix has no sheet: {error}")]


def write_matrix(outcomes: Sequence[Outcome]) -> list[Path]:
    """Write sheet and table of a matrix; returns the files that were written.

    Nothing is written while variants are still to come (stopped, or busy in another run), where none has a
    video, and where the table would be as it is. Raises GoanError where the files cannot be written.
    """
    ends = {outcome.end for outcome in outcomes}
    if ends & {End.STOPPED, End.BUSY} or not ends & set(_SHOWN):
        return []
    rows = [_row(outcome) for outcome in outcomes]
    text = table_text(rows)
    table = _table_path(outcomes[0].plan.job, [str(row["name"]) for row in rows])
    sheet = table.with_suffix(".png")
    if sheet.exists() and table.exists() and table.read_text(encoding="utf-8") == text:
        return []
    write_matrix_sheet(sheet, [_cell(outcome) for outcome in outcomes])
    write_text(table, text)
    return [sheet, table]


def _table_path(job: Job, names: Sequence[str]) -> Path:
    """NAME.matrix.csv, or the first number that neither another matrix's table nor a foreign file has."""
    if job.variant is None:
        raise ValueError(f"{job.name} is in no matrix")
    for number in itertools.count(1):
        stem = job.variant.matrix if number == 1 else f"{job.variant.matrix}-{number}"
        table = job.output.dir / f"{stem}.matrix.csv"
        if not table.exists() and not table.with_suffix(".png").exists():
            break
        if set(names) & _names_in(table):
            break  # an earlier state of the same variants
    return table


def _names_in(table: Path) -> set[str]:
    try:
        with table.open(encoding="utf-8", newline="") as file:
            return {str(row.get("name")) for row in csv.DictReader(file)}
    except (OSError, ValueError, csv.Error):
        return set()


def _variant(outcome: Outcome) -> Variant:
    variant = outcome.plan.job.variant
    if variant is None:
        raise ValueError(f"{outcome.plan.job.name} is in no matrix")
    return variant


def _cell(outcome: Outcome) -> Cell:
    job = outcome.plan.job
    if outcome.end not in _SHOWN:
        return Cell(variant=_variant(outcome), frames=(), caption=f"{outcome.end}: {outcome.error or outcome.reason}")
    content = _content(job)
    frames_written = value_at(content, ("video", "frames"))  # more than were rendered, where they were interpolated
    last = (frames_written if isinstance(frames_written, int) else job.frames) - 1
    wanted = (0, last // 2, last)
    try:
        found = read_frames(job.video, wanted)
    except GoanError as error:
        return Cell(variant=_variant(outcome), frames=(), caption=error.message)
    caption = f"seed {value_at(content, ('settings', 'seed'))}" if content.get("rejected_seeds") else ""
    frames = [reduced(found[number]) for number in wanted if number in found]
    return Cell(variant=_variant(outcome), frames=frames, caption=caption)


def _row(outcome: Outcome) -> dict[str, object]:
    content = _content(outcome.plan.job) if outcome.end in _SHOWN else {}
    measured = {column: value_at(content, path) for column, path in _COLUMNS}
    reason = str(outcome.error or outcome.reason) if outcome.end not in _SHOWN else ""
    # Whether it was rendered now or before makes no difference to the table.
    end = End.DONE if outcome.end in _SHOWN else outcome.end
    return {"name": outcome.plan.job.name, **_variant(outcome).values, "end": str(end), **measured, "reason": reason}


def _content(job: Job) -> Mapping[str, Any]:
    try:
        return read_sidecar(job.sidecar)
    except GoanError:
        return {}
