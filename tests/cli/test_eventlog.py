"""A run as JSON lines: every event is a line of the schema that `goan schema --events` prints."""

import json
import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from goan_cli.batch.outcome import End, JobStarted, Outcome, RenderResult, RunEvent, RunFinished, RunStarted
from goan_cli.batch.run import render_jobs
from goan_cli.batch.standing import Standing, State
from goan_cli.batch.survey import RunSettings
from goan_cli.cli.eventlines import AnyLine, events_schema
from goan_cli.cli.eventlog import EventLog
from goan_cli.errors import EnvironmentFault, GoanError, InvalidInput, InvalidJobs, Problem, QualityFailed, RenderFailed
from goan_cli.lora.report import BakeReport, FileReport
from goan_cli.output.quality import Finding
from goan_cli.render.events import (
    Baked,
    CheckpointWritten,
    Note,
    SectionFinished,
    Stage,
    StageFinished,
    StageStarted,
    StepFinished,
)
from goan_cli.render.plan import RenderPlan
from tests.cli.conftest import Goan
from tests.conftest import MINIMAL, write_jobs
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
RECORDS: TypeAdapter[Any] = TypeAdapter(AnyLine)
ENVELOPE = {"version", "run", "time", "job", "event"}


@pytest.fixture
def plan(tmp_path: Path) -> RenderPlan:
    """A plan of two sections."""
    return tiny_plan(tmp_path, "night", sections=2)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, each strict JSON and a record of the schema, to the key."""

    def no_constant(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    lines = []
    # Not `splitlines`: a line ends with a newline and with nothing else.
    *texts, rest = path.read_text(encoding="utf-8").split("\n")
    assert rest == ""
    for text in texts:
        line = json.loads(text, parse_constant=no_constant)
        assert RECORDS.validate_python(line, strict=True).model_dump() == line
        lines.append(line)
    return lines


def logged(folder: Path, *events: RunEvent) -> list[dict[str, Any]]:
    """The lines of these events, without what every line has."""
    path = folder / "events.jsonl"
    with EventLog(str(path)) as log:
        for event in events:
            log(event)
    return [{key: value for key, value in line.items() if key not in ENVELOPE - {"event"}} for line in lines_of(path)]


def result_of(plan: RenderPlan, findings: Sequence[Finding] = ()) -> RenderResult:
    """What a finished job has to show."""
    job = plan.job
    return RenderResult(
        job=job,
        video=job.video,
        sidecar=job.sidecar,
        frames=17,
        seconds=1.23456789,
        seconds_per_step=0.25,
        findings=tuple(findings),
    )


def report_of(path: Path) -> BakeReport:
    """A bake of one file."""
    file = FileReport(
        path=path,
        sha256="0" * 64,
        weight=1.0,
        keys=3,
        matched_keys=3,
        modules=1,
        algorithms=("lora",),
        ranks=(2, 2),
        skipped={},
    )
    return BakeReport(
        recipe="r1", files=(file,), parameters=(), relative_change=0.125, moved=0.5, dtype="float32", seconds=0.1
    )


# -- one event, one line


def test_stages_steps_and_sections(tmp_path: Path) -> None:
    """Stages, steps, sections and checkpoints are lines with their numbers and times; previews stay out."""
    checkpoint = tmp_path / "night.safetensors"
    lines = logged(
        tmp_path,
        StageStarted(stage=Stage.SAMPLE),
        StepFinished(section=1, sections=2, step=3, steps=8, seconds=0.5),
        SectionFinished(
            section=1, sections=2, seconds=4.0, computed_steps=7, preview=np.zeros((4, 4, 3), dtype=np.uint8)
        ),
        CheckpointWritten(sections=1, total=2, steps=0, path=checkpoint),
        StageFinished(stage=Stage.SAMPLE, seconds=8.1234567),
        Note(text="zwei\nZeilen: [b]é\u2028\0"),
    )
    assert lines == [
        {"event": "stage", "stage": "sample", "phase": "started", "seconds": None},
        {"event": "step", "section": 1, "sections": 2, "step": 3, "steps": 8, "seconds": 0.5},
        {"event": "section", "section": 1, "sections": 2, "seconds": 4.0, "computed_steps": 7},
        {"event": "checkpoint", "sections": 1, "total": 2, "steps": 0, "path": str(checkpoint)},
        {"event": "stage", "stage": "sample", "phase": "finished", "seconds": 8.123457},
        {"event": "note", "text": "zwei\nZeilen: [b]é\u2028\0"},
    ]


def test_bakes(tmp_path: Path) -> None:
    """A bake is a line with its files and how much changed."""
    file = tmp_path / "style.safetensors"
    (line,) = logged(tmp_path, Baked(report=report_of(file)))
    expected = {"recipe": "r1", "files": [str(file)], "relative_change": 0.125, "moved": 0.5, "seconds": 0.1}
    assert line == {"event": "bake", **expected}


def test_a_job_that_is_done(tmp_path: Path, plan: RenderPlan) -> None:
    """A job's line says what it will make, and its result's what was made and found."""
    findings = [Finding(defect="black", seen="2 frames are nearly black", fails=False)]
    lines = logged(
        tmp_path,
        JobStarted(plan=plan, number=2, total=3),
        Outcome(plan=plan, end=End.DONE, result=result_of(plan, findings)),
    )
    video, sidecar = str(plan.job.video), str(plan.job.sidecar)
    assert lines == [
        {
            "event": "job",
            "number": 2,
            "total": 3,
            "model": "tiny",
            "video": video,
            "sections": 2,
            "steps": 2,
            "seed": 7,
        },
        {
            "event": "result",
            "end": "done",
            "reason": None,
            "video": video,
            "sidecar": sidecar,
            "frames": 17,
            "seconds": 1.234568,
            "seconds_per_step": 0.25,
            "findings": ["black: 2 frames are nearly black"],
        },
    ]


def test_a_job_that_is_up_to_date(tmp_path: Path, plan: RenderPlan) -> None:
    """A job that was done before says where its files are."""
    (line,) = logged(tmp_path, Outcome(plan=plan, end=End.UP_TO_DATE, reason="for a reason"))
    assert (line["end"], line["reason"]) == ("up to date", None)
    assert (line["video"], line["sidecar"]) == (str(plan.job.video), str(plan.job.sidecar))


@pytest.mark.parametrize("end", [End.SKIPPED, End.STOPPED, End.BUSY])
def test_a_job_that_is_not_rendered(tmp_path: Path, plan: RenderPlan, end: End) -> None:
    """A job for which nothing was done has one line, with the reason."""
    (line,) = logged(tmp_path, Outcome(plan=plan, end=end, reason="for a reason"))
    assert {key: value for key, value in line.items() if value is not None} == {
        "event": "result",
        "end": str(end),
        "reason": "for a reason",
    }


@pytest.mark.parametrize(
    ("error", "kind", "message", "hint"),
    [
        (RenderFailed("no", hint="look"), "RenderFailed", "no", "look"),
        (QualityFailed("black"), "QualityFailed", "black", None),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError", "division by zero", None),
    ],
)
def test_a_job_that_failed(
    tmp_path: Path, plan: RenderPlan, error: Exception, kind: str, message: str, hint: str | None
) -> None:
    """A failure is a line of its own, with its kind and hint apart, before the job's result."""
    failure, result = logged(tmp_path, Outcome(plan=plan, end=End.FAILED, error=error))
    assert {key: failure[key] for key in ("event", "kind", "message", "hint")} == {
        "event": "error",
        "kind": kind,
        "message": message,
        "hint": hint,
    }
    assert (result["event"], result["end"], result["reason"]) == ("result", "failed", str(error))


