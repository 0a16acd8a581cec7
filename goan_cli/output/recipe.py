"""The resolved job inside a result: as a comment in a video, as a text chunk in a PNG."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from goan_cli.errors import InvalidInput
from goan_cli.jobs.job import Job
from goan_cli.output.comments import comment_in
from goan_cli.output.pictures import RECIPE_KEY
from goan_cli.output.sidecar import settings_of

RECIPE_VERSION = 1

_PNG = b"\x89PNG\r\n\x1a\n"
# What of a job's output decides the file; where it goes and what else is kept is no part of a recipe, nor are gates:
# so a render of it makes the same bytes wherever it is rendered.
_CODING = ("format", "codec", "crf")
_ELSEWHERE = ("gates", "retry_seeds")


def recipe_of(job: Job, *, compiled: bool) -> str:
    """The recipe of a job as one line of ASCII; `compiled` is what `compile: auto` came to."""
    settings = {key: value for key, value in settings_of(job).items() if key not in _ELSEWHERE}
    settings["output"] = {key: value for key, value in settings["output"].items() if key in _CODING}
    settings["compile"] = "on" if compiled else "off"
    return json.dumps({"tool": "goan", "version": RECIPE_VERSION, "settings": settings})


def embedded_recipe(path: Path) -> dict[str, Any] | None:
    """The keys of the job that a video or PNG was made from, as a job file has them; None where it holds no recipe.

    Raises InvalidInput where there is no such file, and for a recipe of a newer version; EnvironmentFault where ffmpeg
    cannot be run.
    """
    try:
        with path.open("rb") as file:
            is_png = file.read(len(_PNG)) == _PNG
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror or error}") from error
    text = _png_text(path) if is_png else comment_in(path)
    try:
        content = json.loads(text or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("tool") != "goan" or not isinstance(content.get("version"), int):
        return None
    if content["version"] > RECIPE_VERSION:
        raise InvalidInput(f"{path}: a recipe of version {content['version']}, which this goan cannot read")
    settings = content.get("settings")
    return settings if isinstance(settings, dict) else None


def _png_text(path: Path) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            found = image.info.get(RECIPE_KEY)
    except (OSError, ValueError, SyntaxError):
        return None
    return str(found) if isinstance(found, str) else None
