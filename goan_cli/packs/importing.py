"""A manifest of the files that a user already has, on top of a pack that says where the rest comes from."""

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import yaml

from goan_cli.errors import InvalidInput
from goan_cli.packs.manifest import EMBEDDED, SHIPPED, read_manifest

BASES = tuple(name for name in SHIPPED if name not in EMBEDDED)
_NAME = re.compile(r"\w[\w.-]*")


def base_for(transformer: Path) -> str:
    """The shipped pack whose transformer goes by the name of this file, or of a folder that it is in.

    Names are all that tells the families apart. Raises InvalidInput for a path that says nothing.
    """
    names = {}
    for base in BASES:
        spec = read_manifest(base).parts["transformer"].spec
        if spec is not None and spec.repository is not None:
            names[base] = (*spec.names, f"*{spec.repository.partition('/')[2]}*")
    for component in reversed(transformer.parts):
        for base, patterns in names.items():
            if any(fnmatch(component.lower(), pattern.lower()) for pattern in patterns):
                return base
    raise InvalidInput(
        f"{transformer}: its name does not say which family it is of, and nothing else in it does",
        hint=f"give --base {' or --base '.join(BASES)}",
    )


def check_name(name: str) -> None:
    """Raise InvalidInput for a name that no pack of the user can have."""
    if _NAME.fullmatch(name) is None or name in SHIPPED:
        raise InvalidInput(
            f"{name}: cannot be the name of a pack", hint="letters, digits and . _ -, and no shipped pack's name"
        )


def manifest_text(name: str, base: str, parts: Mapping[str, Path]) -> str:
    """A manifest of parts at absolute paths; what is not given comes from `base`."""
    keys = {"version": 1, "name": name, "base": base, **{part: str(path) for part, path in parts.items()}}
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)