def test_begin_and_end_of_a_run(tmp_path: Path, plan: RenderPlan) -> None:
    """A run begins with its jobs in order, and ends with how many ended how, and its exit code."""
    other = tiny_plan(tmp_path, "day")
    started, finished = logged(
        tmp_path,
        RunStarted(standings=tuple(Standing(plan=each, state=State.NEW) for each in (plan, other))),
        RunFinished(
            outcomes=(
                Outcome(plan=plan, end=End.DONE, result=result_of(plan)),
                Outcome(plan=other, end=End.FAILED, error=RenderFailed("no")),
                Outcome(plan=plan, end=End.DONE, result=result_of(plan)),
            ),
            seconds=2.5,
        ),
    )
    assert (started["phase"], started["jobs"], started["exit_code"]) == ("started", ["night", "day"], None)
    assert (finished["phase"], finished["jobs"], finished["seconds"]) == ("finished", None, 2.5)
    assert (finished["ends"], finished["exit_code"]) == ({"done": 2, "failed": 1}, 1)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([], 0),
        ([End.DONE, End.UP_TO_DATE, End.SKIPPED], 0),
        ([End.DONE, End.FAILED], 1),
        ([End.FAILED, End.STOPPED], 75),
        ([End.DONE, End.BUSY], 75),
    ],
)
def test_exit_codes(tmp_path: Path, plan: RenderPlan, ends: Sequence[End], code: int) -> None:
    """The end of a run tells its exit code: 0, 1 for failures, 75 where running again goes on."""
    outcomes = tuple(Outcome(plan=plan, end=end) for end in ends)
    (line,) = logged(tmp_path, RunFinished(outcomes=outcomes, seconds=0.0))
    assert (line["exit_code"], sum(line["ends"].values())) == (code, len(ends))


