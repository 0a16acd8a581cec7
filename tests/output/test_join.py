"""Joined videos: every frame in order, cross-fades linear, sound kept where all have some, mismatches told."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from goan_cli.errors import InvalidInput
from goan_cli.jobs.formats import Coding
from goan_cli.media.ffmpeg import ffmpeg_path
from goan_cli.output.join import join_videos, read_source
from goan_cli.output.video import read_video, write_video

SIZE = (64, 48)


def clip(path: Path, levels: list[int], *, fps: float = 30.0, size: tuple[int, int] = SIZE) -> Path:
    """A video of grey frames of these levels."""
    grey = np.array(levels, dtype=np.uint8)[:, None, None, None]
    frames = np.ascontiguousarray(np.broadcast_to(grey, (len(levels), size[1], size[0], 3)))
    write_video(path, [frames], size=size, fps=fps, coding=Coding(crf=1))
    return path


def with_tone(path: Path, hertz: int) -> Path:
    """The same video with a tone as its sound."""
    out = path.with_name(f"{path.stem}-{hertz}.mp4")
    tone = ["-f", "lavfi", "-i", f"sine=frequency={hertz}:sample_rate=44100:duration=5"]
    command = [ffmpeg_path(), "-y", "-loglevel", "error", "-i", str(path), *tone]
    subprocess.run([*command, "-c:v", "copy", "-c:a", "aac", "-shortest", str(out)], check=True)
    return out


def sound(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The sound of a file, one channel at 48 kHz."""
    command = [ffmpeg_path(), "-loglevel", "error", "-i", str(path), "-f", "f32le", "-ac", "1", "-ar", "48000", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.float32)


