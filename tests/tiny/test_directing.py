"""What a job's directions do to the picture, read from the frames: when it turns, where it ends, when dusk falls."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from goan_cli.render.engine import Engine
from goan_cli.tiny.measures import Frames, direction, psnr_between, track
from goan_cli.tiny.palette import DUSK
from goan_cli.tiny.parts import LORAS, PACK
from goan_cli.tiny.rendering import pixels_of, plan_scene, rendered, write_start_image
from goan_cli.tiny.smoke import SCENE
from goan_cli.tiny.world import Scene, render_clip

RIGHT, LEFT = "a red circle moves right", "a red circle moves left"
# Two sections of 0.4 s at 30 frames a second, after the start's own frame.
HALF = 25
# Frames around a cut between sections that both sides are cross-faded into.
FADE = 12
SEEDS = (1, 2)
STOP = replace(SCENE, x=44.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One engine for all these renders."""
    return Engine(device="cpu", cache=tmp_path_factory.mktemp("embeddings"))


@pytest.fixture(scope="module")
def stop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the scene with its circle further to the right."""
    path = tmp_path_factory.mktemp("pictures") / "stop.png"
    write_start_image(path, STOP)
    return path


_MADE: dict[str, Frames] = {}


def _frames(engine: Engine, folder: Path, prompt: str = RIGHT, *, scene: Scene = SCENE, **keys: Any) -> Frames:
    """A job's frames; what several tests compare with is rendered once."""
    settings = {"steps": 5, "seed": SEEDS[0], "model": "tiny", **keys}
    job = repr((prompt, scene, sorted(settings.items())))
    if job not in _MADE:
        _MADE[job] = rendered(engine, plan_scene(folder, "job", scene, prompt, settings=settings))
    return _MADE[job]


def _mean_path(clips: Sequence[Frames]) -> NDArray[np.float64]:
    path: NDArray[np.float64] = np.mean([track(clip).x for clip in clips], axis=0)
    return path


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_turns_at_the_stated_second(tmp_path: Path, engine: Engine, stop: Path, model: str) -> None:
    """Told to go right, and from 0.8 s on left from another picture, the circle turns back there and nowhere else."""
    timeline = [{"at": "0.8s", "prompt": LEFT, "image": str(stop)}]
    scene = replace(SCENE, x=14.0)
    clips = [_frames(engine, tmp_path, scene=scene, model=model, timeline=timeline, seed=seed) for seed in SEEDS]
    path = _mean_path(clips)
    turn = int(path.argmax())
    assert abs(turn - HALF) <= 4
    assert path[turn] - path[0] > 5
    assert path[turn] - path[-1] > 1.5


@pytest.mark.parametrize("to", ["left", "up"])
def test_begins_to_move_at_the_stated_second(tmp_path: Path, engine: Engine, to: str) -> None:
    """A forward model's circle stands still, and from 0.8 s on goes where the timeline sends it."""
    timeline = [{"at": 0.8, "prompt": f"a red circle moves {to}"}]
    clip = _frames(engine, tmp_path, "a red circle stands still", scene=STOP, model="tiny-f1", timeline=timeline)
    assert direction(track(clip[:HALF])) == "still"
    assert direction(track(clip[HALF:])) == to


def test_a_later_prompt_decides_where_an_inverted_video_goes(tmp_path: Path, engine: Engine) -> None:
    """An inverted model samples the end first: where the later prompt sends the circle is where the video ends."""
    scene = replace(SCENE, x=32.0)
    ends = {}
    for first, later in ((RIGHT, LEFT), (LEFT, RIGHT)):
        clip = _frames(engine, tmp_path, first, scene=scene, timeline=[{"at": 0.8, "prompt": later}])
        ends[first, later] = float(track(clip).x[-1])
    assert ends[LEFT, RIGHT] > scene.x + 5
    assert ends[RIGHT, LEFT] < scene.x - 5


def test_ends_on_the_end_image(tmp_path: Path, engine: Engine, stop: Path) -> None:
    """The last frame is the end image, far nearer than without one, and the first one still the start image."""
    wanted, first = (pixels_of(render_clip(scene, 1)) for scene in (STOP, SCENE))
    plain = _frames(engine, tmp_path, sections=3)
    for seed in SEEDS:
        ended = _frames(engine, tmp_path, sections=3, seed=seed, end_image=str(stop))
        assert psnr_between(ended[-1:], wanted) > max(30.0, psnr_between(plain[-1:], wanted) + 6)
        assert psnr_between(ended[:1], first) > 35


