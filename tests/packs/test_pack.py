"""Model packs: found, complete, or refused with everything that is wrong."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from goan_cli.errors import GoanError, InvalidInput, InvalidJobs
from goan_cli.packs.find import find_pack
from goan_cli.packs.manifest import MANIFEST, WEIGHTED
from tests.conftest import GOLDEN

PARTS = (*WEIGHTED, "tokenizer", "tokenizer_2", "feature_extractor")
MANIFEST_TEXT = "version: 1\nname: golden\nfamily: inverted\ndefaults: {window: 9, steps: 4, resolution: 64}\n"
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A folder with the recorded parts and a manifest."""
    for part in PARTS:
        shutil.copytree(GOLDEN / "packed" / part, tmp_path / "pack" / part)
    (tmp_path / "pack" / MANIFEST).write_text(MANIFEST_TEXT)
    return tmp_path / "pack"


def problems_of(pack: Path) -> list[str]:
    """What is wrong with a pack."""
    with pytest.raises(InvalidJobs) as caught:
        find_pack(str(pack))
    return [str(problem) for problem in caught.value.problems]


def test_embedded_pack() -> None:
    """The pack `tiny` is shipped and complete."""
    found = find_pack("tiny")
    assert (found.name, found.family, found.window, found.steps, found.resolution) == ("tiny", "inverted", 3, 8, 64)


@pytest.mark.parametrize("spelling", ["{pack}", "{pack}/", "{pack}/pack.yaml"])
def test_spellings(pack: Path, spelling: str) -> None:
    """A pack is its folder, with or without a slash, or its manifest."""
    found = find_pack(spelling.format(pack=pack))
    assert (found.name, found.family, found.manifest) == ("golden", "inverted", pack / MANIFEST)
    assert all(getattr(found, part) == pack / part for part in PARTS)


def test_defaults_of_a_manifest(pack: Path) -> None:
    """A manifest that leaves the defaults out has FramePack's own."""
    (pack / MANIFEST).write_text("name: x\nfamily: f1\n")
    found = find_pack(str(pack))
    assert (found.family, found.window, found.steps, found.resolution) == ("f1", 9, 25, 640)


def test_parts_elsewhere(pack: Path, tmp_path: Path) -> None:
    """A manifest anywhere may name its parts, relative to itself or absolute, folders or single files."""
    (tmp_path / "deep").mkdir()
    lines = [f"{part}: ../pack/{part}" for part in PARTS if part not in {"vae", "transformer"}]
    lines += [f"vae: {pack}/vae", f"transformer: ../pack/{TRANSFORMER}"]
    manifest = tmp_path / "deep" / "mine.yaml"
    manifest.write_text("\n".join(["name: mine", "family: inverted", *lines]) + "\n")
    found = find_pack(str(manifest))
    assert found.vae == pack / "vae"
    assert found.transformer.resolve() == pack / TRANSFORMER
    assert found.tokenizer.resolve() == pack / "tokenizer"


