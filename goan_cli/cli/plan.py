"""`goan plan`: what would run, without importing torch or loading a model."""

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


def plan(
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
) -> None:
    """Validate jobs and print what would run: sizes, crop, frames, sections, LoRA matches."""
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

    from goan_cli.cli.plan_table import show_plan
    from goan_cli.cli.terminal import make_console

    console = make_console()
    for each in plans:
        show_plan(console, each)
