"""`goan models pull`: the missing parts of packs, downloaded into the Hugging Face cache."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from goan_cli.errors import GoanError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from goan_cli.packs.pull import Listener, PullEvent
    from goan_cli.packs.pull_plan import PullPlan


def pull(
    packs: Annotated[list[str], typer.Argument(help="Names, folders or manifests.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be downloaded.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Download what packs lack into the Hugging Face cache, and check the hash of every file.

    What was found anywhere on this machine is not downloaded. Interrupted, it leaves what has arrived: run it again.
    HF_HOME says where the cache is, HF_ENDPOINT which hub is asked, HF_TOKEN who asks.

    Exit codes: 2 an unknown pack or a wrong manifest, 3 no connection, space or access, or a damaged file (it was
    removed), 75 interrupted: run again to go on.
    """
    from goan_cli.cli.terminal import make_console

    console = make_console(quiet=quiet)
    if not dry_run:
        pull_packs(packs, console)
        return
    shown: set[Path] = set()
    for pack in packs:
        with _interruptible(pack):
            _show_plan(console, pack, shown)


def pull_packs(packs: Iterable[str], console: "Console") -> None:
    """Make packs complete, one after the other, once all of them are known. Raises GoanError for what cannot be had."""
    from goan_cli.packs.find import refuse_wrong_paths, survey_pack

    packs = list(dict.fromkeys(packs))
    for pack in packs:
        refuse_wrong_paths(survey_pack(pack).parts)
    for pack in packs:
        with _interruptible(pack):
            _pull_pack(pack, console)


def _pull_pack(pack: str, console: "Console") -> None:
    from rich.markup import escape

    from goan_cli.files import size_text
    from goan_cli.packs.find import find_pack, survey_pack
    from goan_cli.packs.pull import pull as download
    from goan_cli.packs.pull_plan import plan_pull

    survey = survey_pack(pack)
    if survey.complete:
        console.print(f"[green]complete[/green] {escape(pack)}: nothing to download")
        return
    plan = plan_pull(survey)
    console.print(
        f"{escape(pack)}: {len(plan.files)} files, {size_text(plan.to_download)} to download to "
        f"{escape(str(plan.hub.cache))}, {size_text(plan.free)} free there"
    )
    with _progress(console) as listener:
        download(plan, listener)
    find_pack(pack)  # what was downloaded may still be no such part
    console.print(f"[green]complete[/green] {escape(pack)}")


@contextmanager
def _interruptible(pack: str) -> Iterator[None]:
    """Turn Ctrl-C into the error of what can be gone on with."""
    try:
        yield
    except KeyboardInterrupt as error:
        hint = "what has arrived stays: run it again to go on"
        raise Interrupted(f"{pack}: the download was interrupted", hint=hint) from error


def pull_missing(models: Iterable[str], console: "Console") -> None:
    """Download the packs that are not on this machine; what else is wrong with one is left to be told later."""
    from goan_cli.errors import MissingModel
    from goan_cli.packs.find import find_pack

    missing = []
    for model in dict.fromkeys(models):
        try:
            find_pack(model)
        except MissingModel:
            missing.append(model)
        except GoanError:
            continue
    pull_packs(missing, console)


def _show_plan(console: "Console", pack: str, shown: "set[Path]") -> None:
    """Print what a pack lacks, but for the files that are `shown` already, and remember those."""
    from rich.markup import escape

    from goan_cli.files import size_text
    from goan_cli.packs.find import refuse_wrong_paths, survey_pack
    from goan_cli.packs.pull_plan import plan_pull

    survey = survey_pack(pack)
    refuse_wrong_paths(survey.parts)
    plan: PullPlan = plan_pull(survey)
    new = [file for file in plan.files if file.blob not in shown]
    size = sum(file.size - file.partial for file in new)
    console.print(f"[bold]{escape(pack)}[/bold]: {size_text(size)} to download, {size_text(plan.free)} free")
    for repository in plan.repositories:
        files = [file for file in repository.files if file.blob not in shown]
        if files:
            console.print(f"  {escape(repository.source.name)} at {repository.commit[:12]}")
        for file in files:
            state = "there" if file.cached else f"{size_text(file.partial)} there" if file.partial else ""
            console.print(f"    {size_text(file.size):>9}  {escape(file.path)} [dim]{state}[/dim]")
        shown.update(file.blob for file in files)


@contextmanager
def _progress(console: "Console") -> "Iterator[Listener]":
    """A bar for the download, on a terminal; elsewhere a line for each file."""
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from goan_cli.packs.pull import PullChecking, PullProgress, PullStarted, PullVerified

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("downloading", total=None)

        def show(event: "PullEvent") -> None:
            match event:
                case PullStarted():
                    progress.update(bar, total=event.size, completed=event.done)
                case PullProgress():
                    progress.update(bar, completed=event.done, description=escape(event.file.rpartition("/")[2]))
                case PullChecking():
                    progress.update(bar, description=f"checking {escape(event.file.rpartition('/')[2])}")
                case PullVerified():
                    console.print(f"  [green]verified[/green] {escape(event.file)}")

        def listen(event: "PullEvent") -> None:
            # rich exits when a pipe that it prints to is closed; the download goes on.
            with suppress(OSError, SystemExit):
                show(event)

        yield listen
