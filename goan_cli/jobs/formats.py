"""What a video can be written as: formats, the codecs that belong to each, and a codec's qualities. Tables only."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType


class Format(StrEnum):
    """What kind of file a result is; png is a folder of pictures, one a frame."""

    MP4 = "mp4"
    WEBM = "webm"
    GIF = "gif"
    WEBP = "webp"
    PNG = "png"
    MOV = "mov"


class Codec(StrEnum):
    """How frames are coded inside."""

    H264 = "h264"
    HEVC = "hevc"
    AV1 = "av1"
    VP9 = "vp9"
    GIF = "gif"
    WEBP = "webp"
    PNG = "png"
    PRORES = "prores"


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How a video is written; `crf` is the codec's quality, lower is better, None for codecs that have none."""

    format: Format = Format.MP4
    codec: Codec = Codec.H264
    crf: int | None = 16


# Format -> its codecs, the default first.
CODECS: Mapping[Format, tuple[Codec, ...]] = MappingProxyType(
    {
        Format.MP4: (Codec.H264, Codec.HEVC, Codec.AV1),
        Format.WEBM: (Codec.VP9, Codec.AV1),
        Format.GIF: (Codec.GIF,),
        Format.WEBP: (Codec.WEBP,),
        Format.PNG: (Codec.PNG,),
        Format.MOV: (Codec.PRORES,),
    }
)

# Format -> what a result's name ends with.
SUFFIXES: Mapping[Format, str] = MappingProxyType(
    {
        **{each: f".{each}" for each in Format},
        Format.PNG: ".frames",  # NAME.png is the poster
    }
)


def is_sequence(path: Path) -> bool:
    """Whether a result of this name is a folder of pictures."""
    return path.suffix == SUFFIXES[Format.PNG]


# Codec -> lowest, highest and default crf. Without the lossless 0, which players refuse.
CRFS: Mapping[Codec, tuple[int, int, int]] = MappingProxyType(
    {
        Codec.H264: (1, 51, 16),
        Codec.HEVC: (1, 51, 18),
        Codec.AV1: (1, 63, 22),
        Codec.VP9: (1, 63, 22),
    }
)

# Formats that can have sound.
SOUNDING = frozenset({Format.MP4, Format.WEBM, Format.MOV})

FASTEST_GIF = 50  # frames a second: viewers show what is meant to be faster at a tenth of it
