"""What packs would do on machines of all sizes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from goan_cli.cli.readiness import Outlook, Target, outlook_of, pack_names, readiness
from goan_cli.packs.find import find_pack
from goan_cli.packs.manifest import own_folder
from goan_cli.packs.pack import Pack
from goan_cli.render.memory import automatic_budget
from tests.helpers import GOLDEN, PARTS

GB = 10**9
CPU = Target(precision="fp32", device=None, main=64 * GB)


@pytest.fixture
def full_size(tmp_path: Path) -> Pack:
    """The tiny pack under the full-size transformer's configuration: nothing else decides a memory plan much."""
    tiny = find_pack("tiny")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"_class_name": "HunyuanVideoTransformer3DModelPacked"}))
    return replace(tiny, resolution=640, window=9, steps=25, configs={**tiny.configs, "transformer": config})


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The folder of the user's own packs, which is there."""
    own_folder().mkdir(parents=True)
    return own_folder()


def of_card(gigabytes: float, *, main: int = 64 * GB, encoder_value: int | None = 2) -> Target:
    """A card with so much free memory."""
    return Target(precision="bf16", device=round(gigabytes * GB), main=main, encoder_value=encoder_value)


def test_a_card_for_everything(full_size: Pack) -> None:
    """A card with room for all weights keeps all blocks."""
    found = outlook_of(full_size, of_card(79))
    assert (found.resident_blocks, found.blocks, found.problem, found.note) == (60, 60, None, None)
    assert found.memory is not None
    assert found.memory.startswith("all 60 blocks resident")
    assert found.device_bytes is not None
    assert 20 * GB < found.device_bytes < 30 * GB


def test_cards_that_stream(full_size: Pack) -> None:
    """The less memory a card has the fewer blocks it keeps, and the more main memory is needed for the others."""
    found = [outlook_of(full_size, of_card(size)) for size in (20, 16, 12)]
    blocks = [each.resident_blocks or 0 for each in found]
    main = [each.main_bytes or 0 for each in found]
    assert 60 > blocks[0] > blocks[1] > blocks[2]
    assert main[0] < main[1] < main[2]
    for each, size in zip(found, (20, 16, 12), strict=True):
        assert each.problem is None
        assert each.device_bytes is not None
        assert each.device_bytes <= automatic_budget(size * GB)  # CUDA's context is not among what is free
        assert f"{each.resident_blocks} of 60 blocks resident" in (each.memory or "")


def test_a_card_that_is_too_small(full_size: Pack) -> None:
    """Where not even streaming fits, it is said how much would."""
    found = outlook_of(full_size, of_card(1))
    assert found.problem is not None
    assert found.problem.startswith("1.4 GB are too few: with every block streamed the job needs ")
    assert found == Outlook(problem=found.problem)


def test_main_memory_that_is_too_small(full_size: Pack) -> None:
    """Blocks that are streamed need main memory, and on a CPU everything does."""
    streamed = outlook_of(full_size, of_card(12, main=8 * GB))
    assert streamed.problem is not None
    assert streamed.problem.endswith("of main memory, 8.0 GB are free")
    on_cpu = outlook_of(full_size, CPU)
    assert on_cpu.main_bytes is not None
    assert 51 * GB < on_cpu.main_bytes < 64 * GB
    assert on_cpu.problem is None
    short = outlook_of(full_size, replace(CPU, main=32 * GB))
    assert short.problem == f"needs {on_cpu.main_bytes / 1e9:.1f} GB of main memory, 32.0 GB are free"
    assert outlook_of(full_size, replace(CPU, main=None)).problem is None


def test_a_card_that_is_taken(full_size: Pack) -> None:
    """A text encoder that comes onto the device as a whole is warned of where it does not fit what is free."""
    found = outlook_of(replace(full_size, text_encoder=find_pack("tiny").transformer), of_card(10, encoder_value=10**5))
    assert found.note is not None
    assert found.note.startswith("the text encoder takes about ")
    assert found.note.endswith("of the device, 10.0 GB are free")
    assert outlook_of(full_size, of_card(10, encoder_value=None)).note is None


def test_embedded() -> None:
    """The embedded packs are complete, beside their manifest, and fit."""
    found = readiness("tiny", CPU)
    assert (found.family, found.complete, found.can_render) == ("inverted", True, True)
    assert found.where == str(find_pack("tiny").manifest.parent)
    assert (found.problem, found.command, found.download) == (None, None, 0)
    assert not readiness("tiny", replace(CPU, main=1000)).can_render


def test_not_here() -> None:
    """A pack of which nothing is here comes with the command that gets it, and how much that is."""
    found = readiness("framepack-i2v", CPU)
    assert (found.complete, found.can_render, found.outlook) == (False, False, None)
    assert (found.problem, found.command) == ("not on this machine", "goan models pull framepack-i2v")
    assert 40 * GB < found.download < 45 * GB


def test_partly_here(own: Path) -> None:
    """A pack that lacks some parts names them, and what is wrong with those that are there."""
    lines = [f"{part}: {GOLDEN / 'packed' / part}" for part in ("transformer", "vae", "text_encoder", "text_encoder_2")]
    (own / "my pack.yaml").write_text("\n".join(["name: mine", "base: framepack-i2v", *lines]) + "\n")
    found = readiness("my pack", CPU)
    assert found.problem == "image_encoder, tokenizer, tokenizer_2, feature_extractor not found"
    assert found.command == "goan models pull 'my pack'"
    (own / "my pack.yaml").write_text("name: mine\nfamily: f1\n")
    found = readiness("my pack", CPU)
    assert found.problem is not None
    assert "transformer is missing" in found.problem
    assert found.command is None


def test_own_packs(own: Path) -> None:
    """The user's own packs are told beside the shipped ones, each by the folder of its manifest."""
    for part in PARTS:
        shutil.copytree(GOLDEN / "packed" / part, own / part)
    (own / "golden.yaml").write_text("name: golden\nfamily: f1\ndefaults: {window: 9, steps: 4, resolution: 64}\n")
    assert pack_names() == ["tiny", "tiny-f1", "framepack-i2v", "framepack-f1", "golden"]
    found = readiness("golden", CPU)
    assert (found.family, found.complete, found.where, found.can_render) == ("f1", True, str(own), True)


@pytest.mark.parametrize(
    "content",
    [b"", b"name: 3\n", b"\xff", b"name: x\nfamily: f1\nbase: bad\n", b"[", b"name: x\nfamily: f1\nvae: [1]\n"],
)
def test_broken_manifests(own: Path, content: bytes) -> None:
    """A broken manifest of the user's own is a problem of that pack, and no error."""
    (own / "bad.yaml").write_bytes(content)
    found = readiness("bad", CPU)
    assert (found.complete, found.can_render) == (False, False)
    assert str(own / "bad.yaml") in (found.problem or "")


def test_a_part_that_no_plan_can_be_made_of(own: Path) -> None:
    """A configuration without what a plan needs is a problem of that pack, and no error."""
    for part in PARTS:
        shutil.copytree(GOLDEN / "packed" / part, own / part)
    (own / "golden.yaml").write_text("name: golden\nfamily: f1\n")
    (own / "image_encoder" / "config.json").write_text('{"image_size": "large"}')
    found = readiness("golden", CPU)
    assert not found.can_render
    assert (found.problem or "").startswith("complete, but ValueError: ")
