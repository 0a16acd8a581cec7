"""What a job's result is: its name, its format, and what is kept beside it."""

import re
from pathlib import Path

from goan_cli.errors import Problem
from goan_cli.jobs.fields import NAME_RULE, is_name
from goan_cli.jobs.formats import CODECS, CRFS, FASTEST_GIF, Codec, Format
from goan_cli.jobs.job import Output, Sampling
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.paths import looks_like_path
from goan_cli.jobs.schema import LoraSpec, OutputSpec

_NOT_IN_NAMES = re.compile(r"[^\w.+@=,-]+")


def output_of(request: JobRequest, folder: Path, fps: float) -> tuple[Output, list[Problem]]:
    """Where and how the result is written, at `fps`; a codec or a quality that a format has not is a problem."""
    spec = request.spec.output or OutputSpec()
    container = Format(spec.format or Format.MP4)
    codec = Codec(spec.codec or CODECS[container][0])
    problems = []
    if codec not in CODECS[container]:
        hint = f"{container} has {' or '.join(CODECS[container])}"
        problems.append(request.problem(("output", "codec"), f"{codec} does not go into {container}", hint=hint))
    elif spec.crf is not None and codec not in CRFS:
        problems.append(request.problem(("output", "crf"), f"{codec} has no crf", hint="leave it out"))
    elif spec.crf is not None and not CRFS[codec][0] <= spec.crf <= CRFS[codec][1]:
        lowest, highest, default = CRFS[codec]
        message = f"{codec} takes {lowest} to {highest} (default {default}), not {spec.crf}"
        problems.append(request.problem(("output", "crf"), message))
    if container is Format.GIF and fps > FASTEST_GIF:
        message = f"a gif shows at most {FASTEST_GIF} frames a second, and this job has {fps:g}"
        problems.append(request.problem(("output", "format"), message, hint="take webp, or a lower fps"))
    keep = spec.keep or ()
    output = Output(
        dir=folder,
        format=container,
        codec=codec,
        crf=spec.crf if spec.crf is not None or codec not in CRFS else CRFS[codec][2],
        keep_latents=bool(spec.keep_latents) or "latents" in keep,
        keep_sections="sections" in keep,
        keep_previews="preview" in keep,
        contact_sheet=bool(spec.contact_sheet),
        poster=bool(spec.poster),
        metadata=spec.metadata is not False,
    )
    return output, problems


def name_of(request: JobRequest, sampling: Sampling, size: tuple[int, int], model: str) -> tuple[str, list[Problem]]:
    """What the result is called: the job's name, or what its template makes of it."""
    spec = request.spec
    name = spec.name or request.default_name.replace("{seed}", str(sampling.seed))
    if not is_name(name):
        message = f"{name[:60]!r}, from the file's name, cannot name a result: {NAME_RULE}"
        return name, [request.problem(("name",), message)]
    template = spec.output.template if spec.output else None
    if template is None:
        return name, []
    place = ("output", "template")
    # Of a job on the command line without a seed, the name has the drawn one too.
    if "{seed}" in template and spec.seed is None and (spec.name or "{seed}" not in request.default_name):
        message = "names the seed, and the job has none: each run would draw another, and begin anew"
        return name, [request.problem(place, message, hint="give it a seed")]
    made = template.format(
        name=name,
        seed=sampling.seed,
        lora="+".join(_lora(lora) for lora in spec.loras or ()) or "none",
        model=_word(Path(model).stem if looks_like_path(model) else model),
        width=size[0],
        height=size[1],
        steps=sampling.steps,
    )
    if not is_name(made):
        return name, [request.problem(place, f"makes {made[:80]!r}, which cannot name a result: {NAME_RULE}")]
    return made, []


def _lora(lora: LoraSpec) -> str:
    weight = "" if lora.weight == 1 else f"@{lora.weight:g}"
    return _word(Path(lora.path).stem) + weight


def _word(text: str) -> str:
    return _NOT_IN_NAMES.sub("_", text)
