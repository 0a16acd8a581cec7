"""Where on this machine a part of a model may lie: the hub's cache, installations of other tools, the user's folders.

Nothing is configured for it; what the user names comes first.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

from goan_cli.files import expanded, is_file, is_folder
from goan_cli.packs.manifest import PartSpec
from goan_cli.settings import Settings

MODELS_VARIABLE = "GOAN_MODELS"
# Folders in which FramePack and its forks are found, below the current folder, the one above, home and Documents.
_FRAMEPACK = (".", "FramePack", "framepack", "FramePack-Studio", "FramePack-eichi", "framepack_cu126_torch26", "goan")
_COMFYUI = (".", "ComfyUI", "comfyui", "ComfyUI_windows_portable/ComfyUI")
_COMFYUI_MARKS = ("models/diffusion_models", "models/text_encoders", "models/unet", "models/clip_vision")
# Folders of a place that may be meant by it: a hub's cache, ComfyUI's models, and its wrappers' repositories.
_BELOW = ("hub", "models", "models/diffusers", "diffusers")
# Where ComfyUI keeps a part's single files, below `models`.
_SINGLE_FILES = {
    "transformer": ("diffusion_models", "unet"),
    "text_encoder": ("text_encoders", "clip"),
    "text_encoder_2": ("text_encoders", "clip"),
    "vae": ("vae",),
    "image_encoder": ("clip_vision",),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder to look in, and what to call it."""

    label: str
    folder: Path


def hub_cache() -> Path:
    """The Hugging Face cache, by the same variables as huggingface_hub's own."""
    if given := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return expanded(os.path.expandvars(given)).absolute()
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.path.expandvars(home or f"{cache}/huggingface")).absolute() / "hub"


def folders_of_environment() -> list[str]:
    """The folders of GOAN_MODELS, as they are written."""
    return [folder for folder in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep) if folder]


def places(settings: Settings) -> tuple[Place, ...]:
    """Every folder worth looking in, the most deliberate first."""
    found = [Place(label=MODELS_VARIABLE, folder=expanded(folder).absolute()) for folder in folders_of_environment()]
    found += [Place(label="config", folder=expanded(folder)) for folder in settings.models]
    found.append(Place(label="Hugging Face cache", folder=hub_cache()))
    bases = _bases()
    for base, name, below in product(bases, _FRAMEPACK, ("hf_download", "webui/hf_download")):
        found.append(Place(label="FramePack", folder=base / name / below))
    for base, name in product(bases, _COMFYUI):
        if any(is_folder(base / name / mark) for mark in _COMFYUI_MARKS):
            found.append(Place(label="ComfyUI", folder=base / name))
    return tuple(dict.fromkeys(place for place in found if is_folder(place.folder)))


def _bases() -> tuple[Path, ...]:
    bases: list[Path] = []
    with suppress(OSError):  # the current folder may have been removed
        bases += [Path.cwd(), Path.cwd().parent]
    with suppress(RuntimeError):  # a user without a home folder
        bases += [Path.home(), Path.home() / "Documents"]
    return tuple(dict.fromkeys(bases))


def candidates(part: str, spec: PartSpec, place: Place) -> Iterator[Path]:
    """Folders and files of a place that may hold the part, the best first; each is there."""
    # The user may have named ComfyUI's folder, or its `models`.
    above = [place.folder.parent] if place.folder.name == "models" else []
    for folder in (place.folder, *(place.folder / name for name in _BELOW), *above):
        if is_folder(folder):
            yield from _snapshots(spec, folder)
            yield from _plain_folders(spec, folder)
            yield from _named(part, spec, folder)


def snapshots_of(repository: str, cache: Path) -> Path:
    """Where a cache of the hub keeps a repository."""
    return cache / f"models--{repository.replace('/', '--')}"


def _snapshots(spec: PartSpec, cache: Path) -> Iterator[Path]:
    """The part in the snapshots of a hub cache: of the revision, or of `main` any, the newest first."""
    if spec.repository is None:
        return
    repository = snapshots_of(spec.repository, cache)
    folder = repository / "snapshots"
    commits = [spec.revision]
    with suppress(OSError, UnicodeDecodeError):
        commits.insert(0, (repository / "refs" / spec.revision).read_text(encoding="utf-8").strip())
    if spec.revision == "main":
        commits += [each.name for each in sorted(_entries(folder), key=_age)]
    for commit in dict.fromkeys(commits):
        if commit and is_folder(folder / commit / spec.subfolder):
            yield folder / commit / spec.subfolder


def _plain_folders(spec: PartSpec, folder: Path) -> Iterator[Path]:
    """The repository as a folder of its own name, with its owner's or without."""
    if spec.repository is None:
        return
    for name in (spec.repository, spec.repository.partition("/")[2]):
        path = folder / name / spec.subfolder
        if is_folder(path):
            yield path


def _named(part: str, spec: PartSpec, folder: Path) -> Iterator[Path]:
    """Files (anywhere in ComfyUI's folder of the part, or right here) and folders by the names of the part."""
    files = [*_entries(folder), *(path for kind in _SINGLE_FILES.get(part, ()) for path in _files_below(folder / kind))]
    for name in spec.names:
        if "/" not in name:
            yield from (path for path in files if fnmatch(path.name.lower(), name.lower()) and is_file(path))
        elif is_folder(folder / name):
            yield folder / name


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _age(path: Path) -> float:
    """Larger for what was changed longer ago."""
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, sorted; linked folders too, each once."""
    seen = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(where)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        yield from (Path(where) / name for name in sorted(names))
