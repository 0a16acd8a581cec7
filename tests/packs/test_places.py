"""Places: where a part may lie on a machine, in what order, and what does no harm."""

import ctypes
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from goan_cli.packs.manifest import PartSpec, read_manifest
from goan_cli.packs.places import Place, candidates, hub_cache, places
from goan_cli.settings import Settings

SPECS = {part: origin.spec for part, origin in read_manifest("framepack-i2v").parts.items()}
HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
TRANSFORMER_CACHE = "models--lllyasviel--FramePackI2V_HY"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of the test's own, `home` and the current folder `work/here` on it."""
    for variable in HUB_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "here")
    return tmp_path


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Path]:
    """A folder that the user may not enter, nor root in this test."""
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0)
    header, held = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0:  # without the capabilities to override and to search
        system = ctypes.CDLL(None)
        system.capget(header, held)
        system.capset(header, (ctypes.c_uint32 * 6)(held[0] & ~0b110, *held[1:]))
    try:
        (folder / "x").is_dir()
        pytest.skip("this user may enter every folder")
    except PermissionError:
        yield folder
    finally:
        if os.geteuid() == 0:
            system.capset(header, held)
        folder.chmod(0o755)


def made(folder: Path, *names: str) -> list[Path]:
    """Folders (their names end with a slash) and empty files."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return [folder / name for name in names]


def found_in(folder: Path, part: str, spec: PartSpec | None = None) -> list[str]:
    """The candidates of a part in a folder, each once, relative to the folder where they lie in it."""
    spec = spec or SPECS[part]
    assert spec is not None
    found = dict.fromkeys(candidates(part, spec, Place(label="x", folder=folder)))
    return [os.path.relpath(path, folder) for path in found]


# The hub's cache ------------------------------------------------------------------------------------------

HUB_ENVIRONMENTS: tuple[Mapping[str, str], ...] = (
    {},
    {"XDG_CACHE_HOME": "/x"},
    {"XDG_CACHE_HOME": "~/x"},
    {"XDG_CACHE_HOME": "$PLACE/x"},
    {"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"},
    {"HF_HOME": "~/h"},
    {"HF_HOME": "$PLACE/${PLACE}"},
    {"HUGGINGFACE_HUB_CACHE": "~/old", "HF_HOME": "/h"},
    {"HUGGINGFACE_HUB_CACHE": "$PLACE/old"},
    {"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h", "XDG_CACHE_HOME": "/x"},
    {"HF_HUB_CACHE": "~/new/"},
    {"HF_HUB_CACHE": "$PLACE/new/../other"},
    {"HF_HUB_CACHE": "$UNSET_PLACE/new"},
)
_ASK_THE_HUB = """
import importlib, json, os, sys
from huggingface_hub import constants
for environment in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environment)
    print(importlib.reload(constants).HF_HUB_CACHE)
"""


def test_hub_cache(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache is where huggingface_hub has it, by every variable."""
    environments = [{"HOME": str(machine / "home"), "PLACE": "/place", **given} for given in HUB_ENVIRONMENTS]
    command = [sys.executable, "-c", _ASK_THE_HUB]
    asked = subprocess.run(command, input=json.dumps(environments), capture_output=True, text=True, check=True)
    expected = [Path(line).absolute() for line in asked.stdout.splitlines()]
    found = []
    for environment in environments:
        with monkeypatch.context() as patch:
            for variable, value in environment.items():
                patch.setenv(variable, value)
            found.append(hub_cache())
    assert found == expected


