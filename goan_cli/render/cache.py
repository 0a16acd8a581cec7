"""Encoded prompts and images on disk, by content: a rerun of the same texts never loads the text encoder.

Nothing depends on it. What cannot be read is encoded again, and what cannot be written is not kept.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from goan_cli.errors import EnvironmentFault
from goan_cli.files import write_bytes

log = logging.getLogger(__name__)

_MOST_BYTES = 2 << 30  # about a thousand prompts of the full-size encoder
_OURS = re.compile(r"[0-9a-f]{2}/(?:[0-9a-f]{62}\.safetensors|\.goan-.*)")
_ABANDONED_AFTER = 3600.0  # seconds: a temporary file this old has no writer any more


class EmbeddingCache:
    """Named tensors and a JSON note of each entry under a key; `folder` None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @property
    def keeps(self) -> bool:
        """Whether what is written will be there; False from the first failure to write on."""
        return self.folder is not None

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """The tensors and texts of an entry, None where there is none that can be used."""
        if self.folder is None:
            return None
        file = self._file(key)
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
                texts = dict(opened.metadata() or {})
        except (OSError, SafetensorError):
            return None
        with suppress(OSError):
            os.utime(file)  # the least recently used go first
        return tensors, texts

    def write(self, key: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
        """Keep an entry, if the folder allows it."""
        if self.folder is None:
            return
        copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        try:
            write_bytes(self._file(key), save(copies, metadata=dict(texts)))
        except EnvironmentFault as error:
            log.warning("embeddings are not kept: %s", error)
            self.folder = None

    def prune(self, most: int = _MOST_BYTES) -> None:
        """Remove the least recently used entries beyond `most` bytes, and what dead writers left."""
        if self.folder is None:
            return
        entries = []
        for file in self.folder.glob("*/*"):
            if not _OURS.fullmatch(f"{file.parent.name}/{file.name}"):
                continue  # somebody gave us a folder with other things in it
            with suppress(OSError):
                stat = file.stat()
                if file.name.startswith("."):
                    if stat.st_mtime < time.time() - _ABANDONED_AFTER:
                        file.unlink()
                    continue
                entries.append((stat.st_mtime, stat.st_size, file))
        total = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if total <= most:
                return
            with suppress(OSError):
                file.unlink()
            total -= size

    def _file(self, key: str) -> Path:
        return (self.folder or Path()) / key[:2] / f"{key[2:]}.safetensors"
