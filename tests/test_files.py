"""Files as wholes: hashes, fingerprints, and nothing half written."""

import hashlib
from pathlib import Path

import pytest

from goan_cli.errors import EnvironmentFault
from goan_cli.files import fingerprint, replaced_when_complete, sha256_of, write_bytes, write_text

MIB = 1 << 20


def names_in(folder: Path) -> list[str]:
    """Names of everything in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_sha256(tmp_path: Path) -> None:
    """The hash is the SHA-256 of the whole content."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_of(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_fingerprint_of_a_small_file(tmp_path: Path) -> None:
    """Up to 64 MiB a fingerprint is the hash."""
    path = tmp_path / "a"
    path.write_bytes(b"weights")
    assert fingerprint(path) == sha256_of(path)


@pytest.mark.parametrize("place", [0, 100, 65 * MIB - 1])
def test_fingerprint_of_a_large_file(tmp_path: Path, place: int) -> None:
    """A large file's fingerprint changes with its header, its end and its size."""
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(65 * MIB)
    before = fingerprint(path)
    assert fingerprint(path) == before
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\1")
    changed = fingerprint(path)
    with path.open("r+b") as file:
        file.truncate(65 * MIB + 1)
    assert len({before, changed, fingerprint(path)}) == 3


def test_fingerprint_tells_large_files_apart_everywhere(tmp_path: Path) -> None:
    """Two files of the same size that differ in most of their content have different fingerprints."""
    first, second = tmp_path / "a", tmp_path / "b"
    for path, fill in ((first, b"\1"), (second, b"\2")):
        with path.open("wb") as file:
            file.truncate(66 * MIB)
            for start in range(MIB, 65 * MIB, MIB):
                file.seek(start)
                file.write(fill * 4096)
    assert fingerprint(first) != fingerprint(second)


def test_replaced_when_complete(tmp_path: Path) -> None:
    """The new content takes the file's place only when the block ends, and nothing else is left."""
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    with replaced_when_complete(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
        assert temporary.name.startswith(".")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["video.mp4"]


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_nothing_half_written(tmp_path: Path, failure: BaseException) -> None:
    """However a block fails, the old file stays as it was and no temporary file is left."""
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")
    with pytest.raises(type(failure)), replaced_when_complete(path) as temporary:  # noqa: PT012 - the block is the test
        temporary.write_bytes(b"half")
        raise failure
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["video.mp4"]


def test_folders_are_made(tmp_path: Path) -> None:
    """Missing folders on the way to a file are made."""
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    write_bytes(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert names_in(path.parent) == ["c.txt"]


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    """A file in the place of the folder is a fault of the environment, which names the path."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"c\.txt: cannot be written"):
        write_text(tmp_path / "out" / "c.txt", "x")
    assert (tmp_path / "out").read_text() == "in the way"


def test_a_folder_where_the_file_must_be(tmp_path: Path) -> None:
    """A folder in the place of the file is a fault of the environment, and no temporary file is left."""
    (tmp_path / "c.txt").mkdir()
    with pytest.raises(EnvironmentFault, match=r"c\.txt: cannot be written"):
        write_text(tmp_path / "c.txt", "x")
    assert names_in(tmp_path) == ["c.txt"]


@pytest.mark.parametrize("length", [200, 251, 300])
def test_long_names(tmp_path: Path, length: int) -> None:
    """A name is written if the file system can hold it; if not, that is a fault of the environment."""
    path = tmp_path / ("n" * length + ".txt")
    if length + 4 <= 255:
        write_text(path, "x")
        assert path.read_text() == "x"
    else:
        with pytest.raises(EnvironmentFault, match="cannot be written"):
            write_text(path, "x")
    assert len(names_in(tmp_path)) == (length + 4 <= 255)
