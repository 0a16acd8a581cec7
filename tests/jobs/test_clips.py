"""Video files as jobs read them: looked at, resampled, fitted into the render size, or refused."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

import goan_cli.jobs.clips as clips_module
from goan_cli.errors import InvalidInput
from goan_cli.jobs.clips import Clip, clip_frames, clip_of
from goan_cli.jobs.sizes import fit
from goan_cli.media.videos import VideoFile, look_at_video
from tests.clips import Frames, levels_of, numbered_frames, write_clip


def _read(clip: Clip, size: tuple[int, int], *between: int, pad: bool = False) -> Frames:
    return np.stack(list(clip_frames(clip, fit(clip.size, size, pad=pad), *between)))


def test_what_is_seen_of_a_video(tmp_path: Path) -> None:
    """Its size, its frames and rate, and that it has no sound."""
    path = write_clip(tmp_path / "a.mp4", numbered_frames(11))
    clip = clip_of(path, 30.0)
    assert (clip.path, clip.size, clip.frames, clip.own_fps) == (path, (48, 32), 11, 30.0)
    assert not clip.has_audio
    assert not clip.is_resampled


def test_sound_is_seen(tmp_path: Path) -> None:
    """A video with a tone has sound."""
    assert clip_of(write_clip(tmp_path / "a.mp4", numbered_frames(11), hertz=440), 30.0).has_audio


@pytest.mark.parametrize(("first", "stop"), [(0, 11), (0, 5), (6, 11), (10, 11)])
def test_frames_as_they_are(tmp_path: Path, first: int, stop: int) -> None:
    """At its own rate and size, any stretch of a lossless video is read to the bit."""
    frames = np.random.default_rng(0).integers(0, 256, (11, 32, 48, 3), dtype=np.uint8)
    clip = clip_of(write_clip(tmp_path / "a.mkv", frames), 30.0)
    assert np.array_equal(_read(clip, (48, 32), first, stop), frames[first:stop])


@pytest.mark.parametrize(("own", "fps", "expected"), [(15, 30, 20), (60, 30, 5), (24, 30, 12), (30, 24, 8)])
def test_another_rate(tmp_path: Path, own: float, fps: float, expected: int) -> None:
    """A video of another rate keeps its length in seconds, and as many frames are read as were counted."""
    clip = clip_of(write_clip(tmp_path / "a.mkv", numbered_frames(10), fps=own), float(fps))
    assert clip.is_resampled
    assert abs(clip.frames - expected) <= 1
    levels = levels_of(_read(clip, (48, 32)))
    assert len(levels) == clip.frames
    assert levels == sorted(levels)
    assert abs(levels[0] - 20) <= 1
    assert abs(levels[-1] - 38) <= 3


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (48, 64), (96, 16)])
@pytest.mark.parametrize("pad", [False, True])
def test_fitted_as_images_are(tmp_path: Path, size: tuple[int, int], pad: bool) -> None:
    """A frame is cut or set into black where an image is, and resized as well: within 40 dB of Pillow's Lanczos."""
    picture = Image.linear_gradient("L").resize((90, 60)).rotate(20).convert("RGB")
    frames = np.repeat(np.asarray(picture)[None], 5, axis=0)
    clip = clip_of(write_clip(tmp_path / "a.mkv", frames), 30.0)
    fitted = fit(clip.size, size, pad=pad)
    expected = np.asarray(picture.resize(fitted.resized, Image.Resampling.LANCZOS).crop(fitted.box))
    made = _read(clip, size, 0, 1, pad=pad)[0]
    assert made.shape == expected.shape
    if fitted.beside:
        black = expected.max(axis=2) == 0
        assert not made[black & (np.asarray(expected).sum(axis=2) == 0)].max(initial=0) > 40
    error = np.square(made.astype(float) - expected).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40


def test_turned_upright(tmp_path: Path) -> None:
    """A video that a telephone turned has the size and the frames that players show."""
    frames = numbered_frames(6)
    frames[:, :, :16] = 255
    plain = write_clip(tmp_path / "plain.mp4", frames, coded=("-c:v", "libx264", "-crf", "1"))
    turned = tmp_path / "turned.mp4"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90", "-i", str(plain)]
    subprocess.run([*command, "-c", "copy", str(turned)], check=True)
    clip = clip_of(turned, 30.0)
    assert clip.size == (32, 48)
    made = _read(clip, (32, 48), 0, 1)[0]
    top, bottom = float(made[:14].mean()), float(made[-14:].mean())
    assert min(top, bottom) < 60
    assert max(top, bottom) > 200


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    """The width is that of the picture as it is shown."""
    path = write_clip(
        tmp_path / "a.mp4", numbered_frames(6), coded=("-c:v", "libx264", "-vf", "setsar=2", "-pix_fmt", "yuv420p")
    )
    assert clip_of(path, 30.0).size == (96, 32)