def test_a_loop_closes(tmp_path: Path, engine: Engine) -> None:
    """A loop's last frame is its first one, whatever the prompt says; without it the circle has gone away."""
    plain = _frames(engine, tmp_path, sections=2)
    assert psnr_between(plain[-1:], plain[:1]) < 22
    for seed in SEEDS:
        loop = _frames(engine, tmp_path, sections=2, seed=seed, loop=True)
        assert psnr_between(loop[-1:], loop[:1]) > 32


def _fallen(dusk: Frames, plain: Frames) -> NDArray[np.float64]:
    """How far each frame's background is from the plain one's to dusk."""
    before, after = track(plain).background, track(dusk).background
    way = np.array(DUSK) - before
    share: NDArray[np.float64] = ((after - before) * way).sum(axis=1) / np.square(way).sum(axis=1)
    return share


def test_dusk_falls_from_the_stated_time_on(tmp_path: Path, engine: Engine) -> None:
    """The LoRA of a later moment leaves all frames before it alone, and then dusk falls."""
    loras = [str(PACK / LORAS["dusk"])]
    plain = _frames(engine, tmp_path, model="tiny-f1")
    dusk = _frames(engine, tmp_path, model="tiny-f1", timeline=[{"at": 0.8, "loras": loras}])
    fallen = _fallen(dusk, plain)
    assert np.array_equal(dusk[: HALF - FADE], plain[: HALF - FADE])
    assert abs(fallen[:HALF]).max() < 0.15
    assert fallen[-8:].min() > 0.5


def test_dawn_from_the_stated_time_on(tmp_path: Path, engine: Engine) -> None:
    """Where a moment takes the LoRA away, it is dusk before it and day after, the inverted model's end bit for bit."""
    loras = [str(PACK / LORAS["dusk"])]
    plain = _frames(engine, tmp_path)
    dawn = _frames(engine, tmp_path, loras=loras, timeline=[{"at": 0.8, "loras": []}])
    fallen = _fallen(dawn, plain)
    assert fallen[FADE:HALF].max() > 0.45
    assert np.array_equal(dawn[HALF + FADE :], plain[HALF + FADE :])


@pytest.mark.parametrize(
    ("model", "schedule", "same"),
    [
        pytest.param(
            "tiny-f1",
            {"shape": "roll-off", "start_at": 0.4, "end": 1},
            slice(0, HALF - FADE),
            id="rolled off at the end",
        ),
        pytest.param("tiny", {"end": 10, "trim": 0.1}, slice(12 + FADE, None), id="trimmed at the start"),
    ],
)
def test_a_schedule_acts_where_it_is_scheduled(
    tmp_path: Path, engine: Engine, model: str, schedule: dict[str, Any], same: slice
) -> None:
    """Frames of sections at the usual guidance are the same, bit for bit; of the others none is."""
    plain = _frames(engine, tmp_path, model=model)
    scheduled = _frames(engine, tmp_path, model=model, guidance_schedule=schedule)
    changed = np.abs(scheduled.astype(int) - plain).reshape(len(plain), -1).max(axis=1) > 0
    assert not changed[same].any()
    assert changed[slice(HALF + FADE, None) if model == "tiny-f1" else slice(0, 12)].all()


def test_padded_pictures_are_whole(tmp_path: Path, engine: Engine) -> None:
    """A wide picture padded into a square is smaller in it, its circle too, with the dark above and below."""
    wide = tmp_path / "wide.png"
    write_start_image(wide, replace(SCENE, x=32.0), height=64, width=96)
    keys: dict[str, Any] = {"image": str(wide), "size": [64, 64], "sections": 1}
    crop, pad = (_frames(engine, tmp_path, "a red circle stands still", fit=each, **keys) for each in ("crop", "pad"))
    assert track(pad).area[0] < 0.65 * track(crop).area[0]
    bars = np.r_[0:8, 56:64]
    assert pad[0, bars].mean() < crop[0, bars].mean() - 20
