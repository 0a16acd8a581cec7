"""Job files and command-line settings become job requests: layers merged, every problem kept.

Precedence, weakest first: preset, the file's `defaults`, the job, the command line. Paths are made absolute
in the layer that names them, so that each is relative to the file it stands in. What a command line sets inside
of a key (`loras.0.weight`) is no layer: it is set in what all of them come to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from goan_cli.checking import checked, nearest
from goan_cli.documents import Data, Document, KeyPath, parse_document, read_document
from goan_cli.errors import GoanError, InvalidInput, InvalidJobs, Problem
from goan_cli.files import is_folder
from goan_cli.jobs.expand import Expanded, expanded
from goan_cli.jobs.job import Variant
from goan_cli.jobs.keys import key_parts
from goan_cli.jobs.paths import with_paths
from goan_cli.jobs.presets import read_preset
from goan_cli.jobs.reach import reach_inside, whole_and_inside
from goan_cli.jobs.schema import RIVALS, BatchSpec, GatesSpec, JobEntry, JobSpec, OutputSpec, PostSpec

# What a layer says of these is laid over what weaker ones do, key by key.
_Merged = OutputSpec | GatesSpec | PostSpec
_AGAINST = "goes against images or a matrix of a job; all its jobs would have this one value"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a key was given. Of lists that wrong entries were taken out of, `kept` says which ones are left.

    `made_up` are the places of values that stand in for wrong ones, by the entries as they were written.
    """

    document: Document
    path: KeyPath
    kept: Mapping[KeyPath, tuple[int, ...]] = field(default_factory=dict)
    made_up: frozenset[KeyPath] = frozenset()

    def problem(self, key: KeyPath, message: str, *, hint: str | None = None) -> Problem:
        """A problem at `key` below this place."""
        return self.document.problem((*self.path, *self.written(key)), message, hint=hint)

    def written(self, key: KeyPath) -> KeyPath:
        """`key` with the entries' numbers as they were written."""
        path: KeyPath = ()
        for part in key:
            path = (*path, self.kept[path][part] if isinstance(part, int) and path in self.kept else part)
        return path


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """One job as asked for: the merged keys, where each came from, and which were already found wrong.

    `reached` are the places inside of keys that the command line set, and `problems` what is wrong with those settings
    in this job: told when it is resolved, so that a job that was not chosen does not stop others.
    """

    spec: JobSpec
    origin: Origin
    origins: Mapping[str, Origin]
    flawed: frozenset[str]
    default_name: str  # `{seed}` in it stands for the job's seed
    default_dir: Path
    variant: Variant | None = None
    reached: Mapping[KeyPath, Origin] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """What the result will be called."""
        return self.spec.name or self.default_name

    def problem(self, key: KeyPath, message: str, *, hint: str | None = None) -> Problem:
        """A problem at `key`, placed where that key was given, else at the job itself."""
        for length in range(len(key), 1, -1):
            if (setting := self.reached.get(key[:length])) is not None:
                return setting.problem(key, message, hint=hint)
        return self.origins.get(str(key[0]), self.origin).problem(key, message, hint=hint)

    def is_made_up(self, key: KeyPath) -> bool:
        """Whether a value only stands in for a wrong one, of which that has been said."""
        origin = self.origins.get(str(key[0]))
        return origin is not None and origin.written(key) in origin.made_up


@dataclass(frozen=True, kw_only=True)
class _Layer:
    spec: JobSpec
    origin: Origin
    flawed: frozenset[str] = frozenset()


def load_requests(files: Sequence[Path], overrides: Document | None = None) -> tuple[list[JobRequest], list[Problem]]:
    """All jobs of the files, with `overrides` (see `settings_document`) on top, and all problems of them."""
    requests: list[JobRequest] = []
    found, problems = job_files(files)
    for file in found:
        try:
            document = read_document(file)
        except InvalidJobs as error:
            problems += error.problems
        else:
            those, wrong = _requests_of(document, overrides)
            requests += those
            problems += wrong
    return requests, problems


def job_files(paths: Sequence[Path]) -> tuple[list[Path], list[Problem]]:
    """Files as they are, and of folders the YAML files in them, by name; a folder without any is a problem."""
    files: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        if not is_folder(path):
            files.append(path)
            continue
        try:
            inside = sorted(
                file
                for file in path.iterdir()
                if file.suffix.lower() in (".yaml", ".yml") and not file.name.startswith(".")
            )
        except OSError as error:
            problems.append(Problem(file=path, message=f"cannot be read: {error.strerror or error}"))
            continue
        if not inside:
            problems.append(Problem(file=path, message="no job files in this folder", hint="they end with .yaml"))
        files += inside
    return files, problems