def _text(path: Path) -> None:
    path.write_text("not a video at all")


def _folder(path: Path) -> None:
    path.mkdir()


def _cut_off(path: Path) -> None:
    content = write_clip(path, numbered_frames(30)).read_bytes()
    path.write_bytes(content[:200])


def _song(path: Path) -> None:
    tone = ["-f", "lavfi", "-i", "sine=duration=0.2"]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *tone, "-f", "mp4", str(path)], check=True)


def _playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda _: None, "no such file"),
        (_folder, "is a folder, not a video"),
        (_text, "not a video that ffmpeg can read"),
        (_cut_off, "not a video that ffmpeg can read"),
        (_song, "has no video in it"),
        (_playlist, "not a video that ffmpeg can read"),
    ],
)
def test_what_is_refused(tmp_path: Path, make: object, said: str) -> None:
    """What is no video is refused in a few words."""
    path = tmp_path / "a.mp4"
    make(path)  # type: ignore[operator]
    with pytest.raises(InvalidInput, match=said):
        clip_of(path, 30.0)


def test_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs name a file, it is looked at once while it stays as it is, whether it can be used or not."""
    looked: list[str] = []

    def looking(path: Path, *, filters: Sequence[str], most: int) -> VideoFile:
        looked.append(path.name)
        return look_at_video(path, filters=filters, most=most)

    monkeypatch.setattr(clips_module, "look_at_video", looking)
    good = write_clip(tmp_path / "good.mkv", numbered_frames(6))
    bad = tmp_path / "bad.mkv"
    _text(bad)
    for _ in range(3):
        assert clip_of(good, 30.0).frames == 6
        with pytest.raises(InvalidInput, match=r"bad\.mkv: not a video"):
            clip_of(bad, 30.0)
    assert looked == ["good.mkv", "bad.mkv"]
    write_clip(bad, numbered_frames(7))
    assert clip_of(bad, 30.0).frames == 7


def test_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video longer than the longest that a job may have is refused, with what to do."""
    monkeypatch.setattr(clips_module, "LONGEST_SECONDS", 60)
    path = write_clip(tmp_path / "a.mkv", numbered_frames(63), fps=1)
    with pytest.raises(InvalidInput, match="longer than 1 minutes") as caught:
        clip_of(path, 1.0)
    assert caught.value.hint == "cut out the part that goes on"


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames beyond any that a job can use are refused."""
    monkeypatch.setattr(clips_module, "_LARGEST_SIDE", 40)
    with pytest.raises(InvalidInput, match="48x32 is too large"):
        clip_of(write_clip(tmp_path / "a.mkv", numbered_frames(6)), 30.0)


def test_changed_since_it_was_looked_at(tmp_path: Path) -> None:
    """A file that has fewer frames than were counted is not taken for the same."""
    path = write_clip(tmp_path / "a.mkv", numbered_frames(11))
    clip = clip_of(path, 30.0)
    shutil.copy(write_clip(tmp_path / "b.mkv", numbered_frames(7)), path)
    with pytest.raises(InvalidInput, match="7 frames could be read, not 11"):
        _read(clip, (48, 32))


def test_left_before_its_end(tmp_path: Path) -> None:
    """Who needs a few frames of a long video can leave the rest."""
    clip = clip_of(write_clip(tmp_path / "a.mkv", numbered_frames(100)), 30.0)
    frames = clip_frames(clip, fit(clip.size, (48, 32)))
    assert levels_of(np.stack([next(frames) for _ in range(3)])) == [20, 22, 24]
    frames.close()  # type: ignore[attr-defined]


def test_odd_names(tmp_path: Path) -> None:
    """A name that ffmpeg could take for something else is a name."""
    path = write_clip(tmp_path / "a %d:'x'.mkv", numbered_frames(6))
    assert clip_of(path, 30.0).frames == 6
