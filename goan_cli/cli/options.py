"""Options that `render` and `plan` share, and how they become job requests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from goan_cli.errors import InvalidInput, InvalidJobs

if TYPE_CHECKING:
    from goan_cli.errors import Problem
    from goan_cli.jobs.load import JobRequest
    from goan_cli.render.plan import RenderPlan

Files = Annotated[list[Path] | None, typer.Argument(help="Job files (YAML), or folders of them.", show_default=False)]
Jobs = Annotated[
    list[str] | None, typer.Option("--jobs", help="Only jobs with such a name, as 'night-*'; may be repeated.")
]
Image = Annotated[Path | None, typer.Option(help="Start image, for a job without a file.")]
Prompt = Annotated[str | None, typer.Option(help="What happens in the video.")]
Lora = Annotated[list[str] | None, typer.Option(help="LoRA to bake, FILE or FILE:WEIGHT; may be repeated.")]
Model = Annotated[str | None, typer.Option(help="Model pack: a name, a folder or a manifest.")]
Preset = Annotated[str | None, typer.Option(help="draft, balanced, quality, or a YAML file.")]
Seconds = Annotated[float | None, typer.Option(help="Length in seconds.")]
Seed = Annotated[int | None, typer.Option(help="Noise seed.")]
Name = Annotated[str | None, typer.Option(help="Name of the result.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE over every job; may be repeated. Dots reach inside what a job says, numbers are entries of its "
        "lists, from 0 or from the end -1: output.crf=20, loras.0.weight=0.5, timeline.-1.at=2s.",
    ),
]
Trusted = Annotated[bool, typer.Option("--trusted", help="Accept a LoRA that cannot be told from one for FLUX.1.")]
Out = Annotated[Path | None, typer.Option(help="Folder for results, instead of the jobs' own.")]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for; each setting overrides the files, or makes a job without one."""

    files: Sequence[Path]
    image: Path | None
    prompt: str | None
    loras: Sequence[str]
    model: str | None
    preset: str | None
    seconds: float | None
    seed: int | None
    name: str | None
    settings: Sequence[str]
    out: Path | None
    jobs: Sequence[str] = ()


def plans_for(asked: Asked) -> "list[RenderPlan]":
    """Plans for everything asked for. Raises InvalidJobs with every problem, or InvalidInput for no job."""
    from goan_cli.render.plan import plan_renders

    requests, problems = _requests(asked)
    return plan_renders(requests, problems, out=asked.out.absolute() if asked.out else None)


def models_for(asked: Asked) -> list[str]:
    """The models of everything asked for, each once. Raises as `plans_for`, of the job files."""
    from goan_cli.jobs.resolve import DEFAULT_MODEL

    requests, problems = _requests(asked)
    if problems:
        raise InvalidJobs(problems)
    return list(dict.fromkeys(request.spec.model or DEFAULT_MODEL for request in requests))


def _requests(asked: Asked) -> "tuple[list[JobRequest], list[Problem]]":
    from goan_cli.jobs.load import load_requests, request_from_settings, selected, settings_document

    settings = settings_document(asked.settings, _keys(asked))
    if asked.files:
        requests, problems = load_requests(asked.files, settings if settings.data else None)
    elif settings.data:
        stem = asked.image.stem if asked.image else "goan"
        requests, problems = request_from_settings(settings, name=stem + "-{seed}")
    else:
        raise InvalidInput("nothing to render", hint="give a job file, or --image and --prompt")
    if asked.jobs and not problems:
        requests = selected(requests, asked.jobs)
    return requests, problems


def _keys(asked: Asked) -> dict[str, Any]:
    given = {
        "image": None if asked.image is None else str(asked.image),
        "prompt": asked.prompt,
        "model": asked.model,
        "preset": asked.preset,
        "seconds": asked.seconds,
        "seed": asked.seed,
        "name": asked.name,
        "loras": [lora_and_weight(text) for text in asked.loras] or None,
    }
    return {key: value for key, value in given.items() if value is not None}


def lora_and_weight(text: str) -> dict[str, Any]:
    """`FILE` or `FILE:WEIGHT` as the keys of a job's LoRA."""
    path, colon, weight = text.rpartition(":")
    try:
        return {"path": path, "weight": float(weight)} if colon and path else {"path": text}
    except ValueError:
        return {"path": text}  # a colon inside a file name
