"""A job's `video` from its words: looked at, and held against the job's other keys."""

from pathlib import Path

from goan_cli.errors import InvalidInput, Problem
from goan_cli.jobs.clips import Clip, clip_of
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.formats import SOUNDING, Format
from goan_cli.jobs.load import JobRequest
from goan_cli.jobs.sections import LATENT_FRAME, Family
from goan_cli.jobs.sizes import Fit

DEFAULT_CROSS_FADE = 0.5
FEWEST_FRAMES = 1 + LATENT_FRAME


def extension_of(
    request: JobRequest, clip: Clip | None, fit: Fit | None, *, family: Family, window: int
) -> tuple[Extension | None, list[Problem]]:
    """The request's `video`, already looked at and fitted, and what in the job stands against it."""
    spec = request.spec.video
    if spec is None:
        return None, []
    problems = []
    if family is Family.F1:
        hint = "leave it out (or null), or take framepack-i2v, which leads up to the video"
        problems += [
            request.problem((key,), "given beside video; a forward model goes on from the video", hint=hint)
            for key in ("image", "start")
            if getattr(request.spec, key) is not None
        ]
    else:
        problems += [
            request.problem((key,), "given beside video; an inverted model's new part ends where the video begins")
            for key in ("end_image", "loop")
            if getattr(request.spec, key)
        ]
    if spec.audio and spec.join is False:
        problems.append(request.problem(("video", "audio"), "goes with join: the new part alone has no sound"))
    container = Format((request.spec.output and request.spec.output.format) or Format.MP4)
    if spec.audio and container not in SOUNDING:
        hint = f"take {', '.join(sorted(SOUNDING))}"
        problems.append(request.problem(("video", "audio"), f"{container} has no sound", hint=hint))
    if spec.cross_fade is not None and spec.join is False:
        problems.append(request.problem(("video", "cross_fade"), "goes with join: there is nothing to fade"))
    if clip is None or fit is None:
        return None, problems
    extension = Extension(
        clip=clip,
        fit=fit,
        family=family,
        window=window,
        audio=bool(spec.audio),
        cross_fade=DEFAULT_CROSS_FADE if spec.cross_fade is None else float(spec.cross_fade),
        join=spec.join is not False,
    )
    return extension, problems


def video_of(request: JobRequest, fps: float) -> tuple[Clip | None, list[Problem]]:
    """The video that a request goes on with, looked at; None without one, or with what is wrong with it."""
    spec = request.spec.video
    if spec is None or "fps" in request.flawed:
        return None, []
    try:
        clip = clip_of(Path(spec.path), fps)
    except InvalidInput as error:
        return None, [request.problem(("video", "path"), error.message, hint=error.hint)]
    if clip.frames < FEWEST_FRAMES:
        have = f"{clip.frames} frame{'' if clip.frames == 1 else 's'} at {fps:g} fps"
        message = f"{spec.path}: too short: {have}, of at least {FEWEST_FRAMES}"
        return None, [request.problem(("video", "path"), message, hint="take image: for a picture")]
    return clip, []
