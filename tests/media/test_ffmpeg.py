"""The ffmpeg in use: what it says of itself, how it is run, and what becomes of it."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from goan_cli.errors import EnvironmentFault
from goan_cli.media.ffmpeg import (
    available_encoders,
    ffmpeg_path,
    ffmpeg_running,
    ffmpeg_version,
    input_file,
    last_words,
    raw_input,
    run_ffmpeg,
)
from tests.clips import numbered_frames, write_clip

_NULL = ("-f", "null", "-")


def _running() -> None:
    with tempfile.TemporaryFile() as words, ffmpeg_running([], words):
        pass


def test_version() -> None:
    """ffmpeg's own first line is what the sidecar records."""
    assert ffmpeg_version().startswith("ffmpeg version")


def test_encoders() -> None:
    """The names of encoders are found, and nothing of the list's heading."""
    assert {"libx264", "png", "gif"} <= available_encoders()
    assert not {"=", "Video", "------"} & available_encoders()


@pytest.mark.parametrize(
    "ask",
    [ffmpeg_version, available_encoders, lambda: run_ffmpeg([]), _running],
    ids=["version", "encoders", "run", "running"],
)
def test_no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]) -> None:
    """An ffmpeg that is not there is the environment's fault, said with what to do."""
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentFault, match="gone: cannot be run") as caught:
        ask()
    assert "IMAGEIO_FFMPEG_EXE" in str(caught.value)
    assert ffmpeg_path() == str(tmp_path / "gone")


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for ffmpeg")
def test_an_ffmpeg_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails to say what it is cannot be used, and its last words are told."""
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho 'libx264.so: not found' >&2\nexit 127\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(EnvironmentFault, match=r"cannot be run: libx264\.so: not found"):
        ffmpeg_version()


def test_run_to_its_end(tmp_path: Path) -> None:
    """A file by an odd name is opened; one that is not there is an end like another, with words."""
    path = write_clip(tmp_path / "concat:a,'b' %d.mkv", numbered_frames(3))
    assert run_ffmpeg([*input_file(path), *_NULL]).returncode == 0
    done = run_ffmpeg(["-loglevel", "error", *input_file(tmp_path / "none.mkv"), *_NULL])
    assert done.returncode
    assert "No such file" in last_words(done.stderr, "nothing")


def test_a_playlist_of_the_network(tmp_path: Path) -> None:
    """What a user's file names on other machines is not asked for."""
    path = tmp_path / "a.m3u8"
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    done = run_ffmpeg([*input_file(path), *_NULL])
    assert done.returncode
    assert b"not on whitelist" in done.stderr


def test_fed_and_read() -> None:
    """What goes in at one pipe comes out at the other, and ffmpeg has ended when the block has."""
    frames = numbered_frames(3)
    with tempfile.TemporaryFile() as words:
        arguments = ["-loglevel", "error", *raw_input((48, 32), 30), "-f", "rawvideo", "-"]
        with ffmpeg_running(arguments, words, fed=True, read=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(frames.tobytes())
            process.stdin.close()
            made = process.stdout.read()
        assert process.returncode == 0
        assert last_words(words, "nothing") == "nothing"
    assert made == frames.tobytes()


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_killed_where_the_block_fails() -> None:
    """An ffmpeg that would wait for more is gone when its block fails, and the failure is what the caller sees."""
    begun: list[subprocess.Popen[bytes]] = []

    def fail() -> None:
        with tempfile.TemporaryFile() as words, ffmpeg_running(arguments, words, fed=True) as process:
            begun.append(process)
            assert process.stdin is not None
            process.stdin.write(b"half a frame")
            raise ZeroDivisionError

    arguments = [*raw_input((48, 32), 30), *_NULL]
    with pytest.raises(ZeroDivisionError):
        fail()
    assert [process.returncode for process in begun] == [-signal.SIGKILL]


def test_ends_before_it_is_fed() -> None:
    """An ffmpeg that ends early lets the block end well: its words say why."""
    with tempfile.TemporaryFile() as words:
        with ffmpeg_running(["-f", "none", "-i", "-"], words, fed=True) as process:
            assert process.stdin is not None
            process.stdin.write(b"some")  # stays in the buffer
            process.wait()
        assert process.returncode
        assert "Error opening input" in last_words(words, "nothing")


@pytest.mark.parametrize(
    ("said", "last"),
    [(b"", "nothing"), (b"\n \n", "nothing"), (b"one\ntwo \n\n", "two"), (b"\xff", "\N{REPLACEMENT CHARACTER}")],
)
def test_last_words(said: bytes, last: str) -> None:
    """The last line that is not empty, of bytes or of a file of them."""
    assert last_words(said, "nothing") == last
    with tempfile.TemporaryFile() as words:
        words.write(said)
        assert last_words(words, "nothing") == last
