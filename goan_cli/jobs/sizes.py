"""Render sizes: FramePack's buckets, and how an image is fitted into one."""

from dataclasses import dataclass

MULTIPLE = 16  # 8 by the VAE, 2 by the patch size
_BASE = 640
_NARROW = ((416, 960), (448, 864), (480, 832), (512, 768), (544, 704), (576, 672), (608, 640))
# (height, width), in upstream's order: its ties go to the later entry.
BUCKETS = (*_NARROW, *((height, width) for width, height in reversed(_NARROW)))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How an image becomes the render size: resized to `resized`, then the centre cut out. (width, height).

    Where `resized` is the smaller, what is beside it is black.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    size: tuple[int, int]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the cut in the resized image, as Pillow's crop rounds it."""
        left = (self.resized[0] - self.size[0]) / 2
        top = (self.resized[1] - self.size[1]) / 2
        return (round(left), round(top), round(left + self.size[0]), round(top + self.size[1]))

    @property
    def lost(self) -> float:
        """Share of the image that the cut removes, from 0 to 1."""
        kept = [min(size, resized) for size, resized in zip(self.size, self.resized, strict=True)]
        return 1 - (kept[0] * kept[1]) / (self.resized[0] * self.resized[1])

    @property
    def beside(self) -> float:
        """Share of the render that is black beside the image, from 0 to 1."""
        shown = [min(size, resized) for size, resized in zip(self.size, self.resized, strict=True)]
        return 1 - (shown[0] * shown[1]) / (self.size[0] * self.size[1])


def nearest_bucket(height: int, width: int, resolution: int = _BASE) -> tuple[int, int]:
    """The (height, width) among the buckets of `resolution` whose shape is nearest to the image's."""
    best, best_metric = (resolution, resolution), float("inf")
    for base_height, base_width in BUCKETS:
        metric = abs(height * base_width - width * base_height)
        if metric <= best_metric:
            best, best_metric = (_scaled(base_height, resolution), _scaled(base_width, resolution)), metric
    return best


def _scaled(length: int, resolution: int) -> int:
    return max(MULTIPLE, round(length * resolution / _BASE / MULTIPLE) * MULTIPLE)


def fit(source: tuple[int, int], size: tuple[int, int], *, pad: bool = False) -> Fit:
    """Cover `size` with an image of `source` pixels, or with `pad` put all of it inside; both (width, height)."""
    scale = (min if pad else max)(size[0] / source[0], size[1] / source[1])
    resized = (max(1, round(source[0] * scale)), max(1, round(source[1] * scale)))
    return Fit(source=source, resized=resized, size=size)
