"""What lies there of a job: nothing, a beginning, its own result, or another's under its name."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from goan_cli.batch.standing import OnExists, Standing, State, standing_of
from goan_cli.errors import InvalidInput
from goan_cli.files import sha256_of
from goan_cli.jobs.job import Job
from goan_cli.output.quality import Quality, SectionQuality
from goan_cli.output.sidecar import SIDECAR_VERSION, settings_of, write_sidecar
from goan_cli.render.checkpoint import CHECKPOINT_VERSION, METADATA_KEY, CheckpointRecord
from goan_cli.render.identity import job_identity, latents_identity
from goan_cli.render.plan import RenderPlan
from goan_cli.render.progress import write_checkpoint
from goan_cli.render.sampling import Progress, SectionProgress
from goan_cli.render.unipc import UniPCState
from tests.helpers import tiny_plan

STEPS, SECTIONS = 4, 3
GOOD = Quality(
    finite=True,
    black=0,
    black_frames=(),
    still_seconds=0.0,
    seconds=1.0,
    sections=(SectionQuality(luma=100.0, saturation=30.0, motion=5.0),) * SECTIONS,
)


def _plan(folder: Path, name: str = "shot", **settings: Any) -> RenderPlan:
    output = {"dir": str(folder / "out"), **settings.pop("output", {})}
    return tiny_plan(folder, name, sections=SECTIONS, steps=STEPS, output=output, **settings)


def _standing(plan: RenderPlan, on_exists: OnExists = OnExists.NUMBER, **options: Any) -> Standing:
    return standing_of(plan, on_exists, **options)


def _finish(plan: RenderPlan, quality: Quality | None = GOOD, **changes: Any) -> None:
    """The files that a finished job leaves."""
    job = plan.job
    job.output.dir.mkdir(parents=True, exist_ok=True)
    for path in job.results:
        path.write_text(f"{path.name} of seed {job.sampling.seed}")
    content = {
        "version": SIDECAR_VERSION,
        "identity": job_identity(plan),
        "settings": settings_of(job),
        "video": {"file": job.video.name, "sha256": sha256_of(job.video), "frames": 25, "seconds": 1.0},
        "pack": {},
        "asked_seed": job.sampling.seed,
        "seed_drawn": job.seed_drawn,
        "quality": asdict(quality) if quality else None,
    }
    write_sidecar(job.sidecar, {**content, **changes})


def _begin(plan: RenderPlan, sections: int = 1, steps: int = 0, *, seed: int | None = None) -> Path:
    """The checkpoint that a stopped job leaves; `seed` is the one in use where it is not the job's own."""
    job = plan.job
    used = job.sampling.seed if seed is None else seed
    identity = latents_identity(replace(plan, job=replace(job, sampling=replace(job.sampling, seed=used))))
    record = CheckpointRecord(
        name=job.name,
        identity=identity,
        seed=used,
        asked_seed=job.sampling.seed,
        seed_drawn=job.seed_drawn,
        sections=0,
        total=SECTIONS,
        steps=STEPS,
        computed_steps=(),
        machines=("cpu",),
    )
    sampler = UniPCState(done=steps, x=torch.zeros(2), predictions=(torch.zeros(2),))
    progress = Progress(
        history=torch.zeros(2),
        noise_state=torch.Generator().get_state(),
        computed_steps=((),) * sections,
        within=SectionProgress(sampler=sampler, caches=()) if steps else None,
    )
    path = job.checkpoint(identity)
    write_checkpoint(path, record, progress)
    return path


def _foreign_video(job: Job) -> None:
    job.output.dir.mkdir(parents=True, exist_ok=True)
    job.video.write_bytes(b"holidays")


def _foreign_json(job: Job) -> None:
    job.output.dir.mkdir(parents=True, exist_ok=True)
    job.sidecar.write_text('{"holidays": 2025}')


