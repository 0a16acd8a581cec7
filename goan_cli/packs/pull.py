"""A pack's missing parts from the Hugging Face hub into its cache, each file checked against its hash. No torch."""

import glob
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import are_symlinks_supported, http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers, tqdm  # type: ignore[attr-defined]

from goan_cli.errors import EnvironmentFault
from goan_cli.files import write_text
from goan_cli.packs.hashes import hash_fault
from goan_cli.packs.hub import Hub, explained, quiet_library
from goan_cli.packs.places import snapshots_of
from goan_cli.packs.pull_plan import PullFile, PullPlan, PullRepository, refuse_without_space, size_of

_SECONDS_FOR_LOCK = 1.0
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, kw_only=True)
class PullStarted:
    """The number of files to get and their bytes, of which `done` are there already, and the cache that they go to."""

    files: int
    size: int
    done: int
    cache: Path


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """Bytes of all files that are `done` of `size`; a `file` is named with its repository."""

    file: str
    done: int
    size: int


@dataclass(frozen=True, kw_only=True)
class PullChecking:
    """Bytes of a file whose hash is `done`, of its `size`."""

    file: str
    done: int
    size: int


@dataclass(frozen=True, kw_only=True)
class PullVerified:
    """A file that is complete and has the hash that the hub gives."""

    file: str
    size: int


PullEvent = PullStarted | PullProgress | PullChecking | PullVerified
Listener = Callable[[PullEvent], None]


def pull(plan: PullPlan, listener: Listener) -> None:
    """Download what a plan lacks, file by file, each checked before the next.

    Interrupted, it leaves what has arrived, and another pull goes on from there. Raises EnvironmentFault: no space
    (before anything is downloaded), no connection, a refusal of the hub, a cache that cannot be written, and a file
    whose size or hash is wrong, which is removed. The listener may be called from another thread.
    """
    refuse_without_space(plan)
    progress = _Progress(plan, listener)
    for repository in plan.repositories:
        with quiet_library(), explained(plan.hub, repository.source):
            _pull_repository(plan.hub, repository, progress)


class _Progress:
    """How far a pull is, for its listener."""

    def __init__(self, plan: PullPlan, listener: Listener) -> None:
        self.tell = listener
        self._size = plan.size
        self._done = {id(file): file.partial for file in plan.files}
        self.tell(PullStarted(files=len(plan.files), size=plan.size, done=self._total(), cache=plan.hub.cache))

    def _total(self) -> int:
        return sum(self._done.values())

    def at(self, repository: PullRepository, file: PullFile, done: int) -> None:
        """Tell of the bytes that are there of a file."""
        self._done[id(file)] = min(done, file.size)
        self.tell(PullProgress(file=_title(repository, file), done=self._total(), size=self._size))


def _title(repository: PullRepository, file: PullFile) -> str:
    return f"{repository.source.name}/{file.path}"


def _pull_repository(hub: Hub, repository: PullRepository, progress: _Progress) -> None:
    for file in repository.files:
        if not file.cached:
            _discard(file, unless=file.size)
            _get(hub, repository, file, progress)
    for file in _suspects(repository):
        # Whole as far as its size tells, and yet its part cannot be used.
        _verify(repository, file, file.pointer if file.pointer.exists() else file.blob, progress.tell)
    _lay_out(hub, repository)


def _lay_out(hub: Hub, repository: PullRepository) -> None:
    """Make the snapshot of files that are all there, and note it as the revision's, as the library does.

    Of the commit that was planned, whatever the revision may be by now.
    """
    name, revision = repository.source.name, repository.source.revision
    snapshot_download(
        name,
        revision=repository.commit,
        cache_dir=hub.cache,
        endpoint=hub.endpoint,
        token=hub.token or False,
        library_name="goan",
        # Names are no patterns.
        allow_patterns=[glob.escape(file.path) for file in repository.files],
        tqdm_class=_bar(lambda _: None),
    )
    # Where the hub fails meanwhile, the library is content with what it has.
    if absent := [file.path for file in repository.files if not file.pointer.is_file()]:
        raise RuntimeError(f"{absent[0]} is not in the cache")
    if revision != repository.commit:
        write_text(snapshots_of(name, hub.cache) / "refs" / revision, repository.commit)


def _suspects(repository: PullRepository) -> Iterator[PullFile]:
    """Files of parts of which nothing lacks, though they were found to be missing."""
    lacking = {part for file in repository.files if not file.cached for part in file.parts}
    return (file for file in repository.files if lacking.isdisjoint(file.parts))


