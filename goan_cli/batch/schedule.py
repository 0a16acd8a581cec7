"""In which order the jobs of a run are rendered. No torch."""

from collections.abc import Sequence
from enum import StrEnum

from goan_cli.render.identity import bake_recipe
from goan_cli.render.plan import RenderPlan


class Order(StrEnum):
    """By bake recipe, so that each is baked once, or as the files have them."""

    RECIPE = "recipe"
    FILE = "file"


def scheduled(plans: Sequence[RenderPlan], order: Order) -> list[int]:
    """The places of the plans in the order of rendering.

    By recipe: packs (in one precision), recipes and jobs keep the order of their first appearance, so that every
    transformer is loaded once and every recipe baked once. Raises InvalidInput when a LoRA file has vanished.
    """
    if order is Order.FILE:
        return list(range(len(plans)))
    packs: dict[tuple[str, str], int] = {}
    recipes: dict[tuple[tuple[str, str], str], int] = {}
    places = []
    for number, plan in enumerate(plans):
        transformer = str(plan.pack.transformer), str(plan.job.execution.precision)
        pack = packs.setdefault(transformer, len(packs))
        recipe = recipes.setdefault((transformer, bake_recipe(plan).identity), len(recipes))
        places.append((pack, recipe, number))
    return [number for _, _, number in sorted(places)]
