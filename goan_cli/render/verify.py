"""What is wrong with a pack's parts, told completely: the tensors of every file by name, shape and dtype, and the rest.

Reads headers and small files; of the weights themselves not a byte.
"""

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goan_cli.errors import InvalidInput
from goan_cli.model.checkpoint import (
    FLOATS,
    INDEX,
    NEEDED_FLOATS,
    Checkpoint,
    checkpoint_files,
    read_json,
    weight_map_of,
)
from goan_cli.model.config import read_config
from goan_cli.model.weights import empty_transformer
from goan_cli.packs.find import Survey
from goan_cli.packs.manifest import WEIGHTED
from goan_cli.packs.recognition import recognised, refuse_unusable
from goan_cli.packs.single_files import key_map
from goan_cli.render.text import load_llama_tokenizer
from goan_cli.tensorfile import TensorEntry, read_header

Shapes = dict[str, tuple[int, ...]]

# The encoder that reads what a small part makes.
_ENCODER_OF = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2", "feature_extractor": "image_encoder"}
_SHOWN = 5
_NUMBER = re.compile(r"\d+")
# How much of a name stays when it is renamed. Where more names than so many are new, it is another model.
_ALIKE = 0.85
_MOST_ALIKE = 30
# One tensor in so many that is no plain float makes a checkpoint a quantised one.
_MANY_REFUSED = 10


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing wrong with a part, in one of its files or in the part as a whole.

    A `harmless` one is of what a render does not use.
    """

    path: Path
    text: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def pack_faults(survey: Survey) -> dict[str, tuple[Fault, ...]]:
    """What is wrong with each part of a pack that was found, by part; nothing where a part is right.

    Parts that are nowhere are left out: `survey` says why.
    """
    configs = {found.part: found.config for found in survey.parts}
    faults: dict[str, tuple[Fault, ...]] = {}
    for found in survey.parts:
        if found.path is None:
            continue
        if found.problem is not None and found.part not in WEIGHTED:
            faults[found.part] = (_fault(found.path, found.problem),)
            continue
        config = found.config if found.part in WEIGHTED else configs[_ENCODER_OF[found.part]]
        told = part_faults(found.part, found.path, config)
        if found.problem is not None and all(fault.harmless for fault in told):
            told = (*told, _fault(found.path, found.problem))
        faults[found.part] = told
    return faults


def part_faults(part: str, path: Path, config: Path | None) -> tuple[Fault, ...]:
    """Everything wrong with one part in a folder or single file.

    `config` is the JSON file that describes the part's architecture, or of a tokenizer or processor that of the
    encoder which it serves; these are checked without, too.
    """
    if part not in WEIGHTED:
        return tuple(_small_part_faults(part, path, config))
    try:
        held = _read(path)
    except InvalidInput as error:
        return (_fault(path, error),)
    try:
        expected = expected_shapes(part, config or path / "config.json")
    except InvalidInput as error:
        return (*held.faults, _fault(path, error))
    if not held.entries:
        return tuple(held.faults)
    return (*held.faults, *_tensor_faults(part, held, expected))


def expected_shapes(part: str, config: Path) -> Shapes:
    """Names and shapes of a part's tensors in the class that renders, for a configuration.

    Raises InvalidInput for a configuration that is none of the part's.
    """
    if part == "transformer":
        return {name: tuple(tensor.shape) for name, tensor in empty_transformer(read_config(config)).named_parameters()}
    from goan_cli.render import loading  # noqa: PLC0415 - imports transformers, which a transformer does not need

    return loading.expected_shapes(part, config)


@dataclass(frozen=True, kw_only=True)
class _Held:
    """What a part's files hold. `promised` is the file that an index says each tensor is in."""

    path: Path
    files: tuple[Path, ...]
    entries: Mapping[str, TensorEntry]
    file_of: Mapping[str, Path]
    promised: Mapping[str, Path]
    faults: Sequence[Fault] = field(default_factory=list)

    def place_of(self, name: str) -> Path:
        """Where a tensor is or should be."""
        return self.file_of.get(name) or self.promised.get(name) or self.path

    @property
    def unread(self) -> set[str]:
        """Tensors in shards that are missing or damaged, by the index."""
        return {name for name, file in self.promised.items() if file not in self.files}


