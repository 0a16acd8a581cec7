"""A render plan as a table for people."""

from collections.abc import Sequence
from typing import cast

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from goan_cli.batch.standing import OnExists, Standing, State, standing_of
from goan_cli.cli.section_table import section_table, shortened
from goan_cli.cli.terminal import make_console
from goan_cli.errors import GoanError
from goan_cli.jobs.directing import Moment, OneFrame, Picture
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.formats import Coding
from goan_cli.jobs.job import AttentionBackend, DecodeMode, Job, Output, WantedPrecision
from goan_cli.jobs.sections import LATENT_FRAME, Family
from goan_cli.jobs.timeline import section_seconds
from goan_cli.render.budget import foreseen_memory
from goan_cli.render.identity import bake_recipe
from goan_cli.render.memory import describe
from goan_cli.render.plan import PlannedLora, RenderPlan

_MOST_IN_FULL = 8
_APPROXIMATE = (WantedPrecision.FP8, AttentionBackend.SAGE)
_WORTH_A_WORD = 0.005  # of an image
_SNAPPED = 0.005  # seconds
_WORTH_SAYING = 2 * 10**9  # bytes of memory that a job needs


def show_plans(plans: Sequence[RenderPlan], on_exists: OnExists, *, force: bool = False) -> list[Standing]:
    """Print jobs, each in full or, where they are many, as a row of one table; and return how they stand."""
    console = make_console()
    names = {plan.job.sidecar for plan in plans}
    standings = [standing_of(plan, on_exists, force=force, names=names) for plan in plans]
    if len(plans) <= _MOST_IN_FULL:
        for standing in standings:
            show_plan(console, standing)
        return standings
    table = Table(show_edge=False)
    for column, side in (("job", "left"), ("size", "right"), ("seconds", "right"), ("steps", "right")):
        table.add_column(column, justify=cast("JustifyMethod", side), overflow="fold")
    for column in ("LoRAs", "state", "prompt"):
        table.add_column(column, overflow="fold")
    for standing in standings:
        table.add_row(*map(escape, _row(standing)))
    console.print(table)
    console.print(_totals(standings))
    return standings


def _row(standing: Standing) -> tuple[str, ...]:
    job = standing.plan.job
    loras = ", ".join(f"{lora.use.path.stem} x {lora.use.weight:g}" for lora in standing.plan.loras)
    steps = f"{len(job.sections.sections)} x {job.sampling.steps}"
    name = _without_drawn_seed(job, job.name)
    seconds = f"{job.frames / job.fps:.2f}"
    return name, f"{job.size[0]}x{job.size[1]}", seconds, steps, loras or "-", _state(standing), shortened(job.prompt)


def _state(standing: Standing) -> str:
    if standing.state is State.PARTIAL:
        return f"{standing.share:.0%} done"
    return f"{standing.state}, {standing.reason}" if standing.reason else str(standing.state)


def _totals(standings: Sequence[Standing]) -> str:
    left = [standing.plan for standing in standings if standing.state in (State.NEW, State.PARTIAL)]
    steps = sum(len(plan.job.sections.sections) * plan.job.sampling.steps for plan in left)
    recipes = len({bake_recipe(plan).identity for plan in left})
    return (
        f"{_count(len(standings), 'job')}, {len(left)} to render: {_count(recipes, 'recipe')}, {_count(steps, 'step')}"
    )


def show_plan(console: Console, standing: Standing) -> None:
    """Print one job: its settings, and its sections in sampling order."""
    plan, job = standing.plan, standing.plan.job
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in [*_rows(plan), ("state", _state(standing))]:
        grid.add_row(label, escape(text))
    console.rule(f"[bold]{escape(_without_drawn_seed(job, job.name))}", align="left")
    console.print(grid)
    console.print(section_table(job))


def _rows(plan: RenderPlan) -> list[tuple[str, str]]:
    job, sampling = plan.job, plan.job.sampling
    rows = [("model", f"{plan.pack.name} ({plan.pack.family})"), ("image", _image(job)), ("prompt", job.prompt)]
    if job.negative_prompt:
        rows.append(("negative", job.negative_prompt))
    rows += [
        *_pictures(job),
        *(_continued(job.extension) if job.extension else ()),
        ("video", _video(job)),
        ("sampling", _sampling(job)),
        ("guidance", f"distilled {_guidance(job)}, true CFG {_cfg(job)}"),
        *(("timeline", _moment(job, moment)) for moment in job.timeline),
        ("step cache", _step_cache(plan)),
        *_execution(plan),
        ("seed", "drawn when it renders" if job.seed_drawn else str(sampling.seed)),
        *(("LoRA", _lora(lora)) for lora in plan.loras),
        *(("note", note) for note in plan.notes),
        *_post(job),
        ("output", _without_drawn_seed(job, str(job.video))),
        *_coding(job.output),
    ]
    return rows


