"""Finding: a pack's parts, in whatever packaging and place they are, and what is told of those that are not."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from goan_cli.errors import EnvironmentFault, InvalidJobs, MissingModel
from goan_cli.files import size_text
from goan_cli.packs.find import FULL_SIZE, FoundPart, Survey, find_pack, find_part, survey_pack
from goan_cli.packs.manifest import PARTS, WEIGHTED, PartSpec, read_manifest
from goan_cli.packs.pack import Pack
from tests.cli.conftest import Goan
from tests.cli.conftest import goan as goan  # noqa: PLC0414 - a fixture
from tests.conftest import GOLDEN, MINIMAL, problems_in, write_jobs

PACKED = GOLDEN / "packed"
MODEL = "framepack-i2v"
TRANSFORMER = "diffusion_pytorch_model.safetensors"
# Where ComfyUI keeps each part, below its own folder.
COMFYUI: Mapping[str, str] = {
    "transformer": "models/diffusion_models/video/FramePackI2V_HY_bf16.safetensors",
    "text_encoder": "models/text_encoders/llava_llama3_fp16.safetensors",
    "text_encoder_2": "models/clip/clip_l.safetensors",
    "vae": "models/vae/hunyuan_video_vae_bf16.safetensors",
    "image_encoder": "models/clip_vision/sigclip_vision_patch14_384.safetensors",
    "tokenizer": "comfy/text_encoders/llama_tokenizer",
    "tokenizer_2": "comfy/sd1_tokenizer",
}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of the test's own, with a home, a hub cache and a current folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    return tmp_path


def weights(part: str) -> Path:
    """The recorded weights of a part."""
    (file,) = (PACKED / part).glob("*.safetensors")
    return file


def spec_of(part: str, model: str = MODEL) -> PartSpec:
    """Where a shipped pack's part comes from."""
    spec = read_manifest(model).parts[part].spec
    assert spec is not None
    return spec


def link(path: Path, target: Path) -> Path:
    """A link, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def snapshot(cache: Path, part: str, *, model: str = MODEL, commit: str = "c0ffee") -> Path:
    """Where a cache of the hub has a part."""
    spec = spec_of(part, model)
    return cache / f"models--{str(spec.repository).replace('/', '--')}" / "snapshots" / commit / spec.subfolder


def fill_cache(cache: Path, *parts: str) -> None:
    """Put the recorded parts (all, unless some are named) into a cache of the hub."""
    for part in parts or PARTS:
        link(snapshot(cache, part), PACKED / part)


def fill_comfyui(root: Path, *parts: str) -> None:
    """Put the recorded parts (all, unless some are named) into an installation of ComfyUI."""
    for part in parts or COMFYUI:
        link(root / COMFYUI[part], weights(part) if part in WEIGHTED else PACKED / part)


def fill_folders(root: Path, *parts: str) -> None:
    """Put the recorded parts into folders that are named as the repositories are."""
    for part in parts or PARTS:
        spec = spec_of(part)
        link(root / str(spec.repository).partition("/")[2] / spec.subfolder, PACKED / part)


def found(survey: Survey, part: str) -> FoundPart:
    """What a survey says of a part."""
    return next(each for each in survey.parts if each.part == part)


def paths_of(pack: Pack) -> dict[str, Path]:
    """Where a pack's parts are."""
    return {part: getattr(pack, part) for part in PARTS}


# Everything there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "label"),
    [
        ("hf/hub", "Hugging Face cache"),
        ("work/here/hf_download/hub", "FramePack"),
        ("home/FramePack/webui/hf_download/hub", "FramePack"),
        ("given", "GOAN_MODELS"),
        ("given/hub", "GOAN_MODELS"),
        ("given/models", "GOAN_MODELS"),
    ],
)
@pytest.mark.parametrize("fill", [fill_cache, fill_folders])
def test_folders(
    machine: Path, monkeypatch: pytest.MonkeyPatch, where: str, label: str, fill: Callable[[Path], None]
) -> None:
    """Snapshots and plain folders of every place make a complete pack, with sizes and configurations."""
    monkeypatch.setenv("GOAN_MODELS", str(machine / "given"))
    fill(machine / where)
    survey = survey_pack(MODEL)
    assert (survey.complete, survey.missing, survey.to_download) == (True, (), 0)
    assert tuple(part.part for part in survey.parts) == PARTS
    for part in survey.parts:
        assert part.place == label
        assert part.path is not None
        assert part.path.is_relative_to(machine / where)
        size = weights(part.part).stat().st_size if part.part in WEIGHTED else _size(PACKED / part.part)
        assert part.size == size
        assert part.config == (part.path / "config.json" if part.part in WEIGHTED else None)
    pack = find_pack(MODEL)
    assert paths_of(pack) == {part.part: part.path for part in survey.parts}
    assert (pack.name, pack.family, pack.window, pack.steps, pack.resolution) == (MODEL, "inverted", 9, 25, 640)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("given", ["ComfyUI", "ComfyUI/models", None])
