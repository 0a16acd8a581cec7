"""Batches and runs of them: what is loaded and baked, and runs that follow, stop, fail and meet one another."""

import json
import random
import shutil
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import goan_cli.batch.job as job_module
import goan_cli.render.loading as loading_module
import goan_cli.render.parts as parts_module
import goan_cli.render.transformers as transformers_module
from goan_cli.batch.job import render_job
from goan_cli.batch.lock import held, is_held
from goan_cli.batch.outcome import End, JobStarted, Outcome, RunEvent, RunStarted, exit_code
from goan_cli.batch.run import render_jobs
from goan_cli.batch.schedule import Order
from goan_cli.batch.standing import OnExists, State
from goan_cli.batch.stop import Stop
from goan_cli.batch.survey import RunSettings
from goan_cli.errors import EnvironmentFault, Interrupted, InvalidInput, QualityFailed, RenderFailed
from goan_cli.model.weights import load_transformer
from goan_cli.output.video import VideoInfo
from goan_cli.render.engine import Engine
from goan_cli.render.events import Baked, Note, Stage, StageStarted, StepFinished
from goan_cli.render.identity import bake_recipe
from goan_cli.render.plan import RenderPlan
from goan_cli.render.text import TextEncoders
from tests.helpers import TINY_QKV_MLP, TINY_SQUARE, factors, tiny_plan, write_lora

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
SINGLE = "lora_unet_single_blocks_2_linear1"


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRAs that act on the tiny model."""
    folder = tmp_path_factory.mktemp("loras")
    return {
        "a": write_lora(folder / "a.safetensors", factors(TO_Q, TINY_SQUARE, seed=1, alpha=2.0)),
        "b": write_lora(folder / "b.safetensors", factors(SINGLE, TINY_QKV_MLP, rank=3, seed=3)),
    }


def _small(folder: Path, name: str = "job", loras: Sequence[tuple[Path, float]] = (), **settings: Any) -> RenderPlan:
    """A job that is over soon: one step of one section of 16 x 16 pixels, unless said otherwise."""
    return tiny_plan(folder, name, loras, **{"size": [16, 16], "steps": 1, **settings})


def _heard(plans: Sequence[RenderPlan], **settings: Any) -> tuple[list[Outcome], list[RunEvent]]:
    """The outcomes of a run, and what it told."""
    heard: list[RunEvent] = []
    return render_jobs(plans, RunSettings(device="cpu", **settings), listener=heard.append), heard


def _ends(outcomes: Sequence[Outcome]) -> list[End]:
    return [outcome.end for outcome in outcomes]


def _started(heard: Sequence[RunEvent]) -> list[str]:
    return [event.plan.job.name for event in heard if isinstance(event, JobStarted)]


def _contents(folder: Path) -> dict[str, bytes]:
    """Every result in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _files(plan: RenderPlan) -> dict[str, bytes]:
    """What a job left that must be the same whenever and wherever it is rendered, under whatever name."""
    return {"video": plan.job.video.read_bytes(), "latents": load_file(plan.job.latents)["latents"].tobytes()}


def _sidecar(plan: RenderPlan) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(plan.job.sidecar.read_text(encoding="utf-8"))
    return content


