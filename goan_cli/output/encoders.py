"""Formats and codecs as ffmpeg's arguments, and whether the ffmpeg in use has them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.formats import Codec, Coding, Format
from goan_cli.media.ffmpeg import available_encoders, ffmpeg_path

# The colours are converted by the matrix that the file then names; untagged files are guessed at by players.
_TAGS = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
_BT709 = ("-vf", f"scale=out_color_matrix=bt709:out_range=tv,{_TAGS}")


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One of ffmpeg's encoders of a codec, by its name there, and the arguments that it is run with."""

    codec: Codec
    name: str
    arguments: tuple[str, ...]


# Of several rows for a codec the first is taken that the ffmpeg in use has. Encoders that share their work out by the
# cores that there are, and whose output depends on it, are told how many to take.
ENCODERS: tuple[Encoder, ...] = (
    Encoder(codec=Codec.H264, name="libx264", arguments=("-pix_fmt", "yuv420p", *_BT709)),
    Encoder(
        codec=Codec.HEVC,
        name="libx265",
        # hvc1: what Apple's players ask for. Without info, x265 does not write its settings into every file.
        arguments=(
            *("-pix_fmt", "yuv420p", "-tag:v", "hvc1"),
            *("-x265-params", "info=0:frame-threads=2:pools=4:log-level=error"),
            *_BT709,
        ),
    ),
    Encoder(
        codec=Codec.AV1,
        name="libsvtav1",
        arguments=("-pix_fmt", "yuv420p", "-preset", "6", "-svtav1-params", "lp=2", *_BT709),
    ),
    Encoder(
        codec=Codec.AV1,
        name="libaom-av1",
        arguments=("-pix_fmt", "yuv420p", "-cpu-used", "6", "-b:v", "0", *_BT709),
    ),
    Encoder(
        codec=Codec.VP9,
        name="libvpx-vp9",
        arguments=("-pix_fmt", "yuv420p", "-deadline", "good", "-cpu-used", "3", "-b:v", "0", *_BT709),
    ),
    Encoder(
        codec=Codec.PRORES,
        name="prores_ks",
        # Profile 3 is HQ; apl0 is the vendor that editors know.
        arguments=("-pix_fmt", "yuv422p10le", "-profile:v", "3", "-vendor", "apl0", *_BT709),
    ),
    Encoder(codec=Codec.GIF, name="gif", arguments=()),
    # From RGB: WebP has a matrix of its own, to which its encoder converts.
    Encoder(codec=Codec.WEBP, name="libwebp_anim", arguments=("-pix_fmt", "bgra", "-quality", "90")),
    Encoder(codec=Codec.PNG, name="png", arguments=("-pix_fmt", "rgb24", "-pred", "mixed")),
)

# Format -> arguments of its muxer. use_metadata_tags: the other tags of a MOV hold no more than 64 KiB.
MUXERS: Mapping[Format, tuple[str, ...]] = MappingProxyType(
    {
        Format.MP4: ("-f", "mp4", "-movflags", "+faststart"),
        Format.WEBM: ("-f", "webm"),
        Format.MOV: ("-f", "mov", "-movflags", "+faststart+use_metadata_tags"),
        Format.GIF: ("-f", "gif", "-loop", "0"),
        Format.WEBP: ("-f", "webp", "-loop", "0"),
        Format.PNG: ("-f", "image2", "-start_number", "0"),
    }
)

# Formats whose files can hold a recipe as a comment.
COMMENTED = frozenset({Format.MP4, Format.WEBM, Format.MOV})


def encoder_for(coding: Coding) -> Encoder:
    """The encoder that is used here. Raises EnvironmentFault where ffmpeg has none for the codec."""
    rows = [row for row in ENCODERS if row.codec is coding.codec]
    here = available_encoders()
    found = next((row for row in rows if row.name in here), None)
    if found is None:
        names = " or ".join(row.name for row in rows)
        raise EnvironmentFault(
            f"{ffmpeg_path()} cannot write {coding.codec}: it has no encoder {names}",
            hint="reinstall imageio-ffmpeg, whose own has, or take another format or codec",
        )
    return found


def refuse_missing(codings: Iterable[Coding]) -> None:
    """Raise EnvironmentFault where the ffmpeg in use cannot write one of these."""
    for coding in dict.fromkeys(codings):
        encoder_for(coding)
