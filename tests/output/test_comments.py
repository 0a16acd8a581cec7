"""The comment of a file, whatever is in it."""

from pathlib import Path

import pytest

from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.formats import CODECS, CRFS, SUFFIXES, Coding, Format
from goan_cli.output.comments import comment_in
from goan_cli.output.encoders import COMMENTED
from goan_cli.output.video import write_video
from tests.output.test_video import SIZE, chunks

COMMENTS = ['{"a": "x=1; y #2 \\\\ \\n"}', "two\nlines\n", "größe 漢字 🙂", "[STREAM]\ncomment=other", "x" * 300_000]


@pytest.mark.parametrize("text", COMMENTS, ids=["json", "lines", "letters", "sections", "long"])
@pytest.mark.parametrize("container", sorted(COMMENTED))
def test_comments(tmp_path: Path, container: Format, text: str) -> None:
    """A comment comes back from every format that holds one as it was put in, of any length and with any signs."""
    codec = CODECS[container][0]
    path = tmp_path / f"a b'%d{SUFFIXES[container]}"
    coding = Coding(format=container, codec=codec, crf=CRFS[codec][2] if codec in CRFS else None)
    write_video(path, chunks(2), size=SIZE, fps=30, coding=coding, recipe=text)
    assert comment_in(path) == text


def test_files_without_one(tmp_path: Path) -> None:
    """A video without a comment, and what is no video, have none."""
    write_video(tmp_path / "a.mp4", chunks(2), size=SIZE, fps=30)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    assert comment_in(tmp_path / "a.mp4") is None
    assert comment_in(tmp_path / "b.mp4") is None


def test_no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an ffmpeg that runs, no comment is taken to be missing."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentFault, match="gone: cannot be run"):
        comment_in(tmp_path / "a.mp4")