# What is loaded, encoded and baked ------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is loaded, in order."""
    found: list[str] = []

    def counting(name: str, load: Callable[..., Any]) -> Callable[..., Any]:
        def loading(*arguments: Any, **options: Any) -> Any:
            found.append(name)
            return load(*arguments, **options)

        return loading

    where = {
        "TextEncoders": parts_module,
        "ImageEncoder": parts_module,
        "load_vae": loading_module,
        "load_transformer": transformers_module,
    }
    for name, module in where.items():
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return found


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are encoded, in order."""
    found: list[str] = []
    encode = TextEncoders.encode

    def encoding(encoders: TextEncoders, prompt: str) -> Any:
        found.append(prompt)
        return encode(encoders, prompt)

    monkeypatch.setattr(TextEncoders, "encode", encoding)
    return found


def _recipes(folder: Path, loras: dict[str, Path]) -> list[RenderPlan]:
    """Twelve jobs: three recipes on each of two packs, each twice, once of a copy in another order."""
    copied = {name: folder / f"copy-of-{name}.safetensors" for name in ("a", "b")}
    for name, path in copied.items():
        shutil.copy(loras[name], path)
    plans = []
    for model in ("tiny", "tiny-f1"):
        for files, number in ((loras, 1), (copied, 2)):
            both = [(files["a"], 0.5), (files["b"], 0.5)]
            recipes = {"a": [(files["a"], 1.0)], "weak": [(files["a"], 0.5)], "both": both[:: (1, -1)[number - 1]]}
            plans += [
                _small(folder, f"{model}-{name}-{number}", recipe, model=model, seed=number)
                for name, recipe in recipes.items()
            ]
    return plans


@pytest.mark.parametrize("shuffle", [0, 1])
def test_each_recipe_is_baked_once(tmp_path: Path, loras: dict[str, Path], loads: list[str], shuffle: int) -> None:
    """However the jobs are mixed, each recipe is baked once, and each model loaded once."""
    plans = _recipes(tmp_path, loras)
    random.Random(shuffle).shuffle(plans)
    outcomes, heard = _heard(plans, cache=tmp_path / "cache")
    assert _ends(outcomes) == [End.DONE] * 12
    assert [outcome.plan for outcome in outcomes] == plans
    baked = [event.report.recipe for event in heard if isinstance(event, Baked)]
    assert len(baked) == 6
    assert set(baked) == {bake_recipe(plan).identity for plan in plans}
    assert Counter(loads) == {"TextEncoders": 1, "ImageEncoder": 1, "load_vae": 1, "load_transformer": 2}
    # Packs, their recipes, and jobs of one recipe come in the order of the files.
    models, recipes = ([*dict.fromkeys(keys)] for keys in zip(*map(_keys, plans), strict=True))
    expected = sorted(plans, key=lambda plan: [models.index(_keys(plan)[0]), recipes.index(_keys(plan)[1])])
    assert _started(heard) == [plan.job.name for plan in expected]


def _keys(plan: RenderPlan) -> tuple[str, str]:
    return plan.job.model, bake_recipe(plan).identity


def test_order_of_the_files(tmp_path: Path, loras: dict[str, Path]) -> None:
    """Asked for, jobs are rendered as the files have them, each recipe baked as often as it returns, to the same."""
    recipes = [[(loras["a"], 1.0)], [(loras["b"], 1.0)], [(loras["a"], 1.0)], []]

    def plans(folder: Path) -> list[RenderPlan]:
        folder.mkdir()
        return [_small(folder, f"job-{number}", recipe) for number, recipe in enumerate(recipes)]

    by_recipe, by_file = plans(tmp_path / "recipe"), plans(tmp_path / "file")
    _, first = _heard(by_recipe)
    _, second = _heard(by_file, order=Order.FILE)
    assert _started(first) == ["job-0", "job-2", "job-1", "job-3"]
    assert _started(second) == ["job-0", "job-1", "job-2", "job-3"]
    assert [sum(isinstance(event, Baked) for event in heard) for heard in (first, second)] == [2, 3]
    assert [_files(plan) for plan in by_recipe] == [_files(plan) for plan in by_file]


def test_repeated_prompts_are_encoded_once(tmp_path: Path, loads: list[str], prompts: list[str]) -> None:
    """Each text of a run is encoded once, before any transformer is there, and the encoders are not loaded again."""
    plans = [
        _small(tmp_path, f"job-{number}", prompt=prompt, seed=number, true_cfg_scale=2.0, negative_prompt="dark")
        for number, prompt in enumerate(["left", "right", "left", "dark"])
    ]
    outcomes, _ = _heard(plans, cache=tmp_path / "cache")
    assert _ends(outcomes) == [End.DONE] * 4
    assert prompts == ["left", "dark", "right"]
    assert loads.count("TextEncoders") == 1
    assert loads.index("TextEncoders") < loads.index("load_transformer")


def test_text_encoders_are_gone_when_the_transformer_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first transformer is loaded, the encoders' memory is free."""
    held_encoders: list[weakref.ref[TextEncoders]] = []
    seen: list[bool] = []
    make, load = TextEncoders, load_transformer

    def making(**options: Any) -> TextEncoders:
        encoders = make(**options)
        held_encoders.append(weakref.ref(encoders))
        return encoders

    def loading(*arguments: Any, **options: Any) -> Any:
        seen.append(all(encoders() is None for encoders in held_encoders))
        return load(*arguments, **options)

    monkeypatch.setattr(parts_module, "TextEncoders", making)
    monkeypatch.setattr(transformers_module, "load_transformer", loading)
    outcomes, _ = _heard([_small(tmp_path)], cache=tmp_path / "cache")
    assert _ends(outcomes) == [End.DONE]
    assert len(held_encoders) == 1
    assert seen == [True]


