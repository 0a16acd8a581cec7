"""`goan status`, `goan replay` and `goan schema --events` on the command line."""

import json
from pathlib import Path

from tests.cli.conftest import Goan
from tests.conftest import MINIMAL, write_jobs

QUICK = {**MINIMAL, "steps": 1, "size": [32, 16], "window": 1, "seed": 7}


def test_status(folder: Path, goan: Goan) -> None:
    """A folder's jobs are a table, or JSON; the default folder is renders."""
    assert goan("render", write_jobs(folder / "shot.yaml", QUICK), "--device", "cpu", "--quiet").code == 0
    shown = goan("status")
    assert (shown.code, shown.err) == (0, "")
    assert "shot" in shown.out
    assert "1 done" in shown.out
    listed = json.loads(goan("status", "renders", "--json", "--verify").out)
    assert [(job["name"], job["state"], job["share"]) for job in listed] == [("shot", "done", 1.0)]


def test_status_of_nothing(folder: Path, goan: Goan) -> None:
    """A folder that is not there is one line and exit code 2; an empty one has no jobs."""
    run = goan("status", "nowhere")
    assert (run.code, run.out, run.err) == (2, "", "error: nowhere: no such folder\n")
    (folder / "empty").mkdir()
    assert "no jobs here" in goan("status", "empty").out


def test_replay(folder: Path, goan: Goan) -> None:
    """A replay that makes the same ends with 0; one whose image has changed ends with 1 and names it."""
    assert goan("render", write_jobs(folder / "shot.yaml", QUICK), "--device", "cpu").code == 0
    run = goan("replay", "renders/shot.json", "--device", "cpu", "--out", "again")
    assert run.code == 0
    assert "latents: the same" in run.out
    assert "frames: the same" in run.out
    assert (folder / "again" / "shot.mp4").read_bytes() == (folder / "renders" / "shot.mp4").read_bytes()
    (folder / "start.png").write_bytes((folder / "start.png").read_bytes() + b"\0")
    run = goan("replay", "renders/shot.json", "--device", "cpu")
    assert run.code == 0  # the same picture in other bytes
    assert "another image" in run.out


def test_replay_does_not_write_over_what_it_compares_with(folder: Path, goan: Goan) -> None:
    """The folder of the sidecar itself cannot take the new video; and what is no sidecar is refused."""
    assert goan("render", write_jobs(folder / "shot.yaml", QUICK), "--device", "cpu").code == 0
    before = (folder / "renders" / "shot.mp4").read_bytes()
    assert goan("replay", "renders/shot.json", "--out", "renders").code == 2
    assert (folder / "renders" / "shot.mp4").read_bytes() == before
    run = goan("replay", "shot.yaml")
    assert run.code == 2
    assert run.err.startswith("error: shot.yaml: not a sidecar")


def test_schema_of_events(goan: Goan) -> None:
    """The events' schema names every kind of event."""
    schema = json.loads(goan("schema", "--events").out)
    kinds = {definition["properties"]["event"]["const"] for definition in schema["$defs"].values()}
    assert kinds == {
        *("run", "job", "stage", "step", "section", "checkpoint", "bake", "note", "error", "result"),
    }
