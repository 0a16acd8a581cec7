"""What a job's finished frames go through before they are encoded."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from goan_cli.errors import GoanError, Problem
from goan_cli.jobs.job import Post
from goan_cli.jobs.load import JobRequest
from goan_cli.tensorfile import read_header

EXTRA_HINT = "pip install 'goan-cli[post]'"
# ffmpeg looks for motion in blocks of 16 pixels, and finds none in frames of fewer than two of them.
SMALLEST_INTERPOLATED = 32


def post_of(request: JobRequest, fps: float, size: tuple[int, int] | None) -> tuple[Post | None, list[Problem]]:
    """What the request's `post` comes to, None for nothing; `size` is the render's, None where it is not known."""
    spec = request.spec.post
    if spec is None or (spec.interpolate is None and spec.upscale is None):
        return None, []
    problems = []
    if spec.interpolate is not None and "fps" not in request.flawed and spec.interpolate <= fps:
        asked = f"{spec.interpolate:g} frames a second, where there are {fps:g} already"
        problems.append(request.problem(("post", "interpolate"), asked, hint="give more than fps"))
    if spec.interpolate is not None and spec.upscale is None and size and min(size) < SMALLEST_INTERPOLATED:
        message = f"frames of {size[0]}x{size[1]} are too small to interpolate"
        hint = f"at least {SMALLEST_INTERPOLATED} pixels a side"
        problems.append(request.problem(("post", "interpolate"), message, hint=hint))
    if spec.upscale is not None:
        problems += _upscale_problems(request, spec.upscale)
    upscale = None if spec.upscale is None else Path(spec.upscale)
    interpolate = None if spec.interpolate is None else float(spec.interpolate)
    return Post(upscale=upscale, interpolate=interpolate), problems


def _upscale_problems(request: JobRequest, path: str) -> list[Problem]:
    """What stands against an upscaling model: its file, or a library that is not there. Nothing is loaded."""
    problems = []
    try:
        read_header(Path(path))
    except GoanError as error:
        problems.append(request.problem(("post", "upscale"), error.message, hint=error.hint))
    if find_spec("spandrel") is None:
        message = "upscaling needs the library spandrel, which is not installed"
        lacking = request.problem(("post", "upscale"), message, hint=EXTRA_HINT)
        problems.append(replace(lacking, environment=True))
    return problems
