"""A model's parts found on this machine, each by what its manifest says of it; whatever is missing is named."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from goan_cli.errors import InvalidInput, InvalidJobs, MissingModel
from goan_cli.files import expanded, is_folder, size_text
from goan_cli.model.checkpoint import checkpoint_files, read_json
from goan_cli.model.config import read_config
from goan_cli.packs.manifest import PARTS, WEIGHTED, Manifest, PartOrigin, PartSpec, read_manifest
from goan_cli.packs.pack import Pack, part_identity
from goan_cli.packs.places import Place, candidates, places
from goan_cli.packs.recognition import read_part
from goan_cli.settings import read_settings

# The configurations of the full-size parts, for single files, which carry none.
FULL_SIZE = Path(__file__).parent / "full_size"
_NEEDED_FILES = {
    "tokenizer": ("tokenizer.json",),
    "tokenizer_2": ("vocab.json", "merges.txt"),
    "feature_extractor": ("preprocessor_config.json",),
}
_MANIFEST_PLACE = "manifest"
_BUILT_IN = "built in"


@dataclass(frozen=True, kw_only=True)
class FoundPart:
    """What was found of one part.

    `path` is None where nothing is; `config` describes the architecture of a weighted one. `size` is in bytes, on disk
    or, of what is nowhere, to be downloaded. `problem` says why it cannot be used: it is missing, incomplete,
    damaged, or refused.
    """

    part: str
    origin: PartOrigin
    path: Path | None
    config: Path | None
    place: str
    size: int
    problem: InvalidInput | None

    @property
    def usable(self) -> Path:
        """The path of a part that was found. Raises its problem."""
        if self.problem is not None or self.path is None:
            raise self.problem or InvalidInput(f"the pack's {self.part} is missing")
        return self.path

    @property
    def identity(self) -> str:
        """A hex digest of what the part is. Raises its problem."""
        return part_identity(self.part, self.usable, self.config)

    @property
    def source(self) -> PartSpec | None:
        """Where it can be downloaded from, None for a part that the manifest gives by its path."""
        spec = self.origin.spec
        return spec if spec is not None and spec.repository is not None else None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A manifest and what was found of each of its parts."""

    manifest: Manifest
    parts: tuple[FoundPart, ...]

    @property
    def missing(self) -> tuple[FoundPart, ...]:
        """Parts that cannot be used."""
        return tuple(part for part in self.parts if part.problem is not None)

    @property
    def complete(self) -> bool:
        """Whether a render can use it."""
        return not self.missing

    @property
    def to_download(self) -> int:
        """Bytes of the missing parts that come from a repository."""
        return sum(expected_size(part) for part in self.missing)


def expected_size(part: FoundPart) -> int:
    """What a part is to download, in bytes, by its manifest."""
    return part.source.size if part.source is not None else 0


def find_pack(model: str) -> Pack:
    """The pack of a name, a folder with a manifest, or a manifest; every part found and checked to be usable.

    Raises InvalidInput for an unknown name, InvalidJobs (with file and line) for a wrong manifest or for parts that
    are not where it says, and MissingModel for parts that are nowhere on this machine.
    """
    survey = survey_pack(model)
    refuse_wrong_paths(survey.parts)
    if survey.missing:
        raise _missing_model(model, survey.manifest.name, survey.missing, to_download=survey.to_download)
    return pack_of(survey)


def find_part(model: str, part: str) -> FoundPart:
    """One part of a pack, which may lack others. Raises as `find_pack`."""
    manifest = read_manifest(model)
    found = _found(manifest.parts[part], places(read_settings()))
    refuse_wrong_paths([found])
    if found.problem is not None:
        # The command gets what else is missing, too.
        raise _missing_model(model, manifest.name, [found], to_download=survey_pack(model).to_download)
    return found


def survey_pack(model: str) -> Survey:
    """What is there of a pack's parts. Raises as `find_pack` for an unknown name, a wrong manifest or settings only."""
    manifest = read_manifest(model)
    where = places(read_settings())
    found = {part: _found(origin, where) for part, origin in manifest.parts.items() if part != "feature_extractor"}
    processor = _found(manifest.parts["feature_extractor"], where)
    encoder = found["image_encoder"]
    # A single file is full-size unless it has a configuration of its own, and full-size SigLIP has one processor.
    is_full_size = encoder.problem is None and encoder.config == FULL_SIZE / "image_encoder.json"
    if processor.problem is not None and is_full_size and (processor.path is None or processor.origin.spec is None):
        processor = _built_in(processor)
    return Survey(manifest=manifest, parts=tuple({**found, "feature_extractor": processor}[part] for part in PARTS))


def refuse_wrong_paths(found: Sequence[FoundPart]) -> None:
    """Raise InvalidJobs for parts that are not where their manifest says: those cannot be downloaded."""
    wrong = [
        part.origin.document.problem((part.part,), part.problem.message, hint=part.problem.hint)
        for part in found
        if part.source is None and part.problem is not None
    ]
    if wrong:
        raise InvalidJobs(wrong)


