"""Files of the original goan: which can be imported, and what comes of them."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from goan_cli.errors import InvalidInput
from goan_cli.recipes import importing
from goan_cli.recipes.importing import Import, imported, read_original
from tests.cli.conftest import content_of as files_in
from tests.recipes.files import DEFAULTS, picture, queue_of, write_png, write_queue, write_zip

SHORT = {"prompt": "x", "steps": 3}


def import_of(path: Path) -> Import:
    """Everything that a file comes to, for a job file beside it."""
    with imported(read_original(path), path.parent, path.parent / "images") as found:
        return found


def write_json(path: Path, content: object) -> Path:
    """A JSON file of data, or of text as it is."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_png(tmp_path: Path) -> None:
    """The parameters of a PNG become a job from that very picture, and that is said."""
    found = import_of(write_png(tmp_path / "a.png", {"parameters": json.dumps(DEFAULTS)}))
    (job,) = found.jobs
    assert (job["image"], job["prompt"], job["steps"]) == ("a.png", "a dancer turns", 25)
    assert "image: the PNG itself is taken for the start image" in found.notes
    assert found.images == ()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_workspace(tmp_path: Path, wrapped: bool) -> None:
    """A workspace has no image, which is said; its keys may stand under `params`."""
    found = import_of(write_json(tmp_path / "w.json", {"params": SHORT} if wrapped else SHORT))
    assert found.jobs == [SHORT]
    assert found.notes == ["image: no start image in the file; give the job one"]


def test_a_workspace_with_an_image(tmp_path: Path) -> None:
    """An image that a workspace names is the job's where it is there, and else it is said that it is not."""
    path = write_json(tmp_path / "w.json", {**SHORT, "input_image": "start.png"})
    assert import_of(path).notes == ["image: start.png is not there; give the job one"]
    (tmp_path / "start.png").write_bytes(picture())
    found = import_of(path)
    assert (found.jobs, found.notes) == ([{"image": "start.png", **SHORT}], [])


@pytest.mark.parametrize("key", ["", "queue", "tasks", "jobs"])
def test_a_queue_as_json(tmp_path: Path, key: str) -> None:
    """A queue's JSON alone is several jobs; what concerns only some of them is said with their numbers."""
    tasks = json.loads(queue_of(SHORT, {**SHORT, "zoom": 1}, {**SHORT, "zoom": 2, "seed": "x"}))
    found = import_of(write_json(tmp_path / "q.json", {key: tasks, "next_id": 4} if key else tasks))
    assert found.jobs == [SHORT, SHORT, SHORT]
    assert found.notes == [
        "image: no start image in the file; give the job one",
        "zoom: unknown key, left out (jobs 2, 3)",
        "seed: must be a number, not 'x'; left out (job 3)",
    ]


def test_loras(tmp_path: Path) -> None:
    """LoRAs are looked for beside the file, and named where they are not."""
    (tmp_path / "a.safetensors").write_bytes(b"")
    found = import_of(write_json(tmp_path / "w.json", {**SHORT, "loras": {"a": 1, "b": 0.5}}))
    assert found.jobs[0]["loras"] == ["a.safetensors", {"path": "b.safetensors", "weight": 0.5}]
    assert found.notes[1:] == ["loras: b.safetensors is not there; put it there, or change the path"]


def test_a_queue_zip(tmp_path: Path) -> None:
    """Each job of a queue zip gets its image, which jobs may share, written once under a name of its own."""
    jobs: list[Any] = [{**SHORT, "image_ref": name} for name in ("a.png", "b.png", "a.png", "gone.png")]
    path = write_queue(tmp_path / "queue.zip", jobs, {"a.png": picture("red"), "b.png": picture("blue")})
    found = import_of(path)
    assert [job.get("image") for job in found.jobs] == ["images/a.png", "images/b.png", "images/a.png", None]
    assert found.notes == ["image: gone.png is not there; give the job one (job 4)"]
    assert sorted(found.images) == sorted((tmp_path / "images").iterdir())
    assert len(found.images) == 2


def test_a_queue_in_a_folder_of_the_zip(tmp_path: Path) -> None:
    """A queue that was zipped with its folder is found all the same."""
    members = {"out/queue_state.json": queue_of({**SHORT, "image_ref": "a.png"}), "out/a.png": picture()}
    assert import_of(write_zip(tmp_path / "q.zip", members)).jobs == [{"image": "images/a.png", **SHORT}]


