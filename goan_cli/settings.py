"""The user's own settings, in `config.yaml`: where models are, and whether a render may download them."""

import os
from pathlib import Path
from typing import Annotated

from platformdirs import user_config_path
from pydantic import BaseModel, ConfigDict, Field

from goan_cli.checking import SchemaVersion, checked
from goan_cli.documents import read_document
from goan_cli.errors import InvalidJobs

CONFIG = "config.yaml"


class Settings(BaseModel):
    """The keys of `config.yaml`; folders are absolute, or begin with ~."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: SchemaVersion = 1
    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), strict=False)
    pull: bool = False


def config_folder() -> Path:
    """`$GOAN_CONFIG`, or `goan` in the user's folder of configurations."""
    given = os.environ.get("GOAN_CONFIG")
    return Path(given).expanduser() if given else user_config_path("goan", appauthor=False)


def read_settings() -> Settings:
    """The user's settings, the defaults without a file. Raises InvalidJobs with file, line and key."""
    file = config_folder() / CONFIG
    if not file.exists():
        return Settings()
    document = read_document(file)
    result = checked(Settings, {} if document.data is None else document.data, document)
    if result.problems or result.model is None:
        raise InvalidJobs(result.problems)
    return result.model
