"""Image files as a job uses them: opened once to see that they can be, and fitted into the render size."""

from pathlib import Path

from goan_cli.errors import InvalidInput
from goan_cli.jobs.directing import Picture
from goan_cli.jobs.images import image_size
from goan_cli.jobs.sizes import Fit, fit

_MOST_LOST = 0.95  # of an image; beyond, enlarging it to cover the render size would only fill the memory


def picture_of(path: Path, size: tuple[int, int], *, pad: bool) -> Picture:
    """An image that fills `size` (width, height). Raises InvalidInput for what is no image, or too far from it."""
    return Picture(path=path, fit=fitted(image_size(path), size, pad=pad))


def fitted(source: tuple[int, int], size: tuple[int, int], *, pad: bool) -> Fit:
    """How an image of `source` fills `size`; both (width, height). Raises InvalidInput where too little is left."""
    found = fit(source, size, pad=pad)
    if found.lost > _MOST_LOST:
        raise InvalidInput(
            f"{source[0]}x{source[1]} is too far from {size[0]}x{size[1]}: {found.lost:.1%} would be cut off"
        )
    return found
