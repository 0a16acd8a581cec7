"""What there is to download of a pack's missing parts: the files of the hub, with sizes and hashes. No torch."""

import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._runtime import is_xet_available

from goan_cli.errors import EnvironmentFault
from goan_cli.packs.find import FoundPart, Survey
from goan_cli.packs.hashes import KnownHash, hash_named
from goan_cli.packs.hub import Hub, Repository, explained, hub_of_environment, is_offline, offline_fault, quiet_library
from goan_cli.packs.manifest import WEIGHTED, PartSpec
from goan_cli.packs.places import hub_cache, snapshots_of

_TEXTS = ("*.json", "*.txt")
_WEIGHTS = ".safetensors"
_INDEX = ".safetensors.index.json"
_SHARD = re.compile(r"(?P<base>.+)-\d+-of-\d+")
# What diffusers and transformers load where a folder holds several files that belong to no index.
_USUAL = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_SECONDS_TO_ANSWER = 20.0


@dataclass(frozen=True, kw_only=True)
class PullFile:
    """One file of a repository, as it is to lie in the cache.

    `chunked` is for files that the hub's library gets in chunks of its own (Xet). `partial` is how many bytes of the
    file an interrupted download left; it goes on as it began.
    """

    path: str
    parts: tuple[str, ...]
    size: int
    hash: KnownHash | None
    blob: Path
    pointer: Path
    chunked: bool
    cached: bool
    partial: int

    @property
    def partial_file(self) -> Path:
        """Where the file grows."""
        return partial_file(self.blob)


def partial_file(blob: Path) -> Path:
    """Where a blob grows."""
    return blob.with_name(f"{blob.name}.incomplete")


@dataclass(frozen=True, kw_only=True)
class PullRepository:
    """What is needed of a repository at the commit that its revision is now."""

    source: Repository
    commit: str
    files: tuple[PullFile, ...]


@dataclass(frozen=True, kw_only=True)
class PullPlan:
    """What a pack's missing parts consist of; `free` are the bytes on the disk of the cache."""

    hub: Hub
    repositories: tuple[PullRepository, ...]
    free: int

    @property
    def files(self) -> tuple[PullFile, ...]:
        """The files that are not in the cache."""
        return tuple(file for each in self.repositories for file in each.files if not file.cached)

    @property
    def size(self) -> int:
        """Bytes of the files that are not in the cache."""
        return sum(file.size for file in self.files)

    @property
    def to_download(self) -> int:
        """Bytes still to be downloaded."""
        return self.size - sum(file.partial for file in self.files)


def plan_pull(survey: Survey) -> PullPlan:
    """Ask the hub what the missing parts with a repository consist of; nothing is written.

    Raises EnvironmentFault where there is something to ask and the hub is forbidden (HF_HUB_OFFLINE), out of reach,
    or has no such repository, revision or part for this user.
    """
    cache = hub_cache()
    hub = hub_of_environment(cache)
    needed: dict[Repository, list[tuple[FoundPart, PartSpec]]] = {}
    for part in survey.missing:
        if (spec := part.source) is not None and spec.repository is not None:
            source = Repository(name=spec.repository, revision=spec.revision)
            needed.setdefault(source, []).append((part, spec))
    if needed and is_offline():
        raise offline_fault(", ".join(part.part for parts in needed.values() for part, _ in parts))
    repositories = tuple(_ask(hub, source, parts) for source, parts in needed.items())
    return PullPlan(hub=hub, repositories=repositories, free=_free(cache))


def _ask(hub: Hub, source: Repository, parts: Sequence[tuple[FoundPart, PartSpec]]) -> PullRepository:
    api = HfApi(endpoint=hub.endpoint, token=hub.token or False, library_name="goan")
    with quiet_library(), explained(hub, source):
        commit, listed = _listing(api, source)
    users: dict[str, list[str]] = {}
    for part, spec in parts:
        paths = needed_files(part.part, spec, listed)
        if not paths:
            what = "safetensors weights" if part.part in WEIGHTED else "files"
            raise EnvironmentFault(
                f"{source.name} has no {what} for the {part.part}: {spec.subfolder or 'its top'} holds none",
                hint="correct the pack's manifest",
            )
        for path in paths:
            users.setdefault(path, []).append(part.part)
    # Small files first: what is wrong with a repository shows before the large ones.
    paths = sorted(users, key=lambda path: (listed[path].size, path))
    files = tuple(_file(hub.cache, source.name, commit, listed[path], users[path]) for path in paths)
    return PullRepository(source=source, commit=commit, files=files)


