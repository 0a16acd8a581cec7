"""The identity of a recipe: equal for equal weights, different for everything else."""

from itertools import permutations
from pathlib import Path

import pytest

from goan_cli.lora.report import BakeRecipe, LoraSource

A, B = "a" * 64, "b" * 64


def _recipe(*parts: tuple[str, float], folder: str = "loras") -> BakeRecipe:
    return BakeRecipe(
        loras=tuple(
            LoraSource(path=Path(folder) / f"{number}.safetensors", sha256=sha256, weight=weight)
            for number, (sha256, weight) in enumerate(parts)
        )
    )


def test_order_and_paths_do_not_matter() -> None:
    """The same contents at the same weights are one recipe, in any order and wherever the files lie."""
    parts = ((A, 0.5), (B, 1.0), (A, 1.0))
    identities = {_recipe(*order, folder=order[0][0][:3]).identity for order in permutations(parts)}
    assert len(identities) == 1


@pytest.mark.parametrize(
    "other",
    [
        (),
        ((A, 1.0),),
        ((B, 1.0), (B, 0.5)),
        ((A, 0.5), (B, 1.0)),
        ((A, 1.0), (B, 0.5), (B, 0.5)),
        ((A, 1.0), (B, 0.5000000001)),
        ((A, 1.0), (B, -0.5)),
    ],
)
def test_content_weight_and_number_matter(other: tuple[tuple[str, float], ...]) -> None:
    """Another content, weight or number of files is another recipe."""
    assert _recipe(*other).identity != _recipe((A, 1.0), (B, 0.5)).identity


def test_identity_is_a_digest() -> None:
    """The identity is 64 hex digits, the base model's too, and the same in every process."""
    assert BakeRecipe().identity == "7e09e12aa56148fe200ce1876b8e72ad40e7e50e10f52fd9c8f81959d37f2b69"
    assert len(_recipe((A, 1.0)).identity) == 64
