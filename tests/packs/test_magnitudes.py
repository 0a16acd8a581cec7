"""MagCache's calibration: which steps it has computed, and the file that it lies in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.errors import EnvironmentFault, InvalidInput
from goan_cli.packs.find import find_pack
from goan_cli.packs.magnitudes import Magnitudes, magnitudes_file, ratios_for, steps_to_compute, write_magnitudes
from goan_cli.packs.manifest import PARTS
from goan_cli.packs.pack import Pack
from tests.helpers import write_tiny_manifest

RATIOS = st.lists(st.floats(0.5, 1.6), min_size=1, max_size=40).map(lambda later: [1.0, *later])
THRESHOLDS = st.sampled_from([0.0, 0.02, 0.06, 0.1, 0.3, 1.0, 10.0])


# Which steps ----------------------------------------------------------------------------------------------


def _reference(ratios: Sequence[float], threshold: float) -> list[int]:
    """The computed steps by the paper's rule, each decided from the last computed one alone."""
    steps, computed = len(ratios), [0]
    for step in range(1, steps):
        skipped = range(computed[-1] + 1, step + 1)
        products: list[float] = []
        for each in skipped:
            products.append((products[-1] if products else 1.0) * ratios[each])
        error = 0.0
        for product in products:
            error += abs(1.0 - product)
        retained = step < round(0.2 * steps + 1e-9) or step == steps - 1
        if retained or len(skipped) > 3 or not error < threshold:
            computed.append(step)
    return computed


@given(ratios=RATIOS, threshold=THRESHOLDS)
def test_any_curve(ratios: list[float], threshold: float) -> None:
    """For any curve of ratios the computed steps are those of the paper's rule."""
    assert list(steps_to_compute(ratios, threshold=threshold)) == _reference(ratios, threshold)


@given(ratios=RATIOS, threshold=THRESHOLDS)
def test_what_is_never_skipped(ratios: list[float], threshold: float) -> None:
    """The first fifth of the steps and the last one are computed, and there are never four skipped in a row."""
    computed = steps_to_compute(ratios, threshold=threshold)
    steps = len(ratios)
    assert set(range(max(1, int(0.2 * steps + 0.5)))) <= set(computed)
    assert computed[-1] == steps - 1
    assert list(computed) == sorted(set(computed))
    assert all(after - before <= 4 for before, after in pairwise(computed))


@pytest.mark.parametrize(
    ("ratios", "threshold", "computed"),
    [
        pytest.param([1.0], 10.0, (0,), id="one step"),
        pytest.param([1.0, 1.0], 10.0, (0, 1), id="first and last"),
        pytest.param([1.0] * 12, 0.01, (0, 1, 5, 9, 11), id="nothing changes: three of four are skipped"),
        pytest.param([1.0] * 12, 0.0, tuple(range(12)), id="a threshold of nothing skips nothing"),
        # 0.97, then 0.97 * 0.97: the sum of what they lack is 0.03, then 0.0891.
        pytest.param([1.0, *[0.97] * 7], 0.05, (0, 1, 3, 5, 7), id="one of two"),
        pytest.param([1.0, *[0.97] * 7], 0.09, (0, 1, 4, 7), id="two of three"),
        # Up by a half, back down, up again: the product is as far from 1 as at first, the sum is not.
        pytest.param([1.0, 1.5, 2 / 3, 1.5, 1.0, 1.0], 0.6, (0, 3, 5), id="errors do not cancel"),
    ],
)
def test_known_curves(ratios: list[float], threshold: float, computed: tuple[int, ...]) -> None:
    """Curves whose steps can be told by hand."""
    assert steps_to_compute(ratios, threshold=threshold) == computed


# The file -------------------------------------------------------------------------------------------------


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """The tiny pack under a manifest of its own, without a calibration."""
    return find_pack(str(write_tiny_manifest(tmp_path / "mine.yaml")))


def _magnitudes(pack: Pack, steps: int = 3, last: float = 0.875) -> Magnitudes:
    return Magnitudes(
        transformer=pack.identity_of("transformer"),
        window=2,
        shift=1.5,
        samples=4,
        spread=0.0625,
        ratios=(1.0, *[0.1 + 0.2] * (steps - 2), last),
    )


def test_a_calibration_comes_back(pack: Pack) -> None:
    """Every number comes back as it was, from a file beside the manifest with the manifest's name."""
    written = _magnitudes(pack)
    write_magnitudes(pack, written)
    assert magnitudes_file(pack) == pack.manifest.parent / "mine.magcache.json"
    assert ratios_for(pack, 3) == written
    assert ratios_for(pack, 3).steps == 3


def test_a_calibration_takes_only_its_own_place(pack: Pack) -> None:
    """Writing one keeps those for other numbers of steps, in order, and takes the place of the one for its own."""
    for steps, last in ((10, 0.5), (3, 0.5), (2, 0.5), (3, 0.75)):
        write_magnitudes(pack, _magnitudes(pack, steps, last))
    assert [ratios_for(pack, steps).ratios[-1] for steps in (2, 3, 10)] == [0.5, 0.75, 0.5]
    assert list(json.loads(magnitudes_file(pack).read_text())["calibrations"]) == ["2", "3", "10"]
    assert {file.name for file in pack.manifest.parent.iterdir()} == {"mine.yaml", "mine.magcache.json"}


