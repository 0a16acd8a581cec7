"""One-frame inference: a single picture, at a frame index seen from the start image and further control images."""

from pathlib import Path

from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.directing import Control, OneFrame
from goan_cli.jobs.job import ModelDefaults
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.pictures import picture_of
from goan_cli.jobs.sections import SectionPlan, plan_still

# Keys about the course of a video, which a picture has not.
_OF_VIDEOS = (
    "seconds",
    "sections",
    "window",
    "paddings",
    "timeline",
    "guidance_schedule",
    "end_image",
    "loop",
    "video",
    "decode",
    "post",
)


def one_frame_of(
    request: JobRequest, defaults: ModelDefaults, size: tuple[int, int]
) -> tuple[OneFrame | None, list[Problem]]:
    """The one frame that a request asks for, None for a video; and keys that stand against it."""
    spec = request.spec.one_frame
    if spec is None:
        return None, []
    problems = [
        request.problem((key,), "given beside one_frame, which makes a picture")
        for key in _OF_VIDEOS
        if getattr(request.spec, key, None) not in (None, False) and key in request.origins
    ]
    output = request.spec.output
    problems += [
        request.problem(("output", key), "given beside one_frame, whose result is one PNG")
        for key in ("format", "codec", "crf", "poster", "contact_sheet")
        if output is not None and getattr(output, key)
    ]
    if output is not None and {"sections", "preview"} & set(output.keep or ()):
        problems.append(request.problem(("output", "keep"), "given beside one_frame; only latents can be kept"))
    controls: list[Control] = []
    for index, control in enumerate(spec.controls):
        try:
            picture = picture_of(Path(control.image), size, pad=request.spec.fit == "pad")
        except InvalidInput as error:
            place = ("one_frame", "controls", index, "image")
            problems.append(request.problem(place, f"{control.image}: {error.message}"))
            continue
        controls.append(Control(picture=picture, index=control.index))
    return (
        OneFrame(
            target=defaults.window if spec.target is None else spec.target,
            controls=tuple(controls),
            no_2x=spec.no_2x,
            no_4x=spec.no_4x,
            no_post=spec.no_post,
        ),
        problems,
    )


def still_sections(one: OneFrame, defaults: ModelDefaults) -> SectionPlan:
    """The plan of its one section."""
    return plan_still(
        defaults.family,
        one.target,
        tuple(control.index for control in one.controls),
        no_2x=one.no_2x,
        no_4x=one.no_4x,
        no_post=one.no_post,
    )
