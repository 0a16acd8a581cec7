"""Runs that are killed outright, as the OOM killer does: nothing is lost, half written, or done twice."""

import hashlib
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from goan_cli.files import sha256_of
from goan_cli.render.checkpoint import CheckpointRecord, read_record
from tests.conftest import write_jobs
from tests.helpers import TINY_QKV_MLP, TINY_SQUARE, factors, write_lora
from tests.processes import Event, GoanProcess, matching, wait_for_orphans

SEED = int(os.environ.get("GOAN_KILL_SEED", "20261124"))  # another one kills at other moments
KILLS = 30
REAL_KILLS = 2  # of them, of the command itself instead of a fork of it: those import torch for seconds
NAMES = [f"job-{number}" for number in range(6)]
SECTIONS = 3
QUICK = {"sections": 1, "steps": 1, "window": 1, "output": {"dir": "out", "keep_latents": True}}
SUFFIXES = (".mp4", ".json", ".latents.safetensors", ".sheet.png")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start image and two LoRAs."""
    folder = tmp_path_factory.mktemp("inputs")
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(folder / "start.png")
    write_lora(folder / "a.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE, seed=1))
    write_lora(folder / "b.safetensors", factors("lora_unet_single_blocks_2_linear1", TINY_QKV_MLP, seed=2))
    return folder


def write_batch(folder: Path, inputs: Path, names: list[str], **settings: Any) -> Path:
    """A folder with a job file of small jobs that take turns with the LoRAs."""
    folder.mkdir(parents=True, exist_ok=True)
    defaults = {
        "image": str(inputs / "start.png"),
        "prompt": "a red ball moves to the left",
        "size": [32, 32],
        "sections": SECTIONS,
        "steps": 3,
        "window": 2,
        "output": {"dir": "out", "keep_latents": True, "contact_sheet": True},
        **settings,
    }
    jobs = [
        {"name": name, "seed": number, "loras": [str(inputs / f"{'ab'[number % 2]}.safetensors")]}
        for number, name in enumerate(names)
    ]
    write_jobs(folder / "jobs.yaml", {"defaults": defaults, "jobs": jobs})
    return folder


def sidecar_of(path: Path) -> dict[str, Any]:
    """What of a sidecar is the same whenever and wherever the job is rendered."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = ("identity", "latents_sha256", "frames_sha256", "video", "quality", "computed_steps", "sections", "machines")
    bake = {key: value for key, value in content["bake"].items() if key not in {"seconds"}}
    return {**{key: content[key] for key in kept}, "bake": bake}


def result_of(path: Path) -> Any:
    """What of a job's file must not depend on how often its run was killed."""
    return sidecar_of(path) if path.suffix == ".json" else path.read_bytes()


def results_in(out: Path) -> dict[str, Any]:
    """The files of an output folder, temporary ones and state apart."""
    return {path.name: result_of(path) for path in out.glob("*") if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> dict[str, Any]:
    """The files of the batch, rendered in one go."""
    folder = write_batch(tmp_path_factory.mktemp("uninterrupted"), inputs, NAMES)
    with GoanProcess(folder, "jobs.yaml") as goan:
        assert goan.wait() == 0, goan.said
    results = results_in(folder / "out")
    assert sorted(results) == sorted(f"{name}{suffix}" for name in NAMES for suffix in SUFFIXES)
    assert len({results[f"{name}.mp4"] for name in NAMES}) == len(NAMES)
    return results


@dataclass(kw_only=True)
class Batch:
    """A batch over all its runs: what was seen of it after each.

    `done` counts events; `silent` are jobs that a run completed and was killed before it could say so.
    """

    folder: Path
    expected: dict[str, Any]
    done: Counter[str] = field(default_factory=Counter)
    silent: set[str] = field(default_factory=set)
    sidecars: dict[str, bytes] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)

    def begun(self) -> dict[str, CheckpointRecord]:
        """Checkpoints by job; each can be read."""
        files = (self.folder / "out" / ".goan").glob("[!.]*.safetensors")
        records = [read_record(file) for file in files]
        return {record.name: record for record in records}

    def look(self, events: list[Event], before: dict[str, CheckpointRecord], *, killed: bool) -> None:
        """Check what a run did and left."""
        for name in NAMES:
            sections = [event["section"] for event in matching(events, event="step", job=name)]
            finished = before[name].sections if name in before else 0
            assert all(section > finished for section in sections), f"{name} was sampled again: {self.history}"
            self.done[name] += len(matching(events, event="result", job=name, end="done"))
        for name, content in results_in(self.folder / "out").items():
            assert content == self.expected[name], f"{name} is not what it should be: {self.history}"
        for path in (self.folder / "out").glob("[!.]*.json"):
            content = path.read_bytes()
            if killed and path.stem not in self.sidecars and not self.done[path.stem]:
                self.silent.add(path.stem)
            assert self.sidecars.setdefault(path.stem, content) == content, f"{path} came twice: {self.history}"

    def finish(self) -> None:
        """Check what the last run left."""
        assert results_in(self.folder / "out") == self.expected, self.history
        hidden = [str(path) for path in (self.folder / "out").rglob("*") if path.name.startswith(".goan")]
        assert hidden == [], self.history
        assert self.sidecars.keys() == set(NAMES)
        times = {name: self.done[name] + (name in self.silent) for name in NAMES}
        assert times == dict.fromkeys(NAMES, 1), self.history


