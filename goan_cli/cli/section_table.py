"""The sections of a plan as a table: what each makes, and what it is told where that changes."""

from rich.markup import escape
from rich.table import Table

from goan_cli.jobs.directing import Direction
from goan_cli.jobs.job import Job
from goan_cli.jobs.sections import Family

_BARS = "▁▂▃▄▅▆▇█"
_LONGEST_PROMPT = 40


def section_table(job: Job) -> Table:
    """The sections in sampling order, with the times of the finished video that they make."""
    inverted = job.sections.family is Family.INVERTED and not job.sections.still
    table = Table(title=_title(job), title_justify="left")
    told = job.directions
    guided = len({direction.guidance_scale for direction in told}) > 1
    directed = len({_told(direction) for direction in told}) > 1
    for column in ("#", *(("padding",) if inverted else ()), "frames", "seconds", "latent indices"):
        table.add_column(column, justify="right")
    for column in (*(("guidance",) if guided else ()), *(("told",) if directed else ())):
        table.add_column(column, overflow="fold")
    most = max((direction.guidance_scale for direction in told), default=0.0)
    for section, direction in zip(job.sections.sections, told, strict=True):
        first, stop = job.frames_of(section)
        padding = (str(section.padding),) if inverted else ()
        span = f"{first / job.fps:.2f} - {stop / job.fps:.2f}"
        indices = f"{section.latent_indices[0]} - {section.latent_indices[-1]}"
        more = ((_bar(direction.guidance_scale, most),) if guided else ()) + (
            (escape(_told(direction)),) if directed else ()
        )
        table.add_row(str(section.number + 1), *padding, f"{first} - {stop - 1}", span, indices, *more)
    return table


def _title(job: Job) -> str:
    if job.sections.still:
        return "what is sampled"
    backwards = ", from the end of the video" if job.sections.family is Family.INVERTED else ""
    return f"sections in sampling order{backwards}"


def _bar(scale: float, most: float) -> str:
    """A scale and its bar of a small chart."""
    level = 0 if most <= 0 else round(scale / most * (len(_BARS) - 1))
    return f"{_BARS[level]} {scale:.3g}"


def _told(direction: Direction) -> str:
    """What a section is told, in short."""
    prompt = shortened(direction.prompt)
    if direction.share < 1:
        prompt = f"{shortened(direction.earlier)} > {prompt} ({direction.share:.0%})"
    facts = [prompt]
    if direction.true_cfg_scale != 1.0:
        facts.append(f"true CFG {direction.true_cfg_scale:g}")
    if direction.image is not None:
        facts.append(direction.image.path.name)
    facts += [f"{lora.path.stem} x {lora.weight:g}" for lora in direction.loras]
    return ", ".join(facts)


def shortened(prompt: str) -> str:
    """A prompt as far as a line of a table holds it."""
    return prompt if len(prompt) <= _LONGEST_PROMPT else f"{prompt[:_LONGEST_PROMPT]}…"
