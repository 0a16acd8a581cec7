"""`goan render`: validate everything, show the plan, render, and say what became of each job."""

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from goan_cli.cli.options import (
    Asked,
    Files,
    Image,
    Jobs,
    Lora,
    Model,
    Name,
    Out,
    Preset,
    Prompt,
    Seconds,
    Seed,
    Set,
    models_for,
    plans_for,
)
from goan_cli.errors import GoanError, Interrupted, InvalidJobs

if TYPE_CHECKING:
    from goan_cli.batch.outcome import RunEvent
    from goan_cli.batch.survey import RunSettings
    from goan_cli.cli.eventlog import EventLog
    from goan_cli.render.plan import RenderPlan


def render(
    files: Files = None,
    image: Image = None,
    prompt: Prompt = None,
    lora: Lora = None,
    model: Model = None,
    preset: Preset = None,
    seconds: Seconds = None,
    seed: Seed = None,
    name: Name = None,
    settings: Set = None,
    out: Out = None,
    jobs: Jobs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run, as goan plan does.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Render again what is up to date.")] = False,
    on_exists: Annotated[
        Literal["number", "replace", "skip"],
        typer.Option(help="Where another recipe's result has the name: NAME-2, replace it, or leave it."),
    ] = "number",
    order: Annotated[
        Literal["recipe", "file"], typer.Option(help="Group jobs by their LoRAs, or keep the files' order.")
    ] = "recipe",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for jobs that another run is rendering.")] = False,
    deadline: Annotated[
        str | None, typer.Option(help="Stop, resumable, at the last section that fits: 06:00, 90m, 1h30m.")
    ] = None,
    log_json: Annotated[
        str | None, typer.Option(help="Append events as JSON lines to FILE; - is standard output.", metavar="FILE")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    pull: Annotated[
        bool, typer.Option("--pull", help="Download the models that are not on this machine first.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    preview: Annotated[bool, typer.Option("--preview", help="Write a rough picture of each section.")] = False,
) -> None:
    """Render job files, or one job given by --image and --prompt.

    Each job leaves its video and NAME.json (the sidecar, written last) in its output folder. What is up to date is
    not rendered again, and what was interrupted goes on where it was.

    Exit codes: 0 all done or up to date, 1 some jobs failed, 2 invalid input, 3 the environment lacks something,
    75 stopped by a signal or the deadline, or busy in another run: run again to go on.
    """
    asked = Asked(
        files=files or (),
        image=image,
        prompt=prompt,
        loras=lora or (),
        model=model,
        preset=preset,
        seconds=seconds,
        seed=seed,
        name=name,
        settings=settings or (),
        out=out,
        jobs=jobs or (),
    )

    from goan_cli.batch.stop import Stop, parse_deadline

    stop = Stop(deadline=parse_deadline(deadline) if deadline is not None else None)
    if dry_run:
        from goan_cli.batch.standing import OnExists
        from goan_cli.cli.plan_table import show_plans
        from goan_cli.cli.refusals import refuse_budgets

        refuse_budgets(show_plans(plans_for(asked), OnExists(on_exists), force=force), device)
        return

    from goan_cli.cli.signals import stopping

    with ExitStack() as stack:
        log = _event_log(stack, log_json)
        try:
            _pull(asked, pull=pull, quiet=quiet, to_stderr=log_json == "-")
            stack.enter_context(stopping(stop))
            plans = plans_for(asked)

            from goan_cli.batch.schedule import Order
            from goan_cli.batch.standing import OnExists
            from goan_cli.batch.survey import RunSettings
            from goan_cli.files import cache_folder

            run = RunSettings(
                device=device,
                order=Order(order),
                on_exists=OnExists(on_exists),
                force=force,
                wait=wait,
                previews=preview,
                cache=cache_folder(),
                stop=stop,
            )
            code = _rendered(plans, run, log, quiet=quiet, to_stderr=log_json == "-")
        except GoanError as error:
            if log is not None:
                log.problems(error)
            raise
        except KeyboardInterrupt:
            code = Interrupted.exit_code
    if code:
        raise typer.Exit(code)


def _pull(asked: Asked, *, pull: bool, quiet: bool, to_stderr: bool) -> None:
    """Download the models that are missing, where that is wanted and nothing else is; interrupted, it stops at once."""
    from goan_cli.settings import read_settings

    if not (pull or read_settings().pull):
        return
    try:
        plans_for(asked)
    except InvalidJobs as error:
        if any(not problem.environment for problem in error.problems):
            return  # planning them again will tell

        from goan_cli.cli.models_pull import pull_missing
        from goan_cli.cli.terminal import make_console

        pull_missing(models_for(asked), make_console(quiet=quiet, stderr=to_stderr))


def _event_log(stack: ExitStack, target: str | None) -> "EventLog | None":
    if target is None:
        return None

    from goan_cli.cli.eventlog import EventLog

    return stack.enter_context(EventLog(target))


def _rendered(
    plans: "list[RenderPlan]", run: "RunSettings", log: "EventLog | None", *, quiet: bool, to_stderr: bool
) -> int:
    """Render with the console and the log listening; returns the exit code."""
    from goan_cli.batch.outcome import exit_code
    from goan_cli.batch.survey import finished_already
    from goan_cli.cli.console import RunConsole
    from goan_cli.cli.terminal import make_console

    with RunConsole(make_console(quiet=quiet, stderr=to_stderr)) as console:

        def listen(event: "RunEvent") -> None:
            # rich exits when a pipe that it prints to is closed; the renders go on.
            with suppress(OSError, SystemExit):
                console(event)
            if log is not None:
                log(event)

        outcomes = finished_already(plans, run, listen)
        if outcomes is None:
            from goan_cli.batch.run import render_jobs

            outcomes = render_jobs(plans, run, listener=listen)
    if quiet:
        for outcome in outcomes:
            if outcome.error is not None:
                typer.secho(f"error: {outcome.plan.job.name}: {outcome.error}", err=True, fg=typer.colors.RED)
    return exit_code(outcomes)