def test_relative_to_the_current_folder(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path gives absolute paths of parts."""
    monkeypatch.chdir(pack.parent)
    assert find_pack("./pack").transformer == pack / "transformer"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("tinny", r"no model pack named tinny \(did you mean tiny\?"),
        ("framepack", r"no model pack named framepack \(did you mean framepack-"),
        ("wan", r"no model pack named wan \(valid: framepack-f1, framepack-i2v, tiny, tiny-f1"),
        ("./gone", "gone: no such model pack"),
        ("/gone/pack.yaml", r"gone/pack\.yaml: no such model pack"),
        (".", "holds no pack.yaml"),
    ],
)
def test_unknown_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str) -> None:
    """An unknown name, a missing path and a folder without manifest are told apart."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput) as caught:
        find_pack(model)
    assert re.search(said, str(caught.value))


def test_every_problem_of_a_manifest(pack: Path) -> None:
    """All problems of a manifest come at once, each with file, line and key."""
    (pack / MANIFEST).write_text("nmae: x\nfamily: f2\ndefaults:\n  windw: 3\n  steps: 0\nvae: ''\nversion: 2\n")
    lines = problems_of(pack)
    expected = {
        "nmae": "1: nmae: unknown key (did you mean name?)",
        "family": "2: family: must be 'inverted' or 'f1', not 'f2'",
        "windw": "4: defaults.windw: unknown key (did you mean window?)",
        "steps": "5: defaults.steps: must be greater than or equal to 1, not 0",
        "vae": "6: vae: ",
        "version": "7: version: must be 1, not 2",
    }
    missing = [text for text in expected.values() if not any(f"pack.yaml:{text}" in line for line in lines)]
    assert missing == []


@pytest.mark.parametrize("value", ["true", "'3'"])
def test_numbers_of_a_manifest(pack: Path, value: str) -> None:
    """A manifest's whole numbers are as strict as a job's."""
    (pack / MANIFEST).write_text(f"name: x\nfamily: f1\ndefaults: {{window: {value}}}\n")
    (line,) = problems_of(pack)
    assert "pack.yaml:3: defaults.window: " in line


@pytest.mark.parametrize("text", ["", "- a\n", "name: [\n", "\t\n"])
def test_manifests_that_are_none(pack: Path, text: str) -> None:
    """A manifest that holds no keys is refused by its path."""
    (pack / MANIFEST).write_text(text)
    (line,) = problems_of(pack)
    assert str(pack / MANIFEST) in line


@pytest.mark.parametrize("part", PARTS)
def test_missing_part(pack: Path, part: str) -> None:
    """A missing part is told by its name and path."""
    shutil.rmtree(pack / part)
    (line,) = problems_of(pack)
    assert f"{part}: {pack / part}: the pack's {part} is missing" in line


@pytest.mark.parametrize(
    "file",
    [
        TRANSFORMER,
        "transformer/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "text_encoder_2/model.safetensors",
        "text_encoder_2/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "image_encoder/model.safetensors",
        "image_encoder/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer_2/vocab.json",
        "tokenizer_2/merges.txt",
        "feature_extractor/preprocessor_config.json",
    ],
)
def test_missing_file(pack: Path, file: str) -> None:
    """Every file that a render reads is missed before it starts, by the part it belongs to."""
    (pack / file).unlink()
    (line,) = problems_of(pack)
    assert str(pack / file.partition("/")[0]) in line


def test_every_missing_part_at_once(pack: Path) -> None:
    """All missing parts come at once."""
    shutil.rmtree(pack / "vae")
    shutil.rmtree(pack / "tokenizer")
    (pack / TRANSFORMER).unlink()
    assert len(problems_of(pack)) == 3


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _swap(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


@pytest.mark.parametrize(("damage", "said"), [(_cut, "truncated"), (_swap, "git lfs pull")])
@pytest.mark.parametrize("part", WEIGHTED)
def test_damaged_weights(pack: Path, part: str, damage: Callable[[Path], None], said: str) -> None:
    """A truncated weight file or an LFS pointer is refused for any part, by its path."""
    (file,) = (pack / part).glob("*.safetensors")
    damage(file)
    (line,) = problems_of(pack)
    assert str(file) in line
    assert said in line


@pytest.mark.parametrize(
    "file",
    ["transformer/config.json", "vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer.json"],
)
def test_damaged_json(pack: Path, file: str) -> None:
    """A configuration cut off in the middle is refused before the render starts."""
    path = pack / file
    path.write_text(path.read_text(encoding="utf-8")[:20], encoding="utf-8")
    with pytest.raises(GoanError, match=path.name):
        find_pack(str(pack))


def _flip(path: Path) -> None:
    """Another last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def _space(path: Path) -> None:
    """One byte more, which no reader minds."""
    path.write_bytes(path.read_bytes() + b"\n")


def test_identity(pack: Path) -> None:
    """A pack's identity is its parts and family: a renamed pack keeps it, other weights or another family do not."""
    before = find_pack(str(pack)).identity()
    (pack / MANIFEST).write_text(MANIFEST_TEXT.replace("golden", "renamed").replace("steps: 4", "steps: 5"))
    assert find_pack(str(pack)).identity() == before
    (pack / MANIFEST).write_text(MANIFEST_TEXT.replace("inverted", "f1"))
    family = find_pack(str(pack)).identity()
    _flip(pack / TRANSFORMER)
    assert len({before, family, find_pack(str(pack)).identity()}) == 3


def test_identity_of_a_copy(pack: Path, tmp_path: Path) -> None:
    """Wherever a pack's parts lie, and whatever their folders are called, equal files have one identity."""
    lines = ["name: moved", "family: inverted"]
    for number, part in enumerate(PARTS):
        shutil.copytree(pack / part, tmp_path / "moved" / str(number))
        lines.append(f"{part}: '{number}'")
    (tmp_path / "moved" / MANIFEST).write_text("\n".join(lines))
    first, second = find_pack(str(pack)), find_pack(str(tmp_path / "moved"))
    assert first.identity() == second.identity()
    assert all(first.identity_of(part) == second.identity_of(part) for part in PARTS)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (TRANSFORMER, _flip),
        ("transformer/config.json", _space),
        ("text_encoder/model.safetensors", _flip),
        ("text_encoder/config.json", _space),
        ("text_encoder_2/model.safetensors", _flip),
        ("text_encoder_2/config.json", _space),
        ("vae/diffusion_pytorch_model.safetensors", _flip),
        ("vae/config.json", _space),
        ("image_encoder/model.safetensors", _flip),
        ("image_encoder/config.json", _space),
        ("tokenizer/tokenizer.json", _space),
        ("tokenizer_2/vocab.json", _space),
        ("tokenizer_2/merges.txt", _space),
        ("feature_extractor/preprocessor_config.json", _space),
    ],
)
def test_every_file_decides(pack: Path, file: str, change: Callable[[Path], None]) -> None:
    """Another byte in any file that a render reads makes another part and another pack, and no other part."""
    found = find_pack(str(pack))
    before, parts = found.identity(), {part: found.identity_of(part) for part in PARTS}
    change(pack / file)
    again = find_pack(str(pack))
    assert again.identity() != before
    assert [part for part in PARTS if again.identity_of(part) != parts[part]] == [file.partition("/")[0]]