def selected(requests: Sequence[JobRequest], patterns: Sequence[str]) -> list[JobRequest]:
    """The jobs whose name matches a pattern such as `night-*`. Raises InvalidInput when a pattern matches none."""
    chosen: set[int] = set()
    for pattern in patterns:
        matching = {index for index, request in enumerate(requests) if fnmatchcase(request.name, pattern)}
        if not matching:
            raise InvalidInput(f"--jobs {pattern}: no job has such a name", hint=nearest(pattern, _names(requests)))
        chosen |= matching
    return [request for index, request in enumerate(requests) if index in chosen or not patterns]


def _names(requests: Sequence[JobRequest]) -> list[str]:
    return list(dict.fromkeys(request.name for request in requests))


def request_from_settings(settings: Document, *, name: str) -> tuple[list[JobRequest], list[Problem]]:
    """One job given on the command line alone; paths are relative to the current folder."""
    whole, inside = whole_and_inside(settings)
    layer, problems = _layer(JobSpec, whole.data, whole, (), Path.cwd())
    request, more = _merged([layer], default_name=name, base=Path.cwd())
    return [_with_settings(request, inside, layer.origin)], problems + more


def settings_document(pairs: Sequence[str], extra: Mapping[str, Data]) -> Document:
    """`key=value` settings of a command line (values are YAML) and ready keys, the last one of a key.

    Keys with dots, which reach inside, stay as they are. Raises InvalidInput for a setting without `=`.
    """
    data: dict[str, Data] = dict(extra)
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            raise InvalidInput(f"--set {pair}: expected key=value", hint="for example --set steps=20")
        # What was set before at this place or inside of it is undone.
        data = {other: value for other, value in data.items() if other != key and not other.startswith(f"{key}.")}
        data[key] = parse_document(text, file=Path(f"--set {key}")).data
    return Document(data=data, file=Path("command line"))


def _requests_of(document: Document, overrides: Document | None) -> tuple[list[JobRequest], list[Problem]]:
    file = document.file or Path("jobs")
    base = file.absolute().parent
    problems: list[Problem] = []
    top = _Layer(spec=JobSpec(), origin=Origin(document=document, path=()))
    inside: Mapping[str, Data] = {}
    if overrides is not None:
        whole, inside = whole_and_inside(overrides)
        top, problems = _layer(JobSpec, whole.data, whole, (), Path.cwd())

    if isinstance(document.data, dict) and "jobs" in document.data:
        batch = checked(BatchSpec, document.data, document)
        problems += batch.problems
        if batch.model is None:
            return [], problems
        entries: list[tuple[Data, KeyPath]] = [(job, ("jobs", index)) for index, job in enumerate(batch.model.jobs)]
        defaults, wrong = _layer(JobSpec, batch.model.defaults or {}, document, ("defaults",), base)
        problems += wrong
        below = batch.model.defaults or {}
    else:
        data = document.data
        if isinstance(data, dict) and "version" in data:
            problems += checked(BatchSpec, {"version": data["version"], "jobs": [0]}, document).problems
            data = {key: value for key, value in data.items() if key != "version"}
        entries, below = [(data, ())], {}
        defaults = _Layer(spec=JobSpec(), origin=Origin(document=document, path=()))

    requests = []
    digits = len(str(len(entries)))
    for number, (data, path) in enumerate(entries, start=1):
        name = file.stem if len(entries) == 1 and not path else f"{file.stem}-{number:0{digits}d}"
        jobs, wrong = expanded(data, document, path, defaults=below, default_name=name, base=base)
        problems += wrong
        for each in jobs:
            job, wrong = _layer(JobEntry, each.data, each.document, path, base)
            problems += wrong
            request, wrong = _merged([defaults, job, top], default_name=each.default_name, base=base)
            request = replace(request, variant=each.variant, flawed=request.flawed | each.flawed)
            requests.append(_with_settings(request, inside, top.origin, axes=each.keys))
            problems += wrong + _overruled(each, top)
    return requests, problems


def _overruled(job: Expanded, top: _Layer) -> list[Problem]:
    """Axes of a matrix that the command line would undo, so that names promised what the jobs have not."""
    problems = []
    for first, *rest in map(key_parts, job.keys):
        for key in (str(first), RIVALS.get(str(first), "")):
            given = getattr(top.spec, key, None) if key in top.spec.model_fields_set else None
            # Of keys that are merged, only those inside that are given.
            merged = isinstance(given, _Merged) and bool(rest) and rest[0] not in given.model_fields_set
            if given is not None and not merged:
                problems.append(top.origin.problem((key,), _AGAINST))
    return problems