# Its own --------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    """A job of which nothing is there is new, as planned, and nothing is made by looking."""
    plan = _plan(tmp_path)
    assert _standing(plan) == Standing(plan=plan, state=State.NEW)
    assert not plan.job.output.dir.exists()


def test_up_to_date(tmp_path: Path) -> None:
    """A finished job that is asked for again is up to date."""
    plan = _plan(tmp_path)
    _finish(plan)
    assert _standing(_plan(tmp_path)) == Standing(plan=plan, state=State.UP_TO_DATE)


def test_up_to_date_elsewhere(tmp_path: Path) -> None:
    """A result stays its job's own when folders move: a copied picture, a renamed output folder."""
    plan = _plan(tmp_path)
    _finish(plan)
    plan.job.output.dir.rename(tmp_path / "moved")
    plan.job.pictures[0].rename(tmp_path / "renamed.png")
    moved = _plan(tmp_path, image=str(tmp_path / "renamed.png"), output={"dir": str(tmp_path / "moved")})
    assert _standing(moved).state is State.UP_TO_DATE


@pytest.mark.parametrize(
    ("sections", "steps", "share"), [(0, 1, 1 / 12), (1, 0, 1 / 3), (2, 3, 11 / 12), (SECTIONS, 0, 1.0)]
)
def test_begun(tmp_path: Path, sections: int, steps: int, share: float) -> None:
    """A job with a checkpoint is partial, with the share that is done."""
    plan = _plan(tmp_path)
    _begin(plan, sections, steps)
    standing = _standing(plan)
    assert (standing.state, standing.plan) == (State.PARTIAL, plan)
    assert standing.share == pytest.approx(share)


def test_furthest_checkpoint(tmp_path: Path) -> None:
    """Of several seeds' checkpoints the furthest says how far the job is."""
    plan = _plan(tmp_path, retry_seeds=2)
    _begin(plan, 1, seed=8)
    _begin(plan, 2, seed=9)
    _begin(plan, 0, 1)
    assert _standing(plan).share == pytest.approx(2 / 3)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def _newer(path: Path) -> None:
    # Of the same length, so that the header's length still fits.
    old, new = (f'\\"version\\": {version}'.encode() for version in (CHECKPOINT_VERSION, CHECKPOINT_VERSION + 1))
    content = path.read_bytes()
    assert METADATA_KEY.encode() in content
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(_cut, id="cut off"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"x" * 500), id="garbage"),
        pytest.param(_newer, id="newer"),
        pytest.param(lambda path: path.rename(path.with_name(f"other.{path.name}")), id="another job's"),
        pytest.param(lambda path: path.rename(path.with_name(f".goan-1-{path.name}")), id="half-written"),
    ],
)
def test_checkpoints_that_cannot_be_gone_on_with(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """A job whose checkpoint is damaged, of a newer goan or not its own is new; another one that is whole counts."""
    plan = _plan(tmp_path)
    damage(_begin(plan, 2))
    assert _standing(plan) == Standing(plan=plan, state=State.NEW)
    _begin(plan, 1, seed=8)
    assert _standing(plan).share == pytest.approx(1 / 3)


@pytest.mark.parametrize("change", [{"prompt": "another"}, {"steps": 5}, {"shift": 2.0}])
def test_checkpoint_of_another_recipe(tmp_path: Path, change: dict[str, Any]) -> None:
    """What was begun with other settings is no beginning of this job."""
    _begin(_plan(tmp_path))
    plan = _plan(tmp_path)
    other = tiny_plan(tmp_path, "shot", **{"sections": SECTIONS, "steps": STEPS, **change})
    assert _standing(plan).state is State.PARTIAL
    assert _standing(other) == Standing(plan=other, state=State.NEW)


@pytest.mark.parametrize("change", [{"fps": 12}, {"output": {"crf": 30}}])
def test_checkpoint_for_another_video_of_the_latents(tmp_path: Path, change: dict[str, Any]) -> None:
    """A beginning serves also where only rate or quality of the video have changed."""
    _begin(_plan(tmp_path))
    assert _standing(_plan(tmp_path, **change)).state is State.PARTIAL


@pytest.mark.parametrize("name", ["a", "a.b", "a.b.c"])
def test_names_with_dots(tmp_path: Path, name: str) -> None:
    """Checkpoints of jobs whose names begin alike are told apart."""
    _begin(_plan(tmp_path, name))
    found = {each: _standing(_plan(tmp_path, each)).state for each in ("a", "a.b", "a.b.c")}
    assert found == {each: State.PARTIAL if each == name else State.NEW for each in ("a", "a.b", "a.b.c")}


# Results that are no longer what is asked for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda job: job.video.unlink(), "shot.mp4 is gone", id="video gone"),
        pytest.param(lambda job: job.video.write_bytes(b"other"), "shot.mp4 was changed", id="video changed"),
        pytest.param(lambda job: job.latents.unlink(), "shot.latents.safetensors is wanted too", id="latents"),
        pytest.param(lambda job: job.contact_sheet.unlink(), "shot.sheet.png is wanted too", id="sheet"),
    ],
)
def test_something_is_missing(tmp_path: Path, change: Callable[[Job], None], reason: str) -> None:
    """A result of which something is gone or changed is made again under its name, with the reason."""
    plan = _plan(tmp_path, output={"keep_latents": True, "contact_sheet": True})
    _finish(plan)
    assert _standing(plan).state is State.UP_TO_DATE
    change(plan.job)
    assert _standing(plan) == Standing(plan=plan, state=State.NEW, reason=reason)


