"""Packs pulled from a hub on this machine: what is downloaded, interruptions, and everything that can be wrong."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

import goan_cli.packs.pull as pull_module
from goan_cli.errors import EnvironmentFault
from goan_cli.packs.find import find_pack, survey_pack
from goan_cli.packs.manifest import PARTS, PartSpec
from goan_cli.packs.places import hub_cache, snapshots_of
from goan_cli.packs.pull import PullChecking, PullEvent, PullProgress, PullStarted, PullVerified, pull
from goan_cli.packs.pull_plan import PullPlan, needed_files, plan_pull
from goan_cli.render.engine import Engine
from tests.helpers import GOLDEN, tiny_plan, write_tiny_manifest
from tests.packs.hub import FRAMEPACK, FRAMEPACK_F1, HUNYUAN, REDUX, Hub, golden_repositories, local_hub
from tests.processes import patiently

SHARD = f"{FRAMEPACK}/diffusion_pytorch_model-00003-of-00003.safetensors"
TOKENIZER = f"{HUNYUAN}/tokenizer/tokenizer.json"
VAE = f"{HUNYUAN}/vae/diffusion_pytorch_model.safetensors"
CHUNK = 1 << 16
# The library writes ten MiB at a time, more than these repositories have.
SMALL_CHUNKS = "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE"
NEEDED = {
    FRAMEPACK: {
        "config.json",
        "diffusion_pytorch_model.safetensors.index.json",
        *(f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
    },
    HUNYUAN: {
        "text_encoder/config.json",
        "text_encoder/model.safetensors.index.json",
        *(f"text_encoder/model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)),
        *(f"tokenizer/{name}" for name in ("tokenizer.json", "tokenizer_config.json")),
        *(f"text_encoder_2/{name}" for name in ("config.json", "model.safetensors")),
        # merges.txt is no needless text: CLIP's tokenizer is made of it.
        *(f"tokenizer_2/{name}" for name in ("merges.txt", "tokenizer_config.json", "vocab.json")),
        *(f"vae/{name}" for name in ("config.json", "diffusion_pytorch_model.safetensors")),
    },
    REDUX: {
        *(f"image_encoder/{name}" for name in ("config.json", "model.safetensors")),
        "feature_extractor/preprocessor_config.json",
    },
}
ALL = {f"{repository}/{path}" for repository, paths in NEEDED.items() for path in paths}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden pack as the repositories that the shipped packs name."""
    return golden_repositories(tmp_path_factory.mktemp("repositories"))


