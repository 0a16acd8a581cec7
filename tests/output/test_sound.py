"""The sound of a video that is gone on with: in the finished file, where the video is."""

from pathlib import Path

import numpy as np
import pytest

from goan_cli.errors import RenderFailed
from goan_cli.jobs.clips import clip_of
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.formats import CODECS, Coding, Format
from goan_cli.jobs.sections import Family
from goan_cli.jobs.sizes import fit
from goan_cli.output.comments import comment_in
from goan_cli.output.sound import ENCODERS, add_sound
from goan_cli.output.video import VideoInfo, read_video, write_video
from tests.clips import numbered_frames, sound_of, write_clip

RATE = 8000
OWN, NEW = 45, 30  # frames


def _extension(folder: Path, family: Family) -> Extension:
    clip = write_clip(folder / "clip.mp4", numbered_frames(OWN), hertz=440)
    return Extension(
        clip=clip_of(clip, 30.0),
        fit=fit((48, 32), (48, 32)),
        family=family,
        window=9,
        audio=True,
        cross_fade=0.5,
        join=True,
    )


def _written(path: Path, container: Format = Format.MP4) -> VideoInfo:
    coding = Coding(format=container, codec=CODECS[container][0], crf=20 if container is not Format.MOV else None)
    frames = numbered_frames(OWN + NEW)
    return write_video(path, [frames], size=(48, 32), fps=30.0, coding=coding, recipe="what it is")


def _loud(path: Path) -> list[bool]:
    """Whether there is sound in each tenth of a second."""
    sound = sound_of(path, RATE)
    tenths = sound[: len(sound) // 800 * 800].reshape(-1, 800)
    return [float(np.sqrt(np.square(tenth).mean())) > 0.02 for tenth in tenths]


@pytest.mark.parametrize("container", list(ENCODERS))
@pytest.mark.parametrize("family", list(Family))
def test_sound_at_its_place(tmp_path: Path, family: Family, container: Format) -> None:
    """The tone lasts as long as the video does, there where the video is; beside it is silence to the end."""
    path = tmp_path / f"made.{container}"
    info = _written(path, container)
    before = read_video(path)
    add_sound(path, _extension(tmp_path, family), info, container)
    loud = _loud(path)
    own = range(15) if family is Family.F1 else range(10, 25)
    # The tenths at both ends of the tone may go either way.
    sure = [tenth for tenth in range(25) if not {tenth - 1, tenth, tenth + 1} & {own[0], own[-1]}]
    assert [loud[tenth] for tenth in sure] == [tenth in own for tenth in sure]
    assert any(loud)
    assert abs(len(loud) - 25) <= 1
    assert np.array_equal(read_video(path), before)
    assert comment_in(path) == "what it is"
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["clip.mp4", path.name])


def test_the_same_file_every_time(tmp_path: Path) -> None:
    """The same frames and sound make the same bytes."""
    extension, contents = _extension(tmp_path, Family.F1), []
    for name in ("one.mp4", "two.mp4"):
        add_sound(tmp_path / name, extension, _written(tmp_path / name), Format.MP4)
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_a_sound_that_has_vanished(tmp_path: Path) -> None:
    """A file without its sound fails with ffmpeg's words, and the video stays as it was."""
    extension, path = _extension(tmp_path, Family.F1), tmp_path / "made.mp4"
    info = _written(path)
    before = path.read_bytes()
    write_clip(extension.clip.path, numbered_frames(OWN))
    with pytest.raises(RenderFailed, match="its sound could not be kept"):
        add_sound(path, extension, info, Format.MP4)
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["clip.mp4", "made.mp4"]
