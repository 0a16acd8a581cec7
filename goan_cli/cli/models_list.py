"""`goan models list` and `path`: the packs, and where each part was found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goan_cli.errors import GoanError, InvalidInput
from goan_cli.files import size_text

if TYPE_CHECKING:
    from rich.console import Console

    from goan_cli.packs.find import FoundPart, Survey


def list_packs(
    packs: Annotated[list[str] | None, typer.Argument(help="Names, folders or manifests; all without one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the packs: where each part was found, what is missing, and how much there is to download.

    Exits with 2 when a pack's manifest is wrong; an incomplete pack is no failure.
    """
    from goan_cli.cli.terminal import make_console, tell_error
    from goan_cli.packs.find import survey_pack
    from goan_cli.packs.manifest import SHIPPED, own_packs

    surveys, failed = [], False
    for model in packs or list(dict.fromkeys([*SHIPPED, *own_packs()])):
        try:
            surveys.append((model, survey_pack(model)))
        except GoanError as error:
            failed = True
            tell_error(error)
    if as_json:
        import json

        typer.echo(json.dumps([_as_data(model, survey) for model, survey in surveys], indent=2, ensure_ascii=False))
    else:
        console = make_console()
        for model, survey in surveys:
            show_survey(console, model, survey)
    if failed:
        raise typer.Exit(InvalidInput.exit_code)


def path(
    pack: Annotated[str, typer.Argument(help="A name, a folder or a manifest.")],
    part: Annotated[str | None, typer.Argument(help="Only this part, as transformer.")] = None,
) -> None:
    """Print where the parts of a complete pack are, a line each, or the path of one part.

    Exits with 3 when the part, or any part, is not on this machine.
    """
    from goan_cli.checking import nearest
    from goan_cli.packs.find import find_pack, find_part
    from goan_cli.packs.manifest import PARTS

    if part is None:
        found = find_pack(pack)
        for name in PARTS:
            typer.echo(f"{name}\t{getattr(found, name)}")
        return
    if part not in PARTS:
        raise InvalidInput(f"no part named {part}", hint=nearest(part, list(PARTS)))
    typer.echo(find_part(pack, part).usable)


def show_survey(console: "Console", model: str, survey: "Survey") -> None:
    """Print a pack, a line a part."""
    from rich.markup import escape

    manifest = survey.manifest
    console.print(f"[bold]{escape(model)}[/bold] ({manifest.family}): {_summary(model, survey)}", soft_wrap=True)
    width = max(len(found.place) for found in survey.parts)
    for found in survey.parts:
        colour = "red" if found.problem is not None else "green"
        facts = f"  [cyan]{found.part:<18}[/cyan]{size_text(found.size):>9}  {found.place:<{width}}  "
        console.print(f"{facts}[{colour}]{escape(_where(found))}[/]", soft_wrap=True)
    if manifest.license:
        console.print(f"  [dim]licence: {escape(manifest.license)}[/dim]", soft_wrap=True)
    console.print()


def _summary(model: str, survey: "Survey") -> str:
    from rich.markup import escape

    if survey.complete:
        return f"[green]complete[/green], {size_text(sum(part.size for part in survey.parts))}"
    if any(part.source is None for part in survey.missing):
        return "[red]not complete[/red]"
    return (
        f"[yellow]not complete[/yellow], {size_text(survey.to_download)} to download: goan models pull {escape(model)}"
    )


def _where(found: "FoundPart") -> str:
    return str(found.problem if found.problem is not None else found.path)


def _as_data(model: str, survey: "Survey") -> dict[str, Any]:
    parts: Sequence[FoundPart] = survey.parts
    return {
        "model": model,
        "name": survey.manifest.name,
        "family": survey.manifest.family,
        "manifest": str(survey.manifest.file),
        "license": survey.manifest.license,
        "complete": survey.complete,
        "to_download": survey.to_download,
        "parts": [
            {
                "part": part.part,
                "path": None if part.path is None else str(part.path),
                "place": part.place,
                "size": part.size,
                "problem": None if part.problem is None else str(part.problem),
                "repository": None if part.source is None else part.source.repository,
                "subfolder": None if part.source is None else part.source.subfolder,
                "revision": None if part.source is None else part.source.revision,
            }
            for part in parts
        ],
    }