# -- what every line has


def test_lines_know_their_job(tmp_path: Path, plan: RenderPlan) -> None:
    """Between its first and last line a job's name is in every line, and in none after it."""
    note = Note(text="x")
    path = tmp_path / "events.jsonl"
    with EventLog(str(path)) as log:
        for event in (
            note,
            JobStarted(plan=plan, number=1, total=1),
            note,
            Outcome(plan=plan, end=End.FAILED, error=RenderFailed("no")),
            note,
            Outcome(plan=plan, end=End.UP_TO_DATE, reason="there"),
            RunFinished(outcomes=(), seconds=1.0),
        ):
            log(event)
    jobs = [line["job"] for line in lines_of(path)]
    assert jobs == [None, "night", "night", "night", "night", None, "night", None]


def test_lines_know_their_run(tmp_path: Path) -> None:
    """A log is appended to; each run's lines have its own id, the version, and a time in UTC."""
    path = tmp_path / "events.jsonl"
    before = datetime.now(UTC) - timedelta(seconds=1)
    for _ in range(2):
        with EventLog(str(path)) as log:
            log(Note(text="a"))
            log(Note(text="b"))
    lines = lines_of(path)
    runs = [line["run"] for line in lines]
    assert runs[0] == runs[1] != runs[2] == runs[3]
    assert {line["version"] for line in lines} == {1}
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert all(time.utcoffset() == timedelta(0) for time in times)
    assert before <= times[0] <= times[-1] <= datetime.now(UTC)


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    """Whoever follows the file sees each line when its event happens, not when the run ends."""
    path = tmp_path / "events.jsonl"
    with EventLog(str(path)) as log:
        for count in (1, 2):
            log(Note(text="x"))
            assert len(lines_of(path)) == count


def test_log_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """`-` writes to standard output, and leaves it open."""
    with EventLog("-") as log:
        log(Note(text="x"))
    print("after")  # noqa: T201 - to a stream that must still be open
    first, second = capsys.readouterr().out.splitlines()
    assert (json.loads(first)["text"], second) == ("x", "after")


