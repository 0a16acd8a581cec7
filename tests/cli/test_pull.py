"""`goan models pull` and `goan render --pull`, against a hub on this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from goan_cli.files import sha256_of
from goan_cli.packs.find import find_pack
from goan_cli.packs.places import hub_cache, snapshots_of
from tests.cli.conftest import Goan, Run, content_of
from tests.conftest import write_jobs
from tests.packagings import write_golden_manifest
from tests.packs.hub import FRAMEPACK, FRAMEPACK_F1, HUNYUAN, REDUX, Hub, golden_repositories, local_hub
from tests.processes import GoanProcess, matching, patiently

CHUNK = 1 << 16
SHARD = f"{FRAMEPACK}/diffusion_pytorch_model-00003-of-00003.safetensors"
VAE = f"{HUNYUAN}/vae/diffusion_pytorch_model.safetensors"
NEEDED = (
    "config.json",
    ".index.json",
    "-of-00003.safetensors",
    "-of-00004.safetensors",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "text_encoder_2/model.safetensors",
    "image_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
NEEDLESS = ("/scheduler/", "/transformer/", "/image_embedder/")
JOB = {
    "image": "start.png",
    "prompt": "a ball",
    "model": "framepack-i2v",
    "seed": 7,
    "size": [32, 32],
    "sections": 1,
    "steps": 1,
    "window": 1,
    "output": {"keep_latents": True},
}
# The command as it is installed; the library writes ten MiB at a time, more than these repositories have.
COMMAND = f"""
import sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = {CHUNK}
from goan_cli.cli.app import main
sys.argv[0] = "goan"
main()
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The golden pack as the repositories that the shipped packs name."""
    return golden_repositories(tmp_path_factory.mktemp("repositories"))


@pytest.fixture
def hub(repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of them, to which HF_ENDPOINT leads. Nobody waits between two tries."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with local_hub(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@contextmanager
def started(*arguments: str, env: Mapping[str, str] | None = None) -> Iterator["subprocess.Popen[str]"]:
    """`goan` in an interpreter of its own, killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(env or {})},
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: "subprocess.Popen[str]") -> Run:
    """How a process ended by itself."""
    out, err = process.communicate(timeout=60)
    return Run(code=process.returncode, out=out, err=err)


