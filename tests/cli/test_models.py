"""`goan models list`, `path`, `verify` and `import`, on full-size headers without their data."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from goan_cli.packs.find import find_pack
from goan_cli.packs.manifest import PARTS, SHIPPED, own_folder
from goan_cli.packs.places import snapshots_of
from goan_cli.tensorfile import TensorEntry, read_header
from tests.cli.conftest import Goan, Run, content_of
from tests.headers import (
    COMMIT,
    full_size_tensors,
    write_headers,
    write_hub_cache,
    write_part,
)
from tests.packs.hub import FRAMEPACK, HUNYUAN

I2V = "FramePackI2V_HY_bf16.safetensors"
F1 = "FramePack_F1_I2V_HY_20250503_bf16.safetensors"
VAE = "hunyuan_video_vae_bf16.safetensors"
CLIP = "clip_l.safetensors"
LLAMA = "llava_llama3_fp16.safetensors"
SIGLIP = "sigclip_vision_patch14_384.safetensors"
FINETUNE = "finetune.safetensors"
Tensors = dict[str, TensorEntry]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what a user may have: full-size single files, right and wrong, and folders."""
    root = tmp_path_factory.mktemp("shelf")
    transformer = full_size_tensors("transformer")
    for name in (I2V, F1, FINETUNE):
        write_headers(root / name, transformer)
    write_headers(root / VAE, full_size_tensors("vae"))
    write_headers(root / CLIP, full_size_tensors("text_encoder_2"))
    write_headers(root / LLAMA, {f"model.{name}": entry for name, entry in full_size_tensors("text_encoder").items()})
    write_headers(root / SIGLIP, full_size_tensors("image_encoder"))
    fp8 = {
        name: TensorEntry(dtype="F8_E4M3" if len(entry.shape) > 1 else entry.dtype, shape=entry.shape)
        for name, entry in transformer.items()
    }
    write_headers(root / "FramePackI2V_HY_fp8_e4m3fn.safetensors", fp8)
    renamed = {name.replace("blocks.7.attn.to_q.w", "blocks.7.attn.to_query.w"): e for name, e in transformer.items()}
    write_headers(root / "FramePackI2V_HY_renamed.safetensors", renamed)
    down, up = TensorEntry(dtype="F32", shape=(16, 3072)), TensorEntry(dtype="F32", shape=(3072, 16))
    lora = {
        f"lora_unet_transformer_blocks_{n}_attn_to_q.lora_{k}.weight": e
        for n in range(4)
        for k, e in (("down", down), ("up", up))
    }
    write_headers(root / "FramePackI2V_HY_style.safetensors", lora)
    for part in ("tokenizer", "tokenizer_2", "feature_extractor"):
        write_part(part, root / part)
    return root


@pytest.fixture(scope="module")
def whole_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache that holds the whole of `framepack-i2v`, headers only."""
    cache = tmp_path_factory.mktemp("cache")
    write_hub_cache(cache)
    return cache


@pytest.fixture
def cached(whole_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That cache in use, not to be changed."""
    monkeypatch.setenv("HF_HUB_CACHE", str(whole_cache))
    return whole_cache