@pytest.mark.parametrize("target", [".", "gone/events.jsonl", "start.png/events.jsonl"])
def test_logs_that_cannot_be(folder: Path, goan: Goan, target: str) -> None:
    """A log that cannot be written is told before anything is rendered."""
    write_jobs(folder / "shot.yaml", dict(MINIMAL))
    run = goan("render", "shot.yaml", "--log-json", target)
    assert run.code == EnvironmentFault.exit_code
    assert f"--log-json {target}: cannot be written" in run.err
    assert not (folder / "renders").exists()


# -- problems before anything runs


def test_problems_of_job_files(tmp_path: Path) -> None:
    """Every problem of job files is a line, with file, line, key, message and hint apart."""
    problems = [
        Problem(message="unknown key", file=Path("a.yaml"), line=3, key="jobs[0].stpes", hint="did you mean steps?"),
        Problem(message="no such file", file=Path("b.yaml")),
        Problem(message="missing"),
    ]
    path = tmp_path / "events.jsonl"
    with EventLog(str(path)) as log:
        log.problems(InvalidJobs(problems))
    told = [{key: line[key] for key in ("file", "line", "key", "message", "hint")} for line in lines_of(path)]
    assert [Problem(**{**each, "file": each["file"] and Path(each["file"])}) for each in told] == problems
    assert {(line["event"], line["kind"], line["job"]) for line in lines_of(path)} == {("error", "InvalidJobs", None)}


@pytest.mark.parametrize("error", [InvalidInput("no job", hint="try"), EnvironmentFault("no ffmpeg")])
def test_other_problems(tmp_path: Path, error: GoanError) -> None:
    """Whatever else keeps a run from beginning is a line with its kind, message and hint."""
    path = tmp_path / "events.jsonl"
    with EventLog(str(path)) as log:
        log.problems(error)
    (line,) = lines_of(path)
    assert (line["kind"], line["message"], line["hint"]) == (type(error).__name__, error.message, error.hint)


def test_problems_of_the_command(folder: Path, goan: Goan) -> None:
    """`goan render` logs the problems of its files too, as on standard error, and its exit code stays."""
    write_jobs(folder / "shot.yaml", "image: start.png\nstpes: 3\nprompt: x\nfps: 0\n")
    run = goan("render", "shot.yaml", "--log-json", "events.jsonl")
    lines = lines_of(folder / "events.jsonl")
    assert run.code == InvalidJobs.exit_code
    assert [(line["event"], line["line"], line["key"]) for line in lines] == [
        ("error", 2, "stpes"),
        ("error", 4, "fps"),
    ]
    assert len(run.err.splitlines()) == len(lines)


# -- the schema