def test_other_seeds_load_no_encoder(tmp_path: Path, loads: list[str]) -> None:
    """With the prompts and the picture in the cache, a run with other seeds loads what samples and decodes alone."""
    _heard([_small(tmp_path, "first")], cache=tmp_path / "cache")
    loads.clear()
    plans = [_small(tmp_path, f"seed-{seed}", seed=seed) for seed in (8, 9)]
    outcomes, _ = _heard(plans, cache=tmp_path / "cache")
    assert _ends(outcomes) == [End.DONE] * 2
    assert Counter(loads) == {"load_transformer": 1, "load_vae": 1}
    fresh = [_small(tmp_path, f"fresh-{seed}", seed=seed) for seed in (8, 9)]
    _heard(fresh)
    assert [_files(plan) for plan in fresh] == [_files(plan) for plan in plans]


def _no_folder(cache: Path) -> None:
    cache.write_text("in the way")


def _garbage(cache: Path) -> None:
    for file in cache.glob("*/*"):
        file.write_bytes(b"garbage")


@pytest.mark.parametrize("damage", [_no_folder, _garbage])
def test_a_cache_that_is_of_no_use(
    tmp_path: Path, prompts: list[str], damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that cannot be written, or holds garbage, has what is needed encoded, and changes no bit."""
    cache, first, second = tmp_path / "cache", _small(tmp_path, "first"), _small(tmp_path, "second")
    if damage is _garbage:
        _heard([first], cache=cache)
    else:
        _heard([first])
    damage(cache)
    prompts.clear()
    outcomes, _ = _heard([second], cache=cache)
    assert _ends(outcomes) == [End.DONE]
    assert set(prompts) == {second.job.prompt}
    assert _files(first) == _files(second)


# Runs that follow one another -----------------------------------------------------------------------------


def test_nothing_is_rendered_twice(tmp_path: Path, loras: dict[str, Path], loads: list[str]) -> None:
    """A run of jobs that are all there loads nothing, writes nothing, and says that they are up to date."""
    cache = tmp_path / "cache"
    plans = [_small(tmp_path, "a", [(loras["a"], 1.0)]), _small(tmp_path, "drawn", seed=None)]
    assert _ends(_heard(plans, cache=cache)[0]) == [End.DONE] * 2
    before = _contents(plans[0].job.output.dir)
    loads.clear()
    again = [_small(tmp_path, "a", [(loras["a"], 1.0)]), _small(tmp_path, "drawn", seed=None)]
    outcomes, heard = _heard(again, cache=cache)
    assert _ends(outcomes) == [End.UP_TO_DATE] * 2
    assert exit_code(outcomes) == 0
    assert loads == []
    assert heard[0] == RunStarted(standings=())
    assert _started(heard) == []
    assert _contents(plans[0].job.output.dir) == before


def test_only_what_is_missing_is_rendered(tmp_path: Path) -> None:
    """Of jobs of which some are there, the others are rendered; what was damaged is made again to the same bits."""
    plans = [_small(tmp_path, name) for name in ("one", "two", "three")]
    _heard(plans[:2])
    whole = _contents(plans[0].job.output.dir)
    plans[0].job.video.write_bytes(b"damaged")
    outcomes, heard = _heard(plans)
    assert _ends(outcomes) == [End.DONE, End.UP_TO_DATE, End.DONE]
    assert _started(heard) == ["one", "three"]
    assert plans[0].job.video.read_bytes() == whole["one.mp4"]


def test_changed_recipe_takes_the_next_number(tmp_path: Path) -> None:
    """Another recipe under a name becomes NAME-2 beside the first result, and each is found again."""
    first, second = _small(tmp_path), _small(tmp_path, prompt="another")
    _heard([first])
    before = _contents(first.job.output.dir)
    ((outcome,), _) = _heard([second])
    assert (outcome.end, outcome.plan.job.name) == (End.DONE, "job-2")
    assert outcome.result is not None
    assert outcome.result.video.name == "job-2.mp4"
    after = _contents(first.job.output.dir)
    assert {name: content for name, content in after.items() if name in before} == before
    assert sorted(set(after) - set(before)) == ["job-2.json", "job-2.latents.safetensors", "job-2.mp4"]
    assert json.loads(after["job-2.json"])["name"] == "job-2"
    for plan, name in ((first, "job"), (second, "job-2")):
        ((outcome,), _) = _heard([plan])
        assert (outcome.end, outcome.plan.job.name) == (End.UP_TO_DATE, name)


def test_changed_recipe_replaces_or_is_skipped(tmp_path: Path) -> None:
    """Asked for, another recipe under a name takes its place with all that it kept, or leaves it alone."""
    _heard([_small(tmp_path, output={"dir": str(tmp_path / "out"), "keep_latents": True, "contact_sheet": True})])
    other = _small(tmp_path, prompt="another", output={"dir": str(tmp_path / "out")})
    before = _contents(other.job.output.dir)
    outcomes, _ = _heard([other], on_exists=OnExists.SKIP)
    assert _ends(outcomes) == [End.SKIPPED]
    assert exit_code(outcomes) == 0
    assert _contents(other.job.output.dir) == before
    outcomes, _ = _heard([other], on_exists=OnExists.REPLACE)
    assert _ends(outcomes) == [End.DONE]
    assert sorted(_contents(other.job.output.dir)) == ["job.json", "job.mp4"]
    assert _sidecar(other)["settings"]["prompt"] == "another"


def test_force_makes_it_again(tmp_path: Path) -> None:
    """With force what is up to date is rendered again, under its name and with the seed that was drawn."""
    first = _small(tmp_path, seed=None)
    _heard([first])
    before = _files(first)
    first.job.video.write_bytes(b"damaged")
    ((outcome,), _) = _heard([_small(tmp_path, seed=None)], force=True)
    assert outcome.end is End.DONE
    assert outcome.plan == first
    assert _files(first) == before


def test_a_name_that_is_taken_meanwhile(tmp_path: Path) -> None:
    """Where something takes a job's name before its turn, the job goes on under the next one."""
    plan, foreign = _small(tmp_path), b"holidays"

    def listen(event: RunEvent) -> None:
        if isinstance(event, JobStarted):
            plan.job.output.dir.mkdir(exist_ok=True)
            plan.job.video.write_bytes(foreign)

    (outcome,) = render_jobs([plan], RunSettings(device="cpu"), listener=listen)
    assert (outcome.end, outcome.plan.job.name) == (End.DONE, "job-2")
    assert plan.job.video.read_bytes() == foreign
    assert not plan.job.state_dir.exists()


def test_a_job_that_is_done_meanwhile(tmp_path: Path) -> None:
    """Where another run finishes a job before its turn, nothing is rendered."""
    plan = _small(tmp_path)
    steps: list[StepFinished] = []

    def listen(event: RunEvent) -> None:
        if isinstance(event, JobStarted):
            render_job(Engine(device="cpu"), plan)
        if isinstance(event, StepFinished):
            steps.append(event)

    (outcome,) = render_jobs([plan], RunSettings(device="cpu"), listener=listen)
    assert outcome.end is End.UP_TO_DATE
    assert steps == []


def test_a_job_that_is_begun_meanwhile(tmp_path: Path) -> None:
    """Where another run began a job without a seed before its turn, it goes on with that run's seed."""
    theirs, ours = (_small(tmp_path, steps=3, seed=None) for _ in range(2))
    assert theirs.job.sampling.seed != ours.job.sampling.seed
    steps: list[StepFinished] = []
    stop = Stop()
    stop.ask("stopped by SIGTERM")

    def listen(event: RunEvent) -> None:
        if isinstance(event, JobStarted):
            with pytest.raises(Interrupted):
                render_job(Engine(device="cpu"), theirs, stop=stop)
        if isinstance(event, StepFinished):
            steps.append(event)

    (outcome,) = render_jobs([ours], RunSettings(device="cpu"), listener=listen)
    assert (outcome.end, outcome.plan) == (End.DONE, theirs)
    assert [event.step for event in steps] == [2, 3]


# Stopped --------------------------------------------------------------------------------------------------


def _stopping(when: Callable[[RunEvent], bool]) -> tuple[Stop, Callable[[RunEvent], None], list[RunEvent]]:
    """A stop, a listener that asks for it at the first event of this kind, and what it hears."""
    stop = Stop()
    heard: list[RunEvent] = []

    def listen(event: RunEvent) -> None:
        heard.append(event)
        if when(event):
            stop.ask("stopped by SIGTERM")

    return stop, listen, heard


@pytest.mark.parametrize("cached", [False, True])
def test_stopped_before_anything(tmp_path: Path, loads: list[str], cached: bool) -> None:
    """A stop that is asked for at once leaves every job as it was, loads nothing, and is no success."""
    plans = [_small(tmp_path, name) for name in ("one", "two")]
    stop, listen, _ = _stopping(lambda _: False)
    stop.ask("stopped by SIGINT")
    settings = RunSettings(device="cpu", stop=stop, cache=tmp_path / "cache" if cached else None)
    outcomes = render_jobs(plans, settings, listener=listen)
    assert _ends(outcomes) == [End.STOPPED] * 2
    assert {outcome.reason for outcome in outcomes} == {"not begun: stopped by SIGINT"}
    assert exit_code(outcomes) == 75
    assert loads == []
    assert not plans[0].job.output.dir.exists()


def test_stopped_while_encoding(tmp_path: Path) -> None:
    """A stop that is asked for while prompts are encoded ends the run without a job begun."""
    plans = [_small(tmp_path, name, prompt=name) for name in ("one", "two")]
    stop, listen, heard = _stopping(lambda event: isinstance(event, StageStarted) and event.stage is Stage.ENCODE)
    outcomes = render_jobs(plans, RunSettings(device="cpu", stop=stop, cache=tmp_path / "cache"), listener=listen)
    assert _ends(outcomes) == [End.STOPPED] * 2
    assert _started(heard) == []


def test_stopped_in_the_middle(tmp_path: Path) -> None:
    """Jobs before the stop are done, the one at work has a checkpoint, and running again does what is left."""
    names = ("one", "two", "three")
    plans = [_small(tmp_path, name, sections=2, steps=2, seed=number) for number, name in enumerate(names)]
    steps = iter(range(100))
    stop, listen, _ = _stopping(lambda event: isinstance(event, StepFinished) and next(steps) == 4)
    outcomes = render_jobs(plans, RunSettings(device="cpu", stop=stop), listener=listen)
    assert _ends(outcomes) == [End.DONE, End.STOPPED, End.STOPPED]
    assert [outcome.reason for outcome in outcomes[1:]] == [
        "in section 1: stopped by SIGTERM",
        "not begun: stopped by SIGTERM",
    ]
    assert exit_code(outcomes) == 75
    assert not any(is_held(plan.job.lock) or plan.job.lock.exists() for plan in plans)
    outcomes, heard = _heard(plans)
    assert _ends(outcomes) == [End.UP_TO_DATE, End.DONE, End.DONE]
    assert isinstance(heard[0], RunStarted)
    assert [(standing.state, standing.share) for standing in heard[0].standings] == [
        (State.PARTIAL, 0.25),
        (State.NEW, 0.0),
    ]
    assert sum(isinstance(event, StepFinished) for event in heard) == 3 + 4
    fresh = [_small(tmp_path, f"fresh-{name}", sections=2, steps=2, seed=number) for number, name in enumerate(names)]
    _heard(fresh)
    assert [_files(plan) for plan in plans] == [_files(plan) for plan in fresh]
    assert not plans[0].job.state_dir.exists()


def test_a_job_without_a_seed_goes_on_with_its_own(tmp_path: Path) -> None:
    """A stopped job whose seed was drawn goes on with that seed when it is planned anew."""
    plan = _small(tmp_path, steps=3, seed=None)
    stop, listen, _ = _stopping(lambda event: isinstance(event, StepFinished))
    (outcome,) = render_jobs([plan], RunSettings(device="cpu", stop=stop), listener=listen)
    assert outcome.end is End.STOPPED
    ((outcome,), heard) = _heard([_small(tmp_path, steps=3, seed=None)])
    assert outcome.plan == plan
    assert sum(isinstance(event, StepFinished) for event in heard) == 2
    assert _sidecar(plan)["seed_drawn"] is True


class _Late(Stop):
    """A deadline before which nothing more fits that takes any time, though it is not over yet."""

    def fits(self, seconds: float) -> bool:
        return seconds == 0


def test_no_job_is_begun_that_would_not_fit(tmp_path: Path) -> None:
    """Once it is known how long a section takes, no job like it is begun behind which the deadline lies."""
    plans = [_small(tmp_path, "one"), _small(tmp_path, "two"), _small(tmp_path, "larger", size=[32, 32])]
    outcomes, _ = _heard(plans, stop=_Late(deadline=0.0))
    assert _ends(outcomes) == [End.DONE, End.STOPPED, End.DONE]
    assert outcomes[1].reason.startswith("no section would end before the deadline")
    assert exit_code(outcomes) == 75


# Failed ---------------------------------------------------------------------------------------------------


def _broken_decode(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*_: Any, **__: Any) -> VideoInfo:
        raise error

    monkeypatch.setattr(job_module, "write_video", failing)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RenderFailed("out of memory", hint="a smaller size"), "out of memory (a smaller size)"),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_failure_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    """A failed job leaves why it failed, and its latents; once it succeeds, neither is left."""
    plan = _small(tmp_path)
    with monkeypatch.context() as patch:
        _broken_decode(patch, error)
        outcomes, _ = _heard([plan])
    assert _ends(outcomes) == [End.FAILED]
    assert exit_code(outcomes) == 1
    content = json.loads(plan.job.failure.read_text())
    assert (content["version"], content["name"], content["error"]) == (1, "job", said)
    assert len(list(plan.job.state_dir.iterdir())) == 2
    outcomes, heard = _heard([plan])
    assert _ends(outcomes) == [End.DONE]
    assert not any(isinstance(event, StepFinished) for event in heard)
    assert not plan.job.state_dir.exists()


