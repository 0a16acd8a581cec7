"""A complete model pack: absolute paths of its parts, and what tells it apart from others."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from goan_cli.files import fingerprint
from goan_cli.model.checkpoint import checkpoint_files
from goan_cli.packs.manifest import PARTS, WEIGHTED

_TEXTS = ("*.json", "merges.txt")  # configurations and vocabularies: they decide what the weights make
# Calibrations of step caches lie beside the manifest, where a part may lie too: they change no weights.
MAGNITUDES_SUFFIX = ".magcache.json"


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A pack whose every part was found; see `find_pack`.

    A weighted part is a folder or one safetensors file; `configs` are the JSON files that describe those parts.
    """

    name: str
    family: Literal["inverted", "f1"]
    manifest: Path
    transformer: Path
    text_encoder: Path
    tokenizer: Path
    text_encoder_2: Path
    tokenizer_2: Path
    vae: Path
    image_encoder: Path
    feature_extractor: Path
    window: int
    steps: int
    resolution: int
    configs: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    def config_of(self, part: str) -> Path:
        """The JSON file that describes a weighted part's architecture."""
        return self.configs[part]

    def identity(self) -> str:
        """A hex digest of every part's identity: equal ones render equal videos."""
        digest = hashlib.sha256(self.family.encode())
        for part in PARTS:
            digest.update(f"{part}/{self.identity_of(part)}\n".encode())
        return digest.hexdigest()

    def identity_of(self, part: str) -> str:
        """A hex digest of one part's weights, configuration and vocabulary, wherever they lie."""
        return part_identity(part, getattr(self, part), self.configs.get(part))


def part_identity(part: str, path: Path, config: Path | None) -> str:
    """A hex digest of a part's weights, configuration and vocabulary, wherever they lie."""
    weights = checkpoint_files(path) if part in WEIGHTED else ()
    texts = sorted(file for pattern in _TEXTS for file in path.glob(pattern)) if path.is_dir() else []
    texts = [file for file in texts if not file.name.endswith(MAGNITUDES_SUFFIX)]
    prints = [*(fingerprint(file) for file in weights), *(f"{file.name}/{fingerprint(file)}" for file in texts)]
    if config is not None and config.parent != path:
        prints.append(f"config.json/{fingerprint(config)}")
    return hashlib.sha256("\n".join(prints).encode()).hexdigest()
