"""The order of a run's jobs: every transformer loaded once, every recipe baked once, and else as they came."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goan_cli.batch.schedule import Order, scheduled
from goan_cli.errors import InvalidInput
from goan_cli.packs.find import find_pack
from goan_cli.render.identity import bake_recipe
from goan_cli.render.plan import RenderPlan
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora, write_tiny_manifest

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"


@pytest.fixture
def loras(tmp_path: Path) -> dict[str, Path]:
    """Two LoRAs, and a copy of the first under another name."""
    found = {
        name: write_lora(tmp_path / f"{name}.safetensors", factors(TO_Q, TINY_SQUARE, seed=seed))
        for seed, name in enumerate("ab")
    }
    return {**found, "copy": Path(shutil.copy(found["a"], tmp_path / "copy.safetensors"))}


def other_pack(folder: Path) -> str:
    """A pack whose transformer lies elsewhere."""
    copied = shutil.copytree(find_pack("tiny").transformer, folder / "transformer", dirs_exist_ok=True)
    return str(write_tiny_manifest(folder / "other.yaml", parts={"transformer": copied}))


def test_order_of_the_files(tmp_path: Path, loras: dict[str, Path]) -> None:
    """By file, jobs are rendered as they came."""
    plans = [tiny_plan(tmp_path, loras=[(loras[name], 1.0)]) for name in "abab"]
    assert scheduled(plans, Order.FILE) == [0, 1, 2, 3]


def test_jobs_of_one_recipe_are_neighbours(tmp_path: Path, loras: dict[str, Path]) -> None:
    """By recipe, jobs with the same LoRAs follow each other; recipes and jobs keep the order that they came in."""
    a, b = (loras["a"], 1.0), (loras["b"], 1.0)
    plans = [tiny_plan(tmp_path, loras=each) for each in ([b], [], [a], [b], [], [a, b], [a], [b])]
    assert scheduled(plans, Order.RECIPE) == [0, 3, 7, 1, 4, 2, 6, 5]


def test_what_makes_a_recipe(tmp_path: Path, loras: dict[str, Path]) -> None:
    """A recipe is the files' contents and weights: neither their order nor their names, nor the job's settings."""
    a, b, copy = ((loras[name], 1.0) for name in ("a", "b", "copy"))
    lists: Sequence[list[tuple[Path, float]]] = (
        [a, b],
        [(loras["a"], 0.5), b],
        [b, a],
        [copy, b],
        [],
        [(loras["b"], 0.0)],
    )
    plans = [tiny_plan(tmp_path, loras=each, seed=seed) for seed, each in enumerate(lists)]
    assert scheduled(plans, Order.RECIPE) == [0, 2, 3, 1, 4, 5]


def test_packs_come_before_recipes(tmp_path: Path, loras: dict[str, Path]) -> None:
    """All jobs of a pack are rendered before the next pack's, whatever LoRAs they share."""
    other, a = other_pack(tmp_path), [(loras["a"], 1.0)]
    plans = [
        tiny_plan(tmp_path, loras=a),
        tiny_plan(tmp_path, loras=a, model=other),
        tiny_plan(tmp_path),
        tiny_plan(tmp_path, model=other),
        tiny_plan(tmp_path, loras=a),
        tiny_plan(tmp_path, loras=a, model=other),
    ]
    assert scheduled(plans, Order.RECIPE) == [0, 4, 2, 1, 5, 3]


@pytest.mark.parametrize("order", list(Order))
def test_nothing_to_order(order: Order) -> None:
    """No jobs have an order too."""
    assert scheduled([], order) == []


@pytest.mark.parametrize(("order", "refused"), [(Order.RECIPE, True), (Order.FILE, False)])
def test_a_lora_that_has_vanished(tmp_path: Path, loras: dict[str, Path], order: Order, refused: bool) -> None:
    """A LoRA that is gone since it was planned is told by its path where its content is asked for."""
    plans = [tiny_plan(tmp_path), tiny_plan(tmp_path, loras=[(loras["a"], 1.0)])]
    loras["a"].unlink()
    if not refused:
        assert scheduled(plans, order) == [0, 1]
        return
    with pytest.raises(InvalidInput, match=r"a\.safetensors: cannot be read any more"):
        scheduled(plans, order)


def _switches(plans: Sequence[RenderPlan], order: Sequence[int]) -> int:
    recipes = [bake_recipe(plans[place]).identity for place in order]
    return sum(one != other for one, other in itertools.pairwise(recipes))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(["", "a", "b", "copy"]), max_size=8))
def test_every_recipe_is_baked_once(tmp_path: Path, loras: dict[str, Path], names: list[str]) -> None:
    """Whatever the jobs, each is rendered once, and no recipe is gone back to."""
    plans = [tiny_plan(tmp_path, loras=[(loras[name], 1.0)] if name else []) for name in names]
    order = scheduled(plans, Order.RECIPE)
    assert sorted(order) == list(range(len(plans)))
    assert _switches(plans, order) == max(0, len({name.replace("copy", "a") for name in names}) - 1)
