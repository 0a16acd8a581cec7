"""Every failure that a user can cause or meet, with its exit code and a hint.

Raised anywhere; only `goan_cli.cli` turns one into a message and an exit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class GoanError(Exception):
    """A failure with one clear message, an optional hint, and the exit code of its kind."""

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RenderFailed(GoanError):
    """A job was valid and started, and could not be finished."""

    exit_code = 1


class QualityFailed(RenderFailed):
    """What was rendered did not pass a gate of its job."""


class Interrupted(GoanError):
    """Work was stopped by a signal or a deadline, and can be gone on with: run again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class InvalidInput(GoanError):
    """Something that the user gave cannot be used: a file, a key, a value."""

    exit_code = 2


class OtherFormat(InvalidInput):
    """Weights in a format that goan does not read, such as GGUF or a torch pickle."""


class LoraRefused(InvalidInput):
    """A LoRA file that cannot be applied as it is, with the reason."""


class EnvironmentFault(GoanError):
    """The machine lacks what was asked for: a device, memory, a program, a permission."""

    exit_code = 3


class MissingModel(EnvironmentFault):
    """Parts of a model are nowhere on this machine; the hint has the command that gets them."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing wrong with the input, and where: `file:line: key: message (hint)`.

    `environment` is for what the machine lacks: the input is right.
    """

    message: str
    file: Path | None = None
    line: int | None = None
    key: str | None = None
    hint: str | None = None
    environment: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else str(self.file or "")
        parts = [part for part in (place, self.key) if part]
        return ": ".join([*parts, self.message]) + (f" ({self.hint})" if self.hint else "")


class InvalidJobs(InvalidInput):
    """All the problems of the given job files at once; where the machine alone is to blame, an environment's code."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        # In the order of the files, each problem once.
        order = {problem.file: number for number, problem in reversed(list(enumerate(problems)))}
        self.problems = tuple(
            sorted(dict.fromkeys(problems), key=lambda problem: (order[problem.file], problem.line or 0))
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))
        if self.problems and all(problem.environment for problem in self.problems):
            self.exit_code = EnvironmentFault.exit_code