@pytest.fixture
def own_cache(whole_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache in use, to be changed as one likes."""
    cache = tmp_path / "hub"
    shutil.copytree(whole_cache, cache, symlinks=True, copy_function=_copied)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    return cache


def _copied(source: str, target: str) -> None:
    """Copy a file, of a large one the first MB and a hole."""
    with Path(source).open("rb") as read, Path(target).open("wb") as write:
        write.write(read.read(1_000_000))
        write.truncate(Path(source).stat().st_size)


def snapshot(repository: str, cache: Path) -> Path:
    """The folder of a repository's files in a cache that `write_hub_cache` wrote."""
    return snapshots_of(repository, cache) / "snapshots" / COMMIT


def listed(run: Run) -> dict[str, dict[str, Any]]:
    """What `list --json` says, by model."""
    return {pack["model"]: pack for pack in json.loads(run.out)}


def parts_of(pack: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A listed pack's parts by name."""
    return {part["part"]: part for part in pack["parts"]}


def write_own(name: str, text: str) -> Path:
    """A manifest in the folder of the user's own packs."""
    own_folder().mkdir(parents=True, exist_ok=True)
    file = own_folder() / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def written() -> dict[str, bytes | None]:
    """What lies in the user's folder of settings."""
    return content_of(own_folder().parent)


# list -----------------------------------------------------------------------------------------------------


def test_nothing_there(goan: Goan) -> None:
    """Without any model the embedded packs are complete, and of the others all is missing, with size and command."""
    run = goan("models", "list")
    assert (run.code, run.err) == (0, "")
    assert "tiny (inverted): complete" in run.out
    assert "tiny-f1 (f1): complete" in run.out
    for pack in ("framepack-i2v", "framepack-f1"):
        assert f"not complete, 42.4 GB to download: goan models pull {pack}" in run.out
    assert run.out.count("not found (hunyuanvideo-community/HunyuanVideo)") == 10
    assert "Tencent Hunyuan Community License" in run.out


def test_where_parts_were_found(
    cached: Path, shelf: Path, tmp_path: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is told with its place: GOAN_MODELS before the hub's cache before ComfyUI's folders."""
    mine, comfy = tmp_path / "my [red]models", tmp_path / "ComfyUI" / "models"
    for source, folder in ((VAE, mine), (SIGLIP, mine), (F1, comfy / "unet"), (CLIP, comfy / "text_encoders")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / source).symlink_to(shelf / source)
    monkeypatch.setenv("GOAN_MODELS", str(mine))
    monkeypatch.chdir(tmp_path)
    run = goan("models", "list", "--json")
    assert (run.code, run.err) == (0, "")
    packs = listed(run)
    assert list(packs) == list(SHIPPED)
    assert all(pack["complete"] and pack["to_download"] == 0 for pack in packs.values())
    i2v, f1 = parts_of(packs["framepack-i2v"]), parts_of(packs["framepack-f1"])
    assert set(i2v) == set(PARTS)
    assert (packs["framepack-f1"]["family"], packs["framepack-f1"]["name"]) == ("f1", "framepack-f1")
    assert {part: (f1[part]["place"], f1[part]["path"]) for part in ("transformer", "vae", "image_encoder")} == {
        "transformer": ("ComfyUI", str(comfy / "unet" / F1)),
        "vae": ("GOAN_MODELS", str(mine / VAE)),
        "image_encoder": ("GOAN_MODELS", str(mine / SIGLIP)),
    }
    assert i2v["transformer"]["place"] == i2v["text_encoder_2"]["place"] == "Hugging Face cache"
    assert i2v["transformer"]["path"] == str(snapshot(FRAMEPACK, cached))
    assert i2v["text_encoder"]["path"] == str(snapshot(HUNYUAN, cached) / "text_encoder")
    assert i2v["transformer"]["repository"] == FRAMEPACK
    assert (i2v["vae"]["subfolder"], i2v["vae"]["revision"]) == ("vae", "main")
    assert 25.7e9 < i2v["transformer"]["size"] < 25.8e9
    assert all(part["problem"] is None for part in i2v.values())

    run = goan("models", "list", "framepack-i2v")
    assert "framepack-i2v (inverted): complete, 42.4 GB" in run.out
    line = next(line for line in run.out.splitlines() if line.split()[:1] == ["vae"])
    assert line.split(maxsplit=4)[1:4] == ["493", "MB", "GOAN_MODELS"]


def test_long_paths_stay_whole(cached: Path, goan: Goan) -> None:
    """Where it is no terminal, every path stands in one line, to be searched for and copied."""
    out = goan("models", "list", "framepack-i2v").out
    for part in ("text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2"):
        assert str(snapshot(HUNYUAN, cached) / part) in out


def test_incomplete_parts(own_cache: Path, goan: Goan) -> None:
    """A part that lacks a shard is told with the shard, and what is to download is that part."""
    (snapshot(FRAMEPACK, own_cache) / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    run = goan("models", "list", "framepack-i2v")
    assert run.code == 0
    assert "not complete, 25.7 GB to download: goan models pull framepack-i2v" in run.out
    assert "1of3shardsaremissing:diffusion_pytorch_model-00002-of-00003" in "".join(run.out.split())
    (pack,) = listed(goan("models", "list", "framepack-i2v", "--json")).values()
    assert (pack["complete"], pack["to_download"]) == (False, 25_748_800_000)
    assert "00002-of-00003" in parts_of(pack)["transformer"]["problem"]


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_broken_own_packs(goan: Goan, form: Sequence[str]) -> None:
    """Broken manifests of the user's are an error line for each problem and exit code 2; the others are listed."""
    write_own("torn", "name: [\n")
    wrong = write_own("wrong", "name: wrong\nbase: framepack-i2v\nvaee: x\ntransformr: y\n")
    write_own("right", "name: right\nbase: tiny\n")
    (own_folder() / "gone.yaml").symlink_to("/nowhere/gone.yaml")
    run = goan("models", "list", *form)
    assert run.code == 2
    lines = run.err.splitlines()
    assert all(line.startswith("error: ") for line in lines), lines
    assert len(lines) == 4
    assert sum(f"{wrong}:3: vaee: unknown key" in line for line in lines) == 1
    if form:
        assert list(listed(run)) == [*SHIPPED, "right"]
    else:
        assert all(f"{name} (" in run.out for name in (*SHIPPED, "right"))


def test_list_by_argument(cached: Path, tmp_path: Path, goan: Goan) -> None:
    """Packs are named, given as folders or as manifests; one that is not there ends with 2 after the others."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "pack.yaml").write_text("name: a folder\nbase: framepack-i2v\n")
    manifest = folder / "other.yaml"
    manifest.write_text("name: a file\nbase: framepack-f1\nvae: gone\n")
    run = goan("models", "list", "tiny", folder, manifest, "framepack-i3v", "--json")
    assert run.code == 2
    assert "no model pack named framepack-i3v" in run.err
    assert "did you mean framepack-i2v?" in run.err
    packs = listed(run)
    assert list(packs) == ["tiny", str(folder), str(manifest)]
    assert [pack["name"] for pack in packs.values()] == ["tiny", "a folder", "a file"]
    assert [pack["complete"] for pack in packs.values()] == [True, True, False]
    assert packs[str(folder)]["manifest"] == str(folder / "pack.yaml")
    vae = parts_of(packs[str(manifest)])["vae"]
    assert (vae["place"], vae["repository"]) == ("manifest", None)
    assert f"{folder / 'gone'}: the pack's vae is missing" in vae["problem"]
    assert "goan models pull" not in goan("models", "list", manifest).out  # it would not help


# path -----------------------------------------------------------------------------------------------------


def test_path(cached: Path, goan: Goan) -> None:
    """`path` prints a line a part, or one path alone."""
    pack = find_pack("framepack-i2v")
    run = goan("models", "path", "framepack-i2v")
    assert (run.code, run.err) == (0, "")
    assert [line.split("\t") for line in run.out.splitlines()] == [[p, str(getattr(pack, p))] for p in PARTS]
    run = goan("models", "path", "framepack-i2v", "vae")
    assert (run.code, run.out) == (0, f"{pack.vae}\n")


def test_path_of_what_is_missing(own_cache: Path, goan: Goan) -> None:
    """Of an incomplete pack a part that is there is told, one that is not ends with 3, and so do all together."""
    shutil.rmtree(snapshots_of(FRAMEPACK, own_cache))
    assert goan("models", "path", "framepack-i2v", "vae").code == 0
    for arguments in (("transformer",), ()):
        run = goan("models", "path", "framepack-i2v", *arguments)
        assert (run.code, run.out) == (3, "")
        assert "transformer not found" in run.err
        assert "goan models pull framepack-i2v downloads 25.7 GB" in run.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("framepack-i2v", "transfromer"), "did you mean transformer?"),
        (("framepack-i2v", "name"), "no part named name"),
        (("frampack-i2v",), "did you mean framepack-i2v?"),
        (("./nowhere", "vae"), "nowhere: no such model pack"),
    ],
)
def test_path_of_what_is_unknown(goan: Goan, arguments: Sequence[str], text: str) -> None:
    """Unknown packs and parts end with 2, and the nearest is offered."""
    run = goan("models", "path", *arguments)
    assert (run.code, run.out) == (2, "")
    assert text in run.err


# verify ---------------------------------------------------------------------------------------------------


def _edit(file: Path, edit: Callable[[Tensors], Tensors]) -> None:
    write_headers(file.resolve(), edit(dict(read_header(file).entries)))


def test_verify(own_cache: Path, goan: Goan) -> None:
    """A full-size pack in a hub cache is right; then everything that is done to it is named, all at once."""
    run = goan("models", "verify", "framepack-i2v")
    assert (run.code, run.err) == (0, "")
    assert [line.split()[:2] for line in run.out.splitlines()] == [[part, "right"] for part in PARTS]

    transformer, hunyuan = snapshot(FRAMEPACK, own_cache), snapshot(HUNYUAN, own_cache)
    (shard,) = (
        f for f in transformer.glob("*.safetensors") if "context_embedder.proj_in.bias" in read_header(f).entries
    )
    _edit(shard, lambda tensors: {n.replace("r.proj_in.bias", "r.proj_inn.bias"): e for n, e in tensors.items()})
    wide = TensorEntry(dtype="F16", shape=(3, 128, 3, 3, 2))
    vae = hunyuan / "vae" / "diffusion_pytorch_model.safetensors"
    _edit(vae, lambda tensors: {**tensors, "decoder.conv_out.conv.weight": wide})
    removed = hunyuan / "text_encoder" / "model-00002-of-00004.safetensors"
    removed.unlink()
    clip = hunyuan / "text_encoder_2" / "model.safetensors"
    os.truncate(clip.resolve(), 100_000)
    run = goan("models", "verify", "framepack-i2v", "--json")
    assert run.code == 1
    told = json.loads(run.out)
    assert (told["pack"], told["right"], set(told["faults"])) == ("framepack-i2v", False, set(PARTS))
    faults = {part: texts for part, texts in told["faults"].items() if texts}
    assert {part: len(texts) for part, texts in faults.items()} == {
        "transformer": 2,
        "vae": 1,
        "text_encoder": 1,
        "text_encoder_2": 1,
    }
    missing, surplus = faults["transformer"]
    assert missing == f"{shard}: context_embedder.proj_in.bias is missing"
    assert surplus.startswith(f"{shard}: context_embedder.proj_inn.bias is not of this architecture")
    assert faults["vae"] == [
        f"{vae}: decoder.conv_out.conv.weight has the shape [3, 128, 3, 3, 2] instead of [3, 128, 3, 3, 3]"
    ]
    assert faults["text_encoder"][0].startswith(f"{removed}: this shard is missing")
    assert faults["text_encoder_2"][0].startswith(f"{clip}: ")

    run = goan("models", "verify", "framepack-i2v")
    assert run.code == 1
    for text in (text for texts in faults.values() for text in texts):
        assert text in run.out
    assert sum(line.split()[1:2] == ["wrong"] for line in run.out.splitlines()) == 4


def test_verify_what_is_missing(own_cache: Path, goan: Goan) -> None:
    """Parts that are nowhere are wrong too."""
    shutil.rmtree(snapshots_of(FRAMEPACK, own_cache))
    run = goan("models", "verify", "framepack-i2v", "--json")
    assert run.code == 1
    told = json.loads(run.out)["faults"]
    assert {part: texts for part, texts in told.items() if texts} == {"transformer": [f"not found ({FRAMEPACK})"]}


@pytest.mark.parametrize("model", ["framepack-i3v", "./nowhere", ""])
def test_verify_unknown_packs(goan: Goan, model: str) -> None:
    """An unknown pack is no fault of its files: exit code 2."""
    run = goan("models", "verify", model, "--json")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ")


def test_verify_hashes_of_what_has_none(goan: Goan) -> None:
    """Files outside of the hub's cache have no hash to be compared with, and that is said."""
    run = goan("models", "verify", "tiny", "--sha256", "--json")
    assert run.code == 0
    told = json.loads(run.out)
    assert len(told["without_hash"]) >= 10
    run = goan("models", "verify", "tiny", "--sha256")
    assert run.code == 0
    assert f"{len(told['without_hash'])} files are not in the hub's cache" in run.out


# import ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "base", "family"), [(I2V, "framepack-i2v", "inverted"), (F1, "framepack-f1", "f1")])
def test_import_by_name(cached: Path, shelf: Path, goan: Goan, file: str, base: str, family: str) -> None:
    """A transformer whose name says its family becomes a pack that is listed, planned with, and removed as a file."""
    run = goan("models", "import", "mine", "--transformer", shelf / file)
    assert (run.code, run.err) == (0, "")
    manifest = own_folder() / "mine.yaml"
    assert f"{manifest}, based on {base}" in run.out
    assert yaml.safe_load(manifest.read_text()) == {
        "version": 1,
        "name": "mine",
        "base": base,
        "transformer": str(shelf / file),
    }
    (pack,) = listed(goan("models", "list", "mine", "--json")).values()
    assert (pack["family"], pack["complete"], pack["manifest"]) == (family, True, str(manifest))
    assert parts_of(pack)["transformer"]["path"] == str(shelf / file)
    assert "mine (" in goan("models", "list").out
    run = goan("plan", "--image", "tests/data/golden/packed/image_0.png", "--prompt", "a ball", "--model", "mine")
    assert run.code == 0
    assert f"mine ({family})" in run.out
    manifest.unlink()
    assert goan("models", "list", "mine").code == 2
    assert "mine" not in listed(goan("models", "list", "--json"))


def test_import_every_part(shelf: Path, tmp_path: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack of ComfyUI's files and folders only is complete where nothing else is; relative paths become absolute."""
    monkeypatch.chdir(shelf)
    before = set(content_of(tmp_path))
    options = {
        "--transformer": FINETUNE,
        "--text-encoder": LLAMA,
        "--text-encoder-2": CLIP,
        "--vae": VAE,
        "--image-encoder": SIGLIP,
        "--tokenizer": "tokenizer",
        "--tokenizer-2": "tokenizer_2",
        "--base": "framepack-f1",
    }
    words = [word for pair in options.items() for word in pair]
    run = goan("models", "import", "all", *words, "--out", tmp_path / "packs" / "all.yaml")
    assert run.code == 0, run
    assert "complete, 42.4 GB" in run.out
    assert set(content_of(tmp_path)) - before == {"packs", "packs/all.yaml"}
    assert not written()
    monkeypatch.chdir(tmp_path)
    pack = find_pack("./packs/all.yaml")
    assert (pack.family, pack.transformer, pack.tokenizer) == ("f1", shelf / FINETUNE, shelf / "tokenizer")
    assert goan("models", "verify", "packs/all.yaml").code == 0


def test_import_on_an_own_pack(cached: Path, shelf: Path, tmp_path: Path, goan: Goan) -> None:
    """A pack can be made on top of an imported one, or of a manifest that is given with a slash."""
    assert goan("models", "import", "first", "--transformer", shelf / F1).code == 0
    assert goan("models", "import", "second", "--vae", shelf / VAE, "--base", "first").code == 0
    pack = find_pack("second")
    assert (pack.family, pack.transformer, pack.vae) == ("f1", shelf / F1, shelf / VAE)
    manifest = tmp_path / "other.yaml"
    manifest.write_text("name: other\nbase: second\n")
    assert goan("models", "import", "third", "--text-encoder-2", shelf / CLIP, "--base", manifest).code == 0
    assert find_pack("third").vae == shelf / VAE


def test_incomplete_import(shelf: Path, goan: Goan) -> None:
    """An import says what the pack still lacks and how to get it."""
    run = goan("models", "import", "mine", "--transformer", shelf / I2V)
    assert run.code == 0
    assert "not complete, 16.6 GB to download: goan models pull mine" in run.out


TAKEN = "name: taken\nbase: tiny\n"


@pytest.mark.parametrize(
    ("name", "options", "texts"),
    [
        pytest.param("x", ["--transformer", FINETUNE], ["--base framepack-i2v", "--base framepack-f1"], id="no base"),
        pytest.param("x", ["--vae", VAE], ["--base"], id="no base, no transformer"),
        pytest.param("x", [], ["nothing to import"], id="nothing"),
        pytest.param("x", ["--base", "framepack-i2v"], ["nothing to import"], id="base alone"),
        pytest.param("x", ["--transformer", VAE, "--base", "framepack-i2v"], [VAE, "HunyuanVideo's VAE"], id="VAE"),
        pytest.param("x", ["--vae", I2V, "--base", "framepack-i2v"], [I2V, "not HunyuanVideo's VAE"], id="no VAE"),
        pytest.param("x", ["--transformer", "FramePackI2V_HY_fp8_e4m3fn.safetensors"], ["fp8", "bf16"], id="fp8"),
        pytest.param("x", ["--transformer", "FramePackI2V_HY_style.safetensors"], ["is a LoRA", "loras"], id="LoRA"),
        pytest.param(
            "x",
            ["--transformer", "FramePackI2V_HY_renamed.safetensors"],
            ["transformer_blocks.7.attn.to_q.weight is missing", "to_query.weight is not of this architecture"],
            id="renamed",
        ),
        pytest.param("x", ["--transformer", "FramePackI2V_HY_gone.safetensors"], ["gone", "missing"], id="gone"),
        pytest.param("x", ["--transformer", "gone.safetensors"], ["gone.safetensors", "missing"], id="gone, no name"),
        pytest.param("x", ["--tokenizer", "tokenizer_2", "--base", "tiny"], ["lacks tokenizer.json"], id="tokenizer"),
        pytest.param(
            "x", ["--feature-extractor", "tokenizer", "--base", "tiny"], ["preprocessor_config"], id="processor"
        ),
        pytest.param("x", ["--transformer", ".", "--base", "tiny"], ["several weight files"], id="folder"),
        pytest.param("x", ["--vae", VAE, "--base", "framepack"], ["no model pack named framepack"], id="unknown base"),
        pytest.param("x", ["--vae", VAE, "--base", "./gone.yaml"], ["gone.yaml"], id="missing base"),
        pytest.param("x", ["--vae", VAE, "--base", "torn"], ["torn.yaml"], id="torn base"),
        pytest.param("taken", ["--transformer", I2V], ["taken.yaml", "--replace"], id="taken"),
        pytest.param("taken", ["--vae", VAE, "--base", "taken", "--replace"], ["base"], id="on itself"),
        pytest.param("framepack-i2v", ["--transformer", I2V], ["framepack-i2v"], id="shipped"),
        pytest.param("tiny", ["--transformer", I2V, "--replace"], ["tiny"], id="embedded"),
        pytest.param("../x", ["--transformer", I2V], ["../x"], id="outside"),
        pytest.param("a/b", ["--transformer", I2V], ["a/b"], id="below"),
        pytest.param("", ["--transformer", I2V], ["cannot be the name"], id="empty"),
        pytest.param(".x", ["--transformer", I2V], [".x"], id="hidden"),
        pytest.param("x" * 300, ["--transformer", I2V], ["xxx"], id="long"),
        pytest.param("x", ["--vae", VAE, "--base", "tiny", "--out", VAE], [VAE], id="out is taken"),
        pytest.param("x", ["--vae", VAE, "--base", "tiny", "--out", VAE, "--replace"], [VAE], id="out is the part"),
        pytest.param(
            "x", ["--vae", VAE, "--base", "tiny", "--out", "folder", "--replace"], ["folder"], id="out: folder"
        ),
    ],
)
def test_refused_imports(
    shelf: Path,
    tmp_path: Path,
    goan: Goan,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: Sequence[str],
    texts: Sequence[str],
) -> None:
    """What cannot be a pack is refused with 2 or 3, says why, and leaves everything as it was."""
    for file in shelf.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "folder").mkdir()
    (tmp_path / "pack.yaml").write_text("name: a pack\nbase: framepack-i2v\n")
    write_own("taken", TAKEN)
    write_own("torn", "name: torn\nbase: framepack-i2v\nvaee: x\n")
    monkeypatch.chdir(tmp_path)
    here = {path.name: (path.is_symlink(), path.stat().st_size) for path in tmp_path.iterdir()}
    settings = written()
    run = goan("models", "import", name, *options)
    assert {path.name: (path.is_symlink(), path.stat().st_size) for path in tmp_path.iterdir()} == here
    assert written() == settings
    assert run.code in (2, 3), run
    for text in texts:
        assert text in run.err
    assert run.out == ""


def test_replacing_an_import(cached: Path, shelf: Path, goan: Goan) -> None:
    """--replace makes a pack anew under its name; without it the first one stays."""
    assert goan("models", "import", "mine", "--transformer", shelf / I2V).code == 0
    before = written()
    assert goan("models", "import", "mine", "--transformer", shelf / F1).code == 2
    assert written() == before
    assert goan("models", "import", "mine", "--transformer", shelf / F1, "--replace").code == 0
    assert find_pack("mine").transformer == shelf / F1
    assert set(written()) == set(before)


@pytest.mark.parametrize("name", ["081127", "1e3", "off", "null", "0x1f", "a.yaml", "é"])
def test_names_that_look_like_something_else(cached: Path, shelf: Path, goan: Goan, name: str) -> None:
    """A name that YAML could take for a number is a name."""
    run = goan("models", "import", name, "--text-encoder-2", shelf / CLIP, "--base", "framepack-i2v")
    assert run.code == 0, run
    assert find_pack(name).text_encoder_2 == shelf / CLIP


@pytest.mark.parametrize(
    ("folder", "code"), [("a [red]b", 0), ("#c: d", 0), ("né w", 0), (os.fsdecode(b"by\xffte"), 2)]
)
def test_odd_paths(cached: Path, shelf: Path, tmp_path: Path, goan: Goan, folder: str, code: int) -> None:
    """Files in folders of odd names are imported and listed; what is no text is refused before anything is written."""
    (tmp_path / folder).mkdir()
    file = tmp_path / folder / CLIP
    file.symlink_to(shelf / CLIP)
    run = goan("models", "import", "mine", "--text-encoder-2", file, "--base", "framepack-i2v")
    assert run.code == code, run
    if code:
        assert not written()
    else:
        assert find_pack("mine").text_encoder_2 == file
        assert str(file) in goan("models", "list", "mine").out
