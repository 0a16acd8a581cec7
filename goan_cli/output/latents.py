"""Kept latents: a render's final latents as safetensors, with what it takes to decode them again."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load_file, save

from goan_cli.errors import InvalidInput
from goan_cli.files import write_bytes
from goan_cli.jobs.formats import Codec, Coding, Format
from goan_cli.jobs.job import DecodeMode, Job, Post
from goan_cli.jobs.sections import Family
from goan_cli.output.sidecar import read_sidecar, value_at
from goan_cli.tensorfile import read_header

LATENTS_SUFFIX = ".latents.safetensors"
_KEY = "goan"  # of the file's metadata
_NAME = "latents"
_CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class LatentsRecord:
    """How latents came to be, and how the render decoded them. `vae` is that part's identity, None where not known.

    `recipe` is what the video holds as a comment, None for nothing; `goes_on` says that the render decoded these beside
    latents of a video that it goes on with.
    """

    version: Literal[1] = 1
    name: str
    model: str
    vae: str | None
    family: Family
    window: int
    sections: int
    size: tuple[int, int]
    fps: float
    decode: DecodeMode
    coding: Coding
    post: Post | None = None
    recipe: str | None = None
    goes_on: bool = False


@dataclass(frozen=True, kw_only=True)
class KeptLatents:
    """Latents `(1, 16, n, h/8, w/8)` in fp32; `record` is None where neither file nor sidecar has one."""

    path: Path
    latents: NDArray[np.float32]
    record: LatentsRecord | None

    @property
    def name(self) -> str:
        """The render's name, by the file's."""
        return self.path.name.removesuffix(LATENTS_SUFFIX).removesuffix(".safetensors")


def record_of(job: Job, vae: str, recipe: str | None) -> LatentsRecord:
    """What is kept with a job's latents."""
    return LatentsRecord(
        name=job.name,
        model=job.model,
        vae=vae,
        family=job.sections.family,
        window=job.sections.window,
        sections=len(job.sections.sections),
        size=job.size,
        fps=job.fps,
        decode=job.decode,
        coding=job.output.coding,
        post=job.post,
        recipe=recipe,
        goes_on=job.extension is not None,
    )


def write_latents(path: Path, latents: NDArray[np.float32], record: LatentsRecord | None = None) -> None:
    """Final latents `(1, 16, n, h/8, w/8)` as safetensors, under the name `latents`, the record in its metadata."""
    metadata = None if record is None else {_KEY: json.dumps(asdict(record), default=str)}
    write_bytes(path, save({_NAME: np.ascontiguousarray(latents)}, metadata=metadata))


def read_latents(path: Path) -> KeptLatents:
    """Kept latents and their record, from a sidecar beside them where the file is of an earlier goan.

    Raises InvalidInput for what are none, or hold values that are no numbers.
    """
    header = read_header(path)
    entry = header.entries.get(_NAME)
    if entry is None or len(header.entries) > 1:
        raise InvalidInput(f"{path}: not kept latents of goan", hint="output.keep_latents: true keeps a render's")
    if entry.dtype != "F32" or len(entry.shape) != 5 or entry.shape[:2] != (1, _CHANNELS) or not entry.count:
        shape = "x".join(map(str, entry.shape))
        raise InvalidInput(
            f"{path}: latents are 1x{_CHANNELS}xFRAMESxHEIGHTxWIDTH in F32, not {shape} in {entry.dtype}"
        )
    latents: NDArray[np.float32] = load_file(path)[_NAME]
    if not np.isfinite(latents).all():
        raise InvalidInput(f"{path}: holds values that are no finite numbers")
    text = header.metadata.get(_KEY)
    record = _from_sidecar(path, latents) if text is None else _parsed(path, text)
    return KeptLatents(path=path, latents=latents, record=record)


def _parsed(path: Path, text: str) -> LatentsRecord:
    try:
        return TypeAdapter(LatentsRecord).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{path}: its metadata cannot be read: {where}: {first['msg']}") from error


def _from_sidecar(path: Path, latents: NDArray[np.float32]) -> LatentsRecord | None:
    """What the sidecar of the render says, None where there is none, or one of other latents."""
    try:
        content = read_sidecar(path.with_name(path.name.removesuffix(LATENTS_SUFFIX) + ".json"))
    except InvalidInput:
        return None
    if content.get("latents_sha256") != hashlib.sha256(np.ascontiguousarray(latents).tobytes()).hexdigest():
        return None
    settings = content["settings"]
    fields = {
        "name": content.get("name"),
        "vae": None,
        "family": content["pack"].get("family"),
        **{key: settings.get(key) for key in ("model", "window", "sections", "size", "fps", "post")},
        "decode": settings.get("decode", DecodeMode.OVERLAP),
        "coding": _coding(settings),
        "goes_on": settings.get("video") is not None,
    }
    try:
        return TypeAdapter(LatentsRecord).validate_python(fields)
    except ValidationError:
        return None


def _coding(settings: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {"format": Format.MP4, "codec": Codec.H264, "crf": Coding().crf}
    return {key: value_at(settings, ("output", key)) or usual for key, usual in keys.items()}
