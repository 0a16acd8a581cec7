"""A pack's manifest: its family, its defaults, and for each part where it lies or what repository it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from goan_cli.checking import SchemaVersion, checked, nearest
from goan_cli.documents import Document, read_document
from goan_cli.errors import EnvironmentFault, InvalidInput, InvalidJobs
from goan_cli.files import expanded, is_file, is_folder
from goan_cli.settings import config_folder

MANIFEST = "pack.yaml"
_PACKAGE = Path(str(files("goan_cli")))
# Packs whose weights are part of the installation.
EMBEDDED = {
    "tiny": _PACKAGE / "tiny" / "pack" / MANIFEST,
    "tiny-f1": _PACKAGE / "tiny" / "pack" / "tiny-f1.yaml",
}
# Packs whose manifests are part of the installation, and whose parts are looked for on the machine.
SHIPPED = {
    **EMBEDDED,
    "framepack-i2v": _PACKAGE / "packs" / "framepack-i2v.yaml",
    "framepack-f1": _PACKAGE / "packs" / "framepack-f1.yaml",
}

_Family = Literal["inverted", "f1"]
_Text = Annotated[str, Field(min_length=1)]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DefaultsSpec(_Manifest):
    """What a job gets from the pack where it is silent."""

    window: int = Field(9, ge=1, le=64)
    steps: int = Field(25, ge=1, le=1000)
    resolution: int = Field(640, ge=16, le=4096)


def _inside(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError("must not lead out of its place: no / at its start, and no ..")
    return text


_Inside = Annotated[_Text, AfterValidator(_inside)]


class PartSpec(_Manifest):
    """Where one part is: a path, or a repository of the Hugging Face hub that the machine is searched for.

    `config` belongs to a single file, which holds none; without it the part is full-size. `size` is what there is to
    download, in bytes. `names` are patterns of files that hold the same part, and, with a slash, folders.
    """

    path: _Text | None = None
    config: _Text | None = None
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$"), AfterValidator(_inside)] | None = None
    subfolder: Annotated[str, Field(pattern=r"^[\w./-]*$"), AfterValidator(_inside)] = ""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$"), AfterValidator(_inside)] = "main"
    size: int = Field(0, ge=0)
    names: tuple[_Inside, ...] = Field((), strict=False)

    @model_validator(mode="after")
    def _one_origin(self) -> "PartSpec":
        if (self.path is None) == (self.repository is None):
            raise ValueError("needs either a path or a repository")
        if self.path is not None and {"subfolder", "revision", "size", "names"} & self.model_fields_set:
            raise ValueError("subfolder, revision, size and names belong to a repository")
        if self.config is not None and self.path is None:
            raise ValueError("config belongs to a path")
        return self


def _path_alone(value: object) -> object:
    if value == "":
        raise ValueError("must be more than empty text")
    return {"path": value} if isinstance(value, str) else value


_Part = Annotated[PartSpec, BeforeValidator(_path_alone)]


class PackSpec(_Manifest):
    """A manifest's keys. A part is a path, relative to the manifest, or the keys of a `PartSpec`.

    What is not given comes from the pack `base`, or without one from the folder of the part's own name.
    """

    version: SchemaVersion = 1
    name: _Text
    base: _Text | None = None
    family: _Family | None = None
    license: str = ""
    transformer: _Part | None = None
    text_encoder: _Part | None = None
    tokenizer: _Part | None = None
    text_encoder_2: _Part | None = None
    tokenizer_2: _Part | None = None
    vae: _Part | None = None
    image_encoder: _Part | None = None
    feature_extractor: _Part | None = None
    defaults: DefaultsSpec | None = None


@dataclass(frozen=True, kw_only=True)
class PartOrigin:
    """A part as a manifest gives it: `spec`, or None where it is silent, in `document`."""

    part: str
    spec: PartSpec | None
    document: Document
    root: Path


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest with what its base gave it."""

    file: Path
    document: Document
    name: str
    family: _Family
    license: str
    parts: Mapping[str, PartOrigin]
    defaults: DefaultsSpec


