"""Files as wholes: hashes, fingerprints, and writing that never leaves half a file."""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from goan_cli.errors import EnvironmentFault, InvalidInput

_CHUNK = 1 << 20
_FULL_HASH_UP_TO = 64 << 20
_SAMPLES = 64


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; False for what no path can be, too."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for what no path can be, and where it may not be looked for."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def expanded(text: str) -> Path:
    """A path with ~ as a home folder; as it is written where there is no such home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def size_text(size: int) -> str:
    """Bytes as a person reads them, in units of a thousand."""
    for unit, text in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.{1 if unit == 10**9 else 0}f} {text}"
    return f"{size} B"


def sha256_of(path: Path) -> str:
    """The hex SHA-256 of a file's content, or of the names and contents of a folder's files."""
    if path.is_dir():
        return digest_of(files={file.name: sha256_of(file) for file in path.iterdir() if file.is_file()})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256_of(path: Path) -> str:
    """`sha256_of`, computed once for as long as the file's size and time of change stay."""
    if path.is_dir():
        return digest_of(files={file.name: known_sha256_of(file) for file in path.iterdir() if file.is_file()})
    stat = path.stat()
    return _known_sha256_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _known_sha256_of(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - part of the key
    return sha256_of(path)


def fingerprint(path: Path) -> str:
    """A hex digest that tells checkpoints apart without reading tens of gigabytes.

    Files up to 64 MiB are hashed whole; of a larger one, its size and 64 evenly spaced MiB (the header and
    the end among them).
    """
    stat = path.stat()
    return _fingerprint(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _fingerprint(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 - part of the key
    if size <= _FULL_HASH_UP_TO:
        return sha256_of(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek((size - _CHUNK) * index // (_SAMPLES - 1))
            digest.update(file.read(_CHUNK))
    return digest.hexdigest()


def cache_folder() -> Path | None:
    """`$GOAN_CACHE`, or `goan` in the user's cache folder; None for a user without a home."""
    try:
        if given := os.environ.get("GOAN_CACHE"):
            return Path(given).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "goan"
    except RuntimeError:
        return None


def digest_of(**decisive: object) -> str:
    """A hex digest of values that are JSON, whatever their order."""
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def remove_stray(path: Path) -> None:
    """Remove what writers of `path` left that were killed. Only for who knows that no other writer is alive."""
    with suppress(OSError):
        for stray in path.parent.glob(f".goan-*-{_tag(path)}{glob.escape(path.suffix)}"):
            remove(stray)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _tag(path: Path) -> str:
    return hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


@contextmanager
def replaced_when_complete(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed onto it when the block ends well, removed otherwise.

    The temporary name keeps the suffix, since ffmpeg and Pillow choose the format by it. A `folder` is there, empty,
    when the block begins. Raises EnvironmentFault when the folder or the file cannot be written; other failures of
    the block pass through.
    """
    temporary = path.with_name(f".goan-{os.getpid()}-{_tag(path)}{path.suffix}")
    try:
        with _explained(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            if folder:
                remove(temporary)
                temporary.mkdir()
            yield temporary
            for each in temporary.iterdir() if folder else (temporary,):
                with each.open("rb") as written:
                    os.fsync(written.fileno())  # else a power cut could leave an empty file under the name
            if folder:
                remove(path)  # no folder is renamed onto another
            temporary.replace(path)
    finally:
        with suppress(OSError):
            remove(temporary)


@contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    """Turn an OSError about these files, or about no file in particular, into an EnvironmentFault."""
    try:
        yield
    except OSError as error:
        about = None if error.filename is None else Path(os.fsdecode(error.filename))
        if about is not None and about not in (path, temporary) and about not in path.parents:
            raise
        raise EnvironmentFault(
            f"{path}: cannot be written: {error.strerror or error}", hint="check the folder, its rights and space"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name, then rename it into place."""
    with replaced_when_complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes under a temporary name, then rename them into place."""
    with replaced_when_complete(path) as temporary:
        temporary.write_bytes(data)


def refuse_taken(path: Path, *inputs: Path, replacing: bool) -> None:
    """Raise InvalidInput where a result would be written over an input, a folder, or any file without `replacing`."""
    if any(os.path.realpath(each) == os.path.realpath(path) for each in inputs):
        raise InvalidInput(f"{path}: would be written over what it is made from")
    if path.is_dir():
        raise InvalidInput(f"{path}: is a folder")
    if os.path.lexists(path) and not replacing:
        raise InvalidInput(f"{path}: is there already", hint="--replace writes over it")