@pytest.mark.parametrize("name", ["README.md", ".gitattributes", "preview.png"])
def test_files_that_no_render_reads(pack: Path, name: str) -> None:
    """A file that is neither weights nor text of a part decides nothing."""
    found = find_pack(str(pack))
    before = found.identity()
    for part in PARTS:
        (pack / part / name).write_text("x")
    assert found.identity() == before


def test_identity_of_a_renamed_text(pack: Path) -> None:
    """A configuration under another name is another configuration."""
    found = find_pack(str(pack))
    before = found.identity_of("vae")
    (pack / "vae" / "config.json").rename(pack / "vae" / "config_old.json")
    assert found.identity_of("vae") != before


def test_identity_of_a_part_that_is_one_file(pack: Path, tmp_path: Path) -> None:
    """Weights given as one file have an identity, and its bytes decide it."""
    manifest = tmp_path / "mine.yaml"
    lines = [f"{part}: pack/{part}" for part in PARTS if part != "image_encoder"]
    lines += ["image_encoder: pack/image_encoder/model.safetensors"]
    manifest.write_text("\n".join(["name: mine", "family: inverted", *lines]) + "\n")
    found = find_pack(str(manifest))
    before = found.identity_of("image_encoder")
    assert before != find_pack(str(pack)).identity_of("image_encoder")
    _flip(found.image_encoder)
    assert found.identity_of("image_encoder") != before
