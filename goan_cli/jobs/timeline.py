"""What each section is told: moments in seconds of the finished video, snapped to sections, and guidance schedules."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.directing import Direction, GuidanceSchedule, LoraUse, Moment, Picture
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.pictures import picture_of
from goan_cli.jobs.schema import JobSpec, LoraSpec, MomentSpec
from goan_cli.jobs.sections import LATENT_FRAME, SectionPlan

_Value = TypeVar("_Value")


def lora_use(spec: LoraSpec) -> LoraUse:
    """A LoRA as a job has it."""
    return LoraUse(
        path=Path(spec.path),
        weight=float(spec.weight),
        include=tuple(spec.include),
        exclude=tuple(spec.exclude),
        trusted=spec.trusted,
    )


def section_seconds(window: int, fps: float) -> float:
    """How long a section is in the finished video, in seconds."""
    return window * LATENT_FRAME / fps


def moments_of(
    request: JobRequest, sections: SectionPlan, fps: float, size: tuple[int, int]
) -> tuple[tuple[Moment, ...], list[Problem]]:
    """The moments of a request's timeline, each snapped to the section that begins nearest to it."""
    moments: list[Moment] = []
    problems: list[Problem] = []
    length, count = section_seconds(sections.window, fps), len(sections.sections)
    length_known = not {"seconds", "sections", "fps", "window", "model"} & request.flawed
    before: Moment | None = None
    for index, spec in enumerate(request.spec.timeline or ()):
        place = round(spec.at / length)
        at_known = not request.is_made_up(("timeline", index, "at"))
        if not (length_known and at_known):
            pass  # of what is wrong with it, that has been said
        elif place >= count:
            where = "nearer to the video's end than to its last section" if spec.at < count * length else "too late"
            last = f"the last of {_sections(count)} begins at {(count - 1) * length:.3g} s"
            problems.append(request.problem(("timeline", index, "at"), f"{spec.at:g} s is {where}: {last}"))
        elif before is not None and place <= before.section:
            earlier = f"{before.at:g} s, which begins at {before.section * length:.3g} s"
            problems.append(
                request.problem(
                    ("timeline", index, "at"),
                    f"{spec.at:g} s is in no later section than {earlier}",
                    hint=f"moments come in order, at least {length:.3g} s apart",
                )
            )
        if spec.blend and spec.prompt is None:
            problems.append(request.problem(("timeline", index, "blend"), "given without a prompt to go over into"))
        image, wrong = _image(request, index, spec, size)
        problems += wrong
        moments.append(
            Moment(
                at=float(spec.at),
                section=place,
                blend=spec.blend,
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt,
                guidance_scale=None if spec.guidance_scale is None else float(spec.guidance_scale),
                true_cfg_scale=None if spec.true_cfg_scale is None else float(spec.true_cfg_scale),
                image=image,
                loras=None if spec.loras is None else tuple(lora_use(lora) for lora in spec.loras),
            )
        )
        before = moments[-1] if at_known else before
    return tuple(moments), problems


def _sections(count: int) -> str:
    return f"{count} section{'' if count == 1 else 's'}"


def _image(
    request: JobRequest, index: int, spec: MomentSpec, size: tuple[int, int]
) -> tuple[Picture | None, list[Problem]]:
    problems = [
        request.problem(("timeline", index, "loras", number, "path"), f"{lora.path}: no such file")
        for number, lora in enumerate(spec.loras or ())
        if not Path(lora.path).is_file()
    ]
    if spec.image is None:
        return None, problems
    try:
        return picture_of(Path(spec.image), size, pad=request.spec.fit == "pad"), problems
    except InvalidInput as error:
        return None, [*problems, request.problem(("timeline", index, "image"), f"{spec.image}: {error.message}")]


def directions_of(
    own: Direction, sections: SectionPlan, moments: Sequence[Moment], schedule: GuidanceSchedule | None
) -> tuple[Direction, ...]:
    """What each section is told, in sampling order: `own` from the start, then what each moment changes."""
    count = len(sections.sections)
    told: list[Direction] = []
    now, begun = own, {moment.section: moment for moment in moments}
    blend, since = 0, 0
    for place in range(count):
        if (moment := begun.get(place)) is not None:
            earlier = now.prompt
            now = _changed(now, moment)
            if moment.prompt is not None:  # else a blend that was begun goes on
                blend, since = moment.blend if moment.prompt != earlier else 0, place
                now = replace(now, earlier=earlier if blend else "")
        share = (place - since + 1) / (blend + 1) if blend else 1.0
        # Past the blend nothing of the earlier prompt is left.
        told.append(replace(now, share=share) if share < 1 else replace(now, share=1.0, earlier=""))
    if schedule is not None:
        scales = scheduled_scales(schedule, own.guidance_scale, count)
        told = [replace(each, guidance_scale=scale) for each, scale in zip(told, scales, strict=True)]
    return tuple(told[sections.place_of(section)] for section in sections.sections)


def _changed(now: Direction, moment: Moment) -> Direction:
    def given(value: _Value | None, before: _Value) -> _Value:
        return before if value is None else value

    return replace(
        now,
        prompt=given(moment.prompt, now.prompt),
        negative_prompt=given(moment.negative_prompt, now.negative_prompt),
        guidance_scale=given(moment.guidance_scale, now.guidance_scale),
        true_cfg_scale=given(moment.true_cfg_scale, now.true_cfg_scale),
        image=given(moment.image, now.image),
        loras=given(moment.loras, now.loras),
    )


def scheduled_scales(schedule: GuidanceSchedule, start: float, count: int) -> list[float]:
    """The distilled guidance of each of `count` sections in viewing order, from `start` to the schedule's end.

    `linear` goes straight; `roll-off` holds the start until the share `start_at` of the video, then goes along
    `t ** curve`. The first section's scale is multiplied by `trim`. Source: goan's variable CFG.
    """
    scales = []
    for place in range(count):
        progress = place / max(count - 1, 1)
        if schedule.shape == "roll-off":
            progress = max(0.0, (progress - schedule.start_at) / (1 - schedule.start_at)) ** schedule.curve
        scales.append(start + (schedule.end - start) * progress)
    scales[0] *= schedule.trim
    return scales


def schedule_of(spec: JobSpec) -> GuidanceSchedule | None:
    """The guidance schedule that a job asks for."""
    asked = spec.guidance_schedule
    if asked is None:
        return None
    return GuidanceSchedule(
        shape=asked.shape,
        end=float(asked.end),
        start_at=float(asked.start_at),
        curve=float(asked.curve),
        trim=float(asked.trim),
    )