def test_files_outside_the_zip(tmp_path: Path) -> None:
    """A queue reaches no file but those in its zip."""
    (tmp_path / "secret.png").write_bytes(picture())
    jobs = [{**SHORT, "image_ref": name} for name in (str(tmp_path / "secret.png"), "secret.png", "../secret.png")]
    found = import_of(write_queue(tmp_path / "queue.zip", jobs, {}))
    assert found.jobs == [SHORT] * 3
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("\ud83d", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"seed": ' + "9" * 5000 + "}", "not JSON"),
        ("[]", "0 jobs in it"),
        ("null", "expected keys and values, not null"),
        ("3", "expected keys and values, not 3"),
        ('"text"', "expected keys and values, not 'text'"),
        ("[[1, 2], [3]]", "job 1: expected keys and values, not a list"),
        ('[{"prompt": "x"}, 3]', "job 2: expected keys and values, not 3"),
        ("{}", "none of its keys"),
        ('{"a": {"prompt": "x"}}', "none of its keys"),
        ('{"queue": []}', "0 jobs in it"),
        ('{"settings": {}, "video": {}}', "a sidecar of this goan"),
    ],
    ids=lambda text: str(text)[:40],
)
def test_json_of_something_else(tmp_path: Path, content: str, reason: str) -> None:
    """JSON that is no recipe of the original's, however strange, is refused with the reason."""
    path = tmp_path / "w.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidInput, match=reason):
        read_original(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "9" * 400, "0." + "1" * 5000, "true", "[1]"])
def test_huge_numbers(tmp_path: Path, number: str) -> None:
    """Numbers that are none, or beyond all reach, cost no more than their key."""
    keys = ", ".join(f'"{key}": {number}' for key in ("steps", "seed", "mp4_crf"))
    found = import_of(write_json(tmp_path / "w.json", f'{{"prompt": "x", {keys}}}'))
    assert found.jobs == [{"prompt": "x"}]
    assert [note.split(":")[0] for note in found.notes] == ["steps", "seed", "mp4_crf", "image"]


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files far larger than settings, and queues of far too many jobs, are refused."""
    path = write_json(tmp_path / "w.json", [SHORT] * 5)
    monkeypatch.setattr(importing, "MOST_JOBS", 4)
    with pytest.raises(InvalidInput, match="5 jobs in it"):
        read_original(path)
    monkeypatch.setattr(importing, "MOST_BYTES", 10)
    with pytest.raises(InvalidInput, match="too large for settings"):
        read_original(path)
    with pytest.raises(InvalidInput, match="larger than"):
        read_original(write_queue(tmp_path / "queue.zip", [SHORT], {}))


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({}, "no parameters of the original goan"),
        ({"parameters": "a cat\nSteps: 20, Sampler: Euler"}, "not JSON"),
        ({"parameters": "[1, 2]"}, "expected keys and values, not a list"),
        ({"parameters": '{"sampler": "euler"}'}, "none of its keys"),
        ({"goan": "{}"}, "no parameters of the original goan"),
    ],
    ids=str,
)
def test_other_pngs(tmp_path: Path, texts: dict[str, str], reason: str) -> None:
    """PNGs of other programs, or of this goan, are refused with the reason."""
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_original(write_png(tmp_path / "a.png", texts))
    assert ("goan recipe" in str(caught.value.hint)) == ("goan" in texts)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_pngs(tmp_path: Path, share: float) -> None:
    """Half a PNG is refused, wherever it ends."""
    path = write_png(tmp_path / "a.png", {"parameters": json.dumps(DEFAULTS)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(InvalidInput, match="damaged or unreadable PNG"):
        read_original(path)


def test_a_bomb_of_text(tmp_path: Path) -> None:
    """A text chunk that unpacks without end is not unpacked."""
    path = write_png(tmp_path / "a.png", {})
    data = path.read_bytes()
    content = b"zTXtparameters\0\0" + zlib.compress(b" " * (64 << 20))
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    path.write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(InvalidInput, match="damaged or unreadable PNG"):
        read_original(path)


def test_zips_of_something_else(tmp_path: Path) -> None:
    """A zip without a queue is told as such, and so is one with two."""
    for members in ({"a.txt": b""}, {"a/queue_state.json": b"[]", "b/queue_state.json": b"[]"}):
        with pytest.raises(InvalidInput, match=r"no queue_state\.json in it"):
            read_original(write_zip(tmp_path / "queue.zip", members))


def test_a_damaged_queue(tmp_path: Path) -> None:
    """A zip whose content is not what was packed is refused."""
    path = write_queue(tmp_path / "queue.zip", [SHORT], {})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InvalidInput, match="is damaged"):
        read_original(path)
    assert list(files_in(tmp_path)) == ["queue.zip"]


def test_no_file(tmp_path: Path) -> None:
    """What is not there, and a folder, are told as such."""
    with pytest.raises(InvalidInput, match="no such file"):
        read_original(tmp_path / "gone.json")
    with pytest.raises(InvalidInput, match="is a folder"):
        read_original(tmp_path)
