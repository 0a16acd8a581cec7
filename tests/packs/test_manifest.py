"""Manifests: what a pack is made of, what it takes from its base, and everything that is wrong with one."""

import json
from pathlib import Path

import pytest

from goan_cli.errors import InvalidInput, InvalidJobs
from goan_cli.packs.manifest import PARTS, SHIPPED, Manifest, own_folder, read_manifest
from tests.conftest import GOLDEN

REPOSITORY = "someone/some-model_1.0"


def write(path: Path, text: str) -> Path:
    """A manifest; without a family or a base of its own it is an inverted one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if "family:" not in text and "base:" not in text:
        text += "\nfamily: inverted\n"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(model: str | Path, folder: Path) -> list[str]:
    """What is wrong with a manifest, files relative to a folder."""
    with pytest.raises(InvalidJobs) as caught:
        read_manifest(str(model))
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


def keys_of(manifest: Manifest, part: str) -> dict[str, object] | None:
    """What is said of a part, if anything."""
    spec = manifest.parts[part].spec
    return None if spec is None else spec.model_dump(mode="json", exclude_defaults=True)


# Which manifest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_packs(name: str) -> None:
    """Every shipped pack has its own name, and its parts come from a repository, or all lie beside the manifest."""
    manifest = read_manifest(name)
    assert (manifest.name, manifest.family) == (name, "f1" if "f1" in name else "inverted")
    assert set(manifest.parts) == set(PARTS)
    specs = [origin.spec for origin in manifest.parts.values()]
    assert all(spec and spec.repository for spec in specs) or not any(spec and spec.repository for spec in specs)


def test_packs_of_framepack() -> None:
    """Both FramePack packs have the same parts and licenses but for transformers, which are as large as designed."""
    inverted, forward = read_manifest("framepack-i2v"), read_manifest("framepack-f1")
    assert [part for part in PARTS if inverted.parts[part] != forward.parts[part]] == ["transformer"]
    assert inverted.license == forward.license
    assert "Tencent Hunyuan" in forward.license
    shapes = json.loads((GOLDEN / "full_size_keys.json").read_text())
    bf16 = 2 * sum(_count(shape) for shape in shapes.get("shapes", shapes).values())
    for manifest in (inverted, forward):
        spec = manifest.parts["transformer"].spec
        assert spec is not None
        assert spec.size == pytest.approx(bf16, rel=1e-3)


def _count(shape: list[int]) -> int:
    return shape[0] * _count(shape[1:]) if shape else 1


@pytest.mark.parametrize("spelling", ["mine", "{folder}", "{folder}/", "{folder}/pack.yaml", "~/pack", "./mine.yaml"])
def test_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    """A pack is the name of an own one, a folder, or a manifest anywhere; ~ is the user's home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(own_folder() / "mine.yaml", "name: mine")
    write(tmp_path / "pack" / "pack.yaml", "name: mine")
    write(tmp_path / "mine.yaml", "name: mine")
    manifest = read_manifest(spelling.format(folder=tmp_path / "pack"))
    assert manifest.name == "mine"
    assert manifest.file.is_absolute()
    here = {"mine": own_folder(), "./mine.yaml": tmp_path}.get(spelling, tmp_path / "pack")
    assert manifest.file.parent == here


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Neither an own pack nor a folder or file of the current folder takes the name of a shipped one."""
    monkeypatch.chdir(tmp_path)
    write(own_folder() / f"{name}.yaml", "name: other")
    write(tmp_path / name / "pack.yaml", "name: other")
    assert read_manifest(name).name == name


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("mime", "no model pack named mime (did you mean mine?"),
        ("~nobody-of-this-name/pack.yaml", "nobody-of-this-name/pack.yaml"),
        ("./" + "x" * 300, "xxx"),
        ("x" * 300, "xxx"),
        ("./a\0b", "no such model pack"),
        ("", ""),
    ],
)
def test_models_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, said: str) -> None:
    """Whatever text names no manifest is refused in words."""
    monkeypatch.chdir(tmp_path)
    write(own_folder() / "mine.yaml", "name: mine")
    with pytest.raises(InvalidInput) as caught:
        read_manifest(model)
    assert said in str(caught.value)


def test_files_beside_own_packs(tmp_path: Path) -> None:
    """Folders and other files among the own packs are no packs."""
    (own_folder() / "folder.yaml").mkdir(parents=True)
    write(own_folder() / "note.txt", "name: note")
    for name in ("folder", "note"):
        with pytest.raises(InvalidInput):
            read_manifest(name)


# Parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("vae", {"path": "vae"}),
        ("~/parts/vae", {"path": "~/parts/vae"}),
        ("../vae.safetensors", {"path": "../vae.safetensors"}),
        ("{path: vae.safetensors}", {"path": "vae.safetensors"}),
        ("{path: a.safetensors, config: a.json}", {"path": "a.safetensors", "config": "a.json"}),
        (f"{{repository: {REPOSITORY}}}", {"repository": REPOSITORY}),
        (f"{{repository: {REPOSITORY}, subfolder: a/b}}", {"repository": REPOSITORY, "subfolder": "a/b"}),
        (f"{{repository: {REPOSITORY}, revision: refs/pr/1}}", {"repository": REPOSITORY, "revision": "refs/pr/1"}),
        (f"{{repository: {REPOSITORY}, size: 0x10}}", {"repository": REPOSITORY, "size": 16}),
        (f"{{repository: {REPOSITORY}, names: [a*, b/c]}}", {"repository": REPOSITORY, "names": ["a*", "b/c"]}),
    ],
)
def test_forms_of_a_part(tmp_path: Path, text: str, keys: dict[str, object]) -> None:
    """A part is a path, keys with a path, or keys with a repository; keys written again are the same ones."""
    manifest = read_manifest(str(write(tmp_path / "pack.yaml", f"name: x\nvae: {text}")))
    assert keys_of(manifest, "vae") == keys
    assert keys_of(manifest, "transformer") is None
    assert manifest.parts["vae"].root == tmp_path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("family: f2", "pack.yaml:2: family: must be 'inverted' or 'f1', not 'f2'"),
        ("vea: x", "pack.yaml:2: vea: unknown key (did you mean vae?)"),
        ("license: 3", "pack.yaml:2: license: must be text"),
        ("defaults: 3", "pack.yaml:2: defaults: must be keys and values"),
        ("defaults:\n  steps: 1.5", "pack.yaml:3: defaults.steps: must be a whole number"),
        ("vae: 3", "pack.yaml:2: vae: must be keys and values"),
        ("vae: [a]", "pack.yaml:2: vae: must be keys and values"),
        ("vae: {}", "pack.yaml:2: vae: needs either a path or a repository"),
        ("vae: {path: ''}", "pack.yaml:2: vae.path: must be more than empty text"),
        ("vae: {path: 3}", "pack.yaml:2: vae.path: must be text"),
        ("vae:\n  path: a\n  confg: b", "pack.yaml:4: vae.confg: unknown key (did you mean config?)"),
        ("vae: {config: a}", "pack.yaml:2: vae: needs either a path or a repository"),
        ("vae: {path: a, repository: b/c}", "pack.yaml:2: vae: needs either a path or a repository"),
        ("vae: {path: a, size: 0}", "pack.yaml:2: vae: subfolder, revision, size and names belong to a repository"),
        ("vae: {repository: b/c, config: a.json}", "pack.yaml:2: vae"),
        ("vae: {repository: 3}", "pack.yaml:2: vae.repository: must be text"),
        ("vae: {repository: b}", "pack.yaml:2: vae.repository: "),
        ("vae: {repository: a/b/c}", "pack.yaml:2: vae.repository: "),
        ("vae: {repository: 'https://huggingface.co/b/c'}", "pack.yaml:2: vae.repository: "),
        ("vae: {repository: ../c}", "pack.yaml:2: vae.repository: "),
        ("vae: {repository: b/..}", "pack.yaml:2: vae.repository: "),
        ("vae: {repository: b/c, size: -1}", "pack.yaml:2: vae.size: must be greater than or equal to 0"),
        ("vae: {repository: b/c, size: 1.5}", "pack.yaml:2: vae.size: must be a whole number"),
        ("vae: {repository: b/c, size: true}", "pack.yaml:2: vae.size: must be a whole number"),
        ("vae: {repository: b/c, names: a}", "pack.yaml:2: vae.names: must be a list"),
        ("vae: {repository: b/c, names: ['']}", "pack.yaml:2: vae.names[0]: must be more than empty text"),
        ("vae: {repository: b/c, subfolder: ../a}", "pack.yaml:2: vae.subfolder: "),
        ("vae: {repository: b/c, subfolder: a/../../b}", "pack.yaml:2: vae.subfolder: "),
        ("vae: {repository: b/c, subfolder: /a}", "pack.yaml:2: vae.subfolder: "),
        ("vae: {repository: b/c, revision: ''}", "pack.yaml:2: vae.revision: "),
        ("vae: {repository: b/c, revision: ../a}", "pack.yaml:2: vae.revision: "),
        ("vae: {repository: b/c, revision: /a}", "pack.yaml:2: vae.revision: "),
        ("vae: {repository: b/c, names: [../a]}", "pack.yaml:2: vae.names[0]: "),
        ("vae: {repository: b/c, names: [a, b/../../c]}", "pack.yaml:2: vae.names[1]: "),
        ("vae: {repository: b/c, names: [/a]}", "pack.yaml:2: vae.names[0]: "),
        ("vae: {repository: b/c, size: 1, size: 2}", "pack.yaml:2: vae.size: given twice"),
    ],
)
def test_refused(tmp_path: Path, text: str, said: str) -> None:
    """Each mistake is told once, with file, line and key."""
    manifest = write(tmp_path / "pack.yaml", f"name: x\n{text}")
    (line,) = problems_of(manifest, tmp_path)
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("text", "said"), [("family: f1", "name: missing"), ("name: x\nbase: ''", "base: must be more")]
)
def test_missing(tmp_path: Path, text: str, said: str) -> None:
    """A manifest needs its name, and a base that is one."""
    lines = problems_of(write(tmp_path / "pack.yaml", text), tmp_path)
    assert any(said in line for line in lines)


def test_missing_family(tmp_path: Path) -> None:
    """A manifest needs a family or a base that has one."""
    (tmp_path / "pack.yaml").write_text("name: x\nvae: y\n")
    assert problems_of(tmp_path, tmp_path) == ["pack.yaml:1: family: missing: inverted or f1"]


def test_everything_at_once(tmp_path: Path) -> None:
    """What is wrong with keys, parts and the whole of a manifest is told in one go."""
    (tmp_path / "pack.yaml").write_text("name: 3\nvea: y\nvae: {}\ntokenizer: {path: a, repository: b/c, sise: 1}\n")
    lines = problems_of(tmp_path, tmp_path)
    expected = ("1: family: missing", "1: name: ", "2: vea: ", "3: vae: needs", "4: tokenizer.sise: ")
    assert [text for text in expected if not any(line.startswith(f"pack.yaml:{text}") for line in lines)] == []


# Bases ----------------------------------------------------------------------------------------------------


def test_base(tmp_path: Path) -> None:
    """What a manifest does not say comes from its base, and each part lies relative to where it was written."""
    write(
        tmp_path / "a" / "pack.yaml", "name: a\nfamily: f1\nlicense: free\nvae: v\ntokenizer: t\ndefaults: {steps: 7}"
    )
    write(tmp_path / "b" / "mid.yaml", f"name: b\nbase: ../a\nvae: w\nimage_encoder: {{repository: {REPOSITORY}}}")
    top = read_manifest(str(write(tmp_path / "c" / "top.yaml", "name: c\nbase: ../b/mid.yaml\ntokenizer: u")))
    assert (top.name, top.family, top.license, top.defaults.steps) == ("c", "f1", "free", 7)
    assert top.file == tmp_path / "c" / "top.yaml"
    where = {part: top.parts[part].document.file for part in PARTS}
    expected = {"tokenizer": "c/top.yaml", "vae": "b/../b/mid.yaml", "image_encoder": "b/mid.yaml"}
    for part in PARTS:
        origin, file = top.parts[part], where[part]
        assert file is not None
        assert file.samefile(tmp_path / expected.get(part, "a/pack.yaml"))
        assert origin.root.samefile(file.parent)
    assert keys_of(top, "vae") == {"path": "w"}
    assert keys_of(top, "tokenizer") == {"path": "u"}
    assert keys_of(top, "transformer") is None


def test_said_over_the_base(tmp_path: Path) -> None:
    """What a manifest says goes before its base; a default that it does not name is still the base's."""
    write(tmp_path / "a.yaml", "name: a\nfamily: f1\nlicense: free\ndefaults: {steps: 7, window: 3}")
    text = "name: b\nbase: ./a.yaml\nfamily: inverted\nlicense: mine\ndefaults: {steps: 8}"
    manifest = read_manifest(str(write(tmp_path / "b.yaml", text)))
    assert (manifest.family, manifest.license, manifest.defaults.steps) == ("inverted", "mine", 8)
    assert (manifest.defaults.window, manifest.defaults.resolution) == (3, 640)


