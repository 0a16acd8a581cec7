"""The cache of embeddings: entries come back as they were, and nothing ever depends on it."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from goan_cli.render.cache import EmbeddingCache

KEY = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
TENSORS = {
    "embeds": torch.randn((1, 5, 8), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "pooled": torch.arange(6.0).view(2, 3).T,
}
TEXTS = {"cuts": '[{"words": "größe 漢字"}]'}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _aged(path: Path, seconds: float) -> Path:
    """A file whose time of change lies in the past."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_entries_come_back(tmp_path: Path) -> None:
    """Tensors come back with their bits and dtypes, texts as they were, and another key has nothing."""
    cache = EmbeddingCache(tmp_path / "cache")
    assert cache.read(KEY) is None
    cache.write(KEY, TENSORS, TEXTS)
    found = EmbeddingCache(tmp_path / "cache").read(KEY)
    assert found is not None
    tensors, texts = found
    assert texts == TEXTS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    assert cache.read(OTHER) is None


def test_entry_without_texts(tmp_path: Path) -> None:
    """An entry needs no texts."""
    cache = EmbeddingCache(tmp_path)
    cache.write(KEY, {"embeds": torch.ones(2)}, {})
    found = cache.read(KEY)
    assert found is not None
    assert torch.equal(found[0]["embeds"], torch.ones(2))


def test_what_was_read_is_no_longer_the_file(tmp_path: Path) -> None:
    """Tensors that were read stay when the entry goes or is written anew."""
    cache = EmbeddingCache(tmp_path)
    cache.write(KEY, {"embeds": torch.ones(2)}, {})
    found = cache.read(KEY)
    assert found is not None
    cache.write(KEY, {"embeds": torch.zeros(2)}, {})
    cache.prune(0)
    assert torch.equal(found[0]["embeds"], torch.ones(2))


def test_without_a_folder() -> None:
    """Without a folder nothing is kept, and nothing fails."""
    cache = EmbeddingCache(None)
    cache.write(KEY, TENSORS, TEXTS)
    assert cache.read(KEY) is None
    cache.prune()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_cut, id="cut off"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * 200), id="garbage"),
        pytest.param(lambda path: path.write_text("<html>"), id="text"),
        pytest.param(_folder, id="a folder"),
        pytest.param(Path.unlink, id="gone"),
    ],
)
def test_entries_that_cannot_be_read(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A damaged entry is as none; where the file system allows it, a new one takes its place."""
    cache = EmbeddingCache(tmp_path)
    cache.write(KEY, TENSORS, TEXTS)
    (file,) = _files(tmp_path)
    damage(file)
    assert cache.read(KEY) is None
    cache.write(KEY, TENSORS, TEXTS)
    assert (cache.read(KEY) is None) == file.is_dir()


def test_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that cannot be made is told once, and everything goes on without a cache."""
    (tmp_path / "taken").write_text("in the way")
    cache = EmbeddingCache(tmp_path / "taken" / "cache")
    assert cache.read(KEY) is None
    cache.prune()
    for key in (KEY, OTHER):
        cache.write(key, TENSORS, TEXTS)
        assert cache.read(key) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "embeddings are not kept" in caplog.text
    assert (tmp_path / "taken").read_text() == "in the way"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """Beyond the limit the entries that were used longest ago are removed; reading an entry is using it."""
    cache = EmbeddingCache(tmp_path)
    keys = [f"{number:02x}" * 32 for number in range(4)]
    for age, key in enumerate(reversed(keys), start=1):
        before = set(_files(tmp_path))
        cache.write(key, TENSORS, TEXTS)
        (file,) = set(_files(tmp_path)) - before
        _aged(file, 100.0 * age)
    size = file.stat().st_size
    cache.prune(4 * size)
    assert len(_files(tmp_path)) == 4
    assert cache.read(keys[0]) is not None  # the oldest is now the newest
    cache.prune(2 * size)
    assert [cache.read(key) is not None for key in keys] == [True, False, False, True]
    cache.prune(0)
    assert _files(tmp_path) == []


def test_what_dead_writers_left(tmp_path: Path) -> None:
    """Half-written files of killed writers are removed when they are old; a living writer's stays."""
    cache = EmbeddingCache(tmp_path)
    cache.write(KEY, TENSORS, TEXTS)
    (entry,) = _files(tmp_path)
    old, new = (entry.with_name(f".goan-{number}-{'0' * 12}.safetensors") for number in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    _aged(old, 1e6)
    _aged(entry, 1e6)
    cache.prune()
    assert _files(tmp_path) == sorted([entry, new])


def test_pruning_no_folder(tmp_path: Path) -> None:
    """A folder that is not there yet is not made by pruning it."""
    EmbeddingCache(tmp_path / "none").prune()
    assert list(tmp_path.iterdir()) == []
