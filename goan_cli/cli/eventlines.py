"""The lines of a run's JSON log: what each event says, and the schema of them all."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter


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
    schema = TypeAdapter(AnyLine).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "goan event", **schema}
