"""A run as JSON lines: one object a line, each with the schema's version, the run's id, the time, and its event."""

import io
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import typer

from goan_cli.batch.outcome import End, JobStarted, Outcome, RunEvent, RunFinished, RunStarted, exit_code
from goan_cli.cli.eventlines import (
    AnyLine,
    BakeLine,
    CheckpointLine,
    ErrorLine,
    JobLine,
    NoteLine,
    ResultLine,
    RunLine,
    SectionLine,
    StageLine,
    StepLine,
)
from goan_cli.errors import EnvironmentFault, GoanError, InvalidJobs
from goan_cli.render.events import (
    Baked,
    CheckpointWritten,
    Note,
    SectionFinished,
    StageFinished,
    StageStarted,
    StepFinished,
)


class EventLog:
    """Listens to a run and writes its lines to a file, appending, or to standard output for `-`.

    Raises EnvironmentFault where the file cannot be opened.
    """

    def __init__(self, target: str) -> None:
        self._run = secrets.token_hex(6)
        self._job: str | None = None
        try:
            opened: AbstractContextManager[TextIO] = (
                nullcontext(sys.stdout) if target == "-" else Path(target).open("a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
            )
        except OSError as error:
            raise EnvironmentFault(f"--log-json {target}: cannot be written: {error.strerror or error}") from error
        self._context = opened

    def __enter__(self) -> Self:
        self._stream = self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # told when it first could not be written
            self._context.__exit__(kind, error, trace)

    def problems(self, error: GoanError) -> None:
        """The problems for which nothing ran."""
        kind = type(error).__name__
        if not isinstance(error, InvalidJobs):
            self._write(ErrorLine, kind=kind, message=error.message, hint=error.hint)
            return
        for problem in error.problems:
            file = None if problem.file is None else str(problem.file)
            self._write(
                ErrorLine,
                kind=kind,
                message=problem.message,
                hint=problem.hint,
                file=file,
                line=problem.line,
                key=problem.key,
            )

    def __call__(self, event: RunEvent) -> None:
        """Write one event's line, or two for a job that failed."""
        match event:
            case RunStarted():
                names = [standing.plan.job.name for standing in event.standings]
                self._write(RunLine, phase="started", jobs=names)
            case RunFinished():
                self._finished(event)
            case JobStarted():
                self._started(event)
            case StageStarted():
                self._write(StageLine, stage=str(event.stage), phase="started")
            case StageFinished():
                self._write(StageLine, stage=str(event.stage), phase="finished", seconds=round(event.seconds, 6))
            case StepFinished():
                self._write(StepLine, **vars(event))
            case SectionFinished():
                fields = {name: value for name, value in vars(event).items() if name != "preview"}
                self._write(SectionLine, **fields)
            case CheckpointWritten():
                self._write(CheckpointLine, **{**vars(event), "path": str(event.path)})
            case Baked(report=report):
                files = [str(file.path) for file in report.files]
                kept = {name: getattr(report, name) for name in ("recipe", "relative_change", "moved", "seconds")}
                self._write(BakeLine, files=files, **kept)
            case Note():
                self._write(NoteLine, text=event.text)
            case Outcome():
                self._ended(event)

    def _started(self, event: JobStarted) -> None:
        job = event.plan.job
        self._job = job.name
        self._write(
            JobLine,
            number=event.number,
            total=event.total,
            model=event.plan.pack.name,
            video=str(job.video),
            sections=len(job.sections.sections),
            steps=job.sampling.steps,
            seed=job.sampling.seed,
        )

    def _ended(self, outcome: Outcome) -> None:
        self._job = outcome.plan.job.name
        error, result = outcome.error, outcome.result
        if error is not None:
            message, hint = (error.message, error.hint) if isinstance(error, GoanError) else (str(error), None)
            self._write(ErrorLine, kind=type(error).__name__, message=message, hint=hint)
        if result is None:
            job = outcome.plan.job
            there = outcome.end is End.UP_TO_DATE
            self._write(
                ResultLine,
                end=str(outcome.end),
                reason=None if there else outcome.reason or str(error),
                video=str(job.video) if there else None,
                sidecar=str(job.sidecar) if there else None,
            )
        else:
            self._write(
                ResultLine,
                end=str(outcome.end),
                video=str(result.video),
                sidecar=str(result.sidecar),
                frames=result.frames,
                seconds=round(result.seconds, 6),
                seconds_per_step=round(result.seconds_per_step, 6),
                findings=[f"{finding.defect}: {finding.seen}" for finding in result.findings],
            )
        self._job = None

    def _finished(self, event: RunFinished) -> None:
        ends = [str(outcome.end) for outcome in event.outcomes]
        counts = {end: ends.count(end) for end in dict.fromkeys(ends)}
        code = exit_code(event.outcomes)
        self._write(RunLine, phase="finished", ends=counts, exit_code=code, seconds=round(event.seconds, 6))

    def _write(self, record: Callable[..., AnyLine], **fields: Any) -> None:  # noqa: ANN401 - checked by the record
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        shown = {name: _readable(value) for name, value in {**fields, "job": self._job}.items()}
        line = record(run=self._run, time=now, **shown)
        try:
            self._stream.write(line.model_dump_json() + "\n")  # what is no finite number is null
            self._stream.flush()
        except OSError as error:  # a full disk or a closed pipe is no reason to lose a render
            typer.secho(f"warning: --log-json ends here: {error.strerror or error}", err=True, fg=typer.colors.YELLOW)
            if self._stream is sys.stdout:  # what is left in its buffer would fail again when Python exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._stream = io.StringIO()


def _readable(value: Any) -> Any:  # noqa: ANN401 - any field
    """Names of files may hold bytes that are no text; JSON may not."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return [_readable(each) for each in value] if isinstance(value, list) else value
