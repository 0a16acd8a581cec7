"""Encoders: every row of the table writes what its codec is, and one that ffmpeg has not is told."""

import re
import stat
from pathlib import Path

import numpy as np
import pytest

import goan_cli.output.encoders as encoders_module
from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.formats import CODECS, CRFS, SUFFIXES, Codec, Coding, Format
from goan_cli.media.ffmpeg import available_encoders
from goan_cli.output.encoders import ENCODERS, MUXERS, Encoder, encoder_for, refuse_missing
from goan_cli.output.video import VideoInfo, read_video, write_video
from tests.output.test_video import SIZE, chunks, streams

# What ffmpeg says of the stream that each encoder writes.
SAID = {
    "libx264": r"h264 \(High\).*yuv420p\(tv, bt709",
    "libx265": r"hevc \(Main\) \(hvc1.*yuv420p\(tv, bt709",
    "libsvtav1": r"av1 .*yuv420p\(tv, bt709",
    "libaom-av1": r"av1 .*yuv420p\(tv, bt709",
    "libvpx-vp9": r"vp9 .*yuv420p\(tv, bt709",
    "prores_ks": r"prores \(HQ\) \(apch.*yuv422p10le\(tv, bt709",
    "gif": r"gif",
    "libwebp_anim": r"webp",
    "png": r"png, rgb24",
}
ROWS = [(row, container) for container, codecs in CODECS.items() for row in ENCODERS if row.codec in codecs]


def _coding(row: Encoder, container: Format) -> Coding:
    return Coding(format=container, codec=row.codec, crf=CRFS[row.codec][2] if row.codec in CRFS else None)


@pytest.mark.parametrize(("row", "container"), ROWS, ids=[f"{row.name}-{container}" for row, container in ROWS])
def test_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Encoder, container: Format) -> None:
    """Each encoder writes all frames at their size, rate and colours, tagged, and the same bytes again."""
    if row.name not in available_encoders():
        pytest.skip(f"this ffmpeg has no {row.name}")
    monkeypatch.setattr(encoders_module, "ENCODERS", (row,))
    paths = [tmp_path / f"{name}{SUFFIXES[container]}" for name in ("a", "b")]
    for path in paths:
        if container is Format.PNG:
            path.mkdir()
        written = write_video(path, chunks(4, 5), size=SIZE, fps=25, coding=_coding(row, container))
        assert written == VideoInfo(frames=9, size=SIZE, fps=25)
    files = [sorted(path.iterdir()) if container is Format.PNG else [path] for path in paths]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    stream = streams(files[0][0])
    assert re.search(SAID[row.name], stream), stream
    assert f"{SIZE[0]}x{SIZE[1]}" in stream
    if container not in (Format.WEBP, Format.PNG):  # of those ffmpeg knows no rate
        assert " 25 fps" in stream
    back = read_video(paths[0])
    wanted = np.concatenate(list(chunks(9)))
    assert back.shape == wanted.shape
    assert np.abs(back.astype(int) - wanted).mean() < 12
    assert container is not Format.PNG or np.array_equal(back, wanted)


COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128)]


@pytest.mark.parametrize(("container", "codec"), [(each, codec) for each in Format for codec in CODECS[each]])
def test_colours(tmp_path: Path, container: Format, codec: Codec) -> None:
    """A plain colour comes back from every format as it was, to the rounding of 8-bit video."""
    crf = 10 if codec in CRFS else None
    for colour in COLOURS:
        path = tmp_path / f"{colour}{SUFFIXES[container]}"
        if container is Format.PNG:
            path.mkdir()
        coding = Coding(format=container, codec=codec, crf=crf)
        write_video(path, chunks(2, colour=colour), size=SIZE, fps=30, coding=coding)
        back = read_video(path)[-1][20:28, 28:36].reshape(-1, 3).mean(axis=0)
        assert np.abs(back - np.array(colour)).max() < 6, (colour, back)


def test_tables() -> None:
    """Every codec has an encoder, and every format a muxer."""
    assert {row.codec for row in ENCODERS} == set(Codec)
    assert set(MUXERS) == set(Format)


def test_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several encoders of a codec the first is taken that ffmpeg has."""
    av1 = Coding(codec=Codec.AV1)
    monkeypatch.setattr(encoders_module, "available_encoders", lambda: frozenset({"libaom-av1", "libsvtav1"}))
    assert encoder_for(av1).name == "libsvtav1"
    monkeypatch.setattr(encoders_module, "available_encoders", lambda: frozenset({"libaom-av1", "libx264"}))
    assert encoder_for(av1).name == "libaom-av1"


def test_an_ffmpeg_that_has_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec that the ffmpeg in use cannot write is told once, with its encoders' names and what to do."""
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho ' V....D libx264              H.264'\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    refuse_missing([Coding(), Coding()])
    with pytest.raises(EnvironmentFault, match="cannot write av1: it has no encoder libsvtav1 or libaom-av1") as caught:
        refuse_missing([Coding(), Coding(codec=Codec.AV1)])
    assert "another format or codec" in str(caught.value)