@pytest.fixture
def hub(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of them, to which HF_ENDPOINT leads. Nobody waits between two tries."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(SMALL_CHUNKS, CHUNK)
    for module in ("file_download", "utils._http"):
        no_wait = SimpleNamespace(sleep=lambda _: None, time=time.time)
        monkeypatch.setattr(f"huggingface_hub.{module}.time", no_wait)
    with local_hub(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def _plan(model: str = "framepack-i2v") -> PullPlan:
    return plan_pull(survey_pack(model))


def _pull(model: str = "framepack-i2v") -> list[PullEvent]:
    events: list[PullEvent] = []
    pull(_plan(model), events.append)
    return events


def _refused(act: Callable[[], object]) -> EnvironmentFault:
    """The error of an act, one line with a hint."""
    with pytest.raises(EnvironmentFault) as caught:
        act()
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def _size(repositories: dict[str, Path], path: str) -> int:
    owner, name, file = path.split("/", 2)
    return (repositories[f"{owner}/{name}"] / file).stat().st_size


def _partials() -> list[Path]:
    return list(hub_cache().glob("*/blobs/*.incomplete"))


def _manifest(folder: Path, repository: str, part: str = "transformer", **keys: str) -> str:
    """A pack with one part of a repository; the rest is the golden pack's, and there."""
    parts: dict[str, Any] = {part: str(GOLDEN / "packed" / part) for part in PARTS}
    parts[part] = {"repository": repository, **keys}
    file = folder / "mine.yaml"
    file.write_text(json.dumps({"name": "mine", "family": "inverted", **parts}), encoding="utf-8")  # JSON is YAML
    return str(file)


@pytest.fixture
def transformer(tmp_path: Path) -> str:
    """A pack of which the transformer alone is to be downloaded."""
    return _manifest(tmp_path, FRAMEPACK)


@pytest.fixture
def vae(tmp_path: Path) -> str:
    """A pack of which the VAE alone is to be downloaded."""
    return _manifest(tmp_path, HUNYUAN, "vae", subfolder="vae")


# What is downloaded ---------------------------------------------------------------------------------------


def test_a_pack_is_pulled(hub: Hub, repositories: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """A pack that is nowhere on the machine is complete afterwards, of the files that are needed and no others."""
    plan = _plan()
    total = sum(_size(repositories, path) for path in ALL)
    assert {f"{each.source.name}/{file.path}" for each in plan.repositories for file in each.files} == ALL
    assert (plan.size, plan.to_download, len(plan.files)) == (total, total, len(ALL))
    assert plan.free == pytest.approx(shutil.disk_usage(hub_cache().parent.parent).free, rel=0.1)
    assert not hub_cache().exists()
    assert hub.sent() == 0

    events: list[PullEvent] = []
    with warnings.catch_warnings(record=True) as warned:
        pull(plan, events.append)
    assert survey_pack("framepack-i2v").complete
    assert hub.downloaded() == ALL
    assert hub.sent() == total
    assert capfd.readouterr() == ("", "")
    assert not warned
    assert not _partials()

    assert events[0] == PullStarted(files=len(ALL), size=total, done=0, cache=hub_cache())
    done = [event.done for event in events if isinstance(event, PullProgress)]
    assert done == sorted(done)
    assert done[-1] == total
    verified = [event for event in events if isinstance(event, PullVerified)]
    assert len(verified) == len(ALL)
    assert {event.file: event.size for event in verified} == {path: _size(repositories, path) for path in ALL}
    checked = {event.file: (event.done, event.size) for event in events if isinstance(event, PullChecking)}
    assert checked == {event.file: (event.size, event.size) for event in verified}


def test_as_the_library_would(hub: Hub) -> None:
    """The cache is what other programs expect of it: a revision, a snapshot of links, and blobs by their hashes."""
    _pull()
    for name in (FRAMEPACK, HUNYUAN, REDUX):
        folder = snapshots_of(name, hub_cache())
        assert (folder / "refs" / "main").read_text() == hub.commit_of(name)
        snapshot = folder / "snapshots" / hub.commit_of(name)
        for path in NEEDED[name]:
            assert (snapshot / path).resolve().parent == (folder / "blobs").resolve()
            assert (snapshot / path).read_bytes() == (hub.repositories[name] / path).read_bytes()


def test_only_what_is_missing(hub: Hub) -> None:
    """Another pack downloads only what the first has not brought, and a complete one asks the hub for nothing."""
    _pull()
    hub.requests.clear()
    _pull("framepack-f1")
    assert hub.downloaded() == {f"{FRAMEPACK_F1}/{path}" for path in NEEDED[FRAMEPACK]}
    assert find_pack("framepack-f1").transformer != find_pack("framepack-i2v").transformer
    assert find_pack("framepack-f1").text_encoder == find_pack("framepack-i2v").text_encoder
    hub.requests.clear()
    plan = _plan("framepack-f1")
    assert (plan.repositories, plan.size, plan.to_download) == ((), 0, 0)
    assert not hub.requests


def test_parts_found_elsewhere(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that another folder holds is not downloaded."""
    models = tmp_path / "models"
    shutil.copytree(hub.repositories[HUNYUAN] / "vae", models / HUNYUAN / "vae")
    monkeypatch.setenv("GOAN_MODELS", str(models))
    _pull()
    assert hub.downloaded() == {path for path in ALL if "/vae/" not in path}


@pytest.mark.parametrize(
    ("part", "subfolder", "paths", "needed"),
    [
        pytest.param(
            "transformer",
            "",
            ["config.json", "a.safetensors", "a.bin", "a.pt", "a.gguf", "a.md", "below/b.safetensors", "LICENSE.txt"],
            ["LICENSE.txt", "config.json", "a.safetensors"],
            id="the top only",
        ),
        pytest.param(
            "vae",
            "vae",
            ["vae/config.json", "vae/a.safetensors", "vae/deeper/b.safetensors", "a.safetensors", "vae2/c.json"],
            ["vae/config.json", "vae/a.safetensors"],
            id="a subfolder only",
        ),
        pytest.param(
            "vae",
            "",
            ["config.json", "model.safetensors", "model.fp16.safetensors", "diffusion_pytorch_model.bf16.safetensors"],
            ["config.json", "model.safetensors"],
            id="no variants",
        ),
        pytest.param(
            "transformer",
            "",
            [
                *("config.json", "m.safetensors.index.json", "m-00001-of-00002.safetensors"),
                *("m-00002-of-00002.safetensors", "m.safetensors.index.fp16.json", "m.fp16.safetensors.index.json"),
                *("m.fp16-00001-of-00001.safetensors", "m-00001-of-00001.fp16.safetensors"),
            ],
            [
                "config.json",
                *(f"m{rest}" for rest in (".safetensors.index.json", "-00001-of-00002.safetensors")),
                "m-00002-of-00002.safetensors",
            ],
            id="no shards of variants",
        ),
        pytest.param(
            "transformer",
            "",
            [
                "m.safetensors",
                "m.safetensors.index.json",
                "m-00001-of-00001.safetensors",
                "n-00001-of-00001.safetensors",
            ],
            ["m.safetensors.index.json", "m-00001-of-00001.safetensors"],
            id="the index's shards, not the whole beside them",
        ),
        pytest.param(
            "text_encoder",
            "",
            ["config.json", "model.safetensors", "consolidated.safetensors"],
            ["config.json", "model.safetensors"],
            id="the usual name",
        ),
        pytest.param("vae", "", ["vae-v1.1.safetensors"], ["vae-v1.1.safetensors"], id="dots of no variant"),
        pytest.param("tokenizer", "t", ["t/tokenizer.json", "t/a.safetensors"], ["t/tokenizer.json"], id="no weights"),
        pytest.param("vae", "vae", ["vae/config.json", "vae/a.bin"], [], id="pickles alone"),
    ],
)
def test_needed_files(part: str, subfolder: str, paths: Sequence[str], needed: Sequence[str]) -> None:
    """Of a part's own folder, texts and the weights that belong together; nothing that would not be loaded."""
    spec = PartSpec(repository="org/name", subfolder=subfolder)
    assert sorted(needed_files(part, spec, paths)) == sorted(needed)


def test_pages_of_a_listing(hub: Hub) -> None:
    """All files are found of a listing that comes in pages, however short."""
    hub.page = 2
    assert len(_plan().files) == len(ALL)
    assert sum(request.path == f"api/{HUNYUAN}/tree" for request in hub.requests) > 5


def test_a_revision_that_moves(hub: Hub, transformer: str) -> None:
    """What was planned is what is downloaded, and noted as the revision, though the hub has gone on."""
    plan = _plan(transformer)
    planned = hub.commit_of(FRAMEPACK)
    hub.commits[FRAMEPACK] = "0123456789" * 4
    pull(plan, lambda _: None)
    assert find_pack(transformer).transformer.name == planned
    assert (snapshots_of(FRAMEPACK, hub_cache()) / "refs" / "main").read_text() == planned


def test_files_of_the_same_content(hub: Hub, repositories: dict[str, Path], tmp_path: Path) -> None:
    """Of files with the same content one is sent, and all are there."""
    folder = tmp_path / "twins"
    shutil.copytree(repositories[FRAMEPACK], folder)
    shutil.copyfile(folder / "config.json", folder / "twin.json")
    hub.repositories["org/twins"] = folder
    model = _manifest(tmp_path, "org/twins")
    _pull(model)
    assert hub.sent("org/twins/config.json") + hub.sent("org/twins/twin.json") == (folder / "twin.json").stat().st_size
    assert (find_pack(model).transformer / "twin.json").read_text() == (folder / "config.json").read_text()


# Interruptions --------------------------------------------------------------------------------------------

CHILD = f"""
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = {CHUNK}
from goan_cli.packs.find import survey_pack
from goan_cli.packs.pull import pull
from goan_cli.packs.pull_plan import plan_pull
pull(plan_pull(survey_pack("framepack-i2v")), lambda event: None)
"""


def _render(folder: Path, model: str) -> torch.Tensor:
    plan = tiny_plan(folder, "offline", model=model, size=[32, 32], window=1, steps=1)
    engine = Engine(device="cpu")
    return engine.sample(plan, engine.conditioning_for(plan)).latents


def test_killed_resumed_and_rendered_offline(
    hub: Hub, repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull that is killed in the middle of a file is gone on with, and no byte that had arrived comes again.

    Without a network, what was pulled renders to the same latents as the weights that the hub's were made of.
    """
    hub.holds[SHARD] = 5 * CHUNK + 100
    (partial,) = (file.partial_file for file in _plan().files if SHARD.endswith(file.path))
    with subprocess.Popen([sys.executable, "-c", CHILD], cwd=Path(__file__).parents[2]) as child:
        try:
            for _ in patiently():
                assert child.poll() is None
                if partial.exists() and partial.stat().st_size == 5 * CHUNK:
                    break
        finally:
            child.kill()
    assert not survey_pack("framepack-i2v").complete
    before = {path for path in hub.downloaded() if path != SHARD}
    assert before == {f"{FRAMEPACK}/{path}" for path in NEEDED[FRAMEPACK]} - {SHARD}

    hub.holds.clear()
    hub.requests.clear()
    plan = _plan()
    rest = sum(_size(repositories, path) for path in ALL - before)
    assert (plan.size, plan.to_download) == (rest, rest - 5 * CHUNK)
    events: list[PullEvent] = []
    pull(plan, events.append)
    assert events[0] == PullStarted(files=len(ALL - before), size=rest, done=5 * CHUNK, cache=hub_cache())
    assert hub.downloaded() == ALL - before
    assert hub.sent(SHARD) == _size(repositories, SHARD) - 5 * CHUNK
    assert hub.sent() == plan.to_download
    assert survey_pack("framepack-i2v").complete

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    golden = write_tiny_manifest(tmp_path / "golden.yaml", parts={part: GOLDEN / "packed" / part for part in PARTS})
    expected = _render(tmp_path, str(golden))
    assert expected.std() > 0
    assert torch.equal(_render(tmp_path, "framepack-i2v"), expected)
    assert not hub.requests


def test_a_connection_that_is_cut(hub: Hub, transformer: str, repositories: dict[str, Path]) -> None:
    """A connection that ends in the middle of a file is made again, from the byte on that had been reached."""
    hub.cuts[SHARD] = [3 * CHUNK + 5, CHUNK]
    _pull(transformer)
    starts = [request.start for request in hub.requests if request.path == SHARD and request.sent]
    assert starts == [0, 3 * CHUNK, 4 * CHUNK]
    assert survey_pack(transformer).complete


def test_a_connection_that_is_lost(hub: Hub, transformer: str, repositories: dict[str, Path]) -> None:
    """When all tries fail the error says so, what has arrived stays, and the next pull goes on from there."""
    hub.cuts[SHARD] = [2 * CHUNK, *[0] * 6]
    fault = _refused(lambda: _pull(transformer))
    assert fault.message.startswith(f"{FRAMEPACK}: the connection to {hub.endpoint} failed: ")
    assert "run it again, and it goes on where it was" in (fault.hint or "")
    assert [path.stat().st_size for path in _partials()] == [2 * CHUNK]
    hub.requests.clear()
    _pull(transformer)
    assert hub.sent(SHARD) == _size(repositories, SHARD) - 2 * CHUNK


def test_interrupted_by_the_user(hub: Hub, transformer: str, repositories: dict[str, Path]) -> None:
    """Ctrl-C passes, and leaves what has arrived for the next pull."""

    chunks = count()

    def interrupt(event: PullEvent) -> None:
        if isinstance(event, PullProgress) and event.file == SHARD and next(chunks) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(_plan(transformer), interrupt)
    (partial,) = _partials()
    assert partial.stat().st_size == 4 * CHUNK
    hub.requests.clear()
    _pull(transformer)
    assert hub.sent(SHARD) == _size(repositories, SHARD) - 4 * CHUNK


def test_a_hub_without_ranges(hub: Hub, transformer: str, repositories: dict[str, Path]) -> None:
    """From a hub that always sends whole files, one begins anew, and is right."""
    hub.cuts[SHARD] = [2 * CHUNK]
    hub.ranges = False
    _pull(transformer)
    assert hub.sent(SHARD) == 2 * CHUNK + _size(repositories, SHARD)
    assert survey_pack(transformer).complete


def test_complete_but_not_yet_in_place(hub: Hub, vae: str) -> None:
    """A file that was interrupted after its last byte is checked and taken, without a byte of it sent again."""
    _pull(vae)
    pointer = find_pack(vae).vae / "diffusion_pytorch_model.safetensors"
    blob = pointer.resolve()
    blob.rename(f"{blob}.incomplete")
    hub.requests.clear()
    assert _plan(vae).to_download == 0
    _pull(vae)
    assert hub.sent() == 0
    assert survey_pack(vae).complete


@pytest.mark.parametrize("surplus", [1, 50])
def test_more_than_there_should_be(hub: Hub, vae: str, surplus: int) -> None:
    """A partial file that is longer than the file begins anew."""
    _pull(vae)
    pointer = find_pack(vae).vae / "config.json"
    blob = pointer.resolve()
    size = blob.stat().st_size
    blob.rename(f"{blob}.incomplete").write_bytes(b"{" * (size + surplus))
    hub.requests.clear()
    assert _plan(vae).to_download == size
    _pull(vae)
    assert survey_pack(vae).complete


def test_two_at_once(hub: Hub, transformer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process downloads is left to it."""
    monkeypatch.setattr(pull_module, "_SECONDS_FOR_LOCK", 0.05)
    plan = _plan(transformer)
    file = next(file for file in plan.files if SHARD.endswith(file.path))
    lock = hub_cache() / ".locks" / snapshots_of(FRAMEPACK, hub_cache()).name / f"{file.blob.name}.lock"
    lock.parent.mkdir(parents=True)
    with WeakFileLock(lock):
        assert "is being downloaded by another process" in _refused(lambda: _pull(transformer)).message
    _pull(transformer)
    assert survey_pack(transformer).complete


# Wrong files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "kind"), [(SHARD, "sha256"), (TOKENIZER, "git hash")], ids=["LFS", "git"])
def test_wrong_bytes(hub: Hub, path: str, kind: str) -> None:
    """A file whose hash is wrong is named and removed, and another pull gets it and the rest."""
    hub.damaged.add(path)
    fault = _refused(_pull)
    assert fault.message.startswith(f"{path} is damaged: its {kind} is ")
    assert "run it again" in (fault.hint or "")
    assert not _partials()
    before = hub.downloaded() - {path}
    hub.damaged.clear()
    hub.requests.clear()
    _pull()
    assert hub.downloaded() == ALL - before
    assert survey_pack("framepack-i2v").complete


@pytest.mark.parametrize("more", [100, -100])
def test_wrong_sizes(hub: Hub, transformer: str, repositories: dict[str, Path], more: int) -> None:
    """A file of another size than the hub says is named with both sizes, and removed."""
    hub.longer[SHARD] = more
    size = _size(repositories, SHARD)
    assert (
        _refused(lambda: _pull(transformer)).message
        == f"{SHARD} is damaged: it has {size + more} bytes, the hub says {size}"
    )
    assert not _partials()
    hub.longer.clear()
    _pull(transformer)
    assert survey_pack(transformer).complete


def test_fewer_bytes_than_are_here(hub: Hub, transformer: str, repositories: dict[str, Path]) -> None:
    """A file that the hub has shortened below what has arrived is removed too, and does not stay in the way."""
    size = _size(repositories, SHARD)
    hub.cuts[SHARD] = [3 * CHUNK, *[0] * 6]
    _refused(lambda: _pull(transformer))
    hub.longer[SHARD] = CHUNK - size
    assert f"{SHARD} is damaged: it has 0 bytes" in _refused(lambda: _pull(transformer)).message
    assert not _partials()


def test_a_truncated_file_in_the_cache(hub: Hub, vae: str, repositories: dict[str, Path]) -> None:
    """A file in the cache that is too short is got anew by itself."""
    _pull(vae)
    os.truncate(find_pack(vae).vae / "diffusion_pytorch_model.safetensors", 1000)
    hub.requests.clear()
    assert _plan(vae).to_download == _size(repositories, VAE)
    _pull(vae)
    assert hub.downloaded() == {VAE}
    assert survey_pack(vae).complete


def test_a_damaged_file_in_the_cache(hub: Hub, vae: str) -> None:
    """Where a part cannot be used and nothing of it lacks, its hashes tell which file is wrong; it is removed."""
    _pull(vae)
    weights = find_pack(vae).vae / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"\xff" * 100 + content[100:])
    assert [part.part for part in survey_pack(vae).missing] == ["vae"]
    assert _plan(vae).to_download == 0
    assert _refused(lambda: _pull(vae)).message.startswith(f"{VAE} is damaged: its sha256 is ")
    hub.requests.clear()
    _pull(vae)
    assert hub.downloaded() == {VAE}
    assert weights.read_bytes() == content


class Chunked(NamedTuple):
    """Downloads that the hub's library was asked to do itself: their files, and the bytes that it then wrote."""

    files: list[str]
    content: list[bytes]


@pytest.fixture
def chunked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chunked:
    """A hub that keeps the VAE in the store of chunks, and the library's download in the place of the real store."""
    hub.chunked.add(VAE)
    asked = Chunked([], [(hub.repositories[HUNYUAN] / VAE.removeprefix(f"{HUNYUAN}/")).read_bytes()])

    def download(
        repository: str, path: str, *, revision: str, cache_dir: Path, tqdm_class: type[Any], **_: object
    ) -> str:
        asked.files.append(f"{repository}/{path}")
        (file,) = (file for file in _plan(str(tmp_path / "mine.yaml")).files if file.path == path)
        size = len(asked.content[0])
        written, received = (tqdm_class(total=size, unit="B", desc=name) for name in ("Reconstructing", "Downloading"))
        received.update(size // 2)
        written.update(size // 4)
        written.update(size - size // 4)
        file.blob.parent.mkdir(parents=True, exist_ok=True)
        file.blob.write_bytes(asked.content[0])
        file.pointer.parent.mkdir(parents=True, exist_ok=True)
        file.pointer.symlink_to(file.blob)
        return str(file.pointer)

    monkeypatch.setattr(pull_module, "hf_hub_download", download)
    return asked


def test_files_in_chunks(hub: Hub, vae: str, repositories: dict[str, Path], chunked: Chunked) -> None:
    """A file in the store of chunks is left to the library; its progress is told, and it is checked as the others."""
    events = _pull(vae)
    assert chunked.files == [VAE]
    assert hub.downloaded() == {f"{HUNYUAN}/vae/config.json"}
    assert survey_pack(vae).complete
    size = _size(repositories, VAE)
    done = [event.done for event in events if isinstance(event, PullProgress) and event.file == VAE]
    assert [count - done[0] for count in done] == [0, 0, size - size // 2, size - size // 2]
    assert PullVerified(file=VAE, size=size) in events


def test_wrong_bytes_in_chunks(hub: Hub, vae: str, chunked: Chunked) -> None:
    """A wrong file that the library laid into the cache is removed from there, the link and the blob."""
    good = chunked.content[0]
    chunked.content[0] = good[:-1] + bytes([good[-1] ^ 1])
    assert _refused(lambda: _pull(vae)).message.startswith(f"{VAE} is damaged: its sha256 is ")
    chunked.content[0] = good
    _pull(vae)
    assert chunked.files == [VAE, VAE]
    assert survey_pack(vae).complete


def test_what_was_begun_without_chunks(hub: Hub, vae: str, repositories: dict[str, Path], chunked: Chunked) -> None:
    """A file of which a part has arrived is gone on with in the same way, in the store of chunks or not."""
    hub.chunked.clear()
    hub.cuts[VAE] = [2 * CHUNK, *[0] * 6]
    _refused(lambda: _pull(vae))
    hub.chunked.add(VAE)
    hub.requests.clear()
    _pull(vae)
    assert not chunked.files
    assert hub.sent(VAE) == _size(repositories, VAE) - 2 * CHUNK


def test_a_mirror_without_the_store_of_chunks(hub: Hub, vae: str, chunked: Chunked) -> None:
    """A hub that lists files as chunked and has no store of chunks sends them as all others."""
    hub.chunks = False
    _pull(vae)
    assert not chunked.files
    assert VAE in hub.downloaded()


def test_a_store_of_chunks_that_fails(hub: Hub, vae: str) -> None:
    """When the library cannot get a file out of the store of chunks, the error is the hub's answer."""
    hub.chunked.add(VAE)
    fault = _refused(lambda: _pull(vae))
    assert fault.message == f"{hub.endpoint} answers 404 for {HUNYUAN}"


def test_leftovers_of_the_library(hub: Hub, vae: str, chunked: Chunked) -> None:
    """What killed downloads of the library left of a file is removed: nothing would go on with it."""
    (file,) = (file for file in _plan(vae).files if VAE.endswith(file.path))
    stray = file.blob.with_name(f"{file.blob.name}.0123abcd.incomplete")
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half a file")
    _pull(vae)
    assert not stray.exists()


# What stands in the way -----------------------------------------------------------------------------------


def test_no_space(hub: Hub, transformer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is refused with both numbers before anything is downloaded; what lies there counts."""
    plan = _plan(transformer)
    usage = shutil.disk_usage(hub_cache().parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=plan.to_download - 1))
    fault = _refused(lambda: _pull(transformer))
    assert fault.message == f"{hub_cache()}: needs 0.0041 GB, and its disk has 0.0041 GB free"
    assert fault.hint == "make room, or move the cache with HF_HOME"
    assert hub.sent() == 0
    assert not hub_cache().exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=plan.to_download))
    _pull(transformer)


def test_large_sizes_in_gigabytes(hub: Hub, transformer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of a real pack have one decimal."""
    plan = _plan(transformer)
    (first, *rest) = plan.repositories
    large = replace(first, files=(replace(first.files[0], size=25_750_000_000), *first.files[1:]))
    usage = shutil.disk_usage(hub_cache().parent.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_210_000_000))
    fault = _refused(lambda: pull(replace(plan, repositories=(large, *rest)), lambda _: None))
    assert "needs 25.8 GB, and its disk has 3.2 GB free" in fault.message


@pytest.mark.parametrize(
    ("number", "said"),
    [
        pytest.param(errno.ENOSPC, "the disk is full", id="full"),
        pytest.param(errno.EDQUOT, "the disk is full", id="quota"),
        pytest.param(errno.EROFS, "cannot be written: Read-only file system", id="read-only"),
        pytest.param(errno.EACCES, "cannot be written: Permission denied", id="no rights"),
    ],
)
def test_the_disk_in_the_middle(
    hub: Hub, transformer: str, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    """A disk that takes no more while a file is written is named by the cache, with what to do."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pull_module, "http_get", fails)
    fault = _refused(lambda: _pull(transformer))
    assert fault.message == f"{hub_cache()}: {said}"
    assert "HF_HOME" in (fault.hint or "")


def test_a_cache_that_cannot_be(hub: Hub, transformer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cache's folder is a file, that file is named."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    fault = _refused(lambda: _pull(transformer))
    assert str(tmp_path / "file") in fault.message
    assert "cannot be written" in fault.message


def test_a_listener_that_is_gone(hub: Hub, transformer: str) -> None:
    """A pipe that breaks where the progress is told is no fault of the cache."""

    def listen(event: PullEvent) -> None:
        if isinstance(event, PullProgress):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        pull(_plan(transformer), listen)


@pytest.mark.parametrize(
    ("begun", "said"),
    [
        pytest.param(False, " answers 503 for ", id="no snapshot"),
        # With which the library is content.
        pytest.param(True, ": the download failed: config.json is not in the cache", id="a snapshot of something else"),
    ],
)
def test_a_hub_that_fails_at_the_end(hub: Hub, transformer: str, begun: bool, said: str) -> None:
    """When the hub fails after the last byte, the error says so, and the next pull downloads nothing again."""
    plan = _plan(transformer)
    if begun:
        plan.files[0].pointer.parent.mkdir(parents=True)

    def fail(event: PullEvent) -> None:
        if isinstance(event, PullVerified) and event.file == SHARD:
            hub.statuses[f"api/{FRAMEPACK}"] = 503

    fault = _refused(lambda: pull(plan, fail))
    assert said in fault.message
    hub.statuses.clear()
    hub.requests.clear()
    _pull(transformer)
    assert hub.sent() == 0
    assert survey_pack(transformer).complete


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Offline, missing parts are named and the hub is not asked; a complete pack needs nothing."""
    monkeypatch.setenv(variable, "1")
    fault = _refused(_plan)
    assert fault.message.startswith("transformer, text_encoder, text_encoder_2, vae, tokenizer")
    assert "HF_HUB_OFFLINE forbids it" in fault.message
    assert "unset HF_HUB_OFFLINE" in (fault.hint or "")
    assert not hub.requests
    assert _plan("tiny").to_download == 0


def test_nobody_listens(hub: Hub, transformer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be reached is named, with what may be wrong."""
    with local_hub({}) as other:
        gone = other.endpoint
    monkeypatch.setenv("HF_ENDPOINT", gone)
    fault = _refused(lambda: _plan(transformer))
    assert fault.message.startswith(f"{FRAMEPACK}: the connection to {gone} failed: ")
    assert "check the connection, a proxy and HF_ENDPOINT" in (fault.hint or "")


@pytest.mark.parametrize("endpoint", ["huggingface.co", "http://", "ftp://127.0.0.1", "http://host:port"])
def test_endpoints_that_are_none(hub: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """An HF_ENDPOINT that is no URL is refused as that."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert _refused(_plan).message.startswith("HF_ENDPOINT: ")


def test_what_is_no_hub(hub: Hub, transformer: str) -> None:
    """An endpoint that answers something else is told apart from one that does not answer."""
    hub.statuses["api/"] = 200
    assert "does not answer as a hub" in _refused(lambda: _plan(transformer)).message


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "the token is not valid"),
        (403, "the token gives no access"),
        (429, "too many requests"),
        (500, "the hub has a problem"),
        (502, "the hub has a problem"),
    ],
)
def test_errors_of_the_hub(hub: Hub, transformer: str, monkeypatch: pytest.MonkeyPatch, status: int, hint: str) -> None:
    """An error is told with its number and the repository, whether it comes at the listing or at a file."""
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    plan = _plan(transformer)
    hub.statuses[FRAMEPACK] = status
    fault = _refused(lambda: pull(plan, lambda _: None))
    assert fault.message == f"{hub.endpoint} answers {status} for {FRAMEPACK}"
    assert (fault.hint or "").startswith(hint)
    if status != 401:  # which the library takes for a repository that is not there
        hub.statuses = {f"api/{FRAMEPACK}": status}
        assert _refused(lambda: _plan(transformer)).message == fault.message


def test_unknown_repositories(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that is not there may be a private one: the error says how to log in, or that it did not help."""
    model = _manifest(tmp_path, "nobody/nothing")
    fault = _refused(lambda: _plan(model))
    assert fault.message == f"{hub.endpoint} has no repository nobody/nothing"
    assert "hf auth login" in (fault.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert "your token gives no access" in (_refused(lambda: _plan(model)).hint or "")


def test_names_of_no_repository(hub: Hub, tmp_path: Path) -> None:
    """A name that no repository can have is refused as that."""
    model = _manifest(tmp_path, "no--body/nothing")
    assert _refused(lambda: _plan(model)).message == "no--body/nothing is no name of a repository"


def test_revisions(hub: Hub, tmp_path: Path) -> None:
    """A pinned commit is what is downloaded, and one that the repository does not have is named."""
    fault = _refused(lambda: _plan(_manifest(tmp_path, FRAMEPACK, revision="v9")))
    assert fault.message == f"{FRAMEPACK} has no revision v9"
    model = _manifest(tmp_path, FRAMEPACK, revision=hub.commit_of(FRAMEPACK))
    (repository,) = _plan(model).repositories
    assert repository.commit == hub.commit_of(FRAMEPACK)
    _pull(model)
    assert find_pack(model).transformer.name == hub.commit_of(FRAMEPACK)


def test_repositories_without_the_part(hub: Hub, tmp_path: Path) -> None:
    """A repository whose folder has no weights is named with the part and the folder."""
    fault = _refused(lambda: _plan(_manifest(tmp_path, HUNYUAN, subfolder="tokenizer")))
    assert fault.message == (f"{HUNYUAN} has no safetensors weights for the transformer: tokenizer holds none")


def test_gated_repositories(hub: Hub, transformer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gated repository is told when the plan is made, with where its conditions are and how to log in."""
    hub.gated[FRAMEPACK] = "hf_accepted"
    fault = _refused(lambda: _plan(transformer))
    assert fault.message == f"{FRAMEPACK} is gated: its owner wants conditions to be accepted first"
    assert f"{hub.endpoint}/{FRAMEPACK}" in (fault.hint or "")
    assert "hf auth login" in (fault.hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "your account has no access" in (_refused(lambda: _plan(transformer)).hint or "")
    monkeypatch.setenv("HF_TOKEN", "hf_accepted")
    _pull(transformer)
    assert survey_pack(transformer).complete


@pytest.mark.parametrize("place", ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME"])
def test_tokens(hub: Hub, transformer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A token is found where the library would, goes to the hub, and not to where the hub keeps large files."""
    hub.private[FRAMEPACK] = "hf_mine"
    token = tmp_path / "home" / "token"
    token.parent.mkdir()
    token.write_text("hf_mine\n")
    monkeypatch.setenv(place, {"HF_TOKEN": "hf_mine", "HF_TOKEN_PATH": str(token)}.get(place, str(token.parent)))
    _pull(transformer)
    assert survey_pack(transformer).complete
    tokens = {(request.path.startswith("api/"), request.sent > 0, request.token) for request in hub.requests}
    assert (True, False, "hf_mine") in tokens
    assert not [request for request in hub.requests if request.path == SHARD and request.sent and request.token]
