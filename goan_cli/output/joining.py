"""A video and the new part that goes on with it become one, frame by frame. No torch."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from goan_cli.jobs.clips import clip_frames
from goan_cli.jobs.extension import Extension
from goan_cli.jobs.sections import Family
from goan_cli.output.pictures import Frame

_CHUNK = 16  # frames of the video that are passed on at a time


def joined(decoded: Iterable[Frame], extension: Extension, new: int) -> Iterator[Frame]:
    """Chunks of frames `(n, h, w, 3)` of the finished video.

    `decoded` are the `new` frames and, before or after them as the video is, the `overlap` of its frames that were
    decoded too; the video goes over into those, or comes out of them.
    """
    if extension.family is Family.F1:
        yield from _after(_singly(decoded), extension)
    else:
        yield from _before(decoded, extension, new)


def _after(decoded: Iterator[Frame], extension: Extension) -> Iterator[Frame]:
    """The video, then the new frames."""
    plain = extension.clip.frames - extension.faded
    video = clip_frames(extension.clip, extension.fit)
    if extension.join:
        yield from _chunks(islice(video, plain))
    for _ in range(extension.overlap - extension.faded):
        next(decoded, None)
    if extension.faded:
        yield from _chunks(_blended(video, islice(decoded, extension.faded), extension.faded))
    yield from _chunks(decoded)


def _before(decoded: Iterable[Frame], extension: Extension, new: int) -> Iterator[Frame]:
    """The new frames, then the video."""
    frames = _singly(decoded)
    yield from _chunks(islice(frames, new))
    if not extension.join:
        return
    video = clip_frames(extension.clip, extension.fit)
    yield from _chunks(_blended(islice(frames, extension.faded), islice(video, extension.faded), extension.faded))
    for _ in frames:  # to the end, so that whoever counts or checks them sees all
        pass
    yield from _chunks(video)


def _blended(leaving: Iterator[Frame], coming: Iterator[Frame], count: int) -> Iterator[Frame]:
    """Frame by frame from what leaves to what comes, never wholly either."""
    for number, (first, second) in enumerate(zip(leaving, coming, strict=True), start=1):
        share = number / (count + 1)
        mixed = first.astype(np.float32) * (1 - share) + second.astype(np.float32) * share
        yield np.rint(mixed).astype(np.uint8)


def _singly(chunks: Iterable[Frame]) -> Iterator[Frame]:
    return (frame for chunk in chunks for frame in chunk)


def _chunks(frames: Iterator[Frame]) -> Iterator[Frame]:
    while chunk := list(islice(frames, _CHUNK)):
        yield np.stack(chunk)
