"""`goan models verify`: whether the files of a pack are what they should be."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from goan_cli.packs.find import Survey


def verify(
    pack: Annotated[str, typer.Argument(help="A name, a folder or a manifest.")],
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Read every byte too, and compare with the hash that the hub gave it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare names, shapes and dtypes of every tensor with the model's, and try tokenizers and configurations.

    Everything that is wrong is named. Exits with 0 when all is right, with 1 when something is wrong or missing.
    """
    from goan_cli.cli.terminal import make_console
    from goan_cli.packs.find import survey_pack
    from goan_cli.render.verify import pack_faults

    survey = survey_pack(pack)
    console = make_console(stderr=as_json)
    told: dict[str, list[str]] = {part.part: [] for part in survey.parts}
    harmless: dict[str, list[str]] = {part.part: [] for part in survey.parts}
    for part, faults in pack_faults(survey).items():
        for fault in faults:
            (harmless if fault.harmless else told)[part].append(str(fault))
    for found in survey.parts:
        if found.path is None:
            told[found.part].append(str(found.problem))
    unknown: list[Path] = []
    if sha256:
        wrong, unknown = _hash_faults(survey, console)
        for part, texts in wrong.items():
            told[part] += texts
    failed = any(told.values())
    if as_json:
        import json

        content = {"pack": pack, "right": not failed, "faults": told, "notes": harmless}
        if sha256:
            content["without_hash"] = [str(file) for file in unknown]
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        _show(console, survey, told, harmless, unknown)
    if failed:
        raise typer.Exit(1)


def _hash_faults(survey: "Survey", console: "Console") -> "tuple[dict[str, list[str]], list[Path]]":
    """What is wrong with the content of each part's files, and the files that no hash is known of."""
    from rich.progress import Progress

    from goan_cli.errors import InvalidInput
    from goan_cli.packs.find import files_of
    from goan_cli.packs.hashes import hash_fault, known_hash

    wrong: dict[str, list[str]] = {}
    unknown: list[Path] = []
    known = []
    for found in survey.parts:
        for file in files_of(found):
            digest = known_hash(file)
            if digest is None:
                unknown.append(file)
            else:
                known.append((found.part, file, digest))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("hashing", total=sum(file.stat().st_size for _, file, _ in known))
        for part, file, digest in known:
            try:
                fault = hash_fault(file, digest, lambda count: progress.advance(bar, count))
            except InvalidInput as error:
                fault = str(error)
            if fault is not None:
                wrong.setdefault(part, []).append(f"{file}: {fault}")
    return wrong, unknown


def _show(
    console: "Console",
    survey: "Survey",
    told: "dict[str, list[str]]",
    harmless: "dict[str, list[str]]",
    unknown: "list[Path]",
) -> None:
    from rich.markup import escape

    for found in survey.parts:
        state = "[red]wrong[/red]" if told[found.part] else "[green]right[/green]"
        where = "" if found.path is None else str(found.path)
        console.print(f"[cyan]{found.part:<18}[/cyan]{state}  {escape(where)}")
        for fault in told[found.part]:
            console.print(f"  [red]{escape(fault)}[/red]")
        for note in harmless[found.part]:
            console.print(f"  [dim]{escape(note)}[/dim]")
    if unknown:
        console.print(
            f"[yellow]note[/yellow] {len(unknown)} files are not in the hub's cache, so that there is no hash to "
            "compare with"
        )
