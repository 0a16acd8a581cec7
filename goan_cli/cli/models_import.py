"""`goan models import`: a pack of files that the user already has."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goan_cli.errors import InvalidInput, InvalidJobs, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from goan_cli.packs.manifest import Manifest

_SHOWN = 5
_File = Annotated[Path | None, typer.Option(help="A folder, or one safetensors file.", show_default=False)]
_Folder = Annotated[Path | None, typer.Option(help="A folder.", show_default=False)]


def import_pack(
    name: Annotated[str, typer.Argument(help="What to call the pack.")],
    transformer: _File = None,
    text_encoder: _File = None,
    text_encoder_2: Annotated[Path | None, typer.Option("--text-encoder-2", help="The same.")] = None,
    vae: _File = None,
    image_encoder: _File = None,
    tokenizer: _Folder = None,
    tokenizer_2: Annotated[Path | None, typer.Option("--tokenizer-2", help="A folder.")] = None,
    feature_extractor: _Folder = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The pack that everything else comes from: framepack-i2v or framepack-f1. By the name of "
            "the transformer's file, if that says it."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the manifest here; otherwise the pack can be used by its name.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a pack of the same name.")] = False,
) -> None:
    """Make a pack of files that are on this machine already; they stay where they are.

    Names and shapes of their tensors are checked first. What is not given is looked for as in the base pack.
    """
    from rich.markup import escape

    from goan_cli.cli.models_list import show_survey
    from goan_cli.cli.terminal import make_console
    from goan_cli.files import expanded, write_text
    from goan_cli.packs.find import survey_pack
    from goan_cli.packs.importing import base_for, base_manifest, check_name, manifest_text
    from goan_cli.packs.manifest import own_folder

    given = {
        "transformer": transformer,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "vae": vae,
        "image_encoder": image_encoder,
        "feature_extractor": feature_extractor,
    }
    parts = {part: path.expanduser().absolute() for part, path in given.items() if path is not None}
    if not parts:
        raise InvalidInput("nothing to import", hint="give --transformer FILE, or another part")
    check_name(name)
    for part, path in parts.items():
        if not os.path.lexists(path):
            raise InvalidInput(f"--{part.replace('_', '-')} {path}: is missing", hint="check the path")
    chosen = base or (base_for(parts["transformer"]) if "transformer" in parts else None)
    if chosen is None:
        raise InvalidInput("no --base", hint="say which pack the transformer comes from: --base framepack-i2v")
    manifest = base_manifest(chosen)
    file = expanded(str(out)).absolute() if out is not None else own_folder() / f"{name}.yaml"
    _refuse_taken(file, manifest, replace=replace)
    text = manifest_text(name, manifest, parts)
    _refuse_wrong(parts)
    write_text(file, text)
    console = make_console()
    console.print(f"{escape(str(file))}, based on {escape(manifest.name)}; delete the file to remove the pack")
    model = name if out is None else str(file)
    show_survey(console, model, survey_pack(model))


def _refuse_taken(file: Path, base: "Manifest", *, replace: bool) -> None:
    """Raise InvalidInput where the manifest may not be written: over another file, or over its own base."""
    from goan_cli.errors import GoanError
    from goan_cli.packs.manifest import own_folder, read_manifest

    if not os.path.lexists(file):
        return
    if not replace:
        raise InvalidInput(f"{file}: is there already", hint="--replace, or another name")
    if file.parent != own_folder():
        try:
            read_manifest(str(file))
        except GoanError as error:
            raise InvalidInput(f"{file}: is no manifest, so it is not replaced", hint="another --out") from error
    below = {base.file, *(part.document.file for part in base.parts.values() if part.document.file)}
    if any(file.samefile(each) for each in below):
        raise InvalidInput(f"{file}: the pack would build on itself", hint="another name or --base")


def _refuse_wrong(parts: "Mapping[str, Path]") -> None:
    """Raise InvalidJobs with all that is wrong with the files."""
    from goan_cli.packs.find import check_part, default_config
    from goan_cli.render.verify import part_faults

    problems = []
    for part, path in parts.items():
        config = default_config(part, path)
        try:
            check_part(part, path, config)
        except InvalidInput as error:
            problems.append(Problem(key=part, message=error.message, hint=error.hint))
            continue
        faults = part_faults(part, path, config)
        real = [Problem(file=fault.path, message=fault.text) for fault in faults if not fault.harmless]
        problems += real[:_SHOWN]
        if len(real) > _SHOWN:
            problems.append(Problem(file=path, message=f"and {len(real) - _SHOWN} more things are wrong"))
    if problems:
        raise InvalidJobs(problems)
