"""What the Hugging Face hub says a file's content is, by the name that its cache gives it. No torch."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from goan_cli.errors import InvalidInput

_CHUNK = 8 << 20
_HASHES: dict[int, Literal["sha256", "git"]] = {64: "sha256", 40: "git"}
_HEX = re.compile(r"[0-9a-f]+")
# A pointer leads to its blob in one step; more are of links that users made.
_MOST_LINKS = 8


@dataclass(frozen=True, kw_only=True)
class KnownHash:
    """The hash that a file should have: its `sha256`, or `git`'s sha1 of it as a blob; hex digits."""

    kind: Literal["sha256", "git"]
    digest: str


def hash_named(etag: str) -> KnownHash | None:
    """The hash that a blob's name is: 64 hex digits are its sha256, 40 are git's; None for any other name."""
    kind = _HASHES.get(len(etag))
    return KnownHash(kind=kind, digest=etag) if kind is not None and _HEX.fullmatch(etag) else None


def known_hash(file: Path) -> KnownHash | None:
    """The hash of a file in a cache of the hub, by its blob's name; None for a file anywhere else."""
    blob = _blob_of(file)
    return hash_named(blob.name) if blob is not None else None


def _blob_of(file: Path) -> Path | None:
    """The blob that a file is, or leads to.

    Link by link: a blob can itself be a link into a store that all repositories share, where names are other hashes.
    """
    here = file
    for _ in range(_MOST_LINKS):
        if here.parent.name == "blobs" and (here.parent.parent / "snapshots").is_dir():
            return here
        try:
            link = here.readlink()
        except OSError:
            return None
        here = Path(os.path.normpath(here.parent.resolve() / link))
    return None


def content_hash(file: Path, kind: Literal["sha256", "git"], advance: Callable[[int], None] | None = None) -> str:
    """The hex digits of a file's hash. `advance` is told the bytes of every chunk that was read.

    Raises InvalidInput for a file that cannot be read.
    """
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    buffer = memoryview(bytearray(_CHUNK))
    try:
        with file.open("rb", buffering=0) as opened:
            if kind == "git":
                digest.update(b"blob %d\0" % os.fstat(opened.fileno()).st_size)
            while count := opened.readinto(buffer):
                digest.update(buffer[:count])
                if advance is not None:
                    advance(count)
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def hash_fault(file: Path, known: KnownHash, advance: Callable[[int], None] | None = None) -> str | None:
    """What is wrong with a file's content, None when it has the hash that it should have.

    Reads all of it; `advance` is told the bytes of every chunk. Raises InvalidInput for a file that cannot be read.
    """
    found = content_hash(file, known.kind, advance)
    if found == known.digest:
        return None
    return f"its {_TITLES[known.kind]} is {found[:12]}…, the hub says {known.digest[:12]}…"


_TITLES = {"sha256": "sha256", "git": "git hash"}