def test_schema_of_events() -> None:
    """The schema has one closed record for each event, every one described, and is JSON."""
    schema = json.loads(json.dumps(events_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    records = [schema["$defs"][choice["$ref"].removeprefix("#/$defs/")] for choice in schema["anyOf"]]
    events = ["run", "job", "stage", "step", "section", "checkpoint", "bake", "note", "error", "result"]
    assert [record["properties"]["event"]["const"] for record in records] == events
    assert all(record["additionalProperties"] is False and record["description"] for record in records)
    assert all(set(record["properties"]) > ENVELOPE for record in records)


def test_schema_of_events_on_the_command_line(goan: Goan) -> None:
    """`goan schema --events` prints that schema, and `goan schema` the one of job files."""
    assert json.loads(goan("schema", "--events").out) == events_schema()
    assert json.loads(goan("schema").out)["title"] == "goan job file"


@pytest.mark.parametrize(
    "wrong",
    [{"text": 5}, {"event": "nothing"}, {"version": 2}, {"more": 1}, {"job": 3}, {"run": None}, {"text": None}],
)
def test_lines_that_are_none(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """A line with another version, event, key or type is not of this schema."""
    path = tmp_path / "events.jsonl"
    with EventLog(str(path)) as log:
        log(Note(text="x"))
    (line,) = lines_of(path)
    with pytest.raises(ValidationError):
        RECORDS.validate_python({**line, **wrong}, strict=True)


# -- a whole run


def test_a_run_as_lines(tmp_path: Path) -> None:
    """A run's lines follow its jobs from first to last, done, failed and up to date, each a record of the schema."""
    zero = factors(TO_Q, TINY_SQUARE)
    zero[f"{TO_Q}.lora_up.weight"].zero_()
    loras = {
        "a": write_lora(tmp_path / "a.safetensors", factors(TO_Q, TINY_SQUARE)),
        "zero": write_lora(tmp_path / "zero.safetensors", zero),
    }
    plans = [
        tiny_plan(tmp_path, "plain", sections=2),
        tiny_plan(tmp_path, "a", [(loras["a"], 1.0)]),
        tiny_plan(tmp_path, "zero", [(loras["zero"], 1.0)]),
    ]
    settings = RunSettings(device="cpu")
    render_jobs(plans[:1], settings)
    path = tmp_path / "events.jsonl"
    with EventLog(str(path)) as log:
        render_jobs(plans, settings, listener=log)
    lines = lines_of(path)
    assert [line["event"] for line in lines if line["event"] == "run"] == ["run", "run"]
    first, last = lines[0], lines[-1]
    assert (first["phase"], first["jobs"]) == ("started", ["a", "zero"])
    assert (last["phase"], last["exit_code"]) == ("finished", 1)
    assert last["ends"] == {"up to date": 1, "done": 1, "failed": 1}
    results = {line["job"]: line for line in lines if line["event"] == "result"}
    assert {name: line["end"] for name, line in results.items()} == {
        "plain": "up to date",
        "a": "done",
        "zero": "failed",
    }
    assert results["a"]["video"] == str(plans[1].job.video)
    assert results["a"]["frames"] == plans[1].job.sections.frames
    of_a = [line for line in lines if line["job"] == "a"]
    assert {line["event"] for line in of_a} >= {"job", "stage", "bake", "step", "section", "result"}
    assert [line["step"] for line in of_a if line["event"] == "step"] == [1, 2]
    opened = [line["stage"] for line in of_a if line["event"] == "stage" and line["phase"] == "started"]
    closed = [line["stage"] for line in of_a if line["event"] == "stage" and line["phase"] == "finished"]
    assert sorted(opened) == sorted(closed)
    (failure,) = [line for line in lines if line["event"] == "error"]
    assert (failure["job"], failure["kind"]) == ("zero", "LoraRefused")


@pytest.mark.parametrize("change", [math.inf, math.nan])
def test_bake_of_zero_weights(tmp_path: Path, change: float) -> None:
    """A ratio that is no finite number is null, as JSON has no other word for it."""
    report = BakeReport(
        recipe="r", files=(), parameters=(), relative_change=change, moved=0.5, dtype="float32", seconds=0.1
    )
    with EventLog(str(tmp_path / "log")) as log:
        log(Baked(report=report))
    assert json.loads((tmp_path / "log").read_text())["relative_change"] is None


def test_folder_that_is_not_utf8(tmp_path: Path) -> None:
    """Bytes of a folder's name that are no text are shown as such, and the line is there."""
    odd = tmp_path / os.fsdecode(b"b\xff")
    odd.mkdir()
    with EventLog(str(tmp_path / "log")) as log:
        log(JobStarted(plan=tiny_plan(odd), number=1, total=1))
    assert "b\ufffd" in json.loads((tmp_path / "log").read_text(encoding="utf-8"))["video"]


def test_a_log_that_cannot_be_written_any_more(plan: RenderPlan, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk ends the log with a warning, and no render."""
    with EventLog("/dev/full") as log:
        for _ in range(3):
            log(JobStarted(plan=plan, number=1, total=1))
    assert capsys.readouterr().err.count("warning: --log-json ends here") == 1