WEIGHTED = ("transformer", "text_encoder", "text_encoder_2", "vae", "image_encoder")
PARTS = (*WEIGHTED, "tokenizer", "tokenizer_2", "feature_extractor")


def read_manifest(model: str) -> Manifest:
    """The manifest of a shipped or imported pack's name, of a folder, or itself.

    Raises InvalidInput for an unknown name, and InvalidJobs (with file and line) for a wrong manifest.
    """
    return _read(manifest_file(model), ())


def own_folder() -> Path:
    """Where the user's own packs are."""
    return config_folder() / "packs"


def own_packs() -> dict[str, Path]:
    """The packs that `goan models import` made, by name."""
    try:
        folder = own_folder()
    except EnvironmentFault:  # a user without a home folder has none
        return {}
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def manifest_file(model: str) -> Path:
    """Where the manifest of a model lies. Raises InvalidInput when there is none."""
    named = SHIPPED.get(model) or own_packs().get(model)
    root = named or expanded(model)
    manifest = root / MANIFEST if is_folder(root) else root
    if not is_file(manifest):
        if is_folder(root):
            raise InvalidInput(f"{root}: holds no {MANIFEST}", hint="a pack folder needs its manifest")
        if named or "/" in model or "\\" in model:
            raise InvalidInput(f"{root}: no such model pack")
        hint = f"{_nearest_pack(model)} A folder is written with a slash: ./{model}"
        raise InvalidInput(f"no model pack named {model}", hint=hint)
    return manifest.absolute()


def _nearest_pack(model: str) -> str:
    hint = nearest(model, [*SHIPPED, *own_packs()]) or ""
    return hint if hint.endswith("?") else f"{hint}."


def _read(file: Path, above: tuple[Path, ...]) -> Manifest:
    document = read_document(file)
    result = checked(PackSpec, document.data, document)
    problems = list(result.problems)
    if isinstance(document.data, dict) and not {"family", "base"} & set(document.data):
        problems.append(document.problem(("family",), "missing: inverted or f1"))
    if problems or result.model is None:
        raise InvalidJobs(problems)
    spec = result.model
    base = _base(spec, document, (*above, file)) if spec.base is not None else None
    family = spec.family or (base.family if base else None)
    if family is None:  # the spec has one of the two
        raise InvalidJobs([document.problem(("family",), "missing")])
    origins = {}
    for part in PARTS:
        given: PartSpec | None = getattr(spec, part)
        inherited = base is not None and given is None
        origins[part] = (
            base.parts[part]
            if base is not None and inherited
            else PartOrigin(part=part, spec=given, document=document, root=file.parent)
        )
    defaults = base.defaults if base else DefaultsSpec()
    if spec.defaults is not None:
        defaults = defaults.model_copy(update=spec.defaults.model_dump(exclude_unset=True))
    return Manifest(
        file=file,
        document=document,
        name=spec.name,
        family=family,
        license=spec.license or (base.license if base else ""),
        parts=origins,
        defaults=defaults,
    )


def _base(spec: PackSpec, document: Document, above: tuple[Path, ...]) -> Manifest:
    """The manifest that another one builds on, by name or relative to it."""
    model = spec.base or ""
    try:
        if "/" in model or "\\" in model:
            model = str(above[-1].parent / expanded(model))
        elif model not in SHIPPED and model not in own_packs():
            hint = f"{_nearest_pack(model)} A path is written with a slash: ./{model}"
            raise InvalidInput(f"no model pack named {model}", hint=hint)
        file = manifest_file(model)
    except InvalidInput as error:
        raise InvalidJobs([document.problem(("base",), error.message, hint=error.hint)]) from error
    if any(file.samefile(each) for each in above):
        raise InvalidJobs([document.problem(("base",), "this pack builds on itself")])
    return _read(file, above)