@pytest.mark.parametrize("variable", HUB_VARIABLES)
def test_empty_variables(machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """A variable without a value is as good as none."""
    monkeypatch.setenv(variable, "")
    assert hub_cache() == machine / "home/.cache/huggingface/hub"


# Places ---------------------------------------------------------------------------------------------------


def test_order(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user names comes first, then the hub's cache, then FramePack and ComfyUI."""
    folders = ("one", "two", "three", "home/four", "cache/hub", "home/hf_download", "home/ComfyUI/models/unet")
    made(machine, *(f"{folder}/" for folder in folders))
    monkeypatch.setenv("GOAN_MODELS", os.pathsep.join([str(machine / "two"), str(machine / "one")]))
    monkeypatch.setenv("HF_HOME", str(machine / "cache"))
    found = places(Settings(models=(str(machine / "three"), "~/four")))
    assert [(place.label, str(place.folder.relative_to(machine))) for place in found] == [
        ("GOAN_MODELS", "two"),
        ("GOAN_MODELS", "one"),
        ("config", "three"),
        ("config", "home/four"),
        ("Hugging Face cache", "cache/hub"),
        ("FramePack", "home/hf_download"),
        ("ComfyUI", "home/ComfyUI"),
    ]


@pytest.mark.parametrize("base", ["work/here", "work", "home", "home/Documents"])
@pytest.mark.parametrize(
    ("below", "label", "place"),
    [
        ("hf_download/", "FramePack", "hf_download"),
        ("FramePack/hf_download/", "FramePack", "FramePack/hf_download"),
        ("FramePack/webui/hf_download/", "FramePack", "FramePack/webui/hf_download"),
        ("FramePack-Studio/hf_download/", "FramePack", "FramePack-Studio/hf_download"),
        ("goan/hf_download/", "FramePack", "goan/hf_download"),
        ("FramePack-eichi/webui/hf_download/", "FramePack", "FramePack-eichi/webui/hf_download"),
        ("framepack_cu126_torch26/webui/hf_download/", "FramePack", "framepack_cu126_torch26/webui/hf_download"),
        ("models/diffusion_models/", "ComfyUI", "."),
        ("ComfyUI/models/text_encoders/", "ComfyUI", "ComfyUI"),
        ("ComfyUI/models/clip_vision/", "ComfyUI", "ComfyUI"),
        ("ComfyUI_windows_portable/ComfyUI/models/unet/", "ComfyUI", "ComfyUI_windows_portable/ComfyUI"),
    ],
)
def test_installations(machine: Path, base: str, below: str, label: str, place: str) -> None:
    """FramePack, its forks and ComfyUI are found around the current folder and at home, each once."""
    made(machine / base, below)
    assert places(Settings()) == (Place(label=label, folder=machine / base / place),)


@pytest.mark.parametrize("name", ["models/", "ComfyUI/", "ComfyUI/models/", "ComfyUI/models/vae/", "FramePack/"])
def test_no_installations(machine: Path, name: str) -> None:
    """A folder of a telling name alone is none."""
    made(machine / "home", name)
    assert places(Settings()) == ()


def test_one_folder_by_two_paths(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder above the current one that is home too is looked at once."""
    made(machine, "work/hf_download/")
    monkeypatch.setenv("HOME", str(machine / "work"))
    assert len(places(Settings())) == 1


@pytest.mark.parametrize("entry", ["models", "./models", "../here/models", "~/models"])
def test_places_are_absolute(machine: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """A folder given relative to the current one, or to home, is the same one after a change of folder."""
    made(machine, "work/here/models/", "home/models/")
    monkeypatch.setenv("GOAN_MODELS", entry)
    (place,) = places(Settings())
    assert place.folder.is_absolute()
    assert place.folder.samefile(machine / ("home/models" if "~" in entry else "work/here/models"))


@pytest.mark.parametrize(
    "entry", ["", ":", "{machine}/gone", "{machine}/file", "{machine}/loop", "~no-such-user/models", "/" + "x" * 300]
)
def test_entries_that_are_no_folders(machine: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """An entry that is missing, a file or nothing at all is passed over, and the next one is found."""
    made(machine, "file", "good/")
    (machine / "loop").symlink_to(machine / "loop")
    entry = entry.format(machine=machine)
    monkeypatch.setenv("GOAN_MODELS", os.pathsep.join([entry, str(machine / "good")]))
    assert [place.folder for place in places(Settings())] == [machine / "good"]
    if entry.startswith("/"):
        settings = Settings(models=(entry, str(machine / "good")))
        assert [place.label for place in places(settings)] == ["GOAN_MODELS", "config"]


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
@pytest.mark.parametrize("value", ["{machine}/file", "~no-such-user/hub"])
def test_caches_that_are_no_folders(machine: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    """A cache that is not there is none."""
    made(machine, "file")
    monkeypatch.setenv(variable, value.format(machine=machine))
    assert places(Settings()) == ()


@pytest.mark.parametrize("variable", ["GOAN_MODELS", "HF_HOME", "HOME"])
def test_locked_folders(machine: Path, monkeypatch: pytest.MonkeyPatch, locked: Path, variable: str) -> None:
    """A folder that the user may not read, were it home, is passed over."""
    made(machine, "work/hf_download/")
    monkeypatch.setenv(variable, str(locked / "in" if variable == "GOAN_MODELS" else locked))
    assert [place.label for place in places(Settings())] == ["FramePack"]


def test_locked_folder_itself(locked: Path) -> None:
    """A place whose content may not be read holds nothing."""
    assert [found_in(locked, part) for part in SPECS] == [[] for _ in SPECS]


def test_no_home(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, as in a container, has the folders that are not at home."""
    made(machine, "work/here/hf_download/")

    def unknown(_: object) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("GOAN_MODELS", "~/models")
    assert [place.label for place in places(Settings())] == ["FramePack"]


# Candidates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ("transformer", f"{TRANSFORMER_CACHE}/snapshots/abc/"),
        ("transformer", f"hub/{TRANSFORMER_CACHE}/snapshots/abc/"),
        ("transformer", "FramePackI2V_HY/"),
        ("transformer", "lllyasviel/FramePackI2V_HY/"),
        ("transformer", "models/lllyasviel/FramePackI2V_HY/"),
        ("transformer", "FramePackI2V_HY_bf16.safetensors"),
        ("transformer", "diffusion_models/FramePackI2V_HY_bf16.safetensors"),
        ("transformer", "models/diffusion_models/FramePackI2V_HY.safetensors"),
        ("transformer", "models/diffusion_models/a/b c/framepacki2v_hy_BF16.SafeTensors"),
        ("transformer", "models/unet/FramePackI2V_HY_bf16.safetensors"),
        ("text_encoder", "models--hunyuanvideo-community--HunyuanVideo/snapshots/abc/text_encoder/"),
        ("text_encoder", "HunyuanVideo/text_encoder/"),
        ("text_encoder", "hunyuanvideo-community/HunyuanVideo/text_encoder/"),
        ("text_encoder", "models/text_encoders/llava_llama3_fp16.safetensors"),
        ("text_encoder", "models/clip/hunyuan/llava_llama3_vision.safetensors"),
        ("text_encoder_2", "models/text_encoders/clip_l.safetensors"),
        ("text_encoder_2", "models/clip/CLIP_L.safetensors"),
        ("vae", "models/vae/hunyuan_video_vae_bf16.safetensors"),
        ("image_encoder", "models/clip_vision/sigclip_vision_patch14_384.safetensors"),
        ("image_encoder", "flux_redux_bfl/image_encoder/"),
        ("feature_extractor", "flux_redux_bfl/feature_extractor/"),
        ("tokenizer", "comfy/text_encoders/llama_tokenizer/"),
        ("tokenizer_2", "comfy/sd1_tokenizer/"),
        ("tokenizer_2", "models--hunyuanvideo-community--HunyuanVideo/snapshots/abc/tokenizer_2/"),
    ],
)
def test_packagings(machine: Path, part: str, path: str) -> None:
    """A part is found as a snapshot, a folder or a file, wherever tools put it, and by no other part."""
    made(machine, path)
    assert {each: found_in(machine, each) for each in SPECS if found_in(machine, each)} == {part: [path.rstrip("/")]}


@pytest.mark.parametrize(
    "path",
    [
        "models/vae/FramePackI2V_HY.safetensors",
        "models/diffusion_models/FramePack_F1_I2V_HY.safetensors",
        "models/diffusion_models/FramePackI2V_HY.gguf",
        "models/diffusion_models/my_FramePackI2V_HY.safetensors",
        "elsewhere/FramePackI2V_HY.safetensors",
        "models/diffusion_models/FramePackI2V_HY.safetensors/",
        "FramePackI2V_HY",
        "models--lllyasviel--FramePack_F1_I2V_HY_20250503/snapshots/abc/",
        f"{TRANSFORMER_CACHE}/refs/main",
        f"{TRANSFORMER_CACHE}/snapshots",
        f"{TRANSFORMER_CACHE}/snapshots/file",
        "models--hunyuanvideo-community--HunyuanVideo/snapshots/abc/vea/",
    ],
)
def test_no_candidates(machine: Path, path: str) -> None:
    """Other parts, other kinds of files and empty caches are no candidates."""
    made(machine, path)
    assert [found_in(machine, part) for part in SPECS] == [[] for _ in SPECS]


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
@pytest.mark.parametrize("named", ["ComfyUI", "ComfyUI/models", "ComfyUI/models/"])
def test_tokenizers_of_comfyui(machine: Path, monkeypatch: pytest.MonkeyPatch, part: str, named: str) -> None:
    """ComfyUI's own tokenizers are found, whichever of its folders the user names, from wherever."""
    made(machine, "ComfyUI/models/", "ComfyUI/comfy/text_encoders/llama_tokenizer/", "ComfyUI/comfy/sd1_tokenizer/")
    folders = {"tokenizer": "text_encoders/llama_tokenizer", "tokenizer_2": "sd1_tokenizer"}
    expected = machine / "ComfyUI" / "comfy" / folders[part]
    spec = SPECS[part]
    assert spec is not None
    for given, where in ((str(machine / named), machine), (".", machine / named)):
        monkeypatch.setenv("GOAN_MODELS", given)
        monkeypatch.chdir(where)
        place = places(Settings())[0]
        assert [path.resolve() for path in candidates(part, spec, place)] == [expected]


def test_snapshots(machine: Path) -> None:
    """Of `main`, the snapshot that it is at comes first, then the newest."""
    cache = machine / TRANSFORMER_CACHE
    for commit, age in {"older": 1, "newest": 0, "main": 3, "oldest": 2}.items():
        (folder,) = made(cache / "snapshots", f"{commit}/")
        os.utime(folder, (1e9 - age, 1e9 - age))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("main\n")
    order = [Path(path).name for path in found_in(machine, "transformer")]
    assert order == ["main", "newest", "older", "oldest"]


@pytest.mark.parametrize(
    ("revision", "expected"), [("abc", ["abc"]), ("v1", ["def"]), ("refs/pr/1", ["abc"]), ("gone", []), ("ab", [])]
)
def test_pinned_revision(machine: Path, revision: str, expected: list[str]) -> None:
    """Of a commit, a branch or a tag only its own snapshot is one."""
    cache = machine / "models--a--b"
    made(cache, "snapshots/abc/", "snapshots/def/", "refs/refs/pr/", "refs/gone/")
    for name, commit in (("main", "def"), ("v1", "def"), ("refs/pr/1", "abc")):
        (cache / "refs" / name).write_text(commit)
    spec = PartSpec(repository="a/b", revision=revision)
    assert [Path(path).name for path in found_in(machine, "vae", spec)] == expected


@pytest.mark.parametrize("content", [b"", b"gone", b"\xff\xfe\x00", b"a\0b", b"x" * 5000])
def test_damaged_reference(machine: Path, content: bytes) -> None:
    """Whatever the file of a branch says, the snapshots that are there are found."""
    made(machine / TRANSFORMER_CACHE, "snapshots/abc/", "refs/")
    (machine / TRANSFORMER_CACHE / "refs" / "main").write_bytes(content)
    assert [Path(path).name for path in found_in(machine, "transformer")] == ["abc"]


def test_best_first(machine: Path) -> None:
    """Within a place, snapshots come before folders, folders before files, and files in the order of the names."""
    spec = PartSpec(repository="a/b", names=("second*.safetensors", "first.safetensors"))
    folder = "models/vae"
    expected = [
        "models--a--b/snapshots/c",
        "a/b",
        "b",
        f"{folder}/second_1.safetensors",
        f"{folder}/second_2.safetensors",
    ]
    expected += [f"{folder}/first.safetensors"]
    made(machine, *(path if path.endswith("s") else f"{path}/" for path in reversed(expected)))
    assert found_in(machine, "vae", spec) == expected


def test_links(machine: Path) -> None:
    """Linked folders and files are followed, loops of links end, and a link to nothing is no candidate."""
    (target,) = made(machine, "disk/deep/FramePackI2V_HY_bf16.safetensors")
    (folder,) = made(machine, "ComfyUI/models/diffusion_models/")
    (folder / "disk").symlink_to(machine / "disk")
    (folder / "again").symlink_to(machine / "disk")
    (folder / "loop").symlink_to(folder)
    (machine / "disk" / "up").symlink_to(machine)
    (folder / "zero_FramePackI2V_HY.safetensors").symlink_to(target)
    (folder / "FramePackI2V_HY_link.safetensors").symlink_to(target)
    (folder / "FramePackI2V_HY_gone.safetensors").symlink_to(machine / "gone")
    (folder / "FramePackI2V_HY_self.safetensors").symlink_to(folder / "FramePackI2V_HY_self.safetensors")
    found = [machine / "ComfyUI" / path for path in found_in(machine / "ComfyUI", "transformer")]
    assert {os.path.realpath(path) for path in found} == {str(target)}
    assert folder / "FramePackI2V_HY_link.safetensors" in found
    assert len(found) == 2


def test_linked_installation(machine: Path) -> None:
    """A `models` folder that lies on another disk is as good as ComfyUI's own."""
    made(machine, "disk/text_encoders/clip_l.safetensors", "home/ComfyUI/")
    (machine / "home" / "ComfyUI" / "models").symlink_to(machine / "disk")
    (place,) = places(Settings())
    assert (place.label, place.folder) == ("ComfyUI", machine / "home" / "ComfyUI")
    assert found_in(place.folder, "text_encoder_2") == ["models/text_encoders/clip_l.safetensors"]
