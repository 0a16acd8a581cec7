"""What a command line sets inside of what jobs say, by keys with dots: laid over a job when its layers are merged."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from goan_cli.checking import checked
from goan_cli.documents import Data, Document, KeyPath
from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.keys import key_parts, put
from goan_cli.jobs.schema import JobSpec


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A setting that leads nowhere in a job: its path, and what is there instead."""

    path: KeyPath
    message: str


@dataclass(frozen=True, kw_only=True)
class Reached:
    """A job's keys with the settings in their places, which `places` are, counted from the start of each list.

    A key of which something is wrong is in `flawed`, and left as it was.
    """

    spec: JobSpec
    places: tuple[KeyPath, ...] = ()
    misses: tuple[Miss, ...] = ()
    problems: tuple[Problem, ...] = ()
    flawed: frozenset[str] = field(default_factory=frozenset)


def whole_and_inside(settings: Document) -> tuple[Document, Mapping[str, Data]]:
    """Settings of whole keys, and those whose key has dots, in their order."""
    if not isinstance(settings.data, dict):
        return settings, {}
    inside = {key: value for key, value in settings.data.items() if "." in key}
    return replace(settings, data={key: settings.data[key] for key in settings.data if key not in inside}), inside


def reach_inside(spec: JobSpec, inside: Mapping[str, Data], settings: Document, *, flawed: frozenset[str]) -> Reached:
    """Set `inside` of what a job says after all its layers; keys that are `flawed` already are left alone.

    All settings of one key are checked together, so that several can give what it needs.
    """
    places: list[KeyPath] = []
    misses: list[Miss] = []
    problems: list[Problem] = []
    wrong: set[str] = set()
    update: dict[str, Data] = {}
    paths = {key: key_parts(key, from_end=True) for key in inside}
    for first in dict.fromkeys(str(path[0]) for path in paths.values()):
        if first in flawed and first in JobSpec.model_fields:
            continue
        data: dict[str, Data] = spec.model_dump(include={first}, exclude_unset=True)
        missed = len(misses)
        for key, path in paths.items():
            if path[0] != first:
                continue
            try:
                places.append(put(data, path, inside[key]))
            except InvalidInput as error:
                misses.append(Miss(path=path, message=error.message))
        result = checked(JobSpec, data, settings)
        problems += result.problems
        if result.problems or len(misses) > missed:
            wrong |= {first, *result.flawed}
        elif result.model is not None:
            update[first] = getattr(result.model, first)
    return Reached(
        spec=spec.model_copy(update=update),
        places=tuple(places),
        misses=tuple(misses),
        problems=tuple(problems),
        flawed=frozenset(wrong),
    )
