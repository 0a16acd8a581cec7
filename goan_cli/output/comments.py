"""The comment of a video file, as ffmpeg writes it and says it."""

import re
from pathlib import Path

from goan_cli.media.ffmpeg import input_file, run_ffmpeg

# A line of ffmpeg's metadata; `=`, `;`, `#`, backslashes and line ends inside are escaped by a backslash.
_LINE = re.compile(r"((?:\\.|[^\\\n])*)\n?", re.DOTALL)
_ESCAPED = re.compile(r"([=;#\\\n])")


def metadata_text(comment: str) -> str:
    """A file of ffmpeg's metadata that has only a comment."""
    escaped = _ESCAPED.sub(r"\\\1", comment)
    return f";FFMETADATA1\ncomment={escaped}\n"


def comment_in(path: Path) -> str | None:
    """The comment of a video file, None where it has none or is no video. Raises EnvironmentFault without ffmpeg."""
    done = run_ffmpeg(["-loglevel", "error", *input_file(path), "-f", "ffmetadata", "-"])
    for found in _LINE.finditer(done.stdout.decode("utf-8", "replace")):
        key, _, value = found[1].partition("=")
        if key.startswith("["):
            break  # what follows is of a stream or a chapter
        if key.lower() == "comment":
            return re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return None