def _post(job: Job) -> list[tuple[str, str]]:
    """What the frames go through before they are encoded."""
    if job.post is None:
        return []
    asked = []
    if job.post.upscale is not None:
        asked.append(f"upscaled by {job.post.upscale}")
    if job.post.interpolate is not None:
        asked.append(f"interpolated to {job.post.interpolate:g} fps")
    return [("post", ", then ".join(asked))]


def _coding(output: Output) -> list[tuple[str, str]]:
    """How the video is written where it is no plain MP4, and what comes beside it."""
    rows = []
    if output.coding != Coding():
        crf = "" if output.crf is None else f", crf {output.crf}"
        codec = "" if str(output.codec) == str(output.format) else f", {output.codec}"
        rows.append(("format", f"{output.format}{codec}{crf}"))
    beside = {
        "latents": output.keep_latents,
        "sections": output.keep_sections,
        "previews": output.keep_previews,
        "contact sheet": output.contact_sheet,
        "poster": output.poster,
    }
    if any(beside.values()):
        rows.append(("beside it", ", ".join(word for word, asked in beside.items() if asked)))
    if not output.metadata:
        rows.append(("metadata", "none: the file does not say how it was made"))
    return rows


def _step_cache(plan: RenderPlan) -> str:
    cache, steps = plan.job.sampling.step_cache, plan.job.sampling.steps
    if cache is None:
        return "off"
    if plan.computes is None:
        return f"TeaCache, threshold {cache.threshold:g} (approximate)"
    return f"MagCache, threshold {cache.threshold:g}: computes {len(plan.computes)} of {steps} steps (approximate)"


def _execution(plan: RenderPlan) -> list[tuple[str, str]]:
    """What was asked for of the execution, and the memory plan of models that fill a card."""
    job, wanted = plan.job, plan.job.execution
    asked = {"precision": wanted.precision, "compile": wanted.compile, "attention": wanted.attention}
    rows = [
        (key, f"{value} (approximate)" if value in _APPROXIMATE else str(value))
        for key, value in asked.items()
        if value != "auto"
    ]
    if job.decode is not DecodeMode.OVERLAP:
        rows.append(("decode", f"{job.decode} (cheaper, not FramePack's pixels)"))
    try:
        memory = foreseen_memory(plan)
    except GoanError as error:
        return [*rows, ("memory", str(error).removeprefix("memory: "))]
    if wanted.memory is not None or memory.total > _WORTH_SAYING:
        rows.append(("memory", describe(memory)))
    return rows


def _without_drawn_seed(job: Job, text: str) -> str:
    """A name made from a seed that the render will draw anew."""
    return text.replace(str(job.sampling.seed), "SEED") if job.seed_drawn else text


def _image(job: Job) -> str:
    fit = job.image_fit
    if job.image is None and job.start is None:
        return "none: it begins from the video"
    if job.image is None:
        return f"none: it begins from {job.start}"
    return _picture(Picture(path=job.image, fit=fit))


def _picture(picture: Picture) -> str:
    fit = picture.fit
    crop = f"{fit.lost:.0%} cut off" if fit.lost >= _WORTH_A_WORD else "nothing cut off"
    black = f", {fit.beside:.0%} black beside it" if fit.beside >= _WORTH_A_WORD else ""
    source, resized = (f"{width}x{height}" for width, height in (fit.source, fit.resized))
    return f"{picture.path} {source}, resized to {resized}, {crop}{black}"


def _pictures(job: Job) -> list[tuple[str, str]]:
    """The image that the video ends on."""
    if job.one_frame is not None:
        controls = [(f"control {each.index}", _picture(each.picture)) for each in job.one_frame.controls]
        return [*controls, ("one frame", _one_frame(job.one_frame))]
    if job.end is None:
        return []
    what = "the start image: a loop" if job.loop else _picture(job.end.picture)
    return [("ends on", what if job.end.strength == 1.0 else f"{what}, strength {job.end.strength:g}")]


