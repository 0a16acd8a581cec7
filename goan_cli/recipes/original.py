"""The keys of the original goan, and what they are here: a table, and what is said of the rest.

Source of the keys: the original's recipes, as JSON in a PNG's `parameters` and in `queue_state.json`; the names of
FramePack's own demo, which some files have, stand beside them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goan_cli.checking import checked, shown
from goan_cli.documents import Document
from goan_cli.jobs.schema import JobSpec
from goan_cli.recipes.settings import short_job

DEFAULT_MODEL = "framepack-i2v"
# The original's slider stands here until it is moved.
DEFAULT_LORA_WEIGHT = 0.8

_LARGEST = 2**63
_LONGEST_KEY = 60
_LENGTH = (
    "the original counts 33 frames to a section of 36, so its videos were up to a tenth longer than asked for; "
    "here the length is the one asked for, to the nearest section"
)
_NO_COUNTERPART = "has no counterpart here"


class _Unfit(Exception):
    """A value that cannot be taken over, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Turned:
    """What a value of the original's comes to: goan's keys (dots reach inside), and what is to be said of it."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One key of the original's: its kind, and what its values become."""

    key: str
    kind: Callable[[object], Any]
    turn: Callable[[Any], Turned]


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One job in goan's keys, and a line on everything that is not the same."""

    job: Mapping[str, Any]
    notes: Sequence[str]


def number(value: object) -> float:
    """A finite number. Raises _Unfit."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Unfit(f"must be a number, not {shown(value)}")
    if abs(value) > _LARGEST or not math.isfinite(value):
        raise _Unfit(f"must be a number in reach, not {shown(value)}")
    return value


def whole(value: object) -> int:
    """A whole number, with or without a point. Raises _Unfit."""
    found = number(value)
    if found != int(found):
        raise _Unfit(f"must be a whole number, not {shown(value)}")
    return int(found)


def percentage(value: object) -> float:
    """A number from 0 to 100. Raises _Unfit."""
    found = number(value)
    if not 0 <= found <= 100:
        raise _Unfit(f"must be a percentage, not {shown(value)}")
    return found


def x264_crf(value: object) -> int:
    """A whole number from 0 to 51. Raises _Unfit."""
    found = whole(value)
    if not 0 <= found <= 51:
        raise _Unfit(f"must be from 0 to 51, not {shown(value)}")
    return found


def text(value: object) -> str:
    """Text. Raises _Unfit."""
    if not isinstance(value, str):
        raise _Unfit(f"must be text, not {shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Unfit("holds half characters, which no file can") from None
    return value


def truth(value: object) -> bool:
    """True or false. Raises _Unfit."""
    if not isinstance(value, bool):
        raise _Unfit(f"must be true or false, not {shown(value)}")
    return value


def shape(value: object) -> str | None:
    """A guidance schedule's shape, None for off; older files have true for linear. Raises _Unfit."""
    word = {True: "linear", False: "off"}[value] if isinstance(value, bool) else text(value).strip().lower()
    if word not in ("off", "linear", "roll-off"):
        raise _Unfit(f"must be Off, Linear or Roll-off, not {shown(value)}")
    return None if word == "off" else word


def anything(value: object) -> object:
    """Whatever it is."""
    return value


def loras(value: object) -> list[dict[str, Any]]:
    """LoRAs with weights: a list of paths, of [path, weight], or of keys; or path to weight. Raises _Unfit."""
    if isinstance(value, Mapping):
        value = [
            {"path": path, **(each if isinstance(each, Mapping) else {"weight": each})} for path, each in value.items()
        ]
    if not isinstance(value, list):
        raise _Unfit(f"must be a list, not {shown(value)}")
    return [_lora(each) for each in value]


def _lora(value: object) -> dict[str, Any]:
    if isinstance(value, list) and len(value) == 2:
        value = {"path": value[0], "weight": value[1]}
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping):
        raise _Unfit(f"must be LoRAs with weights, not {shown(value)}")
    path = next((value[key] for key in ("path", "file", "filename", "name") if key in value), None)
    weight = next((value[key] for key in ("weight", "strength", "scale") if key in value), DEFAULT_LORA_WEIGHT)
    name = text(path)
    if not name.strip():
        raise _Unfit("must have a path for each LoRA")
    return {"path": name if "." in Path(name).name else f"{name}.safetensors", "weight": number(weight)}


def _as(key: str) -> Callable[[Any], Turned]:
    return lambda value: Turned(keys={key: value})


def _unless(nothing: object, key: str) -> Callable[[Any], Turned]:
    """Left out where it says nothing."""
    return lambda value: Turned() if value == nothing else Turned(keys={key: value})


def _crf(value: int) -> Turned:
    note = "0, lossless, becomes 1: nearly so, and every player shows it" if value == 0 else None
    return Turned(keys={"output.crf": value or 1}, note=note)


def _start_at(percent: float) -> Turned:
    if percent == 100:
        return Turned(
            keys={"guidance_schedule.start_at": 0.99}, note="100 becomes 99: only the last section is changed"
        )
    return Turned(keys={"guidance_schedule.start_at": percent / 100})


def _step_cache(used: bool) -> Turned:
    return Turned(keys={"step_cache": "teacache"} if used else {})


def _fp32_output(used: bool) -> Turned:
    return Turned(note=None if used else "always so here")


def _nothing(why: str) -> Callable[[Any], Turned]:
    return lambda _: Turned(note=f"{_NO_COUNTERPART}: {why}")