def _read(path: Path) -> _Held:
    """The headers of a part's files, as far as they can be read. Raises InvalidInput where it has none."""
    indexes = sorted(path.glob(INDEX)) if path.is_dir() else []
    promised: dict[str, Path] = {}
    if len(indexes) == 1:
        promised = {name: path / shard for name, shard in weight_map_of(indexes[0]).items()}
    files = sorted(set(promised.values())) or checkpoint_files(path)
    readable: list[Path] = []
    entries: dict[str, TensorEntry] = {}
    file_of: dict[str, Path] = {}
    faults: list[Fault] = []
    for file in files:
        if promised and not file.is_file():
            count = list(promised.values()).count(file)
            faults.append(Fault(path=file, text=f"this shard is missing; it is to hold {count} tensors"))
            continue
        try:
            header = read_header(file)
        except InvalidInput as error:
            faults.append(_fault(file, error))
            continue
        readable.append(file)
        for name, entry in header.entries.items():
            if name in file_of:
                faults.append(Fault(path=file, text=f"{name} stands in {file_of[name].name} too"))
                continue
            entries[name], file_of[name] = entry, file
    if not entries and not faults:
        faults.append(Fault(path=path, text="holds no tensors"))
    return _Held(path=path, files=tuple(readable), entries=entries, file_of=file_of, promised=promised, faults=faults)


def _tensor_faults(part: str, held: _Held, expected: Shapes) -> Iterator[Fault]:
    """What the tensors differ in from those of the class."""
    try:
        keys = key_map(part, {name: entry.shape for name, entry in held.entries.items()})
    except InvalidInput as error:
        yield _fault(held.path, error)
        return
    class_name = keys.names
    prefix = _prefix(class_name)
    there = {found: name for name, found in class_name.items()}
    unread = {name.removeprefix(prefix) for name in held.unread}
    missing = {name: prefix + name for name in expected if name not in there and name not in unread}
    surplus = [name for name, found in class_name.items() if found not in expected]
    checkpoint = Checkpoint(files=held.files, entries=held.entries, file_of=held.file_of)
    refusal = _refusal(part, held.path, checkpoint)
    refused = sum(held.entries[name].dtype not in FLOATS for name in class_name)
    if refusal is not None and (2 * len(missing) > len(expected) or _MANY_REFUSED * refused > len(class_name)):
        # Another kind of model, or a quantised one: that says more than a list of all its tensors.
        yield refusal
        return
    kind = recognised(checkpoint)
    if refusal is not None and kind is not None and kind.part != part:
        yield refusal
    yield from _dtype_faults(held, class_name)
    for name, found in class_name.items():
        shape = keys.shapes[found]
        if found in expected and shape != expected[found]:
            told = f"{name} has the shape {list(shape)} instead of {list(expected[found])}"
            yield Fault(path=held.file_of[name], text=told)
    yield from _missing_faults(part, held, missing, expected)
    renamed = _renamed(held, surplus, {shown: expected[name] for name, shown in missing.items()})
    for name in surplus:
        hint = f": it looks like {renamed[name]} renamed" if name in renamed else ""
        yield Fault(path=held.file_of[name], text=f"{name} is not of this architecture{hint}")
    for name, file in held.promised.items():
        if name not in held.entries and file in held.files and name.removeprefix(prefix) not in expected:
            yield Fault(path=file, text=f"{name} is missing; the index says that it is here")


def _missing_faults(part: str, held: _Held, missing: Mapping[str, str], expected: Shapes) -> Iterator[Fault]:
    """Missing tensors, `missing` from their names in the class to those in the files."""
    unused = {name for name in missing if _is_unused(part, name, expected)}
    for name, shown in missing.items():
        if name not in unused:
            yield Fault(path=held.place_of(shown), text=f"{shown} is missing")
    if unused:
        names = _listed([missing[name] for name in missing if name in unused])
        yield Fault(path=held.path, text=f"a render does not need what is missing here: {names}", harmless=True)


def _is_unused(part: str, name: str, expected: Shapes) -> bool:
    """Whether a render does without a tensor of the class: Llama's last two layers and norm, and SigLIP's head."""
    if part == "image_encoder":
        return name.startswith("head.")
    if part != "text_encoder":
        return False
    layers = 1 + max((int(other.split(".")[1]) for other in expected if other.startswith("layers.")), default=-1)
    return name.startswith((f"layers.{layers - 2}.", f"layers.{layers - 1}.", "norm."))