def wait_for(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    """Wait until something is so while a process runs."""
    for _ in patiently():
        if happened():
            return
        assert process.poll() is None, ended(process)


def files(repositories: Mapping[str, Path], *names: str) -> set[str]:
    """All that packs need of repositories, as the hub calls it."""
    paths = {
        f"{name}/{path.relative_to(repositories[name])}" for name in names for path in repositories[name].rglob("*")
    }
    return {path for path in paths if path.endswith(NEEDED) and not any(each in path for each in NEEDLESS)}


def size_of(repositories: Mapping[str, Path], path: str) -> int:
    """Bytes of a file as the hub calls it."""
    owner, name, file = path.split("/", 2)
    return (repositories[f"{owner}/{name}"] / file).stat().st_size


def refused(run: Run, code: int, *texts: str) -> None:
    """A failure with this code, told in one line that has these texts and says what to do."""
    assert run.code == code, run
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1, run.err
    assert run.err.rstrip().endswith(")"), run.err  # the hint
    for text in texts:
        assert text in run.err


def write_pack(folder: Path, **parts: object) -> Path:
    """A user's manifest on top of `framepack-i2v`."""
    file = folder / "mine.yaml"
    file.write_text(json.dumps({"name": "mine", "base": "framepack-i2v", **parts}), encoding="utf-8")  # JSON is YAML
    return file


# Whole stories --------------------------------------------------------------------------------------------


def test_killed_interrupted_resumed_rendered(
    hub: Hub, repositories: dict[str, Path], folder: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, interrupted with Ctrl-C and run again, a pull sends no byte twice; what it made renders offline.

    The latents are, to the last bit, those of the same pack in plain folders.
    """
    digest = sha256_of(repositories[FRAMEPACK] / SHARD.removeprefix(f"{FRAMEPACK}/"))
    partial = snapshots_of(FRAMEPACK, hub_cache()) / "blobs" / f"{digest}.incomplete"

    def arrived(count: int) -> bool:
        return partial.exists() and partial.stat().st_size == count

    hub.holds[SHARD] = 5 * CHUNK + 100
    with started("models", "pull", "framepack-i2v") as process:
        wait_for(process, lambda: arrived(5 * CHUNK))
        process.kill()
    hub.holds[SHARD] = 9 * CHUNK + 200
    with started("models", "pull", "framepack-i2v") as process:
        wait_for(process, lambda: arrived(9 * CHUNK))
        process.send_signal(signal.SIGINT)
        refused(ended(process), 75, "framepack-i2v", "interrupted", "run it again")
    hub.holds.clear()
    with started("models", "pull", "framepack-i2v") as process:
        run = ended(process)
    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines()[-1] == "complete framepack-i2v"
    assert [each.start for each in hub.requests if each.path == SHARD and each.sent] == [0, 5 * CHUNK, 9 * CHUNK]
    others = files(repositories, FRAMEPACK, HUNYUAN, REDUX) - {SHARD}
    assert hub.downloaded() == others | {SHARD}
    assert hub.sent() - hub.sent(SHARD) == sum(size_of(repositories, path) for path in others)

    assert goan("models", "verify", "framepack-i2v").code == 0
    hub.closing.set()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    jobs = write_jobs(folder / "pulled.yaml", JOB)
    before = list(hub.requests)
    with GoanProcess(folder, jobs, real=True) as offline:
        assert offline.wait() == 0, offline.said
    assert hub.requests == before
    plain = write_golden_manifest(folder / "plain-pack.yaml")
    run = goan("render", write_jobs(folder / "plain.yaml", {**JOB, "model": str(plain)}), "--device", "cpu")
    assert run.code == 0, run
    pulled, own = (load_file(folder / "renders" / f"{name}.latents.safetensors") for name in ("pulled", "plain"))
    assert pulled.keys() == own.keys()
    assert all(np.array_equal(pulled[name], own[name]) for name in own)


def test_render_pulls_what_lacks(hub: Hub, repositories: dict[str, Path], folder: Path, goan: Goan) -> None:
    """With --pull a render downloads first, then renders; standard output is left to the events."""
    jobs = write_jobs(folder / "job.yaml", JOB)
    run = goan("render", jobs, "--pull", "--device", "cpu", "--log-json", "-")
    assert run.code == 0, run
    assert (folder / "renders" / "job.mp4").exists()
    assert hub.downloaded() == files(repositories, FRAMEPACK, HUNYUAN, REDUX)
    events = [json.loads(line) for line in run.out.splitlines()]
    assert matching(events, event="result", end="done")

    hub.requests.clear()
    run = goan("render", jobs, "--pull", "--device", "cpu", "--force")
    assert (run.code, hub.requests) == (0, [])


def test_configured_to_pull(hub: Hub, folder: Path, goan: Goan) -> None:
    """`pull: true` in the settings does what --pull does; --quiet prints nothing of it."""
    jobs = write_jobs(folder / "job.yaml", JOB)
    assert goan("config", "set", "pull", "true").code == 0
    run = goan("render", jobs, "--device", "cpu", "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")
    assert (folder / "renders" / "job.mp4").exists()
    assert hub.sent()


# What is downloaded ---------------------------------------------------------------------------------------


def test_pull(hub: Hub, repositories: dict[str, Path], goan: Goan) -> None:
    """A pack is downloaded in the published layout; a second pull asks nothing, and F1 needs its transformer only."""
    run = goan("models", "pull", "framepack-i2v")
    assert (run.code, run.err) == (0, "")
    needed = files(repositories, FRAMEPACK, HUNYUAN, REDUX)
    assert hub.downloaded() == needed
    assert sorted(line.split()[1] for line in run.out.splitlines() if "verified" in line) == sorted(needed)
    assert f"{len(needed)} files" in run.out
    for path in needed:
        owner, name, file = path.split("/", 2)
        repository = f"{owner}/{name}"
        kept = snapshots_of(repository, hub_cache()) / "snapshots" / hub.commit_of(repository) / file
        assert kept.read_bytes() == (repositories[repository] / file).read_bytes()

    hub.requests.clear()
    run = goan("models", "pull", "framepack-i2v")
    assert (run.code, run.out) == (0, "complete framepack-i2v: nothing to download\n")
    assert not hub.requests

    run = goan("models", "pull", "framepack-f1")
    assert run.code == 0
    assert hub.downloaded() == files(repositories, FRAMEPACK_F1)
    assert {find_pack("framepack-f1").vae, find_pack("framepack-f1").tokenizer}.issubset(
        {find_pack("framepack-i2v").vae, find_pack("framepack-i2v").tokenizer}
    )


def test_two_packs(hub: Hub, repositories: dict[str, Path], goan: Goan) -> None:
    """Two packs at once get what they share once, and --quiet says nothing."""
    run = goan("models", "pull", "--quiet", "framepack-i2v", "framepack-f1")
    assert run == Run(code=0, out="", err="")
    needed = files(repositories, FRAMEPACK, FRAMEPACK_F1, HUNYUAN, REDUX)
    assert hub.downloaded() == needed
    assert hub.sent() == sum(size_of(repositories, path) for path in needed)
    assert find_pack("framepack-f1").transformer != find_pack("framepack-i2v").transformer


def test_what_is_found_elsewhere(
    hub: Hub, repositories: dict[str, Path], tmp_path: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part in a folder of GOAN_MODELS is not downloaded, and stays where it is."""
    shutil.copytree(repositories[HUNYUAN] / "vae", tmp_path / "HunyuanVideo" / "vae")
    monkeypatch.setenv("GOAN_MODELS", str(tmp_path))
    before = content_of(tmp_path)
    assert goan("models", "pull", "framepack-i2v").code == 0
    assert not [path for path in hub.downloaded() if "/vae/" in path]
    assert find_pack("framepack-i2v").vae == tmp_path / "HunyuanVideo" / "vae"
    assert content_of(tmp_path) == before


def test_flipped_bytes(hub: Hub, goan: Goan) -> None:
    """What only reading every byte can show, in weights and in a small file, is named by --sha256 alone."""
    assert goan("models", "pull", "framepack-i2v").code == 0
    pack = find_pack("framepack-i2v")
    weights, text = pack.vae / "diffusion_pytorch_model.safetensors", pack.tokenizer_2 / "tokenizer_config.json"
    run = goan("models", "verify", "framepack-i2v", "--sha256", "--json")
    told = json.loads(run.out)
    assert (run.code, told["right"], told["without_hash"]) == (0, True, [])
    content = weights.read_bytes()
    weights.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    text.write_bytes(text.read_bytes().replace(b" ", b"\t", 1))
    assert goan("models", "verify", "framepack-i2v").code == 0
    run = goan("models", "verify", "framepack-i2v", "--sha256", "--json")
    told = json.loads(run.out)
    assert (run.code, told["pack"], told["right"]) == (1, "framepack-i2v", False)
    assert {part: len(faults) for part, faults in told["faults"].items() if faults} == {"vae": 1, "tokenizer_2": 1}
    assert told["faults"]["vae"][0].startswith(f"{weights}: its sha256 is ")
    assert told["faults"]["tokenizer_2"][0].startswith(f"{text}: its git hash is ")
    run = goan("models", "verify", "framepack-i2v", "--sha256")
    assert run.code == 1
    assert str(weights) in run.out
    assert str(text) in run.out


def test_dry_run(hub: Hub, repositories: dict[str, Path], goan: Goan) -> None:
    """--dry-run names every file with its size, and neither downloads nor writes anything."""
    run = goan("models", "pull", "--dry-run", "framepack-i2v")
    assert (run.code, run.err) == (0, "")
    for path in files(repositories, FRAMEPACK, HUNYUAN, REDUX):
        owner, name, file = path.split("/", 2)
        assert f"{owner}/{name} at {hub.commit_of(f'{owner}/{name}')[:12]}" in run.out
        assert file in run.out
    assert hub.sent() == 0
    assert not Path(os.environ["HF_HOME"]).exists()


def test_dry_run_of_two_packs(hub: Hub, goan: Goan) -> None:
    """What two packs share would be downloaded once, and is shown once."""
    run = goan("models", "pull", "--dry-run", "framepack-i2v", "framepack-f1")
    assert run.code == 0
    assert run.out.count("vae/diffusion_pytorch_model.safetensors") == 1


# What goes wrong ------------------------------------------------------------------------------------------


def _damage(hub: Hub, _: pytest.MonkeyPatch) -> None:
    hub.damaged.add(SHARD)


def _shorten(hub: Hub, _: pytest.MonkeyPatch) -> None:
    hub.longer[SHARD] = -100


def _gate(hub: Hub, _: pytest.MonkeyPatch) -> None:
    hub.gated[FRAMEPACK] = "hf_accepted"


def _remove(hub: Hub, _: pytest.MonkeyPatch) -> None:
    del hub.repositories[FRAMEPACK]


def _fill(_: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path(os.environ["HF_HOME"]).parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))


def _unplug(_: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _lead_astray(_: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("happens", "texts"),
    [
        pytest.param(_damage, (SHARD, "damaged", "run it again"), id="damaged bytes"),
        pytest.param(_shorten, (SHARD, "damaged", "run it again"), id="wrong size"),
        pytest.param(_gate, (FRAMEPACK, "gated", "hf auth login"), id="gated"),
        pytest.param(_remove, (FRAMEPACK, "has no repository"), id="404"),
        pytest.param(_fill, ("needs 0.0062 GB", "0.0010 GB free", "HF_HOME"), id="no space"),
        pytest.param(_unplug, ("transformer", "HF_HUB_OFFLINE"), id="offline"),
        pytest.param(_lead_astray, ("connection", "HF_ENDPOINT"), id="nobody listens"),
    ],
)
def test_failures(
    hub: Hub,
    goan: Goan,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Hub, pytest.MonkeyPatch], None],
    texts: Sequence[str],
) -> None:
    """What cannot be downloaded ends with 3 and one line that says what to do; a render with --pull ends alike."""
    happens(hub, monkeypatch)
    run = goan("models", "pull", "framepack-i2v")
    refused(run, 3, *texts)
    assert "Traceback" not in run.out
    assert goan("models", "path", "framepack-i2v").code == 3


