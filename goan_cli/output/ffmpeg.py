"""The ffmpeg in use: where it is, what it says of itself, and its way with a file's comment."""

import re
import subprocess
from functools import lru_cache
from pathlib import Path

import imageio_ffmpeg

from goan_cli.errors import EnvironmentFault

# A line of ffmpeg's metadata; `=`, `;`, `#`, backslashes and line ends inside are escaped by a backslash.
_LINE = re.compile(r"((?:\\.|[^\\\n])*)\n?", re.DOTALL)
_ESCAPED = re.compile(r"([=;#\\\n])")


def available_encoders() -> frozenset[str]:
    """The names of the encoders that the ffmpeg in use has."""
    return _encoders_of(ffmpeg_path())


@lru_cache
def _encoders_of(path: str) -> frozenset[str]:
    listed = _asked([path, "-hide_banner", "-encoders"]).stdout
    return frozenset(re.findall(r"^ [VAS][A-Z.]{5} (\w\S*)", listed, re.MULTILINE))


def ffmpeg_version() -> str:
    """The first line that ffmpeg says of itself. Raises EnvironmentFault when it cannot be run."""
    return _version_of(ffmpeg_path())


@lru_cache  # every sidecar names it
def _version_of(path: str) -> str:
    return _asked([path, "-version"]).stdout.split("\n", maxsplit=1)[0]


def ffmpeg_path() -> str:
    """The ffmpeg that writes videos. Raises EnvironmentFault when there is none."""
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise EnvironmentFault("no ffmpeg found", hint="reinstall imageio-ffmpeg, or set IMAGEIO_FFMPEG_EXE") from error


def _asked(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What ffmpeg says to a question about itself. Raises EnvironmentFault when it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EnvironmentFault(
            f"{command[0]}: cannot be run: {error}", hint="reinstall imageio-ffmpeg, or mend IMAGEIO_FFMPEG_EXE"
        ) from error


def metadata_text(comment: str) -> str:
    """A file of ffmpeg's metadata that has only a comment."""
    escaped = _ESCAPED.sub(r"\\\1", comment)
    return f";FFMETADATA1\ncomment={escaped}\n"


def comment_in(path: Path) -> str | None:
    """The comment of a video file, None where it has none or is no video. Raises EnvironmentFault without ffmpeg."""
    command = [ffmpeg_path(), "-loglevel", "error", "-i", f"file:{path}", "-f", "ffmetadata", "-"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise EnvironmentFault(f"{command[0]}: cannot be run: {error}") from error
    for found in _LINE.finditer(done.stdout.decode("utf-8", "replace")):
        key, _, value = found[1].partition("=")
        if key.startswith("["):
            break  # what follows is of a stream or a chapter
        if key.lower() == "comment":
            return re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return None


def last_words(said: bytes, otherwise: str) -> str:
    """The last line that ffmpeg said, or `otherwise` where it said nothing."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else otherwise