@pytest.mark.parametrize("base", ["tiny", "mine", "./beside.yaml", "../other", "~/other/pack.yaml", "{folder}/other"])
def test_names_of_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    """A base is named as a model is, and a path is relative to the manifest, wherever the user is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    for file in (own_folder() / "mine.yaml", tmp_path / "x" / "beside.yaml", tmp_path / "other" / "pack.yaml"):
        write(file, "name: base\nfamily: inverted")
    manifest = write(tmp_path / "x" / "x.yaml", f"name: x\nbase: '{base.format(folder=tmp_path)}'")
    assert read_manifest(str(manifest)).family == "inverted"


@pytest.mark.parametrize("base", ["other.yaml", "other"])
def test_base_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    """What a manifest means does not depend on the current folder."""
    write(tmp_path / "away" / "other.yaml", "name: other")
    write(tmp_path / "away" / "other" / "pack.yaml", "name: other")
    monkeypatch.chdir(tmp_path / "away")
    manifest = write(tmp_path / "x.yaml", f"name: x\nbase: {base}")
    (line,) = problems_of(manifest, tmp_path)
    assert line.startswith(f"x.yaml:2: base: no model pack named {base}")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("tinny", "no model pack named tinny (did you mean tiny?"),
        ("./gone.yaml", "gone.yaml: no such model pack"),
        ("./empty", "empty: holds no pack.yaml"),
        ("~nobody-of-this-name/x.yaml", "nobody-of-this-name"),
        ("./" + "x" * 300, "xxx"),
    ],
)
def test_bases_that_are_none(tmp_path: Path, base: str, said: str) -> None:
    """A base that is not there is told where it is named."""
    (tmp_path / "empty").mkdir()
    (line,) = problems_of(write(tmp_path / "x.yaml", f"name: x\nbase: {base}"), tmp_path)
    assert line.startswith("x.yaml:2: base: ")
    assert said in line


def test_problems_of_a_base(tmp_path: Path) -> None:
    """What is wrong with a base is told in its own file."""
    write(tmp_path / "a.yaml", "name: a\nfamily: f1\nvea: x")
    (line,) = problems_of(write(tmp_path / "b.yaml", "name: b\nbase: ./a.yaml"), tmp_path)
    assert line.startswith("a.yaml:3: vea: unknown key")


@pytest.mark.parametrize(
    "bases",
    [
        {"a/a.yaml": "./a.yaml"},
        {"a/a.yaml": "../a/a.yaml"},
        {"a/a.yaml": "./../a/./a.yaml"},
        {"a/a.yaml": "../link/a.yaml"},
        {"a/a.yaml": "../b/pack.yaml", "b/pack.yaml": "../a/a.yaml"},
        {"a/a.yaml": "../b", "b/pack.yaml": "../c/c.yaml", "c/c.yaml": "../b"},
        {"a/a.yaml": "mine", "config/packs/mine.yaml": "mine"},
        {"a/a.yaml": "mine", "config/packs/mine.yaml": "../../a/a.yaml"},
    ],
)
def test_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bases: dict[str, str]) -> None:
    """Packs that build on themselves, by whatever path, are refused where the loop closes."""
    monkeypatch.setenv("GOAN_CONFIG", str(tmp_path / "config"))
    for file, base in bases.items():
        write(tmp_path / file, f"name: x\nbase: {base}")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (line,) = problems_of(tmp_path / "a" / "a.yaml", tmp_path)
    assert ".yaml:2: base: this pack builds on itself" in line


def test_a_base_used_twice_is_no_loop(tmp_path: Path) -> None:
    """Two packs may build on one."""
    write(tmp_path / "a.yaml", "name: a\nfamily: f1")
    for name in ("b", "c"):
        assert read_manifest(str(write(tmp_path / f"{name}.yaml", f"name: {name}\nbase: ./a.yaml"))).family == "f1"
