"""`goan decode`: kept latents to a video again, without sampling."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from goan_cli.errors import InvalidInput

if TYPE_CHECKING:
    from goan_cli.jobs.formats import Coding


def decode(
    latents: Annotated[Path, typer.Argument(help="NAME.latents.safetensors of a render.", show_default=False)],
    model: Annotated[str | None, typer.Option(help="Pack whose VAE decodes, instead of the render's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The new video (default: NAME-decoded.mp4 beside the latents).")
    ] = None,
    crf: Annotated[int | None, typer.Option(help="Quality, lower is better.")] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Literal["mp4", "webm", "gif", "webp", "mov"] | None, typer.Option(help="Kind of file (default: by --out).")
    ] = None,
    codec: Annotated[str | None, typer.Option(help="h264, hevc, av1, vp9, as the format has them.")] = None,
    decode: Annotated[
        Literal["overlap", "single"] | None, typer.Option(help="As FramePack decodes, or each latent once.")
    ] = None,
    tile: Annotated[str | None, typer.Option(help="Tiles of WxH pixels; auto goes by the memory there is.")] = None,
    fps: Annotated[float | None, typer.Option(min=1, max=120, help="Frames per second.")] = None,
    interpolate: Annotated[
        float | None, typer.Option(min=0, max=240, help="Frames per second to come to by interpolation; 0 for none.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, max=64, help="Latent frames of a section, for files that do not say.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Write over a file that is there.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Decode the latents that a render kept (output.keep_latents) again.

    What is not given is as it was in the render: then the video is the render's, to the last byte on the same machine.
    Of the pack only the manifest and the VAE need be there.
    """
    from goan_cli.jobs.formats import SUFFIXES, Coding
    from goan_cli.output.latents import read_latents

    tiles = _tile(tile)
    kept = read_latents(latents)
    before = kept.record.coding if kept.record else Coding()
    coding = _coding(before, format or (out.suffix.lower().removeprefix(".") if out else None), codec, crf)
    suffix = SUFFIXES[coding.format]
    target = (out or latents.with_name(f"{kept.name}-decoded{suffix}")).absolute()
    if target.suffix.lower() != suffix:
        raise InvalidInput(f"--out {out}: a {coding.format} file is named *{suffix}")

    from goan_cli.batch.redecode import Wanted, decode_again, plan_decoding
    from goan_cli.batch.stop import Stop
    from goan_cli.cli.signals import stopping
    from goan_cli.cli.terminal import make_console
    from goan_cli.files import refuse_taken
    from goan_cli.jobs.job import DecodeMode
    from goan_cli.render.device import choose_device

    refuse_taken(target, latents, replacing=replace)
    wanted = Wanted(
        model=model,
        window=window,
        decode=None if decode is None else DecodeMode(decode),
        tile=tiles,
        fps=fps,
        coding=coding,
        interpolate=interpolate,
    )
    decoding = plan_decoding(kept, wanted)
    console = make_console()
    for note in decoding.notes:
        console.print(f"note: {note}", markup=False)
    stop = Stop()
    with stopping(stop):
        video = decode_again(decoding, target, choose_device(device), stop=lambda: stop.asked)
    console.print(f"wrote {target}", markup=False)
    console.print(f"{video.frames} frames of {video.size[0]}x{video.size[1]}, {video.frames / video.fps:.2f} s")


def _coding(before: "Coding", format_name: str | None, codec_name: str | None, crf: int | None) -> "Coding":
    """How the new video is written: as the render's, but for what is given; another format brings its own codec."""
    from goan_cli.jobs.formats import CODECS, CRFS, Codec, Coding, Format

    formats = [each for each in Format if each is not Format.PNG]
    if format_name is not None and format_name not in formats:
        raise InvalidInput(f"--out: no video is named *.{format_name}", hint=f"one of {', '.join(formats)}")
    kind = before.format if format_name is None else Format(format_name)
    if kind is Format.PNG:
        raise InvalidInput("a sequence of pictures cannot be decoded again as one", hint="give --format, or --out")
    codec = before.codec if before.codec in CODECS[kind] else CODECS[kind][0]
    if codec_name is not None:
        if codec_name not in CODECS[kind]:
            raise InvalidInput(f"--codec {codec_name}: {kind} has {', '.join(CODECS[kind])}")
        codec = Codec(codec_name)
    if codec not in CRFS:
        if crf is not None:
            raise InvalidInput(f"--crf: {codec} has none")
        return Coding(format=kind, codec=codec, crf=None)
    lowest, highest, usual = CRFS[codec]
    if crf is not None and not lowest <= crf <= highest:
        raise InvalidInput(f"--crf {crf}: {codec} takes {lowest} to {highest} (usually {usual})")
    return Coding(format=kind, codec=codec, crf=crf or (before.crf if codec is before.codec else usual))


def _tile(text: str | None) -> tuple[int, int] | None:
    if text is None or text == "auto":
        return None
    if not (found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)):
        raise InvalidInput(f"--tile {text}: auto, or WIDTHxHEIGHT in pixels, such as 256x256")
    return int(found[1]), int(found[2])
