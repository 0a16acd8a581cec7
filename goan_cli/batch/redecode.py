"""Kept latents decoded again, as the render did it or with another quality, rate, tiling or kind of file."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from goan_cli.batch.post import finishing
from goan_cli.errors import InvalidInput
from goan_cli.files import replaced_when_complete
from goan_cli.jobs.formats import FASTEST_GIF, Coding, Format
from goan_cli.jobs.job import DecodeMode, Post
from goan_cli.jobs.resolve import DEFAULT_FPS
from goan_cli.jobs.sections import Family, plan_sections
from goan_cli.output.latents import KeptLatents, LatentsRecord
from goan_cli.output.sidecar import post_settings
from goan_cli.output.video import VideoInfo, write_video
from goan_cli.packs.find import FoundPart, find_part
from goan_cli.packs.manifest import read_manifest
from goan_cli.render.redecode import decoded_frames
from goan_cli.render.vae_memory import TILE_OVERLAP, Tiling

_LATENT = 8  # pixels a side of a latent
_SMALLEST_TILE = 128


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be other than it was in the render; None leaves it. `interpolate` 0 is for no interpolation."""

    model: str | None = None
    window: int | None = None
    decode: DecodeMode | None = None
    tile: tuple[int, int] | None = None
    fps: float | None = None
    coding: Coding | None = None
    interpolate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Kept latents with the VAE that decodes them, and everything settled."""

    kept: KeptLatents
    vae: FoundPart
    record: LatentsRecord
    tiling: Tiling | None
    notes: tuple[str, ...]


def plan_decoding(kept: KeptLatents, wanted: Wanted) -> Decoding:
    """Settle how latents are decoded. No torch model is loaded, and of the pack only the VAE need be there.

    Raises InvalidInput for settings that do not fit the latents, or that neither the file nor the user gives, and what
    `find_part` raises.
    """
    before = kept.record
    model = wanted.model or (before.model if before else None)
    if model is None or (before is None and wanted.window is None):
        raise InvalidInput(
            f"{kept.path}: does not say how it was rendered, and no sidecar beside it does",
            hint="give --model and --window",
        )
    pack, vae = read_manifest(model), find_part(model, "vae")
    notes = []
    if before is not None and before.vae is not None and before.vae != vae.identity:
        if wanted.model is None:
            message = f"{kept.path}: was rendered with another VAE than the one of {pack.name} here"
            raise InvalidInput(message, hint=f"--model {pack.name} decodes with that one all the same")
        notes.append(f"the VAE of {pack.name} is not the one that it was rendered with")
    height, width = (side * _LATENT for side in kept.latents.shape[-2:])
    record = before or LatentsRecord(
        name=kept.name,
        model=model,
        vae=None,
        family=Family(pack.family),
        window=wanted.window or pack.defaults.window,
        sections=0,
        size=(width, height),
        fps=DEFAULT_FPS,
        decode=DecodeMode.OVERLAP,
        coding=Coding(),
    )
    window = wanted.window or record.window
    record = replace(
        record,
        window=window,
        sections=_sections(kept, window),
        size=(width, height),
        decode=wanted.decode or record.decode,
        fps=wanted.fps or record.fps,
        coding=wanted.coding or record.coding,
        post=_post(record, wanted),
    )
    rate = record.post.interpolate if record.post and record.post.interpolate else record.fps
    if record.coding.format is Format.GIF and rate > FASTEST_GIF:
        raise InvalidInput(f"a gif shows at most {FASTEST_GIF} frames a second, not {rate:g}", hint="--fps, or webp")
    if record.goes_on:
        notes.append(
            "the video that it goes on with is not in the latents: only what is new is decoded, without its seam"
        )
    return Decoding(
        kept=kept,
        vae=vae,
        record=replace(record, recipe=_recipe(record)),
        tiling=None if wanted.tile is None else _tiling(wanted.tile, record.size),
        notes=tuple(notes),
    )


def decode_again(
    decoding: Decoding, out: Path, device: torch.device, *, stop: Callable[[], bool] = lambda: False
) -> VideoInfo:
    """Decode to `out`, which appears there when it is complete. Raises as `decoded_frames` and `write_video` do."""
    record, kept = decoding.record, decoding.kept
    finish = finishing(record.post, device, size=record.size, fps=record.fps)
    sections = plan_sections(record.family, record.sections, record.window)
    frames = decoded_frames(
        decoding.vae, kept.latents, sections, record.decode, device=device, tiling=decoding.tiling, stop=stop
    )
    with replaced_when_complete(out) as temporary, closing(frames):
        return write_video(
            temporary,
            finish.frames(frames, fps=record.fps),
            size=finish.size,
            fps=finish.fps,
            coding=record.coding,
            recipe=record.recipe,
        )


def _sections(kept: KeptLatents, window: int) -> int:
    frames = int(kept.latents.shape[2])
    if frames == 1:
        raise InvalidInput(f"{kept.path}: holds a single picture, and no video")
    sections, rest = divmod(frames - 1, window)
    if rest or not sections:
        raise InvalidInput(f"{kept.path}: {frames} latent frames are not a first one and sections of {window}")
    return sections


def _post(record: LatentsRecord, wanted: Wanted) -> Post | None:
    before = record.post or Post()
    after = before if wanted.interpolate is None else replace(before, interpolate=wanted.interpolate or None)
    fps = wanted.fps or record.fps
    if after.interpolate is not None and after.interpolate <= fps:
        raise InvalidInput(f"--interpolate {after.interpolate:g}: there are {fps:g} frames a second already")
    return None if after == Post() else after


def _tiling(tile: tuple[int, int], size: tuple[int, int]) -> Tiling | None:
    """Tiles of so many pixels; None where one holds a whole frame."""
    width, height = tile
    if min(tile) < _SMALLEST_TILE or width % _LATENT or height % _LATENT:
        raise InvalidInput(
            f"--tile {width}x{height}: tiles are at least {_SMALLEST_TILE} pixels a side, and multiples of {_LATENT}"
        )
    if width >= size[0] and height >= size[1]:
        return None
    return Tiling(width=width, height=height, stride_width=width - TILE_OVERLAP, stride_height=height - TILE_OVERLAP)


def _recipe(record: LatentsRecord) -> str | None:
    """The render's recipe with what is other now, so that the video says how it is."""
    if record.recipe is None:
        return None
    try:
        content = json.loads(record.recipe)
        settings = content["settings"]
        coding = record.coding
        settings["output"] |= {"format": str(coding.format), "codec": str(coding.codec), "crf": coding.crf}
        settings |= {"fps": record.fps, "decode": str(record.decode), "post": post_settings(record.post)}
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"the recipe of {record.name} cannot be read: {error}") from error
    return json.dumps(content)
