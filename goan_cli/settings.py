"""The user's own settings, in `config.yaml`: where models are, and whether a render may download them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from platformdirs import user_config_path
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from goan_cli.checking import SchemaVersion, checked, nearest
from goan_cli.documents import Data, Document, parse_document, read_document
from goan_cli.errors import EnvironmentFault, InvalidInput, InvalidJobs
from goan_cli.files import write_text

CONFIG = "config.yaml"
CONFIG_VARIABLE = "GOAN_CONFIG"
# What begins like this is a list or a quoted text of YAML; folders are typed as they are, colons and all.
_YAML_BEGINS = ("[", "- ", '"', "'")


def _folder(text: str) -> str:
    if "\0" in text:
        raise ValueError("no folder has a null character in its name")
    try:
        absolute = Path(text).expanduser().is_absolute()
    except RuntimeError as error:
        raise ValueError(f"{text}: there is no such home folder") from error
    if not absolute:
        raise ValueError(f"{text}: must be an absolute path, or begin with ~")
    return text


class Settings(BaseModel):
    """The keys of `config.yaml`; folders are absolute, or begin with ~."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: SchemaVersion = 1
    models: tuple[Annotated[str, Field(min_length=1), AfterValidator(_folder)], ...] = Field((), strict=False)
    pull: bool = False


KEYS = ("models", "pull")
_LISTS = ("models",)
_NO_WIDTH = 1 << 20  # columns: no line is broken


@dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """The settings, and the document that they are from; `file` is None for a user without a home folder."""

    file: Path | None
    document: Document
    settings: Settings

    def line(self, key: str) -> int | None:
        """The line that gives a key, None where it has its default."""
        return self.document.line((key,)) if key in self.settings.model_fields_set else None


def config_folder() -> Path:
    """`$GOAN_CONFIG`, or `goan` in the user's folder of configurations.

    Raises EnvironmentFault where there is no home folder.
    """
    given = os.environ.get(CONFIG_VARIABLE)
    try:
        folder = Path(given).expanduser().absolute() if given else user_config_path("goan", appauthor=False)
        if folder.is_absolute():  # older platformdirs leave a ~ that stands for nothing
            return folder
    except RuntimeError:
        pass
    lacking = f"{CONFIG_VARIABLE}={given}: there is no such home folder" if given else "this user has no home folder"
    raise EnvironmentFault(lacking, hint=f"set {CONFIG_VARIABLE} to the folder of your settings")


def read_settings() -> Settings:
    """The user's settings, the defaults without a file. Raises InvalidJobs with file, line and key."""
    return read_settings_file().settings


def read_settings_file() -> SettingsFile:
    """The settings and where they are from. Raises as `read_settings`."""
    try:
        file = config_folder() / CONFIG
    except EnvironmentFault:
        if os.environ.get(CONFIG_VARIABLE):
            raise
        return SettingsFile(file=None, document=Document(data={}, file=None), settings=Settings())
    document = _document(file)
    return SettingsFile(file=file, document=document, settings=_settings(document))


def write_setting(key: str, texts: Sequence[str]) -> Settings:
    """Set a key in the user's file, and return what holds from then on.

    Values are in YAML, of a list one or several: lists, or folders as they are typed. Relative folders are made
    absolute. The rest of the file stays as it is, comments too.
    Raises InvalidInput for an unknown key or a wrong value, InvalidJobs for a file that is wrong elsewhere, and
    EnvironmentFault where it cannot be written.
    """
    if key not in KEYS:
        raise InvalidInput(f"{key}: no such setting", hint=nearest(key, KEYS))
    value = _folders(key, texts) if key in _LISTS else _scalar(key, texts)
    _settings(Document(data={key: value}, file=None))  # before the file is looked at: what was typed may be wrong
    file = config_folder() / CONFIG
    document = _document(file)
    wanted = Document(data=_with(document, key, value), file=file, lines=document.lines)
    settings = _settings(wanted)  # what is wrong elsewhere is the user's to mend: the next command would refuse it
    _write(file, key, document, value)
    return settings


