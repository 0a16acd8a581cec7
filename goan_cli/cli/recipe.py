"""`goan recipe`: the job of a video, picture or sidecar as YAML, and the original goan's files as jobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from goan_cli.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence


_SHOW = "show"
_MOST_NOTES = 100
_Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="Write the job file here instead of printing it.", show_default=False)
]
_Replace = Annotated[bool, typer.Option("--replace", help="Replace a job file of the same name.")]


class _ShowByDefault(TyperGroup):
    """`goan recipe FILE` is `goan recipe show FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's context is its own
        """Put the command in where the first word is none."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_SHOW, *args]
        return super().parse_args(ctx, args)


recipe = typer.Typer(
    name="recipe",
    cls=_ShowByDefault,
    help="The job of a video, picture or sidecar as YAML, and the original goan's files as jobs. "
    "`goan recipe FILE` is short for `goan recipe show FILE`.",
    no_args_is_help=True,
)


@recipe.command(_SHOW)
def show(
    file: Annotated[
        Path,
        typer.Argument(help="A sidecar (JSON), or an MP4, MOV, WebM or PNG with a recipe in it.", show_default=False),
    ],
    out: _Out = None,
    replace: _Replace = False,
) -> None:
    """Print a job file that renders a video again: only what differs from the defaults, paths from where it stands."""
    from goan_cli.files import refuse_taken
    from goan_cli.recipes.reading import read_recipe
    from goan_cli.recipes.yaml_text import comment_text, job_file_text

    if out is not None:
        refuse_taken(out, file, replacing=replace)
    found = read_recipe(file)
    job = found.job(_folder(out))
    text = job_file_text([job], comments=[f"From {file}", *found.facts])
    _put(text, out, "1 job")
    _tell([f"{comment_text(path)} is not on this machine" for path in found.missing])


@recipe.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(help="A PNG with parameters, a workspace (JSON) or a queue (zip).", show_default=False),
    ],
    out: _Out = None,
    model: Annotated[str | None, typer.Option(help="Model pack of the jobs (default framepack-i2v).")] = None,
    replace: _Replace = False,
) -> None:
    """Make a job file of the original goan's PNG, workspace or queue; say on standard error what is not the same.

    The images of a queue are written to a folder beside the job file, and never over other files.
    """
    from goan_cli.files import refuse_taken
    from goan_cli.recipes.importing import imported, read_original
    from goan_cli.recipes.original import DEFAULT_MODEL
    from goan_cli.recipes.yaml_text import job_file_text

    if out is not None:
        refuse_taken(out, file, replacing=replace)
    original = read_original(file)
    if original.archive and out is None:
        raise InvalidInput(f"{file}: a queue's images need a place", hint="give -o jobs.yaml; they are put beside it")
    folder = _folder(out)
    pictures = folder / f"{out.stem}-images" if out is not None else folder
    with imported(original, folder, pictures) as found:
        text = job_file_text(
            found.jobs,
            defaults={"model": model or DEFAULT_MODEL},
            comments=[f"Imported from {file}, of the original goan"],
        )
        images = f", {_counted(len(found.images), 'image')} in {pictures.name}/" if found.images else ""
        _put(text, out, f"{_counted(len(found.jobs), 'job')}{images}")
    _tell(found.notes)


def _folder(out: Path | None) -> Path:
    return Path.cwd() if out is None else out.absolute().parent


def _put(text: str, out: Path | None, what: str) -> None:
    from goan_cli.files import write_text

    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
        typer.echo(f"{out}: {what}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _tell(notes: "Sequence[str]") -> None:
    for note in notes[:_MOST_NOTES]:
        typer.echo(f"note: {note}", err=True)
    if len(notes) > _MOST_NOTES:
        typer.echo(f"note: and {len(notes) - _MOST_NOTES} more", err=True)
