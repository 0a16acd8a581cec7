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
from typing import Any, Literal, Self, TextIO

import typer
from pydantic import BaseModel, ConfigDict, TypeAdapter

from goan_cli.batch.outcome import JobStarted, Outcome, RunEvent, RunFinished, RunStarted, exit_code
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


class _Line(BaseModel):
    """What every line has. `job` is the name of the job at work, null outside of one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    run: str
    time: str
    job: str | None = None


class RunLine(_Line):
    """The run begins (with the jobs that will be rendered, in order), or ends (with counts by how jobs ended)."""

    event: Literal["run"] = "run"
    phase: Literal["started", "finished"]
    jobs: list[str] | None = None
    ends: dict[str, int] | None = None
    exit_code: int | None = None
    seconds: float | None = None


class JobLine(_Line):
    """A job begins; `number` of `total` in this run, from 1."""

    event: Literal["job"] = "job"
    number: int
    total: int
    model: str
    video: str
    sections: int
    steps: int
    seed: int


class StageLine(_Line):
    """A stage of the job (load, encode, bake, sample, decode) begins or ends."""

    event: Literal["stage"] = "stage"
    stage: str
    phase: Literal["started", "finished"]
    seconds: float | None = None


class StepLine(_Line):
    """A sampler step is done; numbers from 1."""

    event: Literal["step"] = "step"
    section: int
    sections: int
    step: int
    steps: int
    seconds: float


class SectionLine(_Line):
    """A section is sampled; `computed_steps` is how many of its steps a step cache ran."""

    event: Literal["section"] = "section"
    section: int
    sections: int
    seconds: float
    computed_steps: int


class CheckpointLine(_Line):
    """A checkpoint is on disk: `sections` of `total` are in it, and `steps` of the next section."""

    event: Literal["checkpoint"] = "checkpoint"
    sections: int
    total: int
    steps: int
    path: str


class BakeLine(_Line):
    """LoRAs were baked; how much of the weights changed."""

    event: Literal["bake"] = "bake"
    recipe: str
    files: list[str]
    relative_change: float | None
    moved: float
    seconds: float


class NoteLine(_Line):
    """Something worth knowing, and no failure."""

    event: Literal["note"] = "note"
    text: str


class ErrorLine(_Line):
    """A problem of the input (before anything runs), or the failure of a job."""

    event: Literal["error"] = "error"
    kind: str
    message: str
    hint: str | None = None
    file: str | None = None
    line: int | None = None
    key: str | None = None


class ResultLine(_Line):
    """How a job ended: done, up to date, skipped, failed, stopped or busy."""

    event: Literal["result"] = "result"
    end: str
    reason: str | None = None
    video: str | None = None
    sidecar: str | None = None
    frames: int | None = None
    seconds: float | None = None
    seconds_per_step: float | None = None
    findings: list[str] | None = None


AnyLine = (
    RunLine
    | JobLine
    | StageLine
    | StepLine
    | SectionLine
    | CheckpointLine
    | BakeLine
    | NoteLine
    | ErrorLine
    | ResultLine
)


def events_schema() -> dict[str, Any]:
    """The JSON schema of a line."""
    schema = TypeAdapter(AnyLine).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "goan event", **schema}


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
            self._write(ResultLine, end=str(outcome.end), reason=outcome.reason or (str(error) if error else None))
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