@pytest.mark.parametrize("key", ["keep_latents", "contact_sheet"])
def test_more_files_are_wanted(tmp_path: Path, key: str) -> None:
    """A finished job that is asked for one more file is made again; one that is asked for less is not."""
    less, more = _plan(tmp_path), _plan(tmp_path, output={key: True})
    _finish(less)
    assert _standing(more).state is State.NEW
    assert "is wanted too" in _standing(more).reason
    _finish(more)
    assert _standing(less).state is State.UP_TO_DATE


def test_beginning_of_what_is_missing(tmp_path: Path) -> None:
    """Where a result lacks something, a checkpoint of the job is gone on with."""
    plan = _plan(tmp_path)
    _finish(plan)
    _begin(plan, 2)
    assert _standing(plan).state is State.UP_TO_DATE
    plan.job.video.unlink()
    assert _standing(plan).state is State.PARTIAL
    assert _standing(plan).share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("gates", "quality", "reason"),
    [
        ({"nan": "fail"}, {"finite": False}, "nan: "),
        ({"black": "fail"}, {"black": 2}, "black: 2 frames"),
        ({"frozen": "fail"}, {"still_seconds": 0.9}, "frozen: nothing moves for 0.90 s"),
        (
            {"drift": "fail"},
            {"sections": (GOOD.sections[0], SectionQuality(luma=140.0, saturation=30.0, motion=5.0))},
            "drift: luma wanders by +40",
        ),
    ],
)
@pytest.mark.parametrize("gate", ["fail", "warn", "off"])
def test_gates_that_the_recorded_quality_fails(
    tmp_path: Path, gates: dict[str, str], quality: dict[str, Any], reason: str, gate: str
) -> None:
    """A finished job is made again when its gates now refuse what was measured, and only when they refuse it."""
    _finish(_plan(tmp_path, gates=dict.fromkeys(gates, "off")), quality=replace(GOOD, **quality))
    standing = _standing(_plan(tmp_path, gates=dict.fromkeys(gates, gate)))
    assert standing.state is (State.NEW if gate == "fail" else State.UP_TO_DATE)
    assert standing.reason.startswith(reason if gate == "fail" else "")
    assert bool(standing.reason) == (gate == "fail")