def unset_setting(key: str) -> None:
    """Take a key out of the user's file: a wrong or unknown one too, whatever else is wrong in the file.

    Raises InvalidInput for a key that is unknown and not there, InvalidJobs for a file that cannot be read as keys and
    values, and EnvironmentFault where it cannot be written.
    """
    file = config_folder() / CONFIG
    document = _document(file)
    if isinstance(document.data, dict) and key not in document.data:
        if key not in KEYS:
            raise InvalidInput(f"{key}: no such setting", hint=nearest(key, KEYS))
        return
    _write(file, key, document, None)


def _document(file: Path) -> Document:
    """The file's keys and values, none where there is no file or nothing in it."""
    try:
        file.stat()
    except FileNotFoundError:
        return Document(data={}, file=file)
    except OSError:
        pass  # reading it tells what is wrong
    document = read_document(file)
    return Document(data={}, file=file) if document.data is None else document


def _settings(document: Document) -> Settings:
    result = checked(Settings, document.data, document)
    if result.problems or result.model is None:
        raise InvalidJobs(result.problems)
    return result.model


def _folders(key: str, texts: Sequence[str]) -> Data:
    """Folders of all the texts, each once; what is no text is left to be refused."""
    found: list[Data] = []
    for text in texts:
        value = _parsed(key, text) if text.lstrip().startswith(_YAML_BEGINS) else text
        found += value if isinstance(value, list) else [value]
    folders = [_absolute(item) if isinstance(item, str) else item for item in found]
    return [item for number, item in enumerate(folders) if item not in folders[:number]]


def _absolute(folder: str) -> str:
    return folder if not folder or folder.startswith("~") else str(Path(folder).absolute())


def _scalar(key: str, texts: Sequence[str]) -> Data:
    if len(texts) != 1:
        raise InvalidInput(f"{key}: takes one value, not {len(texts)}")
    return _parsed(key, texts[0])


def _parsed(key: str, text: str) -> Data:
    try:
        return parse_document(text).data
    except InvalidJobs as error:
        raise InvalidInput(f"{key}: {text!r}: {error.problems[0].message}") from error


def _write(file: Path, key: str, document: Document, value: Data) -> None:
    """Write the file with a value in place of the key's, None for without it."""
    wanted = _with(document, key, value)
    changed = _changed(file.read_text(encoding="utf-8-sig") if file.exists() else "", key, value)
    if _data(changed) != wanted:  # an unusual layout: all in one line, anchors, merges
        changed = _dumped(wanted) if wanted else ""
    write_text(file.resolve(), changed)  # the file may be a link to where the user keeps such files


def _with(document: Document, key: str, value: Data) -> dict[str, Data]:
    """The document's keys with another value of one, None for without it. Raises InvalidJobs where it has no keys."""
    if not isinstance(document.data, dict):
        raise InvalidJobs(checked(Settings, document.data, document).problems)
    rest = {other: kept for other, kept in document.data.items() if other != key}
    return rest if value is None else {**rest, key: value}


def _data(text: str) -> Data:
    try:
        data = parse_document(text).data
    except InvalidJobs:
        return None
    return {} if data is None else data


def _changed(text: str, key: str, value: Data) -> str:
    """The text with the key's own lines replaced, added at the end, or left out."""
    pairs = getattr(yaml.compose(text, Loader=yaml.SafeLoader), "value", ())
    for key_node, value_node in pairs:
        if key_node.value == key:
            start, end = key_node.start_mark.index, _end(value_node)
            if value is not None:
                return text[:start] + _dumped({key: value}).rstrip("\n") + text[end:]
            line = text.find("\n", end)
            return text[:start] + (text[line + 1 :] if line >= 0 else "")
    if value is None:
        return text
    return text + ("\n" if text and not text.endswith("\n") else "") + _dumped({key: value})


def _end(node: yaml.Node) -> int:
    """Where a node's own text ends; a block's mark lies behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(node, yaml.MappingNode) else last)
    return int(node.end_mark.index)


def _dumped(data: Data) -> str:
    text = str(yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=_NO_WIDTH))
    if _data(text) == data:
        return text
    # Lines may end in more characters than people know of: those are read back only when they are escaped.
    return str(yaml.safe_dump(data, sort_keys=False, width=_NO_WIDTH))