def pitch(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> float:
    """The loudest frequency of a stretch, in hertz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * 48000 / len(samples))


def levels(path: Path) -> list[float]:
    """The mean of every frame."""
    return [float(frame.mean()) for frame in read_video(path)]


def test_all_frames_in_order(tmp_path: Path) -> None:
    """Without a cross-fade the frames of all follow one another, none lost and none twice."""
    given = [[20, 40, 60], [200], [100, 120, 140, 160]]
    videos = [clip(tmp_path / f"{number}.mp4", each) for number, each in enumerate(given)]
    joined = join_videos(videos, tmp_path / "all.mp4", crf=1)
    assert (joined.video.frames, joined.video.size, joined.video.fps) == (8, SIZE, 30.0)
    assert levels(tmp_path / "all.mp4") == pytest.approx([level for each in given for level in each], abs=4)


def test_cross_fade_is_linear(tmp_path: Path) -> None:
    """Over a cross-fade the first goes over into the second in equal steps, frame on frame."""
    first, second = clip(tmp_path / "a.mp4", [40] * 10), clip(tmp_path / "b.mp4", [200] * 10)
    join_videos([first, second], tmp_path / "c.mp4", cross_fade=0.1, crf=1)
    assert levels(tmp_path / "c.mp4") == pytest.approx([40] * 7 + [80, 120, 160] + [200] * 7, abs=4)


def test_cross_fade_of_three(tmp_path: Path) -> None:
    """A video between two others may consist of its two cross-fades alone."""
    middle = clip(tmp_path / "b.mp4", [100] * 6)
    ends = [clip(tmp_path / name, [level] * 5) for name, level in (("a.mp4", 20), ("c.mp4", 200))]
    join_videos([ends[0], middle, ends[1]], tmp_path / "d.mp4", cross_fade=0.1, crf=1)
    expected = [20, 20, 40, 60, 80, 125, 150, 175, 200, 200]
    assert levels(tmp_path / "d.mp4") == pytest.approx(expected, abs=4)


@pytest.mark.parametrize("counts", [(3, 9), (9, 3), (9, 7, 9)], ids=["first", "last", "middle"])
def test_shorter_than_the_cross_fade(tmp_path: Path, counts: tuple[int, ...]) -> None:
    """A video too short for its cross-fades is told by name, and nothing is left."""
    videos = [clip(tmp_path / f"{number}.mp4", [50] * count) for number, count in enumerate(counts)]
    before = sorted(tmp_path.iterdir())
    short = min(range(len(counts)), key=lambda number: counts[number])
    with pytest.raises(InvalidInput, match=rf"{short}\.mp4: has {counts[short]} frames"):
        join_videos(videos, tmp_path / "all.mp4", cross_fade=4 / 30)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [({"size": (64, 32)}, "different sizes, 64x48 and 64x32"), ({"fps": 24.0}, "different rates, 30 and 24")],
    ids=["size", "rate"],
)
def test_videos_that_do_not_match(tmp_path: Path, options: dict[str, object], words: str) -> None:
    """Another size or rate is told with both files, before anything is written."""
    first, second = clip(tmp_path / "a.mp4", [50] * 3), tmp_path / "b.mp4"
    clip(second, [50] * 3, **options)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=words) as caught:
        join_videos([first, second], tmp_path / "c.mp4")
    assert str(first) in caught.value.message
    assert str(second) in caught.value.message
    assert not (tmp_path / "c.mp4").exists()


@pytest.mark.parametrize("content", [None, b"", b"not a video"], ids=["missing", "empty", "text"])
def test_what_is_no_video(tmp_path: Path, content: bytes | None) -> None:
    """What is no video is told by name."""
    path = tmp_path / "b.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=re.escape(str(path))):
        join_videos([clip(tmp_path / "a.mp4", [50] * 3), path], tmp_path / "c.mp4")


def test_a_damaged_video(tmp_path: Path) -> None:
    """A video cut off before its first frame is told by name, and nothing is left."""
    good, bad = clip(tmp_path / "a.mp4", [50] * 3), clip(tmp_path / "b.mp4", [50] * 3)
    content = bad.read_bytes()
    bad.write_bytes(content[: content.index(b"mdat") + 8])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InvalidInput, match=r"b\.mp4"):
        join_videos([good, bad], tmp_path / "c.mp4")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("cross_fade", [0.0, 0.2])
def test_sound_is_kept(tmp_path: Path, cross_fade: float) -> None:
    """Where all have sound, each part sounds as it did, as long as its frames last, and goes over with them."""
    first = with_tone(clip(tmp_path / "a.mp4", [40] * 30), 440)
    second = with_tone(clip(tmp_path / "b.mp4", [200] * 30), 1760)
    joined = join_videos([first, second], tmp_path / "c.mp4", cross_fade=cross_fade)
    assert not joined.silent
    assert read_source(tmp_path / "c.mp4").has_audio
    seconds = 2 - cross_fade
    assert joined.video.frames == round(seconds * 30)
    heard = sound(tmp_path / "c.mp4")
    assert len(heard) / 48000 == pytest.approx(seconds, abs=0.1)
    assert pitch(heard[4800:24000]) == pytest.approx(440, abs=5)
    assert pitch(heard[-24000:-4800]) == pytest.approx(1760, abs=5)
    assert levels(tmp_path / "c.mp4")[0] == pytest.approx(40, abs=4)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_silent_where_one_is(tmp_path: Path) -> None:
    """Where one has no sound the video has none, and it is named."""
    first = with_tone(clip(tmp_path / "a.mp4", [40] * 10), 440)
    second = clip(tmp_path / "b.mp4", [200] * 10)
    joined = join_videos([first, second], tmp_path / "c.mp4")
    assert joined.silent == (second,)
    assert not read_source(tmp_path / "c.mp4").has_audio


def test_only_a_cross_fade_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are handed to the encoder one by one, however long the videos are."""
    seen: list[int] = []

    def counting(path: Path, chunks: object, **options: object) -> object:
        def counted() -> object:
            for chunk in chunks:  # type: ignore[attr-defined]
                seen.append(len(chunk))
                yield chunk

        return write_video(path, counted(), **options)  # type: ignore[arg-type]

    monkeypatch.setattr("goan_cli.output.join.write_video", counting)
    videos = [clip(tmp_path / f"{number}.mp4", [50] * 40) for number in range(2)]
    join_videos(videos, tmp_path / "c.mp4", cross_fade=0.1)
    assert seen == [1] * 77