@pytest.mark.parametrize(
    "quality", [None, "good", {}, {"finite": True}, {**asdict(GOOD), "black": "2"}, {**asdict(GOOD), "sections": []}]
)
def test_quality_that_says_nothing(tmp_path: Path, quality: object) -> None:
    """A sidecar without usable measures refuses nothing."""
    plan = _plan(tmp_path, gates=dict.fromkeys(("nan", "black", "frozen", "drift"), "fail"))
    _finish(plan, quality=None)
    content = json.loads(plan.job.sidecar.read_text())
    write_sidecar(plan.job.sidecar, {**content, "quality": quality})
    assert _standing(plan).state is State.UP_TO_DATE


def test_pictures_that_have_vanished(tmp_path: Path) -> None:
    """A finished job whose picture is gone cannot be compared: it is told by the picture's path."""
    plan = _plan(tmp_path)
    _finish(plan)
    plan.job.pictures[0].unlink()
    with pytest.raises(InvalidInput, match=r"start\.png: cannot be read any more"):
        _standing(plan)


# Another's under its name ---------------------------------------------------------------------------------


def _other_recipe(job: Job) -> None:
    _finish(_plan(job.output.dir.parent, job.name, prompt="another"))


def _older_result(job: Job) -> None:
    """A result of a goan that gave no identity."""
    _finish(_plan(job.output.dir.parent, job.name))
    content = json.loads(job.sidecar.read_text())
    del content["identity"]
    job.sidecar.write_text(json.dumps(content))


def _newer_result(job: Job) -> None:
    _finish(_plan(job.output.dir.parent, job.name))
    content = json.loads(job.sidecar.read_text())
    job.sidecar.write_text(json.dumps({**content, "version": SIDECAR_VERSION + 1}))


def _other_picture(job: Job) -> None:
    """The job's own result, and then another picture in the place of the one that it was made from."""
    _finish(_plan(job.output.dir.parent, job.name))
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(job.pictures[0])


OTHERS = [
    pytest.param(_foreign_video, "shot.mp4 has no sidecar", id="foreign video"),
    pytest.param(_foreign_json, "shot.json: not a sidecar of goan", id="foreign JSON"),
    pytest.param(_other_recipe, "shot.mp4 is another recipe's result", id="another recipe"),
    pytest.param(_other_picture, "shot.mp4 is another recipe's result", id="another picture"),
    pytest.param(_older_result, "shot.mp4 is another recipe's result", id="no identity"),
    pytest.param(_newer_result, "which this goan cannot read", id="newer"),
]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("other", "reason"), OTHERS)
def test_name_is_taken(tmp_path: Path, other: Callable[[Job], None], reason: str, force: bool) -> None:
    """A name that is taken is skipped, replaced or numbered, as is asked for, and the reason is told."""
    plan = _plan(tmp_path)
    other(plan.job)
    skipped, replacing, numbered = (_standing(plan, each, force=force) for each in OnExists.__members__.values())
    assert (skipped.state, skipped.plan) == (State.TAKEN, plan)
    assert (replacing.state, replacing.plan) == (State.NEW, plan)
    assert replacing.reason == f"replaces it: {skipped.reason}"
    assert numbered.state is State.NEW
    assert numbered.plan == replace(plan, job=replace(plan.job, name="shot-2"))
    assert all(reason in standing.reason for standing in (skipped, replacing, numbered))


def test_a_recipe_whose_video_is_gone_takes_no_name(tmp_path: Path) -> None:
    """Where only another recipe's sidecar is left, the name is free."""
    _other_recipe(_plan(tmp_path).job)
    plan = _plan(tmp_path)
    plan.job.video.unlink()
    assert _standing(plan) == Standing(plan=plan, state=State.NEW)


