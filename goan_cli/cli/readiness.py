"""What each pack would do on this machine: whether it is complete, and the memory plan of a usual job. For `doctor`."""

import math
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from goan_cli.errors import EnvironmentFault, GoanError
from goan_cli.model.checkpoint import read_checkpoint
from goan_cli.packs.find import Survey, pack_of, survey_pack
from goan_cli.packs.manifest import SHIPPED, own_packs
from goan_cli.render.memory import automatic_budget, describe, gigabytes

if TYPE_CHECKING:
    from goan_cli.packs.pack import Pack
    from goan_cli.render.memory import MemoryPlan

# What odd files of a user's own make the code meet that plans with them: a line of the report, never its end.
_ODD = (GoanError, OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a render would use: `precision` as a memory plan names it, and bytes that are free.

    `device` is None for a CPU; `main` is None where the system does not tell. `encoder_value` are the bytes of a
    value of encoders that come onto the device as wholes, None where they do not.
    """

    precision: str
    device: int | None
    main: int | None
    encoder_value: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The memory plan of a usual job, in a line and in bytes, if there is one.

    `note` says what may not fit, `problem` what does not.
    """

    memory: str | None = None
    device_bytes: int | None = None
    main_bytes: int | None = None
    resident_blocks: int | None = None
    blocks: int | None = None
    note: str | None = None
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """One pack. `where` says where its parts are; `problem` what is wrong or missing.

    `command` gets what is missing: `download` bytes.
    """

    model: str
    family: str | None = None
    complete: bool = False
    where: str | None = None
    problem: str | None = None
    command: str | None = None
    download: int = 0
    outlook: Outlook | None = None

    @property
    def can_render(self) -> bool:
        """Whether it is complete and a usual job fits."""
        return self.complete and self.outlook is not None and self.outlook.problem is None


def pack_names() -> list[str]:
    """Every shipped pack, and the user's own."""
    return list(dict.fromkeys([*SHIPPED, *own_packs()]))


def readiness(model: str, target: Target | None) -> Readiness:
    """How one pack stands, without a memory plan where there is no target. Raises nothing for what is wrong with it."""
    try:
        survey = survey_pack(model)
    except _ODD as error:
        return Readiness(model=model, problem=_said(error))
    family = survey.manifest.family
    if not survey.complete:
        command = f"goan models pull {shlex.quote(model)}" if survey.to_download else None
        problem, download = _missing(survey), survey.to_download
        return Readiness(model=model, family=family, problem=problem, command=command, download=download)
    try:
        outlook = None if target is None else outlook_of(pack_of(survey), target)
    except _ODD as error:
        return Readiness(model=model, family=family, problem=f"complete, but {_said(error)}")
    return Readiness(model=model, family=family, complete=True, where=_where(survey), outlook=outlook)


def _missing(survey: Survey) -> str:
    """Which parts are nowhere, and what is wrong with the others."""
    nowhere = [part.part for part in survey.missing if part.path is None]
    if len(nowhere) == len(survey.parts):
        return "not on this machine"
    found = [f"{', '.join(nowhere)} not found"] if nowhere else []
    return "; ".join([*found, *(str(part.problem) for part in survey.missing if part.path is not None)])


def _where(survey: Survey) -> str:
    """The manifest's folder for parts that it names, and else the kinds of places."""
    named = any(part.place == "manifest" for part in survey.parts)
    places = dict.fromkeys(part.place for part in survey.parts if part.place != "manifest")
    return ", ".join([*([str(survey.manifest.file.parent)] if named else []), *places])


def outlook_of(pack: "Pack", target: Target) -> Outlook:
    """The memory plan of a job that sets nothing, and whether the machine has so much.

    Raises GoanError for files of the pack that cannot be read.
    """
    from goan_cli.render.budget import usual_memory

    if target.device is None:
        plan = usual_memory(pack, precision=target.precision, budget=None)
        needed = plan.weights + plan.conditioning + plan.work
        return _outlook(plan, device=0, main=needed, target=target)
    try:
        plan = usual_memory(pack, precision=target.precision, budget=automatic_budget(target.device))
    except EnvironmentFault as error:  # not even with every block streamed
        return Outlook(problem=str(error).removeprefix("memory: "))
    found = _outlook(plan, device=plan.total, main=plan.pinned + plan.conditioning, target=target)
    return replace(found, note=_encoder_note(pack, target.device, target.encoder_value))


def _encoder_note(pack: "Pack", free: int, value: int | None) -> str | None:
    """On a text encoder that comes before sampling, and is not streamed by what is free but by what there is."""
    if value is None:
        return None
    needed = sum(math.prod(shape) for shape in read_checkpoint(pack.text_encoder).shapes.values()) * value
    if needed <= free:
        return None
    return f"the text encoder takes about {gigabytes(needed)} of the device, {gigabytes(free)} are free"


def _outlook(plan: "MemoryPlan", *, device: int, main: int, target: Target) -> Outlook:
    problem = None
    if target.main is not None and main > target.main:
        problem = f"needs {gigabytes(main)} of main memory, {gigabytes(target.main)} are free"
    return Outlook(
        memory=describe(plan),
        device_bytes=device,
        main_bytes=main,
        resident_blocks=plan.resident.count(True),
        blocks=len(plan.resident),
        problem=problem,
    )


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, GoanError | OSError) else f"{type(error).__name__}: {error}"
