"""`goan render`: validate everything, show the plan, render, and say what became of each job."""

from typing import Annotated

import typer

from goan_cli.cli.options import (
    Asked,
    Files,
    Image,
    Lora,
    Model,
    Name,
    Out,
    Preset,
    Prompt,
    Seconds,
    Seed,
    Set,
    plans_for,
)


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
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    preview: Annotated[bool, typer.Option("--preview", help="Write a rough picture of each section.")] = False,
) -> None:
    """Render job files, or one job given by --image and --prompt.

    Each job leaves NAME.mp4 and NAME.json (the sidecar, written last) in its output folder.
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
    )
    plans = plans_for(asked)

    from goan_cli.batch.run import render_jobs
    from goan_cli.cli.console import RunConsole

    with RunConsole() as console:
        console.announce(plans)
        try:
            outcomes = render_jobs(plans, device=device, listener=console, previews=preview)
        except KeyboardInterrupt:
            console.interrupted()
            raise typer.Exit(130) from None
        console.summarise(outcomes)
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)