def _continued(extension: Extension) -> list[tuple[str, str]]:
    """The video that is gone on with, and what becomes of it."""
    clip, (first, stop) = extension.clip, extension.seen
    read = f"{_count(clip.frames, 'frame')} at {clip.fps:g} fps"
    seen = f"frames {first} - {stop - 1} are looked at"
    forward = extension.family is Family.F1
    if not extension.join:
        joined = f"the new part alone, as it goes {'on' if forward else 'before'}"
    else:
        fade = f"cross-faded over {_count(extension.faded, 'frame')}" if extension.faded else "not cross-faded"
        sound = ", with its sound" if extension.sounds else ""
        joined = f"{'before' if forward else 'after'} the new part, {fade}{sound}"
    picture = _picture(Picture(path=clip.path, fit=extension.fit))
    return [("goes on with" if forward else "leads up to", f"{picture}; {read}, {seen}"), ("its place", joined)]


def _one_frame(one: OneFrame) -> str:
    given = {"no 2x": one.no_2x, "no 4x": one.no_4x, "no post": one.no_post}
    left_out = "".join(f", {name}" for name, is_so in given.items() if is_so)
    return f"the picture at frame index {one.target}{left_out}"


def _guidance(job: Job) -> str:
    schedule, scale = job.guidance_schedule, job.sampling.guidance_scale
    return f"{scale:g}" if schedule is None else f"{scale:g} to {schedule.end:g}, {schedule.shape}"


def _moment(job: Job, moment: Moment) -> str:
    """What changes when, and what the time was snapped to."""
    begins = moment.section * section_seconds(job.sections.window, job.fps)
    asked = "" if abs(begins - moment.at) < _SNAPPED else f" (asked for {moment.at:g} s)"
    changes = [
        *((f"{moment.prompt}",) if moment.prompt is not None else ()),
        *((f"over {_count(moment.blend, 'section')}",) if moment.blend else ()),
        *((f"negative: {moment.negative_prompt}",) if moment.negative_prompt is not None else ()),
        *((f"guidance {moment.guidance_scale:g}",) if moment.guidance_scale is not None else ()),
        *((f"true CFG {moment.true_cfg_scale:g}",) if moment.true_cfg_scale is not None else ()),
        *((f"looks at {moment.image.path.name}",) if moment.image is not None else ()),
        *((f"{lora.path.stem} x {lora.weight:g}" for lora in moment.loras) if moment.loras else ()),
        *(("no LoRAs",) if moment.loras == () else ()),
    ]
    return f"from {begins:.3g} s{asked}: {', '.join(changes) or 'nothing changes'}"


def _video(job: Job) -> str:
    if job.one_frame is not None:
        return f"none: one picture of {job.size[0]}x{job.size[1]}"
    length = f"{job.frames / job.fps:.2f} s at {job.fps:g} fps"
    section = round(job.sections.window * LATENT_FRAME / job.fps, 3)
    asked = "" if job.seconds is None else f" (asked for {job.seconds:g} s; a section is {section:g} s)"
    if job.extension is not None and job.extension.join:
        new = job.sections.frames - 1
        whole = f"{job.size[0]}x{job.size[1]}, {job.frames} frames, {length}"
        return f"{whole}; {new} of them are new, {new / job.fps:.2f} s{asked}"
    return f"{job.size[0]}x{job.size[1]}, {job.frames} frames, {length}{asked}"


def _lora(lora: PlannedLora) -> str:
    adapter = lora.adapter
    acting = f"{adapter.matched_keys} of {adapter.keys} keys act on {len(adapter.targets)} modules"
    return f"{adapter.path} x {lora.use.weight:g}: {acting}"


def _sampling(job: Job) -> str:
    sections, steps = _count(len(job.sections.sections), "section"), _count(job.sampling.steps, "step")
    return f"{sections} of {steps}, window {job.sections.window}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _cfg(job: Job) -> str:
    sampling = job.sampling
    if sampling.true_cfg_scale == 1.0 and job.is_guided:
        return "off at first (see the timeline)"
    if sampling.true_cfg_scale == 1.0:
        return "off (the negative prompt is not used)" if job.negative_prompt else "off"
    rescale = f", rescale {sampling.guidance_rescale:g}" if sampling.guidance_rescale else ""
    return f"{sampling.true_cfg_scale:g}{rescale} (twice the work)"