def _with_settings(
    request: JobRequest, inside: Mapping[str, Data], settings: Origin, *, axes: Sequence[str] = ()
) -> JobRequest:
    """The request with what a command line sets inside of its keys; `axes` are those of the matrix that it is of."""
    if not inside:
        return request
    reached = reach_inside(request.spec, inside, settings.document, flawed=request.flawed)
    problems = [*reached.problems]
    for miss in reached.misses:
        given = request.origins.get(str(miss.path[0]), request.origin).problem(miss.path[:1], "")
        where = f"{given.file}:{given.line}" if given.line else None
        problems.append(settings.problem(miss.path, miss.message, hint=where))
    for place in reached.places:
        for axis in map(key_parts, axes):
            length = min(len(axis), len(place))
            if place[:length] == axis[:length]:
                problems.append(settings.problem(place, _AGAINST))
    return replace(
        request,
        spec=_absolute(reached.spec, Path.cwd()),
        origins={**{str(place[0]): settings for place in reached.places}, **request.origins},
        flawed=request.flawed | reached.flawed,
        reached=dict.fromkeys(reached.places, settings),
        problems=tuple(problems),
    )


def _layer(
    model: type[JobSpec], data: Data, document: Document, path: KeyPath, base: Path
) -> tuple[_Layer, list[Problem]]:
    result = checked(model, data, document, at=path)
    spec, problems = result.model or JobSpec(), list(result.problems)
    if spec.seconds is not None and spec.sections is not None:
        problems.append(document.problem((*path, "sections"), "given beside seconds; a video has one length"))
    if spec.image is not None and spec.start is not None:
        problems.append(document.problem((*path, "start"), "given beside an image; a video has one beginning"))
    layer = _Layer(
        spec=_absolute(spec, base),
        origin=Origin(document=document, path=path, kept=result.kept, made_up=result.made_up),
        flawed=result.flawed,
    )
    return layer, problems


def _absolute(spec: JobSpec, base: Path) -> JobSpec:
    """The same keys with every path made absolute against the folder of the file that names it."""

    def resolved(text: str) -> str:
        try:
            path = Path(text).expanduser()
        except RuntimeError:  # `~name` of nobody: a file of that name, then
            path = Path(text)
        return str((base / path).absolute())

    return with_paths(spec, resolved)


def _merged(layers: Sequence[_Layer], *, default_name: str, base: Path) -> tuple[JobRequest, list[Problem]]:
    """Lay the layers over one another, strongest last, with the preset they name below them all."""
    problems: list[Problem] = []
    job = layers[-2] if len(layers) > 1 else layers[-1]
    naming = [layer for layer in layers if "preset" in layer.spec.model_fields_set]
    if naming and naming[-1].spec.preset is not None:
        preset, problems = _preset_layer(naming[-1], base)
        layers = [preset, *layers]
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for layer in layers:
        for key in layer.spec.model_fields_set:
            value = getattr(layer.spec, key)
            if value is None:  # null takes back what weaker layers say
                values.pop(key, None)
                continue
            if key in RIVALS:
                values.pop(RIVALS[key], None)
            if isinstance(value, _Merged) and (below := values.get(key)) is not None:
                value = below.model_copy(update={name: getattr(value, name) for name in value.model_fields_set})
            values[key] = value
            origins[key] = layer.origin
    request = JobRequest(
        spec=JobSpec().model_copy(update=values),
        origin=job.origin,
        origins=origins,
        flawed=frozenset().union(*(layer.flawed for layer in layers)),
        default_name=default_name,
        default_dir=base / "renders",
    )
    return request, problems


def _preset_layer(naming: _Layer, base: Path) -> tuple[_Layer, list[Problem]]:
    empty = _Layer(spec=JobSpec(), origin=naming.origin)
    try:
        document = read_preset(str(naming.spec.preset), base)
    except InvalidJobs as error:
        return empty, list(error.problems)
    except GoanError as error:
        return empty, [naming.origin.problem(("preset",), error.message, hint=error.hint)]
    folder = document.file.parent if document.file else base
    layer, problems = _layer(JobSpec, document.data, document, (), folder)
    if layer.spec.preset is not None:
        problems.append(document.problem(("preset",), "a preset cannot name another"))
    return layer, problems
