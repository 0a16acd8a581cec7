"""Text to video, read from the frames: what the prompt says appears out of a colour or noise, and goes as told."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from goan_cli.render.engine import Engine
from goan_cli.tiny.from_nothing import STARTS, BlankResult, blank_result
from goan_cli.tiny.measures import track
from goan_cli.tiny.palette import DIRECTIONS
from goan_cli.tiny.parts import PACK
from goan_cli.tiny.world import APPEARANCE

FIGURES = json.loads((PACK / "evaluation.json").read_text(encoding="utf-8"))
SEED = 5


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One engine for all these renders."""
    return Engine(device="cpu", cache=tmp_path_factory.mktemp("embeddings"))


def result_of(engine: Engine, folder: Path, model: str, start: str, wanted: str) -> BlankResult:
    """A video of three sections."""
    return blank_result(engine, folder, model, start, wanted, seed=SEED)


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
@pytest.mark.parametrize(("start", "ways"), [("grey", DIRECTIONS), ("noise", ("left", "up")), ("black", ("up",))])
def test_moves_as_told(engine: Engine, tmp_path: Path, model: str, start: str, ways: tuple[str, ...]) -> None:
    """With one seed and one start, the shape has the prompt's colour and goes where the prompt says."""
    for wanted in ways:
        result = result_of(engine, tmp_path, model, start, wanted)
        assert result.seen == wanted
        assert result.colour_kept


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
@pytest.mark.parametrize("start", ["black", "grey"])
def test_begins_from_the_colour(engine: Engine, tmp_path: Path, model: str, start: str) -> None:
    """The first frame is the start and nothing else; the shape appears after it, and stays."""
    result = result_of(engine, tmp_path, model, start, "right")
    area = track(result.frames).area
    assert result.first_frame > 18
    assert area[0] == 0
    assert area[APPEARANCE:].min() > 100
    grown = [float(np.mean(area[first:stop])) for first, stop in pairwise((0, 3, 6, 12))]
    assert grown == sorted(grown)


@pytest.mark.parametrize(("model", "share"), [("tiny", 0.8), ("tiny-f1", 0.7)])
def test_recorded_videos_move_as_told(model: str, share: float) -> None:
    """Of every start told to go each of the four ways, most do, and begin near to their start."""
    figures = FIGURES[model]["from_nothing"]
    assert figures["videos"] == len(STARTS) * len(DIRECTIONS)
    assert figures["direction"] >= share
    assert figures["colour"] >= share
    assert figures["first_frame_worst"] > 16