def stage_of(events: list[Event]) -> str:
    """The stage at work after the last of the events, or what is between two stages."""
    stages = [(event["stage"], event["phase"]) for event in matching(events, event="stage")]
    if not stages or stages[-1][1] == "finished" or events[-1]["event"] in {"result", "job"}:
        return "between"
    return str(stages[-1][0])


def wait_for_moment(goan: GoanProcess, chance: random.Random) -> str:
    """Wait for a moment by chance, at the end of the run at the latest; says which."""
    goan.wait_for(lambda: goan.code is not None or bool(goan.events))
    seen = len(goan.events)
    if chance.random() < 0.6:
        lines, delay = chance.randint(1, 40), chance.uniform(0, 0.01)
        goan.wait_for(lambda: goan.code is not None or len(goan.events) >= seen + lines)
        what = f"{lines} lines and {delay:.3f} s"
    else:
        decodes, delay = chance.randint(1, 2), chance.uniform(0, 0.3)
        begun = {"event": "stage", "stage": "decode", "phase": "started"}
        goan.wait_for(lambda: goan.code is not None or len(matching(goan.events, **begun)) >= decodes)
        what = f"{decodes} decodes and {delay:.3f} s"
    goan.wait_briefly(delay)
    return what


def test_killed_at_random(tmp_path: Path, inputs: Path, uninterrupted: dict[str, Any]) -> None:
    """A batch that is killed over and over ends with the bits of one that never was, each job rendered once."""
    chance = random.Random(SEED)
    stages: Counter[str] = Counter()
    history = [f"seed {SEED}"]
    for number in count():
        batch = Batch(
            folder=write_batch(tmp_path / str(number), inputs, NAMES), expected=uninterrupted, history=history
        )
        complete = False
        while not complete:
            before, real = batch.begun(), stages.total() < REAL_KILLS
            with GoanProcess(batch.folder, "jobs.yaml", real=real) as goan:
                moment = wait_for_moment(goan, chance) if stages.total() < KILLS else "not killed"
                if moment == "not killed":
                    goan.wait()
                goan.send(signal.SIGKILL)
                code = goan.wait()
            wait_for_orphans(batch.folder)
            complete = code != -signal.SIGKILL
            if complete:
                assert code == 0, (goan.said, history)
            else:
                stages[stage_of(goan.events)] += 1
                history.append(f"{number}: {moment}, in {stage_of(goan.events)}")
            batch.look(goan.events, before, killed=not complete)
        batch.finish()
        if stages.total() >= KILLS:
            break
    print("\n".join([*history, str(stages)]))  # noqa: T201 - shown where the test fails
    assert stages["sample"] >= 3
    assert stages["decode"] >= 3
    assert stages["between"] < KILLS / 2


