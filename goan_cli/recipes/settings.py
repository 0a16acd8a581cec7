"""Settings as sidecars and videos record them, every key resolved, and the short job that comes to the same."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from goan_cli.checking import checked
from goan_cli.documents import Document
from goan_cli.errors import InvalidJobs
from goan_cli.jobs.job import ModelDefaults, StepCacheKind
from goan_cli.jobs.load import request_from_settings
from goan_cli.jobs.resolve import DEFAULT_THRESHOLDS, resolve_job
from goan_cli.jobs.schema import GuidanceScheduleSpec, JobSpec, LoraSpec, OneFrameSpec, VideoSpec
from goan_cli.jobs.sections import Family
from goan_cli.output.sidecar import settings_of

# What a model or a picture decides where a job is silent: always said.
_SAID = frozenset({"name", "model", "image", "start", "prompt", "sections", "seed", "steps", "window", "size"})


def short_job(settings: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """The keys that differ from the defaults, in the order of the schema. `file` is where the settings stand.

    Raises InvalidJobs for settings that are no job of this goan.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    result = checked(JobSpec, given, Document(data=given, file=file))
    if result.problems:
        raise InvalidJobs(result.problems)
    usual = _usual()
    job = {}
    for key in JobSpec.model_fields:
        value = _short(key, given.get(key), usual.get(key))
        if value is not None and (key in _SAID or value != usual.get(key)):
            job[key] = value
    return job


@cache
def _usual() -> Mapping[str, Any]:
    """The settings of a job that leaves everything open."""
    silent = {"start": "black", "prompt": "", "sections": 1, "seed": 0}
    (request,), _ = request_from_settings(Document(data=silent, file=None), name="silent")
    defaults = ModelDefaults(family=Family.INVERTED, window=1, steps=1, resolution=64)
    job, problems = resolve_job(request, defaults)
    if job is None:
        raise InvalidJobs(problems)
    return settings_of(job)


def _short(key: str, value: Any, usual: Any) -> Any:  # noqa: ANN401 - JSON
    """A value without what it need not say; None for nothing left."""
    if value is None:
        return None
    if key in _SHORTER:
        return _SHORTER[key](value) or None
    if isinstance(value, dict) and isinstance(usual, dict):
        return {each: inner for each, inner in value.items() if inner is not None and inner != usual.get(each)} or None
    return value


def _short_cache(value: Any) -> Any:  # noqa: ANN401 - JSON
    usual = {str(kind): {"kind": str(kind), "threshold": threshold} for kind, threshold in DEFAULT_THRESHOLDS.items()}
    kind = value.get("kind", StepCacheKind.TEACACHE) if isinstance(value, dict) else value
    return kind if value == usual.get(str(kind)) else value


def _short_moment(moment: Mapping[str, Any]) -> dict[str, Any]:
    loras = moment.get("loras")
    return {**moment, **({} if loras is None else {"loras": [_or_path(lora, LoraSpec) for lora in loras]})}


def _or_path(value: Any, model: type[BaseModel]) -> Any:  # noqa: ANN401 - JSON
    """The keys that say something, or the path alone where no other does."""
    short = without_defaults(value, model) if isinstance(value, dict) else value
    return short["path"] if isinstance(short, dict) and short.keys() == {"path"} else short


def without_defaults(value: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """The keys that are not as the model has them anyway."""
    usual = {key: field.get_default(call_default_factory=True) for key, field in model.model_fields.items()}
    return {key: inner for key, inner in value.items() if model.model_fields[key].is_required() or inner != usual[key]}


# Values of a form of their own -> how they are said shorter.
_SHORTER: Mapping[str, Callable[[Any], Any]] = {
    "step_cache": _short_cache,
    "video": lambda video: _or_path(video, VideoSpec),
    "one_frame": lambda one: without_defaults(one, OneFrameSpec),
    "loras": lambda loras: [_or_path(lora, LoraSpec) for lora in loras],
    "timeline": lambda moments: [_short_moment(moment) for moment in moments],
    "guidance_schedule": lambda schedule: without_defaults(schedule, GuidanceScheduleSpec),
    "end_strength": lambda strength: None if strength == 1 else strength,
}


def relative(path: str, folder: Path) -> str:
    """The path as seen from a folder, where they have more than the root in common; absolute otherwise."""
    absolute = Path(path).absolute()
    try:
        seen = os.path.relpath(absolute, folder)
        common = Path(os.path.commonpath([absolute, folder]))
        # `..` leaves a linked folder to elsewhere than it was come in from.
        same = os.path.realpath(folder / seen) == os.path.realpath(absolute)
    except (ValueError, OSError):  # on another drive, or no path at all
        return str(absolute)
    # A leading `~` would be read as a home folder.
    return seen if same and common != Path(common.anchor) and not seen.startswith("~") else str(absolute)
