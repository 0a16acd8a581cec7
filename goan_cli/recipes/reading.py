"""The recipe of a file that goan wrote: a sidecar, or a video or PNG that it is embedded in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goan_cli.errors import InvalidInput
from goan_cli.jobs.fields import is_name
from goan_cli.jobs.paths import PATHS, PATHS_OR_NAMES, paths_at, with_paths
from goan_cli.output.recipe import embedded_recipe
from goan_cli.output.sidecar import read_sidecar, value_at
from goan_cli.recipes.settings import relative, short_job

MOST_BYTES = 16 << 20

_PNG = b"\x89PNG\r\n\x1a\n"
_WEBM = b"\x1a\x45\xdf\xa3"
_WHAT_HAS_ONE = (
    "sidecars (the JSON beside a video) have one, and MP4, MOV, WebM and PNG files that goan wrote with metadata on; "
    "files of the original goan are for goan recipe import"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A job with absolute paths, every key as it was resolved, and what is known of it in lines of text.

    `file` is where it was found, `name` what the result was called.
    """

    file: Path
    name: str
    settings: Mapping[str, Any]
    facts: Sequence[str]

    def job(self, folder: Path) -> dict[str, Any]:
        """The short job, with paths as a job file in `folder` names them. Raises InvalidJobs for what is no job."""
        named = {**({"name": self.name} if is_name(self.name) else {}), **self.settings}
        return short_job(with_paths(named, lambda path: relative(path, folder)), self.file)

    @property
    def missing(self) -> list[str]:
        """The files that the job names and this machine does not have."""
        places = [place for place in (*PATHS, *PATHS_OR_NAMES) if place != ("output", "dir")]
        named = [path for place in places for path in paths_at(self.settings, place)]
        return [path for path in dict.fromkeys(named) if not Path(path).exists()]


def read_recipe(path: Path) -> Recipe:
    """The recipe of a file. Raises InvalidInput for a file that has none, saying which files have one."""
    head = head_of(path)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _of_sidecar(path)
    settings = None
    if head.startswith((_PNG, _WEBM)) or head[4:8] == b"ftyp":
        settings = embedded_recipe(path)
    if settings is None:
        beside = path.with_suffix(".json")
        hint = f"take {beside}, beside it" if _is_sidecar(beside) else _WHAT_HAS_ONE
        raise InvalidInput(f"{path}: no recipe of goan in it", hint=hint)
    return Recipe(file=path, name=path.stem, settings=_portable(settings, path, None), facts=())


def head_of(path: Path) -> bytes:
    """The first bytes of a file. Raises InvalidInput where it cannot be read."""
    try:
        if path.is_dir():
            raise InvalidInput(f"{path}: is a folder", hint=_WHAT_HAS_ONE)
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError as error:
        raise InvalidInput(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path}: cannot be read: {error}") from error


def json_of(text: bytes | str, where: str) -> Any:  # noqa: ANN401 - JSON
    """Parsed JSON. Raises InvalidInput for what is none, or far too large for settings."""
    if len(text) > MOST_BYTES:
        raise InvalidInput(f"{where}: larger than {MOST_BYTES >> 20} MB, so no settings")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not JSON: {str(error)[:200]}") from error


def _of_sidecar(path: Path) -> Recipe:
    if path.stat().st_size > MOST_BYTES:
        raise InvalidInput(f"{path}: larger than {MOST_BYTES >> 20} MB, so no sidecar")
    try:
        content = read_sidecar(path)
    except InvalidInput as error:
        raise InvalidInput(error.message, hint=error.hint or _WHAT_HAS_ONE) from error
    name = content.get("name")
    settings = _portable(content["settings"], path, path.absolute().parent)
    # After seeds that a gate refused, it is the first one that leads to this result again.
    asked = content.get("asked_seed")
    if content.get("rejected_seeds") and isinstance(asked, int):
        settings["seed"] = asked
    return Recipe(
        file=path, name=name if isinstance(name, str) else path.stem, settings=settings, facts=tuple(_facts(content))
    )


def _is_sidecar(path: Path) -> bool:
    try:
        read_sidecar(path)
    except InvalidInput:
        return False
    return True


def _portable(settings: Mapping[str, Any], file: Path, results: Path | None) -> dict[str, Any]:
    """The settings without what belongs to the machine of the render: whether it compiled, and its folders.

    Results belong where the sidecar lies now, `results`; without one, where a job file puts them by itself.
    """
    kept = {key: value for key, value in settings.items() if key != "compile"}
    output = kept.get("output")
    if isinstance(output, dict):
        kept["output"] = {**output, "dir": None if results is None else str(results)}
    return with_paths(kept, lambda path: str((file.absolute().parent / path).absolute()))


def _facts(content: Mapping[str, Any]) -> list[str]:
    """What a sidecar says of its video, in lines."""
    video, facts = content["video"], []
    facts.append(f"{video['file']}: {video['frames']} frames, {video['seconds']:.3g} s, SHA-256 {video['sha256']}")
    if isinstance(identity := content.get("identity"), str):
        facts.append(f"identity {identity}")
    pack = [str(content["pack"][key]) for key in ("name", "family") if content["pack"].get(key)]
    machine = [str(content[key]) for key in ("device", "dtype") if isinstance(content.get(key), str)]
    facts.append(", ".join([f"model {' '.join(pack)}", *machine]))
    versions = value_at(content, ("versions",))
    if isinstance(versions, dict) and versions:
        facts.append(", ".join(_version(name, number) for name, number in versions.items()))
    facts += [
        f"{Path(str(picture.get('path'))).name}: SHA-256 {picture['sha256']}"
        for picture in [value_at(content, ("inputs", "image"))]
        if isinstance(picture, dict) and isinstance(picture.get("sha256"), str)
    ]
    rejected = content.get("rejected_seeds")
    if isinstance(rejected, list) and rejected:
        facts.append(f"seed {content['settings'].get('seed')} made the video, after {len(rejected)} refused by a gate")
    return facts


def _version(name: str, number: str) -> str:
    """As `torch 2.9`; of ffmpeg's own line only the number."""
    return f"{name} {(number.removeprefix(f'{name} version ').split() or ['?'])[0]}"
