"""Section previews and contact sheets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from goan_cli.output.pictures import Frame, keeping, sheet_frames, write_contact_sheet, write_preview


def test_preview(tmp_path: Path) -> None:
    """A preview is a PNG eight times the size of the latents' strip, and nothing else is left."""
    strip = np.full((6, 24, 3), (250, 10, 10), dtype=np.uint8)
    write_preview(tmp_path / "shots" / "a.section-1.png", strip)
    with Image.open(tmp_path / "shots" / "a.section-1.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (192, 48))
        assert image.getpixel((100, 20)) == (250, 10, 10)
    assert [path.name for path in (tmp_path / "shots").iterdir()] == ["a.section-1.png"]


@pytest.mark.parametrize("frames", [1, 5, 12, 13, 121])
def test_sheet_shows_the_first_and_the_last_frame(frames: int) -> None:
    """At most twelve frames, evenly spread, none twice."""
    shown = sheet_frames(frames)
    assert (shown[0], shown[-1]) == (0, frames - 1)
    assert len(shown) == len(set(shown)) == min(frames, 12)
    assert shown == sorted(shown)


def test_keeping_passes_everything_on() -> None:
    """Chunks go through as they are, and the wanted frames are kept under their numbers, as copies."""
    video = np.arange(10 * 2 * 2 * 3, dtype=np.uint8).reshape(10, 2, 2, 3)
    kept: dict[int, Frame] = {}
    through = list(keeping([video[:3].copy(), video[3:4].copy(), video[4:].copy()], [0, 3, 9], kept))
    assert np.array_equal(np.concatenate(through), video)
    for chunk in through:
        chunk[:] = 0
    assert list(kept) == [0, 3, 9]
    assert all(np.array_equal(frame, video[number]) for number, frame in kept.items())


@pytest.mark.parametrize(("size", "shown"), [((64, 48), (128, 96)), ((200, 100), (200, 100)), ((960, 416), (320, 139))])
def test_contact_sheet(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    """Frames stand in rows of six at a size that can be seen, each frame where it belongs."""
    colours = [(20 * number, 255 - 20 * number, 40) for number in range(8)]
    frames = [np.full((size[1], size[0], 3), colour, np.uint8) for colour in colours]
    write_contact_sheet(tmp_path / "a.sheet.png", frames, [str(number) for number in range(8)])
    with Image.open(tmp_path / "a.sheet.png") as sheet:
        assert sheet.size[0] == 6 * (shown[0] + 4) + 4
        for number, colour in enumerate(colours):
            left, top = number % 6 * (shown[0] + 4) + 4, number // 6 * (shown[1] + 18) + 4
            for place in ((left + 1, top + 1), (left + shown[0] - 2, top + shown[1] - 2)):
                assert sheet.getpixel(place) == colour
