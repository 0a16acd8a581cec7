"""What is measured on every rendered frame, and what a job's gates make of it. Levels are of 255."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from goan_cli.jobs.job import Gate, Gates
from goan_cli.jobs.sections import SectionPlan
from goan_cli.output.pictures import Frame

_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # BT.709
_BLOCK = 8  # pixels a side of what motion is compared by
_BLACK_BELOW = 8.0  # mean luma of a frame that is nearly black
_FLAT_BELOW = 2.5  # deviation of a frame of one colour, of which a VAE makes one that varies by 2
_STILL_BELOW = 0.5  # change from frame to frame of the block that changes the most
_STILL_SECONDS = 1.0  # a stretch without motion that is worth telling of
_DRIFT_ABOVE = 16.0  # between a section's mean and the first section's
_FRAMES_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class SectionQuality:
    """Means over a section's frames, in viewing order: luma, saturation, and change from frame to frame."""

    luma: float
    saturation: float
    motion: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a video looks like. `black_frames` lists the first of them; `still_seconds` is the longest stretch."""

    finite: bool
    black: int
    black_frames: tuple[int, ...]
    still_seconds: float
    seconds: float
    sections: tuple[SectionQuality, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A defect that a gate looks for and found; `fails` when the gate refuses it."""

    defect: str
    seen: str
    fails: bool


@dataclass(kw_only=True)
class FrameMeter:
    """Measures frames as they pass by. Per frame: mean luma, deviation, saturation, and both changes."""

    luma: list[float] = field(default_factory=list)
    deviation: list[float] = field(default_factory=list)
    saturation: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    liveliest: list[float] = field(default_factory=list)
    _last: NDArray[np.float32] | None = None

    def watching(self, chunks: Iterable[Frame]) -> Iterator[Frame]:
        """Pass chunks of frames `(n, h, w, 3)` on, measuring each frame."""
        for chunk in chunks:
            for frame in chunk:
                self._measure(frame)
            yield chunk

    def _measure(self, frame: Frame) -> None:
        luma: NDArray[np.float32] = frame @ _LUMA
        self.luma.append(float(luma.mean()))
        # Over all three channels: red on blue may be one luma, and is a picture.
        self.deviation.append(float(np.sqrt(frame.var(axis=(0, 1), dtype=np.float32).mean())))
        self.saturation.append(float((frame.max(axis=2) - frame.min(axis=2)).mean()))
        height, width = (side - side % _BLOCK for side in luma.shape)
        blocks = luma[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).mean(axis=(1, 3))
        if self._last is not None:
            change = np.abs(blocks - self._last)
            self.motion.append(float(change.mean()))
            self.liveliest.append(float(change.max()))
        self._last = blocks

    def quality(self, plan: SectionPlan, fps: float, *, finite: bool, before: int = 0) -> Quality:
        """What was seen of a whole video of this plan, `before` whose first frame there were others."""
        # A start image that is black or flat itself makes such a video, and rightly.
        judged = not self._is_black(0)
        spans = [section.frames for section in plan.sections]
        black = [number for number in range(len(self.luma)) if judged and self._is_black(number)]
        return Quality(
            finite=finite,
            black=len(black),
            black_frames=tuple(black[:_FRAMES_NAMED]),
            still_seconds=round(_longest(value < _STILL_BELOW for value in self.liveliest) / fps, 4),
            seconds=round(len(self.luma) / fps, 4),
            sections=tuple(
                SectionQuality(
                    luma=_mean(self.luma[first:stop]),
                    saturation=_mean(self.saturation[first:stop]),
                    motion=_mean(self.motion[max(first - 1, 0) : stop - 1]),
                )
                for first, stop in sorted((first + before, stop + before) for first, stop in spans)
            ),
        )

    def _is_black(self, number: int) -> bool:
        return self.luma[number] < _BLACK_BELOW or self.deviation[number] < _FLAT_BELOW


def findings(quality: Quality, gates: Gates) -> list[Finding]:
    """The defects that the gates look for and that the video has."""
    first = quality.sections[0]
    luma = max((section.luma - first.luma for section in quality.sections), key=abs)
    saturation = max((section.saturation - first.saturation for section in quality.sections), key=abs)
    still = min(_STILL_SECONDS, quality.seconds / 2)
    seen = (
        ("nan", gates.nan, not quality.finite, "values that are no finite numbers"),
        ("black", gates.black, quality.black > 0, f"{quality.black} frames are nearly black or of one colour"),
        ("frozen", gates.frozen, quality.still_seconds >= still, f"nothing moves for {quality.still_seconds:.2f} s"),
        (
            "drift",
            gates.drift,
            max(abs(luma), abs(saturation)) > _DRIFT_ABOVE,
            f"luma wanders by {luma:+.0f} of 255, saturation by {saturation:+.0f}",
        ),
    )
    return [
        Finding(defect=defect, seen=words, fails=gate is Gate.FAIL)
        for defect, gate, found, words in seen
        if found and gate is not Gate.OFF
    ]


def quality_of(content: object) -> Quality | None:
    """Quality as a sidecar has it; None where it has none that can be used."""
    if not isinstance(content, dict):
        return None
    try:
        measured = {name: value for name, value in content.items() if name != "findings"}
        quality = TypeAdapter(Quality).validate_json(json.dumps(measured), strict=True)
    except (ValidationError, TypeError, ValueError):
        return None
    return quality if quality.sections else None


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0


def _longest(flags: Iterable[bool]) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