def test_numbers_in_turn(tmp_path: Path) -> None:
    """Each further recipe takes the next number, and each one finds its own again."""
    prompts = ["one", "two", "three", "four"]
    names = []
    for prompt in prompts:
        standing = _standing(_plan(tmp_path, prompt=prompt))
        assert standing.state is State.NEW
        _finish(standing.plan)
        names.append(standing.plan.job.name)
    assert names == ["shot", "shot-2", "shot-3", "shot-4"]
    for prompt, name in zip(prompts, names, strict=True):
        standing = _standing(_plan(tmp_path, prompt=prompt))
        assert (standing.state, standing.plan.job.name) == (State.UP_TO_DATE, name)


def test_own_number_lacks_something(tmp_path: Path) -> None:
    """A job that has a number is made again under it, and not under the next one."""
    _foreign_video(_plan(tmp_path).job)
    _finish(_plan(tmp_path, "shot-2"))
    numbered = _plan(tmp_path, "shot-2").job
    numbered.video.unlink()
    standing = _standing(_plan(tmp_path))
    assert (standing.state, standing.plan.job.name) == (State.NEW, "shot-2")
    assert standing.reason == "shot-2.mp4 is gone"


def test_own_number_is_begun(tmp_path: Path) -> None:
    """A job that was begun under a number goes on under it."""
    _foreign_video(_plan(tmp_path).job)
    _begin(_plan(tmp_path, "shot-2"), 2)
    standing = _standing(_plan(tmp_path))
    assert (standing.state, standing.plan.job.name) == (State.PARTIAL, "shot-2")
    assert standing.share == pytest.approx(2 / 3)


def test_names_of_other_jobs_are_avoided(tmp_path: Path) -> None:
    """A number that would be another job's name in the same run is passed over, whether its video is there or not."""
    plan, second, third = (_plan(tmp_path, name) for name in ("shot", "shot-2", "shot-3"))
    _foreign_video(plan.job)
    names = {each.job.sidecar for each in (plan, second, third)}
    assert _standing(plan, names=names).plan.job.name == "shot-4"
    _finish(second)
    assert _standing(plan, names=names).plan.job.name == "shot-4"
    assert _standing(plan).plan.job.name == "shot-2"


@pytest.mark.parametrize("on_exists", OnExists)
def test_own_result_whatever_is_asked(tmp_path: Path, on_exists: OnExists) -> None:
    """What is done about other results plays no part for a job's own, or for its own beginning."""
    plan, begun = _plan(tmp_path), _plan(tmp_path, "begun")
    _finish(plan)
    _begin(begun)
    assert _standing(plan, on_exists).state is State.UP_TO_DATE
    assert _standing(begun, on_exists).state is State.PARTIAL


def test_a_beginning_beside_another_s_result(tmp_path: Path) -> None:
    """Another recipe's whole result keeps its name, though this job was begun under it."""
    plan = _plan(tmp_path)
    _begin(plan)
    _other_recipe(plan.job)
    assert _standing(plan).plan.job.name == "shot-2"
    assert _standing(plan, OnExists.SKIP).state is State.TAKEN
    assert _standing(plan, OnExists.REPLACE).plan == plan


def test_killed_while_it_replaced(tmp_path: Path) -> None:
    """A job that was killed after it took another's sidecar away, its sampling done, goes on to replace the video."""
    plan = _plan(tmp_path)
    _other_recipe(plan.job)
    plan.job.sidecar.unlink()
    _begin(plan, SECTIONS)
    for on_exists in OnExists:
        assert _standing(plan, on_exists) == Standing(plan=plan, state=State.PARTIAL, share=1.0)


# Force ----------------------------------------------------------------------------------------------------


def test_force(tmp_path: Path) -> None:
    """With force a finished job is made again under its own name or number."""
    plan = _plan(tmp_path)
    _finish(plan)
    assert _standing(plan, force=True) == Standing(plan=plan, state=State.NEW, reason="asked for again")
    other = _plan(tmp_path, prompt="another")
    numbered = _standing(other).plan
    _finish(numbered)
    assert _standing(other, force=True) == Standing(plan=numbered, state=State.NEW, reason="asked for again")


