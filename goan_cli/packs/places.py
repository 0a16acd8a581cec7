"""Where on this machine a part of a model may lie: the hub's cache, installations of other tools, the user's folders.

Nothing is configured for it; what the user names comes first.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from goan_cli.packs.manifest import PartSpec
from goan_cli.settings import Settings

MODELS_VARIABLE = "GOAN_MODELS"
# Folders in which FramePack and its forks are found, below the current folder, the one above, home and Documents.
_FRAMEPACK = (".", "FramePack", "framepack", "FramePack-Studio", "FramePack-eichi", "framepack_cu126_torch26", "goan")
_COMFYUI = (".", "ComfyUI", "comfyui", "ComfyUI_windows_portable/ComfyUI")
_COMFYUI_MARKS = ("models/diffusion_models", "models/text_encoders", "models/unet", "models/clip_vision")
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
        return Path(os.path.expandvars(given)).expanduser()
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(home or f"{cache}/huggingface")).expanduser() / "hub"


def places(settings: Settings) -> tuple[Place, ...]:
    """Every folder worth looking in, the most deliberate first."""
    found = [
        Place(label=MODELS_VARIABLE, folder=Path(folder).expanduser())
        for folder in os.environ.get(MODELS_VARIABLE, "").split(os.pathsep)
        if folder
    ]
    found += [Place(label="config", folder=Path(folder).expanduser()) for folder in settings.models]
    found.append(Place(label="Hugging Face cache", folder=hub_cache()))
    for base in _bases():
        for name in _FRAMEPACK:
            for below in ("hf_download", "webui/hf_download"):
                found.append(Place(label="FramePack", folder=base / name / below))
        for name in _COMFYUI:
            if any((base / name / mark).is_dir() for mark in _COMFYUI_MARKS):
                found.append(Place(label="ComfyUI", folder=base / name))
    return tuple(dict.fromkeys(place for place in found if _is_folder(place.folder)))


def _bases() -> tuple[Path, ...]:
    here = Path.cwd()
    try:
        home = Path.home()
    except RuntimeError:
        return here, here.parent
    return tuple(dict.fromkeys((here, here.parent, home, home / "Documents")))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def candidates(part: str, spec: PartSpec, place: Place) -> Iterator[Path]:
    """Folders and files of a place that may hold the part, the best first; each exists."""
    for folder in (place.folder, place.folder / "hub", place.folder / "models"):
        if not folder.is_dir():
            continue
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
    if not folder.is_dir():
        return
    commits = [spec.revision]
    with suppress(OSError, UnicodeDecodeError):
        commits.insert(0, (repository / "refs" / spec.revision).read_text(encoding="utf-8").strip())
    if spec.revision == "main":
        commits += sorted((each.name for each in folder.iterdir()), key=lambda name: -(folder / name).stat().st_mtime)
    for commit in dict.fromkeys(commits):
        if commit and (folder / commit / spec.subfolder).is_dir():
            yield folder / commit / spec.subfolder


def _plain_folders(spec: PartSpec, folder: Path) -> Iterator[Path]:
    """The repository as a folder of its own name, with its owner's or without."""
    if spec.repository is None:
        return
    for name in (spec.repository, spec.repository.partition("/")[2]):
        path = folder / name / spec.subfolder
        if path.is_dir():
            yield path


def _named(part: str, spec: PartSpec, folder: Path) -> Iterator[Path]:
    """Files (anywhere in ComfyUI's folder of the part, or right here) and folders by the names of the part."""
    for name in spec.names:
        if "/" in name:
            if (folder / name).is_dir():
                yield folder / name
            continue
        here = [path for path in folder.iterdir() if path.is_file()]
        below = [path for kind in _SINGLE_FILES.get(part, ()) for path in sorted((folder / kind).rglob("*"))]
        for path in (*sorted(here), *below):
            if fnmatch(path.name.lower(), name.lower()):
                yield path
