"""Files of the original goan as jobs: a PNG's `parameters`, the JSON of a workspace, a queue zip."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from goan_cli.checking import shown
from goan_cli.errors import InvalidInput
from goan_cli.files import is_file
from goan_cli.jobs.paths import with_paths
from goan_cli.output.pictures import RECIPE_KEY
from goan_cli.recipes.archive import content_of, extracted, member_of, opened
from goan_cli.recipes.original import IMAGE_KEYS, converted, is_original, key_shown
from goan_cli.recipes.reading import MOST_BYTES, head_of, json_of
from goan_cli.recipes.settings import relative

QUEUE = "queue_state.json"
MOST_JOBS = 10_000

_PNG = b"\x89PNG\r\n\x1a\n"
_ZIP = b"PK"
_WHAT_CAN = "what can be imported: the original goan's PNGs with parameters, workspace JSON, and queue zips"
# Under these a file has its list of jobs, and a job its keys; the rest of a job is the queue's own bookkeeping.
_LISTS = ("queue", "tasks", "jobs")
_PARAMS = ("params", "parameters", "settings")
_BOOKKEEPING = frozenset({"id", "task_id", "status", "version", "next_id", "processing", "editing_task_id"})


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a file of the original's holds: the keys of each job, and the name of its start image where it has one.

    `names` are members of the zip `archive`, or else paths.
    """

    file: Path
    params: Sequence[Mapping[str, Any]]
    names: Sequence[str | None]
    archive: bool = False


@dataclass(frozen=True, kw_only=True)
class Import:
    """Jobs in goan's keys, with paths as a file in the folder asked for names them, and a line on all that differs."""

    jobs: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    images: Sequence[Path] = field(default=())


def read_original(path: Path) -> Original:
    """The jobs of a file of the original's. Raises InvalidInput for any other."""
    head = head_of(path)
    if head.startswith(_PNG):
        return _of_entries(path, [_parameters(path)], image=str(path.absolute()))
    if head.startswith(_ZIP):
        with opened(path) as archive:
            member = member_of(archive, QUEUE)
            if member is None:
                raise InvalidInput(f"{path}: no {QUEUE} in it", hint=_WHAT_CAN)
            content = json_of(content_of(path, archive, member, MOST_BYTES), f"{path}: {QUEUE}")
        return _of_entries(path, _entries(content), archive=True)
    if path.stat().st_size > MOST_BYTES:
        raise InvalidInput(f"{path}: neither a PNG nor a zip, and too large for settings", hint=_WHAT_CAN)
    try:
        content = json_of(path.read_bytes(), str(path))
    except InvalidInput as error:
        raise InvalidInput(error.message, hint=_WHAT_CAN) from error
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror or error}") from error
    if isinstance(content, dict) and {"settings", "video"} <= content.keys():
        raise InvalidInput(f"{path}: a sidecar of this goan", hint=f"goan recipe {path}")
    return _of_entries(path, _entries(content))


def _parameters(path: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text may stand behind the pixels
            found = image.info.get("parameters")
            own = RECIPE_KEY in image.info
    except Exception as error:  # Pillow raises whatever a damaged file makes it stumble over
        raise InvalidInput(f"{path}: damaged or unreadable PNG: {error}") from error
    if not isinstance(found, str):
        hint = f"goan recipe {path}" if own else _WHAT_CAN
        raise InvalidInput(f"{path}: no parameters of the original goan in it", hint=hint)
    try:
        return json_of(found, f"{path}: parameters")
    except InvalidInput as error:
        raise InvalidInput(error.message, hint="those of another program, it seems; " + _WHAT_CAN) from error


def _entries(content: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """The jobs of a queue, or the one of a workspace."""
    if isinstance(content, dict):
        queue = next((content[key] for key in _LISTS if isinstance(content.get(key), list)), None)
        return [content] if queue is None else queue
    return content if isinstance(content, list) else [content]


def _of_entries(path: Path, entries: Sequence[Any], *, image: str | None = None, archive: bool = False) -> Original:
    if not entries or len(entries) > MOST_JOBS:
        raise InvalidInput(f"{path}: {len(entries)} jobs in it; from 1 to {MOST_JOBS} can be imported")
    params: list[dict[str, Any]] = []
    names: list[str | None] = []
    for number, entry in enumerate(entries, start=1):
        place = f"{path}: job {number}" if len(entries) > 1 else str(path)
        if not isinstance(entry, dict):
            raise InvalidInput(f"{place}: expected keys and values, not {shown(entry)}", hint=_WHAT_CAN)
        inner = next((entry[key] for key in _PARAMS if isinstance(entry.get(key), dict)), None)
        outer = {key: value for key, value in entry.items() if key not in _BOOKKEEPING and value is not inner}
        keys = outer if inner is None else {**outer, **inner}
        if not is_original(keys):
            raise InvalidInput(f"{place}: none of its keys is one of the original goan's", hint=_WHAT_CAN)
        params.append(keys)
        names.append(image or next((keys[key] for key in IMAGE_KEYS if isinstance(keys.get(key), str)), None))
    return Original(file=path, params=params, names=names, archive=archive)


@contextmanager
def imported(original: Original, folder: Path, pictures: Path) -> Iterator[Import]:
    """The jobs, for a file in `folder`, with images of a zip written to `pictures`; removed if the block fails.

    Raises InvalidInput for images that are none, and EnvironmentFault where they cannot be written.
    """
    if not original.archive:
        yield _import(original, folder, {})
        return
    wanted = dict.fromkeys(name for name in original.names if name is not None)
    with extracted(original.file, wanted, pictures) as images:
        yield _import(original, folder, images)


def _import(original: Original, folder: Path, images: Mapping[str, Path]) -> Import:
    home = original.file.absolute().parent
    jobs: list[dict[str, Any]] = []
    said: dict[str, list[int]] = {}
    for number, (params, name) in enumerate(zip(original.params, original.names, strict=True), start=1):
        found = converted(params)
        image = images.get(name or "") if original.archive else None if name is None else home / name
        job = dict(found.job)
        notes = list(found.notes)
        if image is not None and is_file(image):
            job = {"image": str(image), **job}
            notes += ["image: the PNG itself is taken for the start image"] if image == original.file.absolute() else []
        else:
            lacking = "no start image in the file" if name is None else f"{key_shown(name)} is not there"
            notes.append(f"image: {lacking}; give the job one")
        notes += [f"loras: {path} is not there; put it there, or change the path" for path in _lacking(job, home)]
        jobs.append(with_paths(job, lambda path: relative(str(home / path), folder)))
        for note in notes:
            said.setdefault(note, []).append(number)
    notes_said = [note + _of_jobs(numbers, len(jobs)) for note, numbers in said.items()]
    return Import(jobs=jobs, notes=notes_said, images=tuple(images.values()))


def _lacking(job: Mapping[str, Any], home: Path) -> list[str]:
    paths = [lora if isinstance(lora, str) else lora["path"] for lora in job.get("loras", ())]
    return [key_shown(path) for path in paths if not is_file(home / path)]


def _of_jobs(numbers: Sequence[int], count: int) -> str:
    """Which jobs a note is about, where it is not all of them."""
    if len(numbers) == count:
        return ""
    few = ", ".join(str(number) for number in numbers[:10])
    return f" (job{'s' if len(numbers) > 1 else ''} {few}{', …' if len(numbers) > 10 else ''})"
