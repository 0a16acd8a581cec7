"""Video files: what is seen of one, its frames as they are, and what is refused."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from goan_cli.errors import InvalidInput
from goan_cli.media.ffmpeg import ffmpeg_path
from goan_cli.media.videos import file_state, look_at_video, video_frames
from tests.clips import Frames, levels_of, numbered_frames, write_clip


def _read(path: Path, size: tuple[int, int] = (48, 32), *filters: str, expected: int | None = None) -> Frames:
    return np.stack(list(video_frames(path, size, filters=filters, expected=expected)))


def test_what_is_seen(tmp_path: Path) -> None:
    """Its size, rate and sound, and as many frames as were asked for or are there."""
    path = write_clip(tmp_path / "a.mp4", numbered_frames(5), fps=23.976, hertz=440)
    video = look_at_video(path)
    assert (video.path, video.size, video.frames, video.fps, video.has_audio) == (path, (48, 32), 1, 23.98, True)
    assert video.stream.startswith("h264")
    silent = write_clip(tmp_path / "b.mkv", numbered_frames(5))
    assert not look_at_video(silent).has_audio
    assert [look_at_video(silent, most=most).frames for most in (3, 9)] == [3, 5]


def test_seen_through_filters(tmp_path: Path) -> None:
    """Size and number are those of the frames that come out of the filters, and as many are read."""
    path = write_clip(tmp_path / "a.mkv", numbered_frames(6))
    filters = ("fps=60", "scale=24:16")
    video = look_at_video(path, filters=filters, most=100)
    assert (video.size, video.frames, video.fps) == ((24, 16), 12, 30.0)
    assert len(_read(path, video.size, *filters, expected=12)) == 12


def test_frames_as_they_are(tmp_path: Path) -> None:
    """Every frame of a lossless video comes back to the bit, once, also where they are unevenly far apart."""
    frames = np.random.default_rng(0).integers(0, 256, (7, 32, 48, 3), dtype=np.uint8)
    assert np.array_equal(_read(write_clip(tmp_path / "a.mkv", frames)), frames)
    uneven = ("-vf", "setpts='N*N'", "-fps_mode", "passthrough", "-c:v", "ffv1", "-pix_fmt", "bgr0")
    assert np.array_equal(_read(write_clip(tmp_path / "b.mkv", frames, coded=uneven)), frames)


def test_left_before_its_end(tmp_path: Path) -> None:
    """Whoever has seen enough can leave the rest."""
    frames = video_frames(write_clip(tmp_path / "a.mkv", numbered_frames(100)), (48, 32))
    assert levels_of(np.stack([next(frames) for _ in range(3)])) == [20, 22, 24]
    frames.close()


def test_other_than_expected(tmp_path: Path) -> None:
    """More or fewer frames than are expected are told by number."""
    path = write_clip(tmp_path / "a.mkv", numbered_frames(6))
    for expected in (5, 7):
        with pytest.raises(InvalidInput, match=f"6 frames could be read, not {expected}"):
            _read(path, expected=expected)


def test_half_a_frame(tmp_path: Path) -> None:
    """A video that ends in half a frame, as one of another size does, is no video that was read."""
    with pytest.raises(InvalidInput, match=r"a\.mkv: ffmpeg cannot decode it"):
        _read(write_clip(tmp_path / "a.mkv", numbered_frames(5)), (48, 31))


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for ffmpeg")
def test_an_ffmpeg_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that ffmpeg did not come to are not taken for the end, and its last words are told."""
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\nhead -c 4608 /dev/zero\necho 'out of memory' >&2\nexit 1\n")
    script.chmod(0o755)
    path = write_clip(tmp_path / "a.mkv", numbered_frames(5))
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(InvalidInput, match="ffmpeg cannot decode it: out of memory"):
        _read(path)


def _text(path: Path) -> None:
    path.write_text("not a video at all")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _song(path: Path) -> None:
    tone = ["-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *tone, "-f", "mp4", str(path)], check=True)


def _headless(path: Path) -> None:
    """Cut off before its first frame, its header whole."""
    coded = ("-c:v", "libx264", "-movflags", "+faststart")
    content = write_clip(path, numbered_frames(5), coded=coded).read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 8])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "no such file"),
        (Path.mkdir, "is a folder, not a video"),
        (_pipe, "is not a file"),
        (Path.touch, "not a video that ffmpeg can read"),
        (_text, "not a video that ffmpeg can read"),
        (_song, "has no video in it"),
        (_headless, "ffmpeg cannot decode a single frame of it"),
    ],
    ids=["missing", "folder", "pipe", "empty", "text", "song", "headless"],
)
def test_what_is_refused(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    """What is no video is refused by name, in a few words."""
    path = tmp_path / "a.mp4"
    make(path)
    with pytest.raises(InvalidInput, match=f"^{re.escape(str(path))}: {said}$"):
        look_at_video(path)


def test_file_state(tmp_path: Path) -> None:
    """A file's state is another when its content is; what can be no path is no file."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = file_state(path)
    path.write_bytes(b"three")
    assert file_state(path) != before
    with pytest.raises(InvalidInput, match="no such file"):
        file_state(Path("a\0b"))
