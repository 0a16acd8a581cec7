"""Hashes by the names of the hub's blobs: known, and right or wrong."""

import hashlib
from pathlib import Path
from typing import Literal

import pytest

from goan_cli.errors import InvalidInput
from goan_cli.packs.hashes import KnownHash, content_hash, hash_fault, hash_named, known_hash

CONTENT = b"weights" * 3_000_000  # more than two chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# `git hash-object` of a file with the text "hello" and a line feed.
HELLO = "ce013625030ba8dba906f756967f9e9ca394464a"


def _cached(cache: Path, name: str, content: bytes) -> Path:
    """A file as the hub's cache keeps it: a link in a snapshot to a blob of this name."""
    repository = cache / "models--org--name"
    pointer = repository / "snapshots" / "c0ffee" / "part" / "file"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / name).write_bytes(content)
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(Path("../../../blobs") / name)
    return pointer


@pytest.mark.parametrize(
    ("etag", "kind"),
    [
        pytest.param("ab" * 32, "sha256", id="of LFS"),
        pytest.param("ab" * 20, "git", id="of git"),
        pytest.param("AB" * 20, None, id="capitals"),
        pytest.param("zz" * 20, None, id="no hex digits"),
        pytest.param("ab" * 16, None, id="md5"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_names_of_blobs(etag: str, kind: str | None) -> None:
    """64 hex digits are a sha256, 40 git's hash, and another name is none."""
    found = hash_named(etag)
    assert (found and found.kind) == kind
    assert found is None or found.digest == etag


def test_a_file_in_a_cache(tmp_path: Path) -> None:
    """A snapshot's file has the hash of its blob, and so have the blob and a link to either."""
    pointer = _cached(tmp_path, SHA256, CONTENT)
    link = tmp_path / "elsewhere"
    link.symlink_to(pointer)
    expected = KnownHash(kind="sha256", digest=SHA256)
    for file in (pointer, pointer.resolve(), link):
        assert known_hash(file) == expected
        assert hash_fault(file, expected) is None


def test_a_blob_that_is_shared(tmp_path: Path) -> None:
    """A blob that links to the store of all repositories goes by its own name: the store's are other hashes."""
    pointer = _cached(tmp_path, SHA256, CONTENT)
    blob = pointer.resolve()
    store = tmp_path / "blobs" / "01" / ("01" * 32)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(store)
    assert known_hash(pointer) == KnownHash(kind="sha256", digest=SHA256)


def test_files_of_no_cache(tmp_path: Path) -> None:
    """A file outside a cache has no known hash, whatever its name, and a link in a circle none either."""
    (tmp_path / "blobs").mkdir()
    plain = tmp_path / "blobs" / SHA256
    plain.write_bytes(CONTENT)
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for file in (plain, circle, tmp_path / "missing"):
        assert known_hash(file) is None


def test_gits_hash(tmp_path: Path) -> None:
    """A small file's hash is what `git hash-object` gives."""
    file = tmp_path / "hello"
    file.write_bytes(b"hello\n")
    assert content_hash(file, "git") == HELLO
    assert hash_fault(file, KnownHash(kind="git", digest=HELLO)) is None


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_a_wrong_byte(tmp_path: Path, kind: Literal["sha256", "git"]) -> None:
    """One wrong byte is a fault that shows the beginnings of both hashes."""
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    known = KnownHash(kind=kind, digest=content_hash(file, kind))
    assert hash_fault(file, known) is None
    file.write_bytes(CONTENT[:-1] + b"!")
    fault = hash_fault(file, known)
    assert fault is not None
    assert f"the hub says {known.digest[:12]}…" in fault
    assert content_hash(file, kind)[:12] in fault


def test_progress(tmp_path: Path) -> None:
    """The chunks that are told sum up to the file, and there are several of a large one."""
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    chunks: list[int] = []
    assert content_hash(file, "sha256", chunks.append) == SHA256
    assert sum(chunks) == len(CONTENT)
    assert len(chunks) == 3


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is gone is named in one line."""
    with pytest.raises(InvalidInput, match="gone: cannot be read: No such file"):
        content_hash(tmp_path / "gone", "sha256")