def test_picture_that_cannot_be_encoded(tmp_path: Path) -> None:
    """A job whose picture was spoilt since it was planned fails before anything is rendered; the others are."""
    picture = tmp_path / "other.png"
    picture.write_bytes(_small(tmp_path).job.pictures[0].read_bytes())
    plans = [_small(tmp_path, "spoilt", image=str(picture)), _small(tmp_path, "good")]
    picture.write_bytes(b"no picture any more")
    outcomes, heard = _heard(plans, cache=tmp_path / "cache")
    assert _ends(outcomes) == [End.FAILED, End.DONE]
    assert isinstance(outcomes[0].error, InvalidInput)
    assert _started(heard) == ["good"]
    assert "not an image" in json.loads(plans[0].job.failure.read_text())["error"]


@pytest.mark.parametrize("cached", [False, True])
def test_vanished_picture_of_a_finished_job(tmp_path: Path, cached: bool) -> None:
    """A finished job whose picture is gone cannot be compared any more: it fails alone, its result untouched."""
    picture = tmp_path / "other.png"
    picture.write_bytes(_small(tmp_path).job.pictures[0].read_bytes())
    plans = [_small(tmp_path, "gone", image=str(picture)), _small(tmp_path, "good")]
    _heard(plans[:1])
    before = _contents(plans[0].job.output.dir)
    picture.unlink()
    outcomes, _ = _heard(plans, cache=tmp_path / "cache" if cached else None)
    assert _ends(outcomes) == [End.FAILED, End.DONE]
    assert _files(plans[0])["video"] == before["gone.mp4"]


