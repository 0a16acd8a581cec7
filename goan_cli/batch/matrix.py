"""After a matrix's last variant: its contact sheet and its table, from the variants' own files. No torch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from goan_cli.batch.outcome import End, Outcome
from goan_cli.errors import GoanError
from goan_cli.jobs.job import Job, Variant
from goan_cli.output.matrix import Cell, write_matrix_sheet, write_matrix_table
from goan_cli.output.sidecar import read_sidecar
from goan_cli.output.video import read_frames
from goan_cli.render.events import Note
from goan_cli.render.plan import RenderPlan

_SHOWN = (End.DONE, End.UP_TO_DATE)
# Columns of the table besides the axes, and where a sidecar has them.
_COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("seed", ("settings", "seed")),
    ("video", ("video", "file")),
    ("seconds_per_step", ("seconds_per_step",)),
    ("frames_sha256", ("frames_sha256",)),
)


def matrix_of(plan: RenderPlan) -> tuple[Path, str] | None:
    """The matrix that a plan is a variant of: the folder of its results and its name."""
    variant = plan.job.variant
    return None if variant is None else (plan.job.output.dir, variant.matrix)


def complete_matrix(
    matrix: tuple[Path, str] | None, plans: Sequence[RenderPlan], outcomes: Mapping[int, Outcome]
) -> list[Note]:
    """Write a matrix's sheet and table if all its variants among the plans have outcomes, and say so."""
    variants = [place for place, plan in enumerate(plans) if matrix and matrix_of(plan) == matrix]
    if not variants or not all(place in outcomes for place in variants):
        return []
    axes = _variant(outcomes[variants[0]]).axes
    if len(variants) < math.prod(len(values) for _, values in axes):
        return []  # only some were asked for: the sheet of all of them stays
    try:
        return [Note(text=f"matrix: {path}") for path in write_matrix([outcomes[place] for place in variants])]
    except GoanError as error:
        return [Note(text=f"the matrix has no sheet: {error}")]


def write_matrix(outcomes: Sequence[Outcome]) -> list[Path]:
    """Write sheet and table of a matrix whose variants all have ended; returns the files that were written.

    Nothing is written while variants are still to come (stopped, or busy in another run), where none has a
    video, and where all are as they were the last time. Raises GoanError where the files cannot be written.
    """
    ends = {outcome.end for outcome in outcomes}
    folder, name = outcomes[0].plan.job.output.dir, _variant(outcomes[0]).matrix
    sheet, table = folder / f"{name}.matrix.png", folder / f"{name}.matrix.csv"
    unchanged = ends <= {End.UP_TO_DATE, End.SKIPPED} and sheet.exists() and table.exists()
    if ends & {End.STOPPED, End.BUSY} or not ends & set(_SHOWN) or unchanged:
        return []
    write_matrix_sheet(sheet, [_cell(outcome) for outcome in outcomes])
    write_matrix_table(table, [_row(outcome) for outcome in outcomes])
    return [sheet, table]


def _variant(outcome: Outcome) -> Variant:
    variant = outcome.plan.job.variant
    if variant is None:
        raise ValueError(f"{outcome.plan.job.name} is in no matrix")
    return variant


def _cell(outcome: Outcome) -> Cell:
    job = outcome.plan.job
    if outcome.end not in _SHOWN:
        return Cell(variant=_variant(outcome), frames=(), caption=f"{outcome.end}: {outcome.error or outcome.reason}")
    last = job.sections.frames - 1
    wanted = (0, last // 2, last)
    try:
        found = read_frames(job.video, wanted)
    except GoanError as error:
        return Cell(variant=_variant(outcome), frames=(), caption=error.message)
    return Cell(variant=_variant(outcome), frames=[found[number] for number in wanted if number in found], caption="")


def _row(outcome: Outcome) -> dict[str, object]:
    variant, content = _variant(outcome), _content(outcome.plan.job) if outcome.end in _SHOWN else {}
    chosen = variant.values
    measured = {column: _at(content, path) for column, path in _COLUMNS if column not in chosen}
    reason = str(outcome.error or outcome.reason) if outcome.end not in _SHOWN else ""
    return {"name": outcome.plan.job.name, **chosen, "end": str(outcome.end), **measured, "reason": reason}


def _content(job: Job) -> Mapping[str, object]:
    try:
        return read_sidecar(job.sidecar)
    except GoanError:
        return {}


def _at(content: Mapping[str, object], path: Sequence[str]) -> object:
    value: object = content
    for key in path:
        value = value.get(key, "") if isinstance(value, Mapping) else ""
    return value
