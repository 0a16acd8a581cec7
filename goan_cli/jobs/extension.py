"""A video that a job goes on with: which of its frames the sections see, and where it and the new part meet.

A forward model goes on after the video's last frames, an inverted one leads up to its first ones.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from goan_cli.jobs.sections import HISTORY, LATENT_FRAME, Family
from goan_cli.jobs.sizes import Fit

if TYPE_CHECKING:  # it reads videos, which every command would wait for
    from goan_cli.jobs.clips import Clip


@dataclass(frozen=True, kw_only=True)
class Extension:
    """The video that new sections of `family` go on with, and how its frames fill the render size.

    `cross_fade` is in seconds; without `join` only the new part is written.
    """

    clip: "Clip"
    fit: Fit
    family: Family
    window: int
    audio: bool
    cross_fade: float
    join: bool

    @property
    def seen(self) -> tuple[int, int]:
        """The frames, half open, that are encoded: the nearest ones, 1 + 4 n of them, as many as sections look at.

        Their first latent stands for one frame only, which a video's start does; so what an inverted section comes
        before are the others.
        """
        most = HISTORY - 1 if self.family is Family.F1 else HISTORY
        count = 1 + LATENT_FRAME * min(most, (self.clip.frames - 1) // LATENT_FRAME)
        return (self.clip.frames - count, self.clip.frames) if self.family is Family.F1 else (0, count)

    @property
    def sounds(self) -> bool:
        """Whether the finished video has the video's sound."""
        return self.audio and self.join and self.clip.has_audio

    @property
    def overlap(self) -> int:
        """How many of the video's frames, next to the new ones, are decoded again with them."""
        first, stop = self.seen
        latents = (stop - first - 1) // LATENT_FRAME
        if self.family is Family.F1:
            return 1 + LATENT_FRAME * (min(self.window, latents + 1) - 1)
        # The last new frame stands for the video's first one too.
        return 1 + LATENT_FRAME * min(self.window, latents)

    @property
    def faded(self) -> int:
        """Over how many of them the video goes over into what was decoded, or back."""
        return min(round(self.cross_fade * self.clip.fps), self.overlap) if self.join else 0
