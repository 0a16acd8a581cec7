"""What finished frames go through on their way to the encoder: a larger size, more of them a second."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from goan_cli.errors import InvalidInput
from goan_cli.files import known_sha256_of
from goan_cli.jobs.job import Job, Post
from goan_cli.jobs.post import SMALLEST_INTERPOLATED
from goan_cli.output.pictures import Frame
from goan_cli.output.post import interpolated
from goan_cli.render.upscale import Upscaler, load_upscaler


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """What frames of `size` (width, height) at `fps` come out as; `record` is for the sidecar, None for as they are."""

    post: Post
    size: tuple[int, int]
    fps: float
    record: dict[str, Any] | None = None
    upscaler: Upscaler | None = None

    def frames(self, chunks: Iterable[Frame], *, fps: float) -> Iterator[Frame]:
        """Chunks of frames `(n, h, w, 3)` at `fps`, finished: enlarged first, so that motion is followed in detail."""
        if self.upscaler is not None:
            chunks = self.upscaler.frames(chunks)
        if self.post.interpolate is not None:
            chunks = interpolated(chunks, size=self.size, fps=fps, target=self.post.interpolate)
        yield from chunks


def finishing(post: Post | None, device: torch.device, *, size: tuple[int, int], fps: float) -> Finishing:
    """Load what a job's `post` needs, for frames of `size` at `fps`.

    Raises InvalidInput and EnvironmentFault as `load_upscaler`, and for frames too small to interpolate.
    """
    if post is None:
        return Finishing(post=Post(), size=size, fps=fps)
    upscaler = None
    record: dict[str, Any] = {}
    if post.upscale is not None:
        upscaler = load_upscaler(post.upscale, device)
        record["upscale"] = {
            "path": str(post.upscale),
            "sha256": known_sha256_of(post.upscale),
            "scale": upscaler.scale,
        }
        size = (size[0] * upscaler.scale, size[1] * upscaler.scale)
    if post.interpolate is not None:
        if min(size) < SMALLEST_INTERPOLATED:
            raise InvalidInput(f"post: frames of {size[0]}x{size[1]} are too small to interpolate")
        record["interpolate"], fps = post.interpolate, post.interpolate
    return Finishing(post=post, size=size, fps=fps, record=record, upscaler=upscaler)


def refuse_unfinishable(jobs: Sequence[Job], device: torch.device) -> None:
    """Load what jobs' `post` need, and let it go again, before anything renders. Raises as `finishing` does."""
    for post, size, fps in dict.fromkeys((job.post, job.size, job.fps) for job in jobs if job.post is not None):
        finishing(post, device, size=size, fps=fps)