def test_comfyui(machine: Path, monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    """ComfyUI's files and tokenizers make a complete pack, with the configurations of the full-size parts."""
    root = machine / ("home" if given is None else "") / "ComfyUI"
    fill_comfyui(root)
    if given is not None:
        monkeypatch.setenv("GOAN_MODELS", str(machine / given))
    pack = find_pack(MODEL)
    expected = {
        **{part: root / path for part, path in COMFYUI.items()},
        "feature_extractor": FULL_SIZE / "feature_extractor",
    }
    assert paths_of(pack) == expected
    assert dict(pack.configs) == {part: FULL_SIZE / f"{part}.json" for part in WEIGHTED}
    assert found(survey_pack(MODEL), "feature_extractor").place == "built in"


def test_parts_from_everywhere(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack may be gathered from several places; of a part that is in two, the more deliberate place counts."""
    monkeypatch.setenv("GOAN_MODELS", str(machine / "given"))
    fill_folders(machine / "given", "transformer", "vae")
    fill_cache(machine / "hf" / "hub", "vae", "text_encoder", "tokenizer", "feature_extractor")
    fill_comfyui(machine / "home" / "ComfyUI")
    places = {part.part: part.place for part in survey_pack(MODEL).parts}
    cached = dict.fromkeys(("text_encoder", "tokenizer", "feature_extractor"), "Hugging Face cache")
    given = dict.fromkeys(("transformer", "vae"), "GOAN_MODELS")
    assert places == {**dict.fromkeys(PARTS, "ComfyUI"), **cached, **given}


def test_folder_of_the_settings(machine: Path) -> None:
    """The folders of the user's settings are looked in."""
    fill_folders(machine / "disk")
    config = Path(os.environ["GOAN_CONFIG"])
    config.mkdir()
    (config / "config.yaml").write_text(f"models: [{machine / 'disk'}]\n")
    assert {part.place for part in survey_pack(MODEL).parts} == {"config"}


def test_shared_parts(machine: Path) -> None:
    """Both packs of FramePack use one copy of all parts but the transformer."""
    fill_cache(machine / "hf" / "hub")
    link(snapshot(machine / "hf" / "hub", "transformer", model="framepack-f1"), PACKED / "transformer")
    inverted, forward = paths_of(find_pack(MODEL)), paths_of(find_pack("framepack-f1"))
    assert [part for part in PARTS if inverted[part] != forward[part]] == ["transformer"]


def test_paths_are_absolute(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place given relative to the current folder gives paths that last when that changes."""
    fill_folders(machine / "work" / "here" / "models")
    monkeypatch.setenv("GOAN_MODELS", "models")
    pack = find_pack(MODEL)
    assert all(path.is_absolute() for path in (*paths_of(pack).values(), *pack.configs.values()))


# One of several -------------------------------------------------------------------------------------------


def _copy(part: str, folder: Path) -> None:
    """A part's files, to be damaged: the weights are links still."""
    folder.mkdir(parents=True)
    for file in (PACKED / part).iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copy(file, folder / file.name)


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str, length: int) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()[:length]
        (folder / name).unlink()
        (folder / name).write_bytes(content)

    return cut


def _broken_link(name: str) -> Callable[[Path], None]:
    def break_(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../../blobs/gone")

    return break_


def _shards(*names: str, there: int = 99) -> Callable[[Path], None]:
    """Weights in shards, of which the first is the recorded file; `there` of them exist."""

    def shard(folder: Path) -> None:
        file = weights("transformer")
        (folder / TRANSFORMER).unlink()
        mapped = dict.fromkeys(_names(file), names[0]) | {f"more.{name}": name for name in names[1:]}
        (folder / f"{TRANSFORMER}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapped}))
        for name in names[:there]:
            (folder / name).symlink_to(file)

    return shard


def _names(file: Path) -> list[str]:
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _first_shard(folder: Path) -> None:
    """What an interrupted download may leave: one of several shards, and no index yet."""
    (folder / TRANSFORMER).rename(folder / TRANSFORMER.replace(".", "-00001-of-00003."))


DAMAGES = [
    ("transformer", _without(TRANSFORMER), "holds no safetensors weights"),
    ("transformer", _without("config.json"), "lacks config.json"),
    ("transformer", _cut("config.json", 20), "config.json: not readable JSON"),
    ("transformer", _cut(TRANSFORMER, 5000), "truncated or damaged"),
    ("transformer", _cut(TRANSFORMER, 0), "the file is empty"),
    ("transformer", _broken_link(TRANSFORMER), "no such file"),
    ("transformer", _broken_link("config.json"), "lacks config.json"),
    (
        "transformer",
        _shards("a-1.safetensors", "a-2.safetensors", there=1),
        "1 of 2 shards are missing: a-2.safetensors",
    ),
    ("transformer", _shards("a-1.safetensors", there=0), "1 of 1 shards are missing"),
    ("text_encoder", _broken_link("model.safetensors"), "no such file"),
    ("transformer", _first_shard, "-00001-of-00003.safetensors"),
    ("vae", _empty, "holds no safetensors weights"),
    ("tokenizer", _without("tokenizer.json"), "lacks tokenizer.json"),
    ("tokenizer", _broken_link("tokenizer.json"), "lacks tokenizer.json"),
    ("tokenizer", _cut("tokenizer.json", 100), "tokenizer.json: not readable JSON"),
    ("tokenizer_2", _without("merges.txt"), "lacks merges.txt"),
    ("tokenizer_2", _cut("vocab.json", 100), "vocab.json: not readable JSON"),
    ("feature_extractor", _without("preprocessor_config.json"), "lacks preprocessor_config.json"),
]


@pytest.mark.parametrize(("part", "damage", "said"), DAMAGES)
def test_first_usable(
    machine: Path, monkeypatch: pytest.MonkeyPatch, part: str, damage: Callable[[Path], None], said: str
) -> None:
    """What is incomplete or damaged is passed over for a usable one further on, and told where there is none."""
    monkeypatch.setenv("GOAN_MODELS", str(machine / "given"))
    spec = spec_of(part)
    broken = machine / "given" / str(spec.repository).partition("/")[2] / spec.subfolder
    _copy(part, broken)
    damage(broken)
    alone = found(survey_pack(MODEL), part)
    assert (alone.path, alone.place) == (broken, "GOAN_MODELS")
    assert alone.problem is not None
    assert str(broken) in str(alone.problem)
    assert said in str(alone.problem)
    link(snapshot(machine / "hf" / "hub", part), PACKED / part)
    with_another = found(survey_pack(MODEL), part)
    assert with_another.problem is None
    assert with_another.path == snapshot(machine / "hf" / "hub", part)
    assert with_another.place == "Hugging Face cache"


def test_first_problem(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several unusable ones the first is told."""
    monkeypatch.setenv("GOAN_MODELS", os.pathsep.join([str(machine / "one"), str(machine / "two")]))
    for name in ("one", "two"):
        (machine / name / "FramePackI2V_HY").mkdir(parents=True)
    assert found(survey_pack(MODEL), "transformer").path == machine / "one" / "FramePackI2V_HY"


def test_shards(machine: Path) -> None:
    """A checkpoint in shards is one with all of them; else the next snapshot is taken."""
    cache = machine / "hf" / "hub"
    older, newer = (snapshot(cache, "transformer", commit=commit) for commit in ("older", "newer"))
    for folder, there in ((older, 1), (newer, 0)):
        _copy("transformer", folder)
        _shards("a-00001-of-00001.safetensors", there=there)(folder)
    refs = older.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("newer")
    part = found(survey_pack(MODEL), "transformer")
    assert (part.path, part.problem) == (older, None)
    assert part.size == weights("transformer").stat().st_size


@pytest.mark.parametrize(
    ("revision", "commit"), [("older", "older"), ("v1", "newer"), ("main", "newer"), ("gone", None)]
)
def test_revisions(machine: Path, revision: str, commit: str | None) -> None:
    """A pack of a pinned revision has that snapshot or none."""
    cache = machine / "hf" / "hub"
    for each in ("older", "newer"):
        link(snapshot(cache, "vae", commit=each), PACKED / "vae")
    refs = snapshot(cache, "vae").parent.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("newer")
    (refs / "v1").write_text("newer")
    repository = spec_of("vae").repository
    part = f"{{repository: {repository}, subfolder: vae, revision: {revision}}}"
    (machine / "pack.yaml").write_text(f"name: x\nbase: {MODEL}\nvae: {part}\n")
    expected = snapshot(cache, "vae", commit=commit) if commit else None
    assert found(survey_pack(str(machine / "pack.yaml")), "vae").path == expected


@pytest.mark.parametrize("fails", ["iterdir", "open"])
def test_unreadable_folder(machine: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """A part that the user may not read is passed over as any other unusable one."""
    monkeypatch.setenv("GOAN_MODELS", str(machine / "given"))
    fill_folders(machine / "given", "tokenizer")
    fill_cache(machine / "hf" / "hub", "tokenizer")
    real = getattr(Path, fails)

    def locked(self: Path, *rest: str, **more: str) -> object:
        if self.is_relative_to(machine / "given" / "HunyuanVideo" / "tokenizer"):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *rest, **more)

    monkeypatch.setattr(Path, fails, locked)
    part = found(survey_pack(MODEL), "tokenizer")
    assert (part.place, part.problem) == ("Hugging Face cache", None)


# The feature extractor ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "built_in"),
    [
        ("image_encoder: {file}", True),
        ("image_encoder: {{path: {file}}}", True),
        ("image_encoder: {{path: {file}, config: {packed}/image_encoder/config.json}}", False),
        ("image_encoder: {{path: {file}, config: {packed}/image_encoder}}", False),
        ("image_encoder: {packed}/image_encoder", False),
        ("image_encoder: gone.safetensors", False),
        ("image_encoder: broken.safetensors", False),
        ("image_encoder: {file}\nfeature_extractor: gone", False),
        ("image_encoder: {file}\nfeature_extractor: damaged", False),
    ],
)
def test_built_in_feature_extractor(machine: Path, manifest: str, *, built_in: bool) -> None:
    """The built-in processor serves a usable single file that is full-size, and no manifest that names another."""
    (machine / "broken.safetensors").write_bytes(b"")
    (machine / "damaged").mkdir()
    (machine / "damaged" / "preprocessor_config.json").write_text("{")
    text = manifest.format(file=weights("image_encoder"), packed=PACKED)
    (machine / "pack.yaml").write_text(f"name: x\nfamily: inverted\n{text}\n")
    part = found(survey_pack(str(machine / "pack.yaml")), "feature_extractor")
    assert (part.place == "built in", part.problem is None) == (built_in, built_in)


def test_feature_extractor_of_the_repository(machine: Path) -> None:
    """A processor that is there goes before the built-in one."""
    fill_comfyui(machine / "home" / "ComfyUI", "image_encoder")
    fill_cache(machine / "hf" / "hub", "feature_extractor")
    assert found(survey_pack(MODEL), "feature_extractor").place == "Hugging Face cache"


def test_pull_of_an_image_encoder(machine: Path) -> None:
    """Where the single file cannot be used, the processor is missing too: the repository's encoder needs it."""
    file = machine / "home" / "ComfyUI" / COMFYUI["image_encoder"]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert {part.part for part in survey_pack(MODEL).missing} >= {"image_encoder", "feature_extractor"}


# Missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["framepack-i2v", "framepack-f1"])
def test_nothing_there(model: str) -> None:
    """On an empty machine every part is missing, with what it is to download."""
    survey = survey_pack(model)
    assert [part.part for part in survey.missing] == list(PARTS)
    for part in survey.parts:
        spec = spec_of(part.part, model)
        assert (part.path, part.config, part.source, part.size) == (None, None, spec, spec.size)
        assert str(part.problem) == f"not found ({spec.repository})"
    assert survey.to_download == sum(spec_of(part, model).size for part in PARTS)
    assert 42e9 < survey.to_download < 44e9


def test_what_is_to_download(machine: Path) -> None:
    """Parts that are there, or that a manifest gives by path, are not to download."""
    fill_cache(machine / "hf" / "hub", *(part for part in PARTS if part not in {"transformer", "vae"}))
    assert survey_pack(MODEL).to_download == spec_of("transformer").size + spec_of("vae").size
    (machine / "pack.yaml").write_text(f"name: x\nbase: {MODEL}\ntransformer: gone\n")
    survey = survey_pack(str(machine / "pack.yaml"))
    assert {part.part: part.source for part in survey.missing} == {"transformer": None, "vae": spec_of("vae")}
    assert survey.to_download == spec_of("vae").size


def test_missing_model(machine: Path) -> None:
    """What is nowhere and what is broken are named, with the command that helps, and how much it downloads."""
    fill_cache(machine / "hf" / "hub", *(part for part in PARTS if part not in {"transformer", "vae", "tokenizer"}))
    _copy("tokenizer", snapshot(machine / "hf" / "hub", "tokenizer"))
    (snapshot(machine / "hf" / "hub", "tokenizer") / "tokenizer.json").unlink()
    with pytest.raises(MissingModel) as caught:
        find_pack(MODEL)
    assert caught.value.exit_code == EnvironmentFault.exit_code == 3
    said = caught.value.message
    assert said.startswith(f"{MODEL} is not complete on this machine: transformer, vae not found; ")
    assert f"{snapshot(machine / 'hf' / 'hub', 'tokenizer')}: the pack's tokenizer lacks tokenizer.json" in said
    assert not re.search(r"text_encoder|image_encoder|tokenizer_2", said)
    assert caught.value.hint == f"goan models pull {MODEL} downloads up to 26.3 GB"


def test_little_to_download(machine: Path) -> None:
    """A download of a kilobyte is not told to be none."""
    fill_cache(machine / "hf" / "hub", *(part for part in PARTS if part != "feature_extractor"))
    with pytest.raises(MissingModel) as caught:
        find_pack(MODEL)
    assert "0.0 GB" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "code", "said"),
    [
        ({}, 3, ["model"]),
        ({"steps": 0}, 2, ["model", "steps"]),
        ({"image": "gone.png"}, 2, ["model", "image"]),
        ({"stepps": 5}, 2, ["model", "stepps"]),
    ],
)
def test_plan(folder: Path, goan: Goan, keys: Mapping[str, object], code: int, said: list[str]) -> None:
    """A plan exits with the environment's code where models alone are missing, and with the input's otherwise."""
    run = goan("plan", write_jobs(folder / "job.yaml", {**MINIMAL, "model": MODEL, **keys}))
    assert run.code == code
    text = "".join(run.err.split())
    assert [word for word in said if f": {word}:".replace(" ", "") not in text] == []
    assert f"goan models pull {MODEL} downloads 4".replace(" ", "") in text


def test_plan_of_two_models(folder: Path, goan: Goan) -> None:
    """A job file is wrong where one of its models is missing and another one is no model."""
    jobs = {"jobs": [{**MINIMAL, "model": MODEL}, {**MINIMAL, "model": "framepack"}]}
    assert goan("plan", write_jobs(folder / "job.yaml", jobs)).code == 2
    assert len(problems_in(folder / "job.yaml")) == 2


# Parts by path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["config.json", ".", "{packed}/vae/config.json", "{packed}/vae"])
def test_single_file_with_its_configuration(machine: Path, config: str) -> None:
    """A single file's configuration is a file, or the folder that holds it, relative to the manifest."""
    fill_cache(machine / "hf" / "hub")
    link(machine / "my" / "vae.safetensors", weights("vae"))
    shutil.copy(PACKED / "vae" / "config.json", machine / "my" / "config.json")
    manifest = machine / "my" / "pack.yaml"
    part = f"{{path: vae.safetensors, config: {config.format(packed=PACKED)}}}"
    manifest.write_text(f"name: x\nbase: {MODEL}\nvae: {part}\n")
    pack = find_pack(str(manifest))
    assert pack.vae == machine / "my" / "vae.safetensors"
    expected = PACKED / "vae" / "config.json" if "packed" in config else machine / "my" / "config.json"
    assert pack.config_of("vae") == expected
    assert pack.transformer == snapshot(machine / "hf" / "hub", "transformer")


@pytest.mark.parametrize(
    ("vae", "said"),
    [
        ("gone", "vae: {machine}/gone: the pack's vae is missing"),
        ("~/gone", "vae: {machine}/home/gone: the pack's vae is missing"),
        ("~nobody-of-this-name/vae", "nobody-of-this-name"),
        ("x" * 300, "xxx"),
        ("{{path: {file}, config: gone.json}}", "lacks gone.json"),
        ("{{path: {file}, config: empty}}", "lacks config.json"),
        ("{{path: {file}, config: broken.json}}", "broken.json: not readable JSON"),
        ("{{path: {file}, config: ~nobody-of-this-name/c.json}}", "c.json"),
        ("broken.json", "vae: {machine}/broken.json: not a usable safetensors file"),
        ("empty", "vae: {machine}/empty: holds no safetensors weights"),
    ],
)
def test_wrong_paths(machine: Path, vae: str, said: str) -> None:
    """A part that is not where a manifest says is told there, though others are missing."""
    (machine / "empty").mkdir()
    (machine / "broken.json").write_text("{")
    text = vae.format(file=weights("vae"), machine=machine)
    (machine / "pack.yaml").write_text(f"name: x\nbase: {MODEL}\nvae: {text}\n")
    with pytest.raises(InvalidJobs) as caught:
        find_pack(str(machine / "pack.yaml"))
    (problem,) = caught.value.problems
    assert str(problem).startswith(f"{machine}/pack.yaml:3: vae: ")
    assert said.format(machine=machine) in str(problem)


def test_wrong_paths_of_a_base(machine: Path) -> None:
    """A part that a base gives by a wrong path is told in the base's manifest."""
    (machine / "base").mkdir()
    (machine / "base" / "pack.yaml").write_text(f"name: x\nbase: {MODEL}\nvae: gone\n")
    (machine / "pack.yaml").write_text("name: y\nbase: ./base\ntokenizer: gone\n")
    with pytest.raises(InvalidJobs) as caught:
        find_pack(str(machine / "pack.yaml"))
    lines = sorted(str(problem).partition(": the")[0] for problem in caught.value.problems)
    expected = [
        f"{machine}/base/pack.yaml:3: vae: {machine}/base/gone",
        f"{machine}/pack.yaml:3: tokenizer: {machine}/gone",
    ]
    assert [re.sub(r"[^/]+/\.\./", "", line) for line in lines] == expected


def test_names_of_a_pack(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack's own names of files and folders are searched for, and several packs do not disturb one another."""
    monkeypatch.setenv("GOAN_MODELS", str(machine / "given"))
    link(machine / "given" / "vae" / "My_VAE-v2.safetensors", weights("vae"))
    link(machine / "given" / "my" / "tokens", PACKED / "tokenizer")
    text = f"name: x\nbase: {MODEL}\nvae: {{repository: a/b, size: 7, names: [my_vae*.safetensors]}}\n"
    text += "tokenizer: {repository: a/b, size: 5, names: [my/tokens]}\n"
    (machine / "pack.yaml").write_text(text)
    survey = survey_pack(str(machine / "pack.yaml"))
    assert found(survey, "vae").path == machine / "given" / "vae" / "My_VAE-v2.safetensors"
    assert found(survey, "tokenizer").path == machine / "given" / "my" / "tokens"
    assert found(survey_pack(MODEL), "vae").path is None


def test_one_part(machine: Path) -> None:
    """One part can be asked for, whatever else its pack lacks; missing, it is told with its own size and all."""
    fill_cache(machine / "hf" / "hub", "vae")
    assert find_part(MODEL, "vae").path == snapshot(machine / "hf" / "hub", "vae")
    with pytest.raises(MissingModel) as caught:
        find_part(MODEL, "transformer")
    assert caught.value.message.endswith("this machine: transformer not found")
    total = size_text(survey_pack(MODEL).to_download)
    assert caught.value.hint == f"goan models pull {MODEL} downloads {total}, 25.7 GB of it for the transformer"
    fill_cache(machine / "hf" / "hub", *(part for part in PARTS if part not in {"transformer", "vae"}))
    with pytest.raises(MissingModel) as caught:
        find_part(MODEL, "transformer")
    assert caught.value.hint == f"goan models pull {MODEL} downloads 25.7 GB"


def test_embedded_packs_need_no_machine(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    """A pack of the installation is complete whatever the places are."""
    for variable in ("GOAN_MODELS", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, "~nobody-of-this-name/x")
    assert find_pack("tiny").name == "tiny"