def _black(frames: Callable[..., Iterator[NDArray[np.uint8]]], seeds: Sequence[int]) -> Callable[..., Any]:
    """Frames of which, for these seeds, all but the first are black."""

    def decoded(engine: Engine, plan: RenderPlan, *arguments: Any, **options: Any) -> Iterator[NDArray[np.uint8]]:
        first = True
        for chunk in frames(engine, plan, *arguments, **options):
            if plan.job.sampling.seed in seeds:
                chunk[1 if first else 0 :] = 0
            first = False
            yield chunk

    return decoded


def test_gate_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that its gate refuses fails with its video to be looked at; the gate opened, only the decode is done."""
    monkeypatch.setattr(Engine, "frames", _black(Engine.frames, [7]))
    plans = [_small(tmp_path, gates={"black": "fail"}), _small(tmp_path, "other", seed=8, gates={"black": "fail"})]
    outcomes, _ = _heard(plans)
    assert _ends(outcomes) == [End.FAILED, End.DONE]
    assert isinstance(outcomes[0].error, QualityFailed)
    names = sorted(_contents(plans[0].job.output.dir))
    assert names == ["other.json", "other.latents.safetensors", "other.mp4"]
    assert sorted(path.suffix for path in plans[0].job.state_dir.iterdir()) == [".json", ".mp4", ".safetensors"]
    outcomes, heard = _heard([_small(tmp_path, gates={"black": "warn"})])
    assert _ends(outcomes) == [End.DONE]
    assert outcomes[0].result is not None
    assert "black" in [finding.defect for finding in outcomes[0].result.findings]
    assert not any(isinstance(event, StepFinished) for event in heard)
    assert not plans[0].job.rejected.exists()
    assert not plans[0].job.state_dir.exists()
    # The result that the gate let pass is refused when it is closed again.
    outcomes, _ = _heard(plans)
    assert _ends(outcomes) == [End.FAILED, End.UP_TO_DATE]


@pytest.mark.parametrize("seed", [7, None], ids=["written", "drawn"])
def test_further_seeds_are_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int | None) -> None:
    """A job that came to its result with a later seed is up to date, though it asks for the first one."""
    plan = _small(tmp_path, gates={"black": "fail"}, retry_seeds=1, seed=seed)
    asked = plan.job.sampling.seed
    monkeypatch.setattr(Engine, "frames", _black(Engine.frames, [asked]))
    ((outcome,), _) = _heard([plan])
    assert outcome.result is not None
    assert outcome.result.job.sampling.seed == asked + 1
    assert [each["seed"] for each in _sidecar(plan)["rejected_seeds"]] == [asked]
    again = _small(tmp_path, gates={"black": "fail"}, retry_seeds=1, seed=seed)
    ((outcome,), _) = _heard([again])
    assert outcome.end is End.UP_TO_DATE


# Among other runs -----------------------------------------------------------------------------------------


def test_a_job_that_another_run_has(tmp_path: Path) -> None:
    """A job whose lock another run holds is left to it, and running again will tell; the others are rendered."""
    plans = [_small(tmp_path, "theirs"), _small(tmp_path, "ours")]
    with held(plans[0].job.lock, wait=False, stop=Stop()):
        outcomes, _ = _heard(plans)
        assert is_held(plans[0].job.lock)
    assert _ends(outcomes) == [End.BUSY, End.DONE]
    assert outcomes[0].reason == "another run is rendering it"
    assert exit_code(outcomes) == 75
    assert not plans[0].job.video.exists()
    assert _ends(_heard(plans)[0]) == [End.DONE, End.UP_TO_DATE]


def test_waiting_for_another_run(tmp_path: Path) -> None:
    """Asked to wait, a run says so and renders the job when the other run lets go of it."""
    plan = _small(tmp_path)
    heard: list[RunEvent] = []
    with ExitStack() as other_run:
        assert other_run.enter_context(held(plan.job.lock, wait=False, stop=Stop()))

        def listen(event: RunEvent) -> None:
            heard.append(event)
            if isinstance(event, Note) and "waiting" in event.text:
                other_run.close()

        (outcome,) = render_jobs([plan], RunSettings(device="cpu", wait=True), listener=listen)
    assert outcome.end is End.DONE
    assert sum(isinstance(event, Note) for event in heard) == 1


def test_locked_while_it_renders(tmp_path: Path) -> None:
    """While a job is rendered its lock is held, and no other job's; afterwards none is there."""
    plans = [_small(tmp_path, name) for name in ("one", "two")]
    seen: list[list[bool]] = []

    def listen(event: RunEvent) -> None:
        if isinstance(event, StepFinished):
            seen.append([is_held(plan.job.lock) for plan in plans])

    render_jobs(plans, RunSettings(device="cpu"), listener=listen)
    assert seen == [[True, False], [False, True]]
    assert not plans[0].job.state_dir.exists()


def test_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    """An output folder that is a file by now fails its job; a job in another folder is rendered."""
    plans = [_small(tmp_path, "one", output={"dir": str(tmp_path / "taken" / "out")}), _small(tmp_path, "two")]
    (tmp_path / "taken").write_text("in the way since it was planned")
    outcomes, _ = _heard(plans)
    assert _ends(outcomes) == [End.FAILED, End.DONE]
    assert isinstance(outcomes[0].error, EnvironmentFault)
