"""`goan models import`: a pack of files that the user already has."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goan_cli.errors import InvalidInput, InvalidJobs, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    from goan_cli.files import write_text
    from goan_cli.packs.find import survey_pack
    from goan_cli.packs.importing import base_for, check_name, manifest_text
    from goan_cli.packs.manifest import manifest_file, own_folder

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
    chosen = base or (base_for(parts["transformer"]) if "transformer" in parts else None)
    if chosen is None:
        raise InvalidInput("no --base", hint="say which pack the transformer comes from: --base framepack-i2v")
    if "/" in chosen or "\\" in chosen:
        chosen = str(Path(chosen).expanduser().absolute())
    manifest_file(chosen)
    file = out.absolute() if out is not None else own_folder() / f"{name}.yaml"
    if file.exists() and not replace:
        raise InvalidInput(f"{file}: is there already", hint="--replace, or another name")
    _refuse_wrong(parts)
    write_text(file, manifest_text(name, chosen, parts))
    console = make_console()
    console.print(f"{escape(str(file))}, based on {escape(chosen)}")
    model = name if out is None else str(file)
    show_survey(console, model, survey_pack(model))


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
        problems += [Problem(file=fault.path, message=fault.text) for fault in faults if not fault.harmless]
    if problems:
        raise InvalidJobs(problems)
