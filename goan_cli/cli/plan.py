"""`goan plan`: what would run, without importing torch or loading a model."""

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
    jobs: Jobs = None,
) -> None:
    """Validate jobs and print what would run: sizes, crop, frames, sections, LoRA matches, and what is done already.

    Many jobs are shown as a table of one line each.

    Exit codes: 0 it can be rendered, 2 invalid input, 3 the environment lacks something: a model is not there, or a
    job's memory is too small for this GPU.
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
    from goan_cli.batch.standing import OnExists
    from goan_cli.cli.plan_table import show_plans
    from goan_cli.cli.refusals import refuse_budgets

    refuse_budgets(show_plans(plans_for(asked), OnExists.NUMBER), "auto")