ROWS: tuple[Row, ...] = (
    Row(key="prompt", kind=text, turn=_as("prompt")),
    Row(key="negative_prompt", kind=text, turn=_unless("", "negative_prompt")),
    Row(key="n_prompt", kind=text, turn=_unless("", "negative_prompt")),
    Row(key="video_length", kind=number, turn=lambda value: Turned(keys={"seconds": value}, note=_LENGTH)),
    Row(key="total_second_length", kind=number, turn=lambda value: Turned(keys={"seconds": value}, note=_LENGTH)),
    Row(key="seed", kind=whole, turn=_unless(-1, "seed")),
    Row(key="fps", kind=number, turn=_as("fps")),
    Row(key="steps", kind=whole, turn=_as("steps")),
    Row(key="latent_window_size", kind=whole, turn=_as("window")),
    Row(key="distilled_cfg_start", kind=number, turn=_as("guidance_scale")),
    Row(key="gs", kind=number, turn=_as("guidance_scale")),
    Row(key="distilled_cfg_end", kind=number, turn=_as("guidance_schedule.end")),
    Row(key="variable_cfg_shape", kind=shape, turn=_as("guidance_schedule.shape")),
    Row(key="gs_schedule_shape", kind=shape, turn=_as("guidance_schedule.shape")),
    Row(key="roll_off_start", kind=percentage, turn=_start_at),
    Row(key="roll_off_factor", kind=number, turn=_as("guidance_schedule.curve")),
    Row(key="real_cfg", kind=number, turn=_as("true_cfg_scale")),
    Row(key="cfg", kind=number, turn=_as("true_cfg_scale")),
    Row(key="guidance_rescale", kind=number, turn=_as("guidance_rescale")),
    Row(key="rs", kind=number, turn=_as("guidance_rescale")),
    Row(key="use_teacache", kind=truth, turn=_step_cache),
    Row(key="use_fp32_transformer_output", kind=truth, turn=_fp32_output),
    Row(key="mp4_crf", kind=x264_crf, turn=_crf),
    Row(key="loras", kind=loras, turn=_unless([], "loras")),
    Row(key="lora_controls", kind=loras, turn=_unless([], "loras")),
    Row(key="gpu_memory_preservation", kind=anything, turn=_nothing("memory is planned by what is free")),
    Row(key="output_folder", kind=anything, turn=_nothing("results go to renders/ beside the job file")),
    Row(key="preview_frequency", kind=anything, turn=_nothing("output.keep: preview keeps one of each section")),
    Row(
        key="preview_specified_segments", kind=anything, turn=_nothing("output.keep: preview keeps one of each section")
    ),
)
_TABLE: Mapping[str, Row] = {row.key: row for row in ROWS}
# Where files of the original have the start image's name, whose own content is not in the recipe.
IMAGE_KEYS = ("image_ref", "input_image", "image", "image_path", "image_file", "image_filename")


def is_original(params: Mapping[str, Any]) -> bool:
    """Whether any key is one of the original's."""
    return any(key in _TABLE for key in params)


def converted(params: Mapping[str, Any]) -> Converted:
    """One recipe of the original's as a job without its image; whatever cannot be taken over is a note."""
    keys: dict[str, Any] = {}
    origins: dict[str, str] = {}
    notes: list[str] = []
    for key, value in params.items():
        row = _TABLE.get(key)
        if key in IMAGE_KEYS or value is None:
            continue
        if row is None:
            notes.append(f"{key_shown(key)}: unknown key, left out")
            continue
        try:
            turned = row.turn(row.kind(value))
            _refuse_unusable(turned.keys)
        except _Unfit as error:
            notes.append(f"{key}: {error}; left out")
            continue
        notes += [f"{key}: {turned.note}"] if turned.note else []
        for name, given in turned.keys.items():
            if name in keys and keys[name] != given:
                notes.append(f"{key}: {origins[name]} says otherwise; left out")
                continue
            keys[name], origins[name] = given, key
    job: dict[str, Any] = {}
    for name, given in keys.items():
        _set(job, name, given)
    notes += _schedule(job)
    notes += ["prompt: missing; write what should happen into the job"] if "prompt" not in job else []
    return Converted(job=short_job(job, None), notes=tuple(notes))


def _set(job: dict[str, Any], name: str, value: Any) -> None:  # noqa: ANN401 - JSON
    outer, _, inner = name.partition(".")
    if inner:
        job.setdefault(outer, {})[inner] = value
    else:
        job[outer] = value


def _refuse_unusable(keys: Mapping[str, Any]) -> None:
    """Raise _Unfit for a value that a job of goan cannot have."""
    for name, value in keys.items():
        job: dict[str, Any] = {}
        if name.startswith("guidance_schedule."):
            if value is None:
                continue
            job["guidance_schedule"] = {"end": 0}
        _set(job, name, value)
        problems = checked(JobSpec, job, Document(data=job, file=None)).problems
        if problems:
            raise _Unfit(problems[0].message)


def _schedule(job: dict[str, Any]) -> Iterable[str]:
    """Leave of the schedule's keys what its shape uses, and say what is lacking."""
    given = job.pop("guidance_schedule", {})
    used = {None: (), "linear": ("shape", "end"), "roll-off": ("shape", "end", "start_at", "curve")}[given.get("shape")]
    schedule = {key: given[key] for key in used if key in given}
    if not schedule:
        return []
    if "end" not in schedule:
        return ["distilled_cfg_end: missing, so the guidance stays the same throughout"]
    job["guidance_schedule"] = schedule
    return []


def key_shown(key: str) -> str:
    """A key of a file for a message: printable, and not long."""
    short = key if len(key) <= _LONGEST_KEY else f"{key[:_LONGEST_KEY]}…"
    return short if short.isprintable() else repr(short)
