"""What the engine tells while it works. Typed events; whoever listens decides how to show them. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goan_cli.lora.report import BakeReport


class Stage(StrEnum):
    """The stages of a job, in order."""

    LOAD = "load"
    ENCODE = "encode"
    BAKE = "bake"
    SAMPLE = "sample"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """A stage begins."""

    stage: Stage


@dataclass(frozen=True, kw_only=True)
class StageFinished:
    """A stage is over, after `seconds`."""

    stage: Stage
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something the user should know, and no failure."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Baked:
    """LoRAs are in the weights; the report says what changed."""

    report: BakeReport


@dataclass(frozen=True, kw_only=True)
class StepFinished:
    """One sampler step of one section; numbers from 1."""

    section: int
    sections: int
    step: int
    steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SectionFinished:
    """One section is sampled; `preview` is a strip of rough frames `(h, w, 3)` when previews are wanted."""

    section: int
    sections: int
    seconds: float
    computed_steps: int
    preview: NDArray[np.uint8] | None


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten:
    """Sampling can go on from here after any interruption: so many sections, and steps of the next one, are done."""

    sections: int
    total: int
    steps: int
    path: Path


Event = StageStarted | StageFinished | Note | Baked | StepFinished | SectionFinished | CheckpointWritten
Listener = Callable[[Event], None]


def ignore(_: Event) -> None:
    """The listener for those who do not care."""
