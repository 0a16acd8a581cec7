"""Model packs: where each part of a FramePack model lies, its family, and its defaults. No torch.

A pack is a manifest (`pack.yaml`) in the folder of its parts, or a manifest anywhere that names them.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from goan_cli.checking import SchemaVersion, checked, nearest
from goan_cli.documents import Document, read_document
from goan_cli.errors import InvalidInput, InvalidJobs, Problem
from goan_cli.files import fingerprint
from goan_cli.model.checkpoint import checkpoint_files, read_checkpoint, read_json, refuse_quantised
from goan_cli.model.config import read_config

MANIFEST = "pack.yaml"
_TINY = Path(str(files("goan_cli"))) / "tiny" / "pack"
SHIPPED = {"tiny": _TINY / MANIFEST, "tiny-f1": _TINY / "tiny-f1.yaml"}

_PartPath = Annotated[str, Field(min_length=1)]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DefaultsSpec(_Manifest):
    """What a job gets from the pack where it is silent."""

    window: int = Field(9, ge=1, le=64)
    steps: int = Field(25, ge=1, le=1000)
    resolution: int = Field(640, ge=16, le=4096)


class PackSpec(_Manifest):
    """A manifest's keys. Paths are relative to the manifest; the defaults are the repositories' folders."""

    version: SchemaVersion = 1
    name: str = Field(min_length=1)
    family: Literal["inverted", "f1"]
    transformer: _PartPath = "transformer"
    text_encoder: _PartPath = "text_encoder"
    tokenizer: _PartPath = "tokenizer"
    text_encoder_2: _PartPath = "text_encoder_2"
    tokenizer_2: _PartPath = "tokenizer_2"
    vae: _PartPath = "vae"
    image_encoder: _PartPath = "image_encoder"
    feature_extractor: _PartPath = "feature_extractor"
    defaults: DefaultsSpec = DefaultsSpec()


WEIGHTED = ("transformer", "text_encoder", "text_encoder_2", "vae", "image_encoder")
PARTS = (*WEIGHTED, "tokenizer", "tokenizer_2", "feature_extractor")
_TEXTS = ("*.json", "merges.txt")  # configurations and vocabularies: they decide what the weights make
# Calibrations of step caches lie beside the manifest, where a part may lie too: they change no weights.
MAGNITUDES_SUFFIX = ".magcache.json"
_NEEDED_FILES = {
    "tokenizer": ("tokenizer.json",),
    "tokenizer_2": ("vocab.json", "merges.txt"),
    "feature_extractor": ("preprocessor_config.json",),
    "text_encoder": ("config.json",),
    "transformer": ("config.json",),
    "text_encoder_2": ("config.json",),
    "vae": ("config.json",),
    "image_encoder": ("config.json",),
}


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A complete model pack with absolute paths; see `find_pack`."""

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

    def identity(self) -> str:
        """A hex digest of every part's identity: equal ones render equal videos."""
        digest = hashlib.sha256(self.family.encode())
        for part in PARTS:
            digest.update(f"{part}/{self.identity_of(part)}\n".encode())
        return digest.hexdigest()

    def identity_of(self, part: str) -> str:
        """A hex digest of one part's weights, configuration and vocabulary, wherever they lie."""
        folder: Path = getattr(self, part)
        weights = checkpoint_files(folder) if part in WEIGHTED else ()
        texts = sorted(file for pattern in _TEXTS for file in folder.glob(pattern)) if folder.is_dir() else []
        texts = [file for file in texts if not file.name.endswith(MAGNITUDES_SUFFIX)]
        prints = [*(fingerprint(file) for file in weights), *(f"{file.name}/{fingerprint(file)}" for file in texts)]
        return hashlib.sha256("\n".join(prints).encode()).hexdigest()


def find_pack(model: str) -> Pack:
    """The pack of a shipped name, a folder with a manifest, or a manifest; every part checked to be there.

    Raises InvalidInput for an unknown name, InvalidJobs (with file and line) for a wrong manifest, and
    InvalidInput for missing or damaged parts.
    """
    root = SHIPPED.get(model, Path(model))
    manifest = root / MANIFEST if root.is_dir() else root
    if not manifest.is_file():
        if root.is_dir():
            raise InvalidInput(f"{root}: holds no {MANIFEST}", hint="a pack folder needs its manifest")
        if model in SHIPPED or "/" in model or "\\" in model:
            raise InvalidInput(f"{root}: no such model pack")
        hint = f"{nearest(model, list(SHIPPED))} A folder is written with a slash: ./{model}"
        raise InvalidInput(f"no model pack named {model}", hint=hint)
    document = read_document(manifest)
    spec = checked(PackSpec, document.data, document)
    if spec.problems or spec.model is None:
        raise InvalidJobs(spec.problems)
    pack = _pack(spec.model, manifest.absolute())
    if missing := _missing_parts(pack, document):
        raise InvalidJobs(missing)
    return pack


def _pack(spec: PackSpec, manifest: Path) -> Pack:
    root = manifest.parent
    return Pack(
        name=spec.name,
        family=spec.family,
        manifest=manifest,
        transformer=root / spec.transformer,
        text_encoder=root / spec.text_encoder,
        tokenizer=root / spec.tokenizer,
        text_encoder_2=root / spec.text_encoder_2,
        tokenizer_2=root / spec.tokenizer_2,
        vae=root / spec.vae,
        image_encoder=root / spec.image_encoder,
        feature_extractor=root / spec.feature_extractor,
        window=spec.defaults.window,
        steps=spec.defaults.steps,
        resolution=spec.defaults.resolution,
    )


def _missing_parts(pack: Pack, document: Document) -> list[Problem]:
    problems = []
    for part in PARTS:
        folder: Path = getattr(pack, part)
        try:
            _check_part(part, folder)
        except InvalidInput as error:
            problems.append(document.problem((part,), error.message, hint=error.hint))
    return problems


def _check_part(part: str, folder: Path) -> None:
    """Raise InvalidInput for a part that is missing, incomplete or damaged, as far as small files tell."""
    if not folder.exists():
        raise InvalidInput(f"{folder}: the pack's {part} is missing")
    if part in WEIGHTED:
        checkpoint = read_checkpoint(folder)
        if part == "transformer":
            refuse_quantised(checkpoint)
    for name in _NEEDED_FILES.get(part, ()) if folder.is_dir() else ():
        file = folder / name
        if not file.is_file():
            raise InvalidInput(f"{folder}: the pack's {part} lacks {name}")
        if file.suffix == ".json":
            read_json(file)
    if part == "transformer":
        read_config(folder)
