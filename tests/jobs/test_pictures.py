"""The pictures of a job: what it begins from, what it ends on, how they fill the size; and its paddings."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from goan_cli.errors import InvalidInput
from goan_cli.jobs.fields import colour_of
from goan_cli.jobs.job import Job
from goan_cli.jobs.pictures import picture_of
from goan_cli.jobs.sections import default_paddings
from tests.conftest import MINIMAL, plan_files, problems_in, write_jobs

# A job without its image, and with a length.
IMAGELESS: dict[str, Any] = {"prompt": "a", "sections": 2}


def _job(folder: Path, keys: dict[str, Any], **options: Any) -> Job:
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", keys), **options)
    return plan.job


def _problems(folder: Path, keys: dict[str, Any], **options: Any) -> list[str]:
    file = write_jobs(folder / "shot.yaml", keys)
    return [problem.removeprefix(f"{file}:") for problem in problems_in(file, **options)]


# What a video begins from ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "start", "colour"),
    [
        ("black", "black", (0, 0, 0)),
        ("grey", "grey", (127, 127, 127)),
        ("gray", "grey", (127, 127, 127)),
        ("white", "white", (255, 255, 255)),
        ("#3a6ea5", "#3a6ea5", (0x3A, 0x6E, 0xA5)),
        ("#3A6EA5", "#3a6ea5", (0x3A, 0x6E, 0xA5)),
        ("noise", "noise", None),
    ],
)
def test_starts_without_an_image(folder: Path, given: str, start: str, colour: tuple[int, int, int] | None) -> None:
    """A colour by name or number, or noise, takes the image's place; two spellings of one colour are one start."""
    job = _job(folder, {**IMAGELESS, "start": given})
    assert (job.image, job.start, job.pictures) == (None, start, ())
    assert colour_of(start) == colour
    assert job.size == (64, 64)  # the model's own size, square


@pytest.mark.parametrize(
    ("keys", "size"),
    [({"size": [48, 32]}, (48, 32)), ({"resolution": 128}, (128, 128)), ({"size": "auto", "resolution": 96}, (96, 96))],
)
def test_size_without_an_image(folder: Path, keys: dict[str, Any], size: tuple[int, int]) -> None:
    """Without an image the size is the one asked for, or a square of the resolution."""
    assert _job(folder, {**IMAGELESS, "start": "grey", **keys}).size == size


@pytest.mark.parametrize("start", ["red", "#12345", "#12345g", "3a6ea5", 5, True, [1, 2, 3]])
def test_what_is_no_colour(folder: Path, start: object) -> None:
    """A start that is no colour is refused at its key, with what it may be; the image is not asked for besides."""
    (problem,) = _problems(folder, {"start": start, **IMAGELESS})
    assert problem.startswith("1: start: must be black, grey, white, noise, or a colour as '#3a6ea5'"), problem


def test_neither_image_nor_start(folder: Path) -> None:
    """Without either, the image is missing, and the hint knows the other way."""
    (problem,) = _problems(folder, IMAGELESS)
    assert "image: missing: the start image (or start: grey, to begin from a colour" in problem


def test_image_and_start_in_one_place(folder: Path) -> None:
    """Given beside one another in one layer, image and start are one too many, wherever that is."""
    both = {"image": "start.png", "start": "grey"}
    (problem,) = _problems(folder, {**both, **IMAGELESS})
    assert problem == "2: start: given beside an image; a video has one beginning"
    found = _problems(folder, {"defaults": both, "jobs": [IMAGELESS]})
    assert any(problem == "3: defaults.start: given beside an image; a video has one beginning" for problem in found)


def test_the_stronger_layer_decides_what_a_video_begins_from(folder: Path) -> None:
    """Image and start take each other's place from layer to layer: preset, defaults, job, command line."""
    image, start = {"image": "start.png"}, {"start": "grey"}
    (folder / "presets").mkdir()
    write_jobs(folder / "presets" / "still.yaml", {"image": "../start.png"})
    grey = write_jobs(folder / "presets" / "grey.yaml", start)
    rows: list[tuple[dict[str, Any], dict[str, Any], list[str], str | None]] = [
        (image, {}, [], None),
        (image, start, [], "grey"),
        (start, image, [], None),
        (start, {}, [], "grey"),
        (image, start, ["image=start.png"], None),
        (start, image, ["start=white"], "white"),
        ({}, {**image, "preset": str(grey)}, [], None),
        ({}, {"preset": str(grey)}, [], "grey"),
        ({"preset": str(folder / "presets" / "still.yaml")}, start, [], "grey"),
        ({**image, "preset": str(grey)}, {}, ["start=noise"], "noise"),
        (image, {"start": None}, [], None),
    ]
    for defaults, job, settings, wanted in rows:
        made = _job(folder, {"defaults": {**IMAGELESS, **defaults}, "jobs": [job]}, settings=settings)
        assert (made.start, made.image is None) == (wanted, wanted is not None), (defaults, job, settings)


