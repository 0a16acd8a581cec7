"""`goan models`: which models there are on this machine, and how others get here."""

import typer

from goan_cli.cli.models_import import import_pack
from goan_cli.cli.models_list import list_packs, path
from goan_cli.cli.models_pull import pull
from goan_cli.cli.models_verify import verify

models = typer.Typer(
    name="models",
    help="List, download, verify and import models.",
    no_args_is_help=True,
)
models.command("list")(list_packs)
models.command("pull")(pull)
models.command("verify")(verify)
models.command("path")(path)
models.command("import")(import_pack)
