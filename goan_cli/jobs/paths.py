"""Where a job names files and folders: the one table of it, and how all of them are changed."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel

from goan_cli.jobs.schema import JobSpec

Place = tuple[str, ...]
_Job = TypeVar("_Job", JobSpec, dict[str, Any])

# `*` is every entry of a list.
PATHS: tuple[Place, ...] = (
    ("image",),
    ("video", "path"),
    ("end_image",),
    ("one_frame", "controls", "*", "image"),
    ("timeline", "*", "image"),
    ("timeline", "*", "loras", "*", "path"),
    ("loras", "*", "path"),
    ("post", "upscale"),
    ("output", "dir"),
)


def looks_like_path(model: str) -> bool:
    """Whether `model` names a folder or manifest rather than a known pack."""
    return "/" in model or "\\" in model or model.startswith(".") or model.endswith((".yaml", ".yml"))


def is_preset_file(preset: str) -> bool:
    """Whether `preset` names a file rather than one of goan's own."""
    return preset.endswith((".yaml", ".yml"))


# Where a path may stand, or the name of something that goan knows -> whether a text there is the path.
PATHS_OR_NAMES: Mapping[Place, Callable[[str], bool]] = MappingProxyType(
    {("model",): looks_like_path, ("preset",): is_preset_file}
)


def with_paths(job: _Job, change: Callable[[str], str]) -> _Job:
    """The job, of keys as a file has them or checked, with every path that it names changed."""
    for place in PATHS:
        job = _changed(job, place, change)
    for place, is_path in PATHS_OR_NAMES.items():
        job = _changed(job, place, _still_a_path(change, is_path))
    return job


def _still_a_path(change: Callable[[str], str], is_path: Callable[[str], bool]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        if not is_path(text):
            return text
        path = change(text)
        return path if is_path(path) else f"./{path}"

    return changed


def paths_at(job: JobSpec | Mapping[str, Any], place: Place) -> list[str]:
    """The paths at a place of the tables."""
    found: list[str] = []

    def noted(text: str) -> str:
        found.append(text)
        return text

    _changed(job, place, noted)
    is_path = PATHS_OR_NAMES.get(place)
    return [text for text in found if is_path is None or is_path(text)]


def _changed(value: Any, place: Sequence[str], change: Callable[[str], str]) -> Any:  # noqa: ANN401 - JSON or models
    """A copy with the texts at a place changed."""
    if not place or (place == ("path",) and isinstance(value, str)):  # a bare path stands for a LoRA or a video
        return change(value) if isinstance(value, str) else value
    key, *rest = place
    if key == "*" and isinstance(value, list):
        return [_changed(each, tuple(rest), change) for each in value]
    if isinstance(value, BaseModel) and (inner := getattr(value, key)) is not None:
        return value.model_copy(update={key: _changed(inner, tuple(rest), change)})
    if isinstance(value, dict) and key in value:
        return {**value, key: _changed(value[key], tuple(rest), change)}
    return value