# What it ends on -------------------------------------------------------------------------------------------


def test_end_image(folder: Path) -> None:
    """An end image is fitted into the start image's size, and is followed wholly unless said otherwise."""
    Image.new("RGB", (90, 30), "red").save(folder / "end.png")
    job = _job(folder, {**MINIMAL, "end_image": "end.png"})
    assert job.end is not None
    assert (job.end.picture.path, job.end.picture.fit.size, job.end.strength) == (folder / "end.png", job.size, 1.0)
    assert job.pictures == (folder / "start.png", folder / "end.png")
    weak = _job(folder, {**MINIMAL, "end_image": "end.png", "end_strength": 0.25})
    assert weak.end is not None
    assert weak.end.strength == 0.25


def test_loop(folder: Path) -> None:
    """A loop ends on its start image, fitted in as that is; `loop: false` is none."""
    job = _job(folder, {**MINIMAL, "loop": True, "fit": "pad"})
    assert job.end is not None
    assert (job.end.picture.path, job.end.picture.fit, job.loop) == (folder / "start.png", job.image_fit, True)
    assert job.pictures == (folder / "start.png",)
    assert _job(folder, {**MINIMAL, "loop": False}).end is None


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"end_image": "gone.png"}, "end_image: "),
        ({"end_image": "style.safetensors"}, "end_image: "),
        (
            {"end_image": "start.png", "model": "tiny-f1"},
            "end_image: only inverted models can be told how a video ends",
        ),
        ({"loop": True, "model": "tiny-f1"}, "loop: only inverted models can be told how a video ends"),
        ({"loop": True, "end_image": "start.png"}, "loop: given beside end_image; a loop ends on its start image"),
        ({"end_strength": 0.5}, "end_strength: given without end_image or loop"),
        ({"end_image": "start.png", "end_strength": 0}, "end_strength: must be"),
        ({"end_image": "start.png", "end_strength": 1.5}, "end_strength: must be"),
        ({"end_image": 5}, "end_image: must be text"),
        ({"fit": "squeeze"}, "fit: must be 'crop' or 'pad'"),
        ({"resolution": 320, "size": [32, 32]}, "resolution: given beside a size; it belongs to size: auto"),
        ({"resolution": 32}, "resolution: must be"),
    ],
)
def test_problems_with_pictures(folder: Path, keys: dict[str, Any], problem: str) -> None:
    """Each mistake is told once, at the line and key where it was made."""
    (found,) = _problems(folder, {**keys, **MINIMAL})
    line = list(keys).index(problem.partition(":")[0]) + 1
    assert found.startswith(f"{line}: {problem}"), found


def test_a_loop_without_an_image(folder: Path) -> None:
    """A loop has nothing to end on where the video begins from a colour; a wrong image is told of alone."""
    (problem,) = _problems(folder, {"loop": True, "start": "grey", **IMAGELESS})
    assert problem == "1: loop: needs a start image to end on"
    (problem,) = _problems(folder, {"loop": True, "image": 5, **IMAGELESS})
    assert problem.startswith("2: image: must be text")
    (problem,) = _problems(folder, {"loop": True, "image": "gone.png", **IMAGELESS})
    assert problem.startswith("2: image: ")


def test_keys_against_each_other_from_two_layers(folder: Path) -> None:
    """What stands against another key is told at the layer that gave it."""
    file = {"defaults": {**MINIMAL, "size": [32, 32]}, "jobs": [{"resolution": 320}]}
    (problem,) = _problems(folder, file)
    assert "jobs[0].resolution: given beside a size" in problem
    (problem,) = _problems(folder, {**MINIMAL, "end_image": "start.png"}, settings=["model=tiny-f1"])
    assert "end_image: only inverted models" in problem
    assert _job(folder, {**MINIMAL, "size": [32, 32]}, settings=["size=auto", "resolution=96"]).size == (112, 80)