def _listing(api: HfApi, source: Repository) -> tuple[str, dict[str, RepoFile]]:
    """The commit of a repository and its files. Raises ValueError for answers that are no hub's."""
    try:
        info = api.model_info(source.name, revision=source.revision, timeout=_SECONDS_TO_ANSWER)
        if info.sha is None:
            raise ValueError("it names no commit")
        if info.gated:  # its files are listed for everybody
            api.auth_check(source.name)
        tree = api.list_repo_tree(source.name, recursive=True, revision=info.sha)
        return info.sha, {file.path: file for file in tree if isinstance(file, RepoFile)}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no {error} in its answer") from error


def needed_files(part: str, spec: PartSpec, paths: Iterable[str]) -> list[str]:
    """Which files of a repository make up a part: texts and, of a weighted part, weights that belong together.

    Only those of its own folder; none at all where it needs weights and there are none.
    """
    folder = PurePosixPath(spec.subfolder)
    names = sorted(path.name for path in map(PurePosixPath, paths) if path.parent == folder)
    texts = [name for name in names if any(fnmatch(name, pattern) for pattern in _TEXTS) and not _is_variant(name)]
    weights = _weights(names) if part in WEIGHTED else []
    if part in WEIGHTED and not weights:
        return []
    return [str(folder / name) for name in (*texts, *weights)]


def _is_variant(name: str) -> bool:
    """Whether it is of weights in another precision beside the ones that are loaded: `model.fp16.safetensors`."""
    if _WEIGHTS not in name:
        return False
    stem, _, ending = name.partition(_WEIGHTS)
    return "." in stem or ending not in ("", ".index.json")


def _weights(names: Sequence[str]) -> list[str]:
    files = [name for name in names if name.endswith(_WEIGHTS)]
    # Where no file has a plain name, the dots are no variant's.
    files = [name for name in files if not _is_variant(name)] or files
    bases = [name.removesuffix(_INDEX) for name in names if name.endswith(_INDEX) and not _is_variant(name)]
    for base in bases:
        shards = [name for name in files if (m := _SHARD.fullmatch(name.removesuffix(_WEIGHTS))) and m["base"] == base]
        if shards:
            return shards
    usual = [name for name in _USUAL if name in files]
    return usual[:1] or files


def _file(cache: Path, repository: str, commit: str, listed: RepoFile, parts: Sequence[str]) -> PullFile:
    etag = listed.lfs.sha256 if listed.lfs is not None else listed.blob_id
    folder = snapshots_of(repository, cache)
    blob, pointer = folder / "blobs" / etag, folder / "snapshots" / commit / listed.path
    cached = any(size_of(path) == listed.size for path in (pointer, blob))
    partial = size_of(partial_file(blob)) or 0
    if cached or partial > listed.size:
        partial = 0
    return PullFile(
        path=listed.path,
        parts=tuple(parts),
        size=listed.size,
        hash=hash_named(etag),
        blob=blob,
        pointer=pointer,
        chunked=listed.xet_hash is not None and is_xet_available() and not partial,
        cached=cached,
        partial=partial,
    )


def size_of(path: Path) -> int | None:
    """Bytes of a file, None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _free(folder: Path) -> int:
    """Bytes free where a folder is, or would be."""
    for place in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


def refuse_without_space(plan: PullPlan) -> None:
    """Raise EnvironmentFault when the disk of the cache has no room for what is to be downloaded."""
    free = _free(plan.hub.cache)
    if plan.to_download > free:
        raise EnvironmentFault(
            f"{plan.hub.cache}: needs {_gigabytes(plan.to_download)} GB, and its disk has {_gigabytes(free)} GB free",
            hint="make room, or move the cache with HF_HOME",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e8 else f"{size / 1e9:.4f}"