def assert_consistent(out: Path) -> None:
    """Nothing in a folder says of itself what it is not: a sidecar is that of the video and latents beside it."""
    for path in out.glob("[!.]*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["video"]["sha256"] == sha256_of(path.with_suffix(".mp4"))
        latents = load_file(path.with_suffix(".latents.safetensors"))["latents"]
        assert content["latents_sha256"] == hashlib.sha256(latents.numpy().tobytes()).hexdigest()


def run_together(places: Sequence[Path], *arguments: str, dies_before: Sequence[int | None]) -> list[int]:
    """The exit codes of runs in some folders, all at once."""
    with ExitStack() as stack:
        runs = [
            stack.enter_context(GoanProcess(place, "jobs.yaml", *arguments, dies_before=number))
            for place, number in zip(places, dies_before, strict=True)
        ]
        return [run.wait() for run in runs]


def kill_before_every_change(prepared: Path, folder: Path, *arguments: str) -> int:
    """Kill a run in copies of a prepared folder, before each of its changes of the output, and let it run again.

    Returns the number of changes.
    """
    whole = shutil.copytree(prepared, folder / "whole")
    assert run_together([whole], *arguments, dies_before=[None]) == [0]
    expected = results_in(whole / "out")
    for first in count(step=4):
        numbers = range(first, first + 4)
        places = [shutil.copytree(prepared, folder / str(number)) for number in numbers]
        codes = run_together(places, *arguments, dies_before=numbers)
        assert set(codes) <= {0, -signal.SIGKILL}
        for place in places:
            wait_for_orphans(place)
            assert_consistent(place / "out")
        assert run_together(places, *arguments, dies_before=[None] * 4) == [0] * 4
        for place in places:
            assert results_in(place / "out") == expected, place
            assert list((place / "out").rglob(".goan*")) == [], place
        if 0 in codes:
            return first + codes.index(0)
    raise AssertionError


def test_killed_before_every_change(tmp_path: Path, inputs: Path) -> None:
    """Before whichever of its changes of the output folder a run is killed, the next one completes the job."""
    prepared = write_batch(tmp_path / "prepared", inputs, ["job-0"], **QUICK)
    changes = kill_before_every_change(prepared, tmp_path)
    # The least that happens to a lock, a checkpoint, a video, latents and a sidecar.
    assert changes > 15


def test_killed_while_it_replaces(tmp_path: Path, inputs: Path) -> None:
    """A run that is killed while it replaces another recipe's result leaves that or its own, never one's half."""
    prepared = write_batch(tmp_path / "prepared", inputs, ["job-0"], **QUICK, prompt="something else")
    with GoanProcess(prepared, "jobs.yaml") as goan:
        assert goan.wait() == 0, goan.said
    write_batch(prepared, inputs, ["job-0"], **QUICK)
    with GoanProcess(prepared, "jobs.yaml", "--on-exists", "replace") as goan:
        goan.wait_for_event(event="stage", stage="decode", phase="started")
        goan.send(signal.SIGKILL)
        assert goan.wait() == -signal.SIGKILL
    wait_for_orphans(prepared)
    assert kill_before_every_change(prepared, tmp_path, "--on-exists", "replace") > 10


def test_sections_are_sampled_once(tmp_path: Path, inputs: Path) -> None:
    """A run that is killed loses no section with a checkpoint: the next one begins with the section after."""
    folder = write_batch(tmp_path, inputs, ["job-0"], steps=40)
    sampled: list[tuple[int, int]] = []
    finished = 0
    for section in (1, 2):
        with GoanProcess(folder, "jobs.yaml") as goan:
            goan.wait_for_event(event="checkpoint", sections=section)
            goan.send(signal.SIGKILL)
            assert goan.wait() == -signal.SIGKILL
        steps = [(event["section"], event["step"]) for event in matching(goan.events, event="step")]
        assert steps[0] == (finished + 1, 1)
        (file,) = (folder / "out" / ".goan").glob("[!.]*.safetensors")
        finished = read_record(file).sections
        assert finished >= section
        sampled += [step for step in steps if step[0] <= finished]
    with GoanProcess(folder, "jobs.yaml") as goan:
        assert goan.wait() == 0, goan.said
    sampled += [(event["section"], event["step"]) for event in matching(goan.events, event="step")]
    assert sampled == [(section, step) for section in range(1, SECTIONS + 1) for step in range(1, 41)]