# How images fill the size ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "pad", "resized", "lost", "beside"),
    [
        ((160, 120), False, (85, 64), 1 - 64 / 85, 0.0),
        ((160, 120), True, (64, 48), 0.0, 0.25),
        ((120, 160), True, (48, 64), 0.0, 0.25),
        ((64, 64), True, (64, 64), 0.0, 0.0),
        ((32, 32), True, (64, 64), 0.0, 0.0),
    ],
)
def test_pictures_fill_the_size(
    folder: Path,
    source: tuple[int, int],
    pad: bool,
    resized: tuple[int, int],
    lost: float,
    beside: float,
) -> None:
    """An image covers the size and loses its edges, or lies inside it whole with black beside it."""
    Image.new("RGB", source).save(folder / "a.png")
    fit = picture_of(folder / "a.png", (64, 64), pad=pad).fit
    assert (fit.source, fit.resized, fit.size) == (source, resized, (64, 64))
    assert (fit.lost, fit.beside) == pytest.approx((lost, beside))


def test_pictures_too_far_from_the_size(folder: Path) -> None:
    """An image of which next to nothing would be left is refused; padded, all of it is there."""
    Image.new("RGB", (4000, 20)).save(folder / "line.png")
    with pytest.raises(InvalidInput, match=r"4000x20 is too far from 64x64: 99.5% would be cut off"):
        picture_of(folder / "line.png", (64, 64), pad=False)
    assert picture_of(folder / "line.png", (64, 64), pad=True).fit.lost == 0
    (problem,) = _problems(folder, {"end_image": "line.png", "size": [64, 64], **MINIMAL})
    assert problem.startswith("1: end_image: ")
    assert "too far from 64x64" in problem


def test_fit_is_of_every_picture(folder: Path) -> None:
    """`fit: pad` is for the start, the end and the sections' pictures alike."""
    keys = {"end_image": "start.png", "sections": 2, "timeline": [{"at": 0.4, "image": "start.png"}]}
    job = _job(folder, {**MINIMAL, **keys, "size": [64, 64], "fit": "pad"})
    assert job.end is not None
    assert job.timeline[0].image is not None
    fits = (job.image_fit, job.end.picture.fit, job.timeline[0].image.fit)
    assert {fit.beside for fit in fits} == {0.25}


# Paddings --------------------------------------------------------------------------------------------------


def test_paddings(folder: Path) -> None:
    """Paddings given by hand are the sections', in sampling order, and move their indices."""
    job = _job(folder, {**MINIMAL, "sections": 3, "window": 3, "paddings": [5, 5, 0]})
    assert [section.padding for section in job.sections.sections] == [5, 5, 0]
    assert [section.latent_indices[0] for section in job.sections.sections] == [16, 16, 1]
    usual = _job(folder, {**MINIMAL, "sections": 3, "window": 3})
    assert [section.frames for section in job.sections.sections] == [
        section.frames for section in usual.sections.sections
    ]
    assert [section.padding for section in usual.sections.sections] == list(default_paddings(3))


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"paddings": [1, 0]}, "paddings: 2 paddings for 3 sections"),
        ({"paddings": [3, 2, 1, 0]}, "paddings: 4 paddings for 3 sections"),
        ({"paddings": [2, 1, 1]}, "paddings: the last one must be 0: that section follows the start image"),
        ({"paddings": [2, 1, 0], "model": "tiny-f1"}, "paddings: only inverted models have paddings"),
        ({"paddings": []}, "paddings: must have at least one entry"),
        ({"paddings": 2}, "paddings: must be a list"),
        ({"paddings": "auto"}, "paddings: must be a list"),
        ({"paddings": [2, -1, 0]}, "paddings[1]: must be"),
        ({"paddings": [2, 1.5, 0]}, "paddings[1]: must be a whole number"),
        ({"paddings": [1001, 1, 0]}, "paddings[0]: must be"),
    ],
)
def test_problems_with_paddings(folder: Path, keys: dict[str, Any], problem: str) -> None:
    """Paddings that do not make a video are told at their place, once."""
    (found,) = _problems(folder, {**keys, **MINIMAL, "sections": 3})
    assert f": {problem}" in f": {found.partition(': ')[2]}", found
