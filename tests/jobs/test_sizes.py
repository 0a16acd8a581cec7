"""Buckets and the crop box."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.jobs.sizes import fit, nearest_bucket

# (height, width) as published, in upstream's order.
PUBLISHED = (
    (416, 960),
    (448, 864),
    (480, 832),
    (512, 768),
    (544, 704),
    (576, 672),
    (608, 640),
    (640, 608),
    (672, 576),
    (704, 544),
    (768, 512),
    (832, 480),
    (864, 448),
    (960, 416),
)
LENGTHS = st.integers(1, 20_000)
SIDES = st.integers(1, 256).map(lambda n: 16 * n)


@pytest.mark.parametrize("bucket", PUBLISHED)
def test_every_bucket(bucket: tuple[int, int]) -> None:
    """An image in a bucket's own shape, at any scale, gets that bucket."""
    height, width = bucket
    assert nearest_bucket(height, width) == bucket
    assert nearest_bucket(3 * height, 3 * width) == bucket


@pytest.mark.parametrize(
    ("height", "width", "bucket"),
    [
        (1, 1, (640, 608)),  # as far from 608x640: the later of the two
        (2000, 2000, (640, 608)),
        (120, 160, (544, 704)),
        (1080, 1920, (480, 832)),
        (1920, 1080, (832, 480)),
        (1, 10_000, (416, 960)),
        (10_000, 1, (960, 416)),
    ],
)
def test_nearest_bucket(height: int, width: int, bucket: tuple[int, int]) -> None:
    """The nearest shape wins, a tie goes to the later bucket, and extreme shapes get the extreme ones."""
    assert nearest_bucket(height, width) == bucket


@given(height=LENGTHS, width=LENGTHS)
def test_nearest_by_upstreams_measure(height: int, width: int) -> None:
    """No bucket is nearer by |h x bucket width - w x bucket height|, and of equals the last is taken."""
    distances = [abs(height * bucket_width - width * bucket_height) for bucket_height, bucket_width in PUBLISHED]
    nearest = min(distances)
    last = max(index for index, distance in enumerate(distances) if distance == nearest)
    assert nearest_bucket(height, width) == PUBLISHED[last]


@pytest.mark.parametrize(
    ("resolution", "bucket", "expected"),
    [
        (320, (416, 960), (208, 480)),
        (320, (512, 768), (256, 384)),
        (1280, (480, 832), (960, 1664)),
        (64, (544, 704), (48, 64)),
        (64, (416, 960), (48, 96)),
        (16, (416, 960), (16, 32)),
    ],
)
def test_other_resolutions(resolution: int, bucket: tuple[int, int], expected: tuple[int, int]) -> None:
    """Other resolutions scale the list and round to multiples of 16."""
    assert nearest_bucket(*bucket, resolution) == expected


@given(height=LENGTHS, width=LENGTHS, resolution=st.integers(16, 4096))
def test_buckets_are_multiples_of_16(height: int, width: int, resolution: int) -> None:
    """At every resolution a bucket's sides are multiples of 16 and never zero."""
    bucket = nearest_bucket(height, width, resolution)
    assert all(side >= 16 and side % 16 == 0 for side in bucket)


@pytest.mark.parametrize(
    ("source", "size", "resized", "box"),
    [
        ((160, 120), (64, 48), (64, 48), (0, 0, 64, 48)),
        ((1920, 1080), (832, 480), (853, 480), (10, 0, 842, 480)),
        ((1080, 1920), (480, 832), (480, 853), (0, 10, 480, 842)),
        ((100, 100), (640, 608), (640, 640), (0, 16, 640, 624)),
        ((32, 32), (16, 48), (48, 48), (16, 0, 32, 48)),
    ],
)
def test_fit(
    source: tuple[int, int], size: tuple[int, int], resized: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    """An image is resized to cover the render size, then cut at its centre."""
    fitted = fit(source, size)
    assert fitted.resized == resized
    assert fitted.box == box


@given(source=st.tuples(LENGTHS, LENGTHS), size=st.tuples(SIDES, SIDES))
def test_box_is_the_size_inside_the_image(source: tuple[int, int], size: tuple[int, int]) -> None:
    """The cut has exactly the render size, lies inside the resized image, and is centred to the pixel."""
    fitted = fit(source, size)
    left, top, right, bottom = fitted.box
    assert (right - left, bottom - top) == size
    assert left >= 0
    assert top >= 0
    assert right <= fitted.resized[0]
    assert bottom <= fitted.resized[1]
    assert abs(left - (fitted.resized[0] - right)) <= 1
    assert abs(top - (fitted.resized[1] - bottom)) <= 1


@given(source=st.tuples(LENGTHS, LENGTHS), size=st.tuples(SIDES, SIDES))
def test_resized_covers_no_more_than_needed(source: tuple[int, int], size: tuple[int, int]) -> None:
    """The resized image covers the render size and touches it in one direction."""
    resized = fit(source, size).resized
    assert resized[0] >= size[0]
    assert resized[1] >= size[1]
    assert resized[0] == size[0] or resized[1] == size[1]


def test_lost_share() -> None:
    """A square image in a frame of half its height loses half of itself, a fitting one nothing."""
    assert fit((64, 64), (64, 32)).lost == 0.5
    assert fit((64, 32), (128, 64)).lost == 0.0