def _missing_model(model: str, name: str, parts: Sequence[FoundPart], *, to_download: int) -> MissingModel:
    names = [part.part for part in parts]
    nowhere = [part.part for part in parts if part.path is None]
    lacks = "; ".join(
        [
            *([f"{', '.join(nowhere)} not found"] if nowhere else []),
            *(part.problem.message for part in parts if part.path is not None and part.problem is not None),
        ]
    )
    own = sum(expected_size(part) for part in parts)
    hint = f"goan models pull {shlex.quote(model)} downloads {'' if nowhere == names else 'up to '}"
    hint += size_text(to_download)
    if own < to_download:
        hint += f", {size_text(own)} of it for the {', '.join(names)}"
    return MissingModel(f"{name} is not complete on this machine: {lacks}", hint=hint)


def pack_of(survey: Survey) -> Pack:
    """The pack of a survey that found every part. Raises the problem of one that it did not find."""
    paths = {part.part: part.usable for part in survey.parts}
    manifest = survey.manifest
    return Pack(
        name=manifest.name,
        family=manifest.family,
        manifest=manifest.file,
        transformer=paths["transformer"],
        text_encoder=paths["text_encoder"],
        tokenizer=paths["tokenizer"],
        text_encoder_2=paths["text_encoder_2"],
        tokenizer_2=paths["tokenizer_2"],
        vae=paths["vae"],
        image_encoder=paths["image_encoder"],
        feature_extractor=paths["feature_extractor"],
        window=manifest.defaults.window,
        steps=manifest.defaults.steps,
        resolution=manifest.defaults.resolution,
        configs=MappingProxyType({part.part: part.config for part in survey.parts if part.config is not None}),
    )


def _found(origin: PartOrigin, where: Sequence[Place]) -> FoundPart:
    spec, part = origin.spec, origin.part
    if spec is None or spec.path is not None:
        path = origin.root / expanded(spec.path if spec and spec.path else part)
        config = origin.root / expanded(spec.config) if spec and spec.config else None
        return _checked(origin, path, config, _MANIFEST_PLACE)
    unusable: FoundPart | None = None
    for place in where:
        for path in candidates(part, spec, place):
            found = _checked(origin, path, None, place.label)
            if found.problem is None:
                return found
            unusable = unusable or found
    return unusable or FoundPart(
        part=part,
        origin=origin,
        path=None,
        config=None,
        place="",
        size=spec.size,
        problem=InvalidInput(f"not found ({spec.repository})"),
    )


def _built_in(missing: FoundPart) -> FoundPart:
    folder = FULL_SIZE / "feature_extractor"
    size = sum(file.stat().st_size for file in folder.iterdir())
    return FoundPart(
        part=missing.part, origin=missing.origin, path=folder, config=None, place=_BUILT_IN, size=size, problem=None
    )


def _checked(origin: PartOrigin, path: Path, config: Path | None, place: str) -> FoundPart:
    part, problem, size = origin.part, None, 0
    if config is None:
        config = default_config(part, path)
    elif is_folder(config):
        config = config / "config.json"
    try:
        size = check_part(part, path, config)
    except OSError as error:
        problem = InvalidInput(f"{path}: cannot be read: {error.strerror or error}")
    except InvalidInput as error:
        problem = error
    return FoundPart(part=part, origin=origin, path=path, config=config, place=place, size=size, problem=problem)


def files_of(found: FoundPart) -> tuple[Path, ...]:
    """The files of a part that was found, weights first; nothing where they cannot be told."""
    if found.path is None:
        return ()
    files: list[Path] = []
    if found.part in WEIGHTED:
        with suppress(InvalidInput):
            files += checkpoint_files(found.path)
    if found.path.is_dir():
        files += sorted(file for pattern in ("*.json", "*.txt") for file in found.path.glob(pattern))
    return tuple(files)


def default_config(part: str, path: Path) -> Path | None:
    """The JSON file that describes a weighted part: in its folder, or of a single file the full-size one's."""
    if part not in WEIGHTED:
        return None
    return path / "config.json" if is_folder(path) else FULL_SIZE / f"{part}.json"


def check_part(part: str, path: Path, config: Path | None) -> int:
    """The part's bytes on disk. Raises InvalidInput for one that is missing, incomplete, damaged or refused.

    As far as small files and the headers of large ones tell.
    """
    if not path.exists():
        raise InvalidInput(f"{path}: the pack's {part} is missing")
    files: Sequence[Path] = ()
    if part in WEIGHTED:
        files = read_part(part, path).files
    elif path.is_dir():
        files = [file for file in path.iterdir() if file.is_file()]
    for name in _NEEDED_FILES.get(part, ()):
        if not (path / name).is_file():
            raise InvalidInput(f"{path}: the pack's {part} lacks {name}")
        if name.endswith(".json"):
            read_json(path / name)
    if config is not None:
        if not config.is_file():
            raise InvalidInput(f"{path}: the pack's {part} lacks {config.name}")
        read_json(config)
    if part == "transformer" and config is not None:
        read_config(config)
    return sum(file.stat().st_size for file in files)
