"""Files as wholes: hashes, fingerprints, and nothing half written."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import pytest

from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.files import (
    cache_folder,
    digest_of,
    fingerprint,
    known_sha256_of,
    refuse_taken,
    remove_stray,
    replaced_when_complete,
    sha256_of,
    write_bytes,
    write_text,
)

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


def _folder(path: Path, **files: str) -> None:
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)


def test_a_folder_replaced_when_complete(tmp_path: Path) -> None:
    """A folder appears as a whole, in place of an earlier one and of nothing else's."""
    path = tmp_path / "a.frames"
    _folder(path, old="1")
    with replaced_when_complete(path, folder=True) as temporary:
        _folder(temporary, new="2")
        assert [file.name for file in path.iterdir()] == ["old"]
    assert [(file.name, file.read_text()) for file in path.iterdir()] == [("new", "2")]
    assert list(tmp_path.iterdir()) == [path]


def test_no_half_folder(tmp_path: Path) -> None:
    """When the block fails the earlier folder stays as it was, and nothing is left of the new one."""
    path = tmp_path / "a.frames"
    _folder(path, old="1")
    with pytest.raises(KeyError), replaced_when_complete(path, folder=True) as temporary:  # noqa: PT012 - the block is the test
        _folder(temporary, new="2")
        raise KeyError
    assert [file.name for file in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]


def test_hash_of_a_folder(tmp_path: Path) -> None:
    """A folder's hash follows its files' names and contents, at once, wherever it is."""
    one, two = tmp_path / "one", tmp_path / "two"
    _folder(one, a="1", b="2")
    _folder(two, b="2", a="1")
    assert sha256_of(one) == sha256_of(two) == known_sha256_of(one)
    seen = {sha256_of(one)}
    for name, text in (("c", "3"), ("a", None), ("b", "22")):
        if text is None:
            (one / name).unlink()
        else:
            _folder(one, **{name: text})
        assert known_sha256_of(one) == sha256_of(one)
        assert sha256_of(one) not in seen
        seen.add(sha256_of(one))


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


# What dead writers leave ----------------------------------------------------------------------------------


class _Killed(Exception):
    pass


def _left_by_a_dead_writer(path: Path, process: int) -> Path:
    """What is left where a process was killed in the middle of writing `path`."""
    with suppress(_Killed), replaced_when_complete(path) as temporary:
        stray = temporary.with_name(temporary.name.replace(f"-{os.getpid()}-", f"-{process}-"))
        stray.write_bytes(b"half")
        raise _Killed
    return stray


@pytest.mark.parametrize("name", ["video.mp4", "größe [1] *.mp4", "v1.2.latents.safetensors", "no suffix", ".hidden"])
def test_strays_are_removed(tmp_path: Path, name: str) -> None:
    """Half-written files of any dead writer of a path are removed; the path itself and other paths' files stay."""
    path, other = tmp_path / name, tmp_path / f"x{name}"
    strays = [_left_by_a_dead_writer(path, process) for process in (1, 99999)]
    kept = [_left_by_a_dead_writer(other, 1), path, other]
    for file in (path, other):
        file.write_bytes(b"whole")
    assert all(stray.is_file() for stray in strays)
    remove_stray(path)
    assert not any(stray.exists() for stray in strays)
    assert names_in(tmp_path) == sorted(file.name for file in kept)


def test_no_strays(tmp_path: Path) -> None:
    """Where nothing was left, or there is no folder, removing strays does nothing."""
    remove_stray(tmp_path / "video.mp4")
    remove_stray(tmp_path / "none" / "video.mp4")
    assert names_in(tmp_path) == []


def test_same_name_in_another_folder(tmp_path: Path) -> None:
    """Strays of a file of the same name in another folder stay."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (_left_by_a_dead_writer(tmp_path / folder / "video.mp4", 1) for folder in ("a", "b"))
    remove_stray(tmp_path / "a" / "video.mp4")
    assert (first.exists(), second.exists()) == (False, True)


# Digests --------------------------------------------------------------------------------------------------


def test_digest_of_values() -> None:
    """A digest is of names and values, whatever their order."""
    digest = digest_of(a=1, b={"x": [1.5, None], "y": "größe"})
    assert len(bytes.fromhex(digest)) == 32
    assert digest_of(b={"y": "größe", "x": [1.5, None]}, a=1) == digest


@pytest.mark.parametrize(
    "other",
    [
        {"a": 2, "b": [1, 2]},
        {"a": "1", "b": [1, 2]},
        {"a": None, "b": [1, 2]},
        {"a": 1, "b": [2, 1]},
        {"a": 1, "b": [[1], 2]},
        {"a": 1, "c": [1, 2]},
        {"a": 1},
        {},
    ],
)
def test_digests_of_other_values(other: dict[str, object]) -> None:
    """Another value, type, order of a list or name gives another digest."""
    assert digest_of(**other) != digest_of(a=1, b=[1, 2])


def test_known_hash_follows_the_file(tmp_path: Path) -> None:
    """A known hash is that of the content also after the file has changed in size or time."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert known_sha256_of(path) == sha256_of(path)
    path.write_bytes(b"three")
    assert known_sha256_of(path) == sha256_of(path)
    path.write_bytes(b"seven")
    os.utime(path, ns=(1, 1))
    assert known_sha256_of(path) == sha256_of(path) == hashlib.sha256(b"seven").hexdigest()


@pytest.mark.parametrize(
    ("given", "xdg", "expected"),
    [
        ("/caches/goan", "/xdg", "/caches/goan"),
        ("~/mine", None, "/home/me/mine"),
        (None, "/xdg", "/xdg/goan"),
        (None, None, "/home/me/.cache/goan"),
        ("", "", "/home/me/.cache/goan"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, given: str | None, xdg: str | None, expected: str) -> None:
    """The cache lies where GOAN_CACHE says, else in the user's cache folder; empty words are none."""
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in (("GOAN_CACHE", given), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_results_that_would_take_a_place(tmp_path: Path) -> None:
    """A result is refused over what it is made from, by any path to it, over a folder, and over a file unless asked."""
    source, there, folder = tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"
    source.write_bytes(b"a")
    there.write_bytes(b"b")
    folder.mkdir()
    refuse_taken(tmp_path / "new.mp4", source, replacing=False)
    refuse_taken(there, source, replacing=True)
    (tmp_path / "link.mp4").symlink_to(source)
    for path, replacing, words in (
        (source, True, "made from"),
        (tmp_path / "link.mp4", True, "made from"),
        (folder, True, "is a folder"),
        (there, False, "is there already"),
    ):
        with pytest.raises(InvalidInput, match=words):
            refuse_taken(path, source, replacing=replacing)