def _dtype_faults(held: _Held, class_name: Mapping[str, str]) -> Iterator[Fault]:
    """Tensors that are no plain floats, those of one file and dtype together."""
    groups: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for name in class_name:
        if (dtype := held.entries[name].dtype) not in FLOATS:
            groups[held.file_of[name], dtype].append(name)
    for (file, dtype), names in groups.items():
        are = f"are {dtype}" if len(names) > 1 else f"is {dtype}"
        yield Fault(path=file, text=f"{_listed(names)} {are}; {NEEDED_FLOATS}")


def _refusal(part: str, path: Path, checkpoint: Checkpoint) -> Fault | None:
    """Why a checkpoint of this kind is not used at all."""
    try:
        refuse_unusable(part, path, checkpoint)
    except InvalidInput as error:
        return _fault(path, error)
    return None


def _renamed(held: _Held, surplus: Sequence[str], missing: Shapes) -> dict[str, str]:
    """Surplus names and the missing ones that they were in all likelihood.

    They have one shape, the same numbers in their names (those of blocks), and are each other's nearest.
    """
    found = {name: held.entries[name].shape for name in surplus}
    alike: dict[object, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, names in enumerate((found, missing)):
        for name, shape in names.items():
            alike[shape, tuple(_NUMBER.findall(name))][side].append(name)
    pairs: dict[str, str] = {}
    for group in alike.values():
        if max(map(len, group)) <= _MOST_ALIKE:
            near = {name: _nearest(name, group[1]) for name in group[0]}
            pairs |= {name: old for name, old in near.items() if old is not None and _nearest(old, group[0]) == name}
    return pairs


def _nearest(name: str, names: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)
    return close[0] if close else None


def _prefix(class_name: Mapping[str, str]) -> str:
    """What a file's names have in front of the class's, where that is the same for all."""
    prefixes = {name.removesuffix(found) if name.endswith(found) else None for name, found in class_name.items()}
    prefixes.discard("")
    only = prefixes.pop() if len(prefixes) == 1 else None
    return only or ""


def _small_part_faults(part: str, path: Path, config: Path | None) -> Iterator[Fault]:
    """What is wrong with a tokenizer or an image processor."""
    check = {"tokenizer": _llama_tokenizer, "tokenizer_2": _clip_tokenizer, "feature_extractor": _processor}[part]
    try:
        told = check(path, _settings(_ENCODER_OF[part], config))
    except InvalidInput as error:
        told = None
        yield _fault(path, error)
    if told is not None:
        yield Fault(path=path, text=told)


def _settings(encoder: str, config: Path | None) -> Any:  # noqa: ANN401 - a configuration of transformers
    """An encoder's configuration, None where it cannot be used: that is told of the encoder itself."""
    from goan_cli.render import loading  # noqa: PLC0415 - see `expected_shapes`

    try:
        return loading.read_configuration(encoder, config) if config is not None else None
    except InvalidInput:
        return None


def _llama_tokenizer(path: Path, encoder: Any) -> str | None:  # noqa: ANN401 - see `_settings`
    count = max(load_llama_tokenizer(path).get_vocab(with_added_tokens=True).values()) + 1
    if encoder is not None and count > encoder.vocab_size:
        return f"has {count} tokens, and the text encoder room for {encoder.vocab_size}"
    return None


def _clip_tokenizer(path: Path, encoder: Any) -> str | None:  # noqa: ANN401
    from transformers import CLIPTokenizer  # noqa: PLC0415 - see `expected_shapes`

    try:
        count = len(CLIPTokenizer.from_pretrained(str(path), local_files_only=True))
    except Exception as error:  # tokenizers raises bare Exception
        raise InvalidInput(f"{path}: not a usable tokenizer: {error}") from error
    if encoder is not None and count != encoder.vocab_size:
        return f"has {count} tokens, and the text encoder is for {encoder.vocab_size}"
    return None


def _processor(path: Path, encoder: Any) -> str | None:  # noqa: ANN401
    file = path / "preprocessor_config.json"
    size = read_json(file).get("size")
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [size]
    if encoder is not None and any(side != encoder.image_size for side in sides):
        side = encoder.image_size
        return f"{file.name}: makes images of {json.dumps(size)}, and the image encoder is for {side} x {side}"
    return None


def _listed(names: Sequence[str]) -> str:
    """The first few of many names, and how many there are."""
    more = f", … ({len(names)} tensors)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _fault(path: Path, error: InvalidInput) -> Fault:
    """An error as a fault; its message mostly begins with its own, more precise place."""
    hint = f" ({error.hint})" if error.hint else ""
    return Fault(path=path, text=error.message.removeprefix(f"{path}: ") + hint)
