"""A manifest of the files that a user already has, on top of a pack that says where the rest comes from."""

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from goan_cli.documents import parse_document
from goan_cli.errors import InvalidInput, InvalidJobs
from goan_cli.files import expanded
from goan_cli.packs.manifest import EMBEDDED, SHIPPED, Manifest, own_packs, read_manifest

BASES = tuple(name for name in SHIPPED if name not in EMBEDDED)
_NAME = re.compile(r"\w[\w.-]*")
_LONGEST_NAME = 100


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
    if _NAME.fullmatch(name) is None or len(name) > _LONGEST_NAME or name in SHIPPED:
        raise InvalidInput(
            f"{name[:60]}: cannot be the name of a pack",
            hint=f"letters, digits and . _ -, at most {_LONGEST_NAME}, and no shipped pack's name",
        )


def base_manifest(base: str) -> Manifest:
    """The manifest of a base pack, given by name or path. Raises InvalidInput, or InvalidJobs for a wrong one."""
    named = base in SHIPPED or base in own_packs()
    path = expanded(base).absolute()
    return read_manifest(base if named or not os.path.lexists(path) else str(path))


def manifest_text(name: str, base: Manifest, parts: Mapping[str, Path]) -> str:
    """A manifest of parts at absolute paths; what is not given comes from `base`.

    Raises InvalidInput for a path that no YAML file can hold.
    """
    named = {manifest.absolute(): each for each, manifest in {**own_packs(), **SHIPPED}.items()}
    keys = {"name": name, "base": named.get(base.file, str(base.file)), **{part: str(p) for part, p in parts.items()}}
    # Texts as JSON has them are YAML, whatever they look like.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    text = "\n".join(["version: 1", *lines]) + "\n"
    try:
        text.encode("utf-8")
        held = parse_document(text).data
    except (UnicodeEncodeError, InvalidJobs):
        held = None
    if held != {"version": 1, **keys}:
        odd = next((value for value in keys.values() if not value.isprintable()), text)
        raise InvalidInput(f"{odd!r}: no manifest can hold such a path", hint="rename it")
    return text