def test_names_are_checked_first(hub: Hub, goan: Goan) -> None:
    """A pack that is not known is refused before the one in front of it, 42 GB, is downloaded."""
    run = goan("models", "pull", "framepack-i2v", "framepack-f2")
    assert run.code == 2
    assert "no model pack named framepack-f2" in run.err
    assert hub.sent() == 0


@pytest.mark.parametrize("before", [(), ("framepack-f1",)])
@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_parts_at_missing_paths(
    hub: Hub, tmp_path: Path, goan: Goan, before: Sequence[str], option: Sequence[str]
) -> None:
    """A part that the manifest gives by a path that is not there is told with its line, and nothing is downloaded."""
    pack = write_pack(tmp_path, vae="gone.safetensors")
    run = goan("models", "pull", *option, *before, pack)
    assert run.code == 2
    assert f"{pack}:1: vae: {tmp_path / 'gone.safetensors'}" in run.err
    assert hub.sent() == 0


def test_repositories_that_hold_something_else(hub: Hub, tmp_path: Path, goan: Goan) -> None:
    """A pack whose repository holds another model is not called complete."""
    pack = write_pack(tmp_path, transformer={"repository": HUNYUAN, "subfolder": "vae"})
    run = goan("models", "pull", pack)
    assert run.code in (2, 3)
    assert "is HunyuanVideo's VAE, not FramePack's transformer" in run.err
    assert "Traceback" not in run.err
    assert "complete" not in run.out


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_interrupted_while_asking(option: Sequence[str]) -> None:
    """Ctrl-C while the hub has not answered yet ends with 75 and without a traceback too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with started("models", "pull", *option, "framepack-i2v", env={"HF_ENDPOINT": endpoint}) as process:
            connection, _ = silent.accept()
            connection.recv(100)
            process.send_signal(signal.SIGINT)
            run = ended(process)
            connection.close()
    assert run.code == 75, run
    assert "Traceback" not in run.err


# Renders --------------------------------------------------------------------------------------------------


def test_render_downloads_nothing(hub: Hub, folder: Path, goan: Goan) -> None:
    """Without --pull a missing model ends a render with 3, names the command and the size, and asks no hub."""
    jobs = write_jobs(folder / "job.yaml", JOB)
    before = content_of(folder)
    run = goan("render", jobs, "--log-json", "log.jsonl")
    refused(run, 3, "framepack-i2v is not complete", "goan models pull framepack-i2v", "42.4 GB")
    assert not hub.requests
    assert not Path(os.environ["HF_HOME"]).exists()
    (event,) = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert event["event"] == "error"
    assert "not complete" in event["message"]
    assert event["hint"] == "goan models pull framepack-i2v downloads 42.4 GB"
    assert (event["file"], event["key"]) == (str(jobs), "model")
    assert set(content_of(folder)) - set(before) == {"log.jsonl"}


@pytest.mark.parametrize("command", [("plan",), ("render", "--dry-run"), ("render", "--dry-run", "--pull")])
def test_plans_download_nothing(hub: Hub, folder: Path, goan: Goan, command: Sequence[str]) -> None:
    """A plan never downloads, whatever the settings say."""
    jobs = write_jobs(folder / "job.yaml", JOB)
    goan("config", "set", "pull", "true")
    refused(goan(*command, jobs), 3, "goan models pull framepack-i2v")
    assert not hub.requests


@pytest.mark.parametrize(
    ("job", "options", "text"),
    [
        pytest.param({"stepz": 3}, (), "stepz", id="unknown key"),
        pytest.param({"image": "gone.png"}, (), "gone.png", id="missing image"),
        pytest.param({"loras": ["gone.safetensors"]}, (), "gone.safetensors", id="missing LoRA"),
        pytest.param({"size": [32, 33]}, (), "size", id="wrong size"),
        pytest.param({}, ("--jobs", "nobody"), "nobody", id="no such job"),
        pytest.param({"model": "framepack-f2"}, (), "framepack-f2", id="unknown model"),
        pytest.param({"model": "./mine.yaml"}, (), "vae", id="part at a missing path"),
    ],
)
def test_wrong_jobs_download_nothing(
    hub: Hub, folder: Path, goan: Goan, job: Mapping[str, Any], options: Sequence[str], text: str
) -> None:
    """What is wrong with one job is told before the model of another one, 42 GB, is downloaded."""
    write_pack(folder, vae="gone.safetensors")
    jobs = write_jobs(folder / "job.yaml", {"jobs": [{**JOB, "name": "right"}, {**JOB, "name": "wrong", **job}]})
    run = goan("render", jobs, "--pull", "--device", "cpu", *options)
    assert run.code == 2, run
    assert text in run.err
    assert hub.sent() == 0


def test_failed_pull_of_a_render(hub: Hub, folder: Path, goan: Goan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that fails ends the render with 3, as an event of the log too."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    jobs = write_jobs(folder / "job.yaml", JOB)
    run = goan("render", jobs, "--pull", "--log-json", "log.jsonl", "--quiet")
    refused(run, 3, "HF_HUB_OFFLINE")
    assert (run.out, hub.requests) == ("", [])
    (event,) = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert event["event"] == "error"
    assert "HF_HUB_OFFLINE" in event["message"]
    assert not (folder / "renders").exists()


def test_interrupted_pull_of_a_render(hub: Hub, folder: Path) -> None:
    """Ctrl-C while a render downloads ends it with 75 and an event, and renders nothing."""
    hub.holds[SHARD] = CHUNK
    jobs = write_jobs(folder / "job.yaml", JOB)
    with GoanProcess(folder, jobs, "--pull", real=True) as process:
        process.wait_for(lambda: SHARD in hub.downloaded())
        process.send(signal.SIGINT)
        assert process.wait() == 75
        assert "Traceback" not in process.said
        (event,) = process.events
    assert event["event"] == "error"
    assert "run it again" in event["hint"]
    assert not (folder / "renders").exists()