def test_force_goes_on(tmp_path: Path) -> None:
    """With force, a beginning is gone on with."""
    plan = _plan(tmp_path)
    _finish(plan)
    _begin(plan, 1)
    assert _standing(plan, force=True).state is State.PARTIAL


# Drawn seeds ----------------------------------------------------------------------------------------------


def _drawn(folder: Path, **settings: Any) -> RenderPlan:
    plan = _plan(folder, seed=None, **settings)
    assert plan.job.seed_drawn
    return plan


def _adopted(plan: RenderPlan, first: RenderPlan, **options: Any) -> Standing:
    """The standing of a plan that has drawn another seed than the first, and settles on the first's."""
    assert plan.job.sampling.seed != first.job.sampling.seed
    standing = _standing(plan, **options)
    assert standing.plan.job.sampling.seed == first.job.sampling.seed
    assert standing.plan.job.seed_drawn
    return standing


def test_drawn_seed_of_a_result(tmp_path: Path) -> None:
    """A job without a seed is up to date with what an earlier draw made, also where it is to be made again."""
    first = _drawn(tmp_path)
    _finish(first)
    assert _adopted(_drawn(tmp_path), first).state is State.UP_TO_DATE
    assert _adopted(_drawn(tmp_path), first, force=True).state is State.NEW
    first.job.video.unlink()
    assert _adopted(_drawn(tmp_path), first).state is State.NEW


def test_drawn_seed_of_a_beginning(tmp_path: Path) -> None:
    """A job without a seed goes on with the one that it was begun with; a retried seed is not the one asked for."""
    first = _drawn(tmp_path)
    path = _begin(first, 2)
    assert _adopted(_drawn(tmp_path), first).state is State.PARTIAL
    path.unlink()
    _begin(first, 1, seed=first.job.sampling.seed + 1)
    assert _adopted(_drawn(tmp_path), first).state is State.PARTIAL


def test_drawn_seed_of_a_beginning_that_replaces(tmp_path: Path) -> None:
    """A job without a seed that was begun in the place of another's result goes on with its seed."""
    first = _drawn(tmp_path)
    _begin(first)
    _other_recipe(first.job)
    plan = _drawn(tmp_path)
    standing = _standing(plan, OnExists.REPLACE)
    assert standing.state is not State.UP_TO_DATE
    assert standing.plan == first != plan


def test_drawn_seed_under_a_number(tmp_path: Path) -> None:
    """A job without a seed finds its own result under a number, too."""
    _foreign_video(_plan(tmp_path).job)
    first = _standing(_drawn(tmp_path)).plan
    _finish(first)
    standing = _adopted(_drawn(tmp_path), first)
    assert (standing.state, standing.plan.job.name) == (State.UP_TO_DATE, "shot-2")


def test_drawn_seed_written_down(tmp_path: Path) -> None:
    """The seed that was drawn, written into the job, is the same job; another seed is another one."""
    first = _drawn(tmp_path)
    _finish(first)
    seed = first.job.sampling.seed
    assert _standing(_plan(tmp_path, seed=seed)).state is State.UP_TO_DATE
    assert _standing(_plan(tmp_path, seed=seed + 1)).plan.job.name == "shot-2"


def test_written_seeds_are_not_adopted(tmp_path: Path) -> None:
    """A job without a seed does not take the seed that another job was given."""
    _finish(_plan(tmp_path, seed=7))
    plan = _drawn(tmp_path)
    assert _standing(plan).plan == replace(plan, job=replace(plan.job, name="shot-2"))


def test_drawn_seed_of_another_recipe(tmp_path: Path) -> None:
    """A job whose settings have changed since draws anew, under the next number."""
    _finish(_drawn(tmp_path))
    plan = _drawn(tmp_path, prompt="another")
    assert _standing(plan).plan == replace(plan, job=replace(plan.job, name="shot-2"))