def test_missing_calibrations(pack: Pack) -> None:
    """Without a file, or without these steps in it, one line says what is there and which command makes it."""
    hint = f"make it: goan bench --calibrate --model {pack.manifest} --steps 25 --image IMAGE --prompt TEXT"
    with pytest.raises(InvalidInput, match=r"mine\.magcache\.json: no calibration of MagCache for 25 steps ") as caught:
        ratios_for(pack, 25)
    assert caught.value.hint == hint
    for steps in (10, 3):
        write_magnitudes(pack, _magnitudes(pack, steps))
    with pytest.raises(InvalidInput, match=r"for 25 steps, only for 3, 10 ") as caught:
        ratios_for(pack, 25)
    assert caught.value.hint == hint


def test_the_command_for_a_shipped_pack() -> None:
    """A shipped pack goes by its name and has scenes of its own; another needs an image, and its path is quoted."""
    tiny = find_pack("tiny-f1")
    commands = {
        tiny: "goan bench --calibrate --model tiny-f1 --steps 999",
        replace(
            tiny, manifest=Path("/my packs/a.yaml")
        ): "goan bench --calibrate --model '/my packs/a.yaml' --steps 999 --image IMAGE --prompt TEXT",
    }
    for pack, command in commands.items():
        with pytest.raises(InvalidInput) as caught:
            ratios_for(pack, 999)
        assert caught.value.hint == f"make it: {command}"


def test_another_transformer(pack: Pack) -> None:
    """What was measured of other weights is refused, with the command."""
    write_magnitudes(pack, replace(_magnitudes(pack), transformer="ab" * 32))
    with pytest.raises(InvalidInput, match="for 3 steps is of another transformer") as caught:
        ratios_for(pack, 3)
    assert "goan bench --calibrate" in str(caught.value)


def test_no_identity_changes(pack: Pack, tmp_path: Path) -> None:
    """A calibration changes the identity of no part, also where a part lies in the manifest's own folder."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in pack.transformer.iterdir():
        (flat / file.name).symlink_to(file)
    packs = [pack, find_pack(str(write_tiny_manifest(flat / "pack.yaml", parts={"transformer": flat})))]
    before = [{part: each.identity_of(part) for part in PARTS} for each in packs]
    for each in packs:
        write_magnitudes(each, _magnitudes(each))
    assert [{part: each.identity_of(part) for part in PARTS} for each in packs] == before
    assert [ratios_for(each, 3).steps for each in packs] == [3, 3]


def _changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return damage


def _entry(**values: Any) -> Callable[[Path], None]:
    return _changed(lambda content: content["calibrations"]["3"].update(values))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-20]), "not readable JSON", id="cut off"),
        pytest.param(lambda file: file.write_text("[1]"), "not a JSON object", id="a list"),
        pytest.param(lambda file: file.write_bytes(b"\xff\xfe"), "not readable JSON", id="no text"),
        pytest.param(_changed(lambda content: content.pop("version")), "version None", id="no version"),
        pytest.param(_changed(lambda content: content.update(version=2)), "version 2, which this goan", id="newer"),
        pytest.param(_changed(lambda content: content.pop("calibrations")), "not a file of cal", id="no calibrations"),
        pytest.param(_entry(ratios="1 2 3"), "3.ratios", id="a text for ratios"),
        pytest.param(_entry(ratios=[]), "3.ratios", id="no ratios"),
        pytest.param(_entry(ratios=[1.0, -0.5, 1.0]), "3.ratios.1", id="a negative ratio"),
        pytest.param(_entry(ratios=[1.0, float("nan"), 1.0]), "3.ratios.1", id="no number"),
        pytest.param(_entry(ratios=[1.0, "0.9", 1.0]), "3.ratios.1", id="a number as text"),
        pytest.param(_entry(ratios=[1.0, 0.9]), "3: there are ratios for 2 steps", id="too few ratios"),
        pytest.param(_entry(more=1), "3.more", id="an unknown key"),
        pytest.param(_changed(lambda content: content["calibrations"]["3"].pop("window")), "3.window", id="a key gone"),
    ],
)
def test_damaged_files(pack: Pack, damage: Callable[[Path], object], said: str) -> None:
    """What is no file of calibrations is refused in one line with its path, and nothing is written over it."""
    write_magnitudes(pack, _magnitudes(pack))
    file = magnitudes_file(pack)
    damage(file)
    before = file.read_bytes()
    for act in (lambda: ratios_for(pack, 3), lambda: write_magnitudes(pack, _magnitudes(pack))):
        with pytest.raises(InvalidInput) as caught:
            act()
        assert str(caught.value).startswith(f"{file}: ")
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert file.read_bytes() == before


def test_where_nothing_can_be_written(pack: Pack) -> None:
    """A folder that takes no file is a fault of the machine, with a hint."""
    nowhere = replace(pack, manifest=pack.manifest / "pack.yaml")
    with pytest.raises(EnvironmentFault, match=r"pack\.magcache\.json: cannot be written") as caught:
        write_magnitudes(nowhere, _magnitudes(pack))
    assert caught.value.hint is not None