def _get(hub: Hub, repository: PullRepository, file: PullFile, progress: _Progress) -> None:
    def advance(done: int) -> None:
        progress.at(repository, file, done)

    by_library = not are_symlinks_supported(hub.cache) or (file.chunked and _serves_chunks(hub, repository, file))
    with _locked(hub, repository, file):
        if not by_library and size_of(file.blob) is None:
            _grow(hub, repository, file, advance)
            _verify(repository, file, file.partial_file, progress.tell)
            file.partial_file.replace(file.blob)
    if by_library:  # which takes the lock itself
        path = hf_hub_download(
            repository.source.name,
            file.path,
            revision=repository.commit,
            cache_dir=hub.cache,
            endpoint=hub.endpoint,
            token=hub.token or False,
            library_name="goan",
            tqdm_class=_bar(advance),
        )
        _verify(repository, file, Path(path), progress.tell)
    advance(file.size)


def _url(hub: Hub, repository: PullRepository, file: PullFile) -> str:
    return hf_hub_url(repository.source.name, file.path, revision=repository.commit, endpoint=hub.endpoint)


def _serves_chunks(hub: Hub, repository: PullRepository, file: PullFile) -> bool:
    """Whether the store of chunks is behind this endpoint: a mirror can have the hub's listing without it."""
    url, token = _url(hub, repository, file), hub.token or False
    found = get_hf_file_metadata(url, token=token, endpoint=hub.endpoint, library_name="goan")
    return found.xet_file_data is not None


def _grow(hub: Hub, repository: PullRepository, file: PullFile, advance: Callable[[int], None]) -> None:
    """Get what a partial file lacks.

    The library's own downloads begin anew after an interruption; a file of this size is worth going on with.
    """
    file.blob.parent.mkdir(parents=True, exist_ok=True)
    start = size_of(file.partial_file) or 0
    if start > file.size:
        file.partial_file.unlink()
        start = 0
    if start == file.size and file.size:
        return
    headers = build_hf_headers(token=hub.token or False, library_name="goan")
    # Compressed, a part of a file would be of another size than it says.
    headers["Accept-Encoding"] = "identity"
    # Unbuffered, so that nothing is lost with the process. Not to append: a hub without ranges sends all of it again.
    with file.partial_file.open("r+b" if start else "wb", buffering=0) as opened:
        opened.seek(start)
        try:
            http_get(_url(hub, repository, file), opened, resume_size=start, headers=headers, tqdm_class=_bar(advance))
        except HfHubHTTPError as error:
            # The hub has fewer bytes than are here: it is another file.
            if error.response.status_code != _RANGE_NOT_SATISFIABLE:
                raise
            opened.truncate(0)


@contextmanager
def _locked(hub: Hub, repository: PullRepository, file: PullFile) -> Iterator[None]:
    """Keep other processes off a file, those of the hub's library too."""
    lock = hub.cache / ".locks" / snapshots_of(repository.source.name, hub.cache).name / f"{file.blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(lock, timeout=_SECONDS_FOR_LOCK))
        except Timeout as error:
            raise EnvironmentFault(
                f"{_title(repository, file)} is being downloaded by another process", hint="wait for it, then run again"
            ) from error
        # Of downloads by the library that were killed: it never goes on with them.
        for stray in file.blob.parent.glob(f"{file.blob.name}.*.incomplete"):
            stray.unlink(missing_ok=True)
        yield


def _verify(repository: PullRepository, file: PullFile, path: Path, tell: Listener) -> None:
    """Check size and hash of a file. Raises EnvironmentFault for a wrong one, which is removed."""
    title, done = _title(repository, file), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(PullChecking(file=title, done=done, size=file.size))

    size, fault = size_of(path), None
    if size != file.size:
        fault = f"it has {size} bytes, the hub says {file.size}"
    elif file.hash is not None:
        fault = hash_fault(path, file.hash, advance)
    if fault is not None:
        _discard(file)
        file.partial_file.unlink(missing_ok=True)
        raise EnvironmentFault(f"{title} is damaged: {fault}", hint="it was removed: run it again to get it anew")
    tell(PullVerified(file=title, size=file.size))


def _discard(file: PullFile, *, unless: int | None = None) -> None:
    """Remove a file from the cache, unless it is of that size."""
    for path in (file.pointer, file.blob):
        if size_of(path) not in (None, unless):
            path.unlink()


def _bar(advance: Callable[[int], None]) -> type[Any]:
    """A progress bar for the library that shows nothing, and tells how many bytes of one file are there.

    The library counts what came over the network and what was written in bars of their own: the farther one is told.
    """
    bars: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *values: Any, **named: Any) -> None:  # noqa: ANN401 - tqdm's
            super().__init__(*values, **{**named, "disable": True})  # type: ignore[no-untyped-call]
            bars.append(self)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            advance(int(max(bar.n for bar in bars)))

    return Bar
