"""The procedural world: seeded, calm, and what its captions say."""

from dataclasses import replace

import pytest
import torch

from goan_cli.render.image import filled_pixels
from goan_cli.render.text import load_llama_tokenizer
from goan_cli.tiny.measures import colour_name, direction, sway_of, track
from goan_cli.tiny.palette import COLOURS, DIRECTIONS, MOTIONS, SHAPES
from goan_cli.tiny.parts import PACK
from goan_cli.tiny.rendering import pixels_of
from goan_cli.tiny.world import (
    APPEARANCE,
    HOP,
    SIDE,
    Scene,
    captions,
    draw_blank_scene,
    draw_scene,
    poses,
    render_clip,
    shape_masks,
)

FRAMES = 49


def scene_of(motion: str, seed: int = 0, duration: int = FRAMES - 1) -> Scene:
    """A seeded scene of a motion."""
    return draw_scene(torch.Generator().manual_seed(seed), duration=duration, motion=motion)


def test_same_seed_same_clip() -> None:
    """A seed decides the scene and every pixel."""
    first, second = scene_of("right", 5), scene_of("right", 5)
    assert first == second
    assert torch.equal(render_clip(first, 9), render_clip(second, 9))
    assert scene_of("right", 6) != first


@pytest.mark.parametrize("motion", MOTIONS)
def test_clips_are_pictures_of_one_whole_shape(motion: str) -> None:
    """Every pixel is a colour, and a shape that travels stays inside the picture."""
    for seed in range(20):
        scene = scene_of(motion, seed)
        clip, masks = render_clip(scene, FRAMES), shape_masks(scene, FRAMES)
        assert clip.shape == (FRAMES, 3, SIDE, SIDE)
        assert 0 <= clip.min() <= clip.max() <= 1
        area = masks.sum(dim=(1, 2))
        # A corner may brush the edge; what grows and shrinks has another area by intention.
        assert area.min() > 0.93 * area.max() or motion in {"grow", "shrink"}
        assert area.min() > 60


@pytest.mark.parametrize("motion", DIRECTIONS)
@pytest.mark.parametrize("duration", [24, 48, 120])
def test_travellers_travel_as_named(motion: str, duration: int) -> None:
    """What the measures read from the pixels is the direction and the colour that the scene was drawn with."""
    for seed in range(10):
        scene = scene_of(motion, seed, duration)
        found = track(pixels_of(render_clip(scene, duration + 1)))
        assert direction(found) == motion
        assert {colour_name(rgb) for rgb in found.colour} == {scene.colour}


def test_still_is_still_and_a_hop_ends_where_it_began() -> None:
    """A shape that stands still does not move; a bouncing one is on the ground after each hop."""
    assert poses(scene_of("still"), FRAMES).std(dim=0).max() == 0
    hops = poses(scene_of("bounce"), FRAMES)[:, 1]
    assert hops[::HOP].std() < 1e-4
    assert hops.min() < hops[0] - 6


def test_growing_and_shrinking_change_the_area() -> None:
    """The area rises or falls from frame to frame."""
    for motion, sign in (("grow", 1), ("shrink", -1)):
        areas = shape_masks(scene_of(motion), FRAMES).sum(dim=(1, 2))
        assert (sign * areas.diff() > -1e-3).all()
        assert sign * (areas[-1] - areas[0]) > 100


def test_demonstration_effects() -> None:
    """A swaying shape swings as far as it is said to; dusk begins after the first frame and then stays."""
    still = scene_of("still")
    assert sway_of(track(pixels_of(render_clip(replace(still, sways=True), FRAMES)))) > 3
    assert sway_of(track(pixels_of(render_clip(still, FRAMES)))) < 0.05
    plain, dusk = render_clip(still, 25), render_clip(replace(still, dusk=True), 25)
    assert torch.equal(plain[0], dusk[0])
    assert torch.equal(dusk[12], dusk[24])
    assert (dusk[24] - plain[24]).abs().max() > 0.1


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_blank_scenes_appear_and_go_as_named(motion: str) -> None:
    """The first frame is a colour or noise; from the eighth on all of the shape is there, and it crosses the middle."""
    blanks = set()
    for seed in range(24):
        scene = draw_blank_scene(torch.Generator().manual_seed(seed), duration=24, motion=motion)
        blanks.add(scene.blank if scene.blank in {"black", "grey", "white", "noise"} else "#")
        clip, masks = render_clip(scene, 25), shape_masks(scene, 25)
        assert masks[0].max() == 0
        assert clip[0].std(dim=(1, 2)).max() == pytest.approx(0 if scene.blank != "noise" else 0.289, abs=0.02)
        assert 0 <= clip.min() <= clip.max() <= 1
        later = track(pixels_of(clip[APPEARANCE:]))
        assert direction(later) == motion
        assert {colour_name(rgb) for rgb in later.colour} == {scene.colour}
        path = poses(scene, 25)[:, :2]
        assert (path[0] + path[-1]).div(2).sub(SIDE / 2).abs().max() <= 2
    assert blanks == {"black", "grey", "white", "noise", "#"}


def test_a_blank_scene_s_start_is_the_renderer_s() -> None:
    """What training shows as a start is what a job without an image begins from, noise and seed included."""
    for seed, blank in enumerate(("grey", "#102030", "noise")):
        scene = replace(scene_of("still"), blank=blank, blank_seed=seed)
        first = pixels_of(render_clip(scene, 1))[0]
        assert (first == filled_pixels(blank, (SIDE, SIDE), seed)).all()


def test_other_sizes_show_the_same_scene() -> None:
    """Twice the pixels show the same shape at twice the size; a wider picture shows more at the sides."""
    scene = scene_of("still")
    masks = shape_masks(scene, 1)
    assert torch.allclose(shape_masks(scene, 1, height=128, width=128).sum(), 4 * masks.sum(), rtol=0.01)
    wide = shape_masks(scene, 1, height=64, width=96)
    assert torch.allclose(wide[:, :, 16:80], masks)


def test_captions_are_whole_words_to_the_tokenizer() -> None:
    """Every word of every caption is one token, so that each word has one embedding wherever it stands."""
    tokenizer = load_llama_tokenizer(PACK / "tokenizer")
    for motion in MOTIONS:
        said = captions(shape=SHAPES[0], colour=next(iter(COLOURS)), motion=motion)
        assert len(set(said)) == 4
        for text in said:
            # The first token opens the text.
            assert len(tokenizer.encode(text).ids) - 1 == len(text.split())
