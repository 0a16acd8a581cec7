"""Plans: packs found once, LoRAs matched before anything is loaded, every problem told."""

from pathlib import Path

import pytest
import torch

import goan_cli.render.plan as plan_module
from goan_cli.errors import InvalidJobs
from goan_cli.jobs.load import JobRequest, request_from_settings, settings_document
from goan_cli.jobs.sections import Family
from goan_cli.packs.find import find_pack
from goan_cli.packs.pack import Pack
from goan_cli.render.plan import plan_renders
from tests.helpers import TINY_CONFIG, TINY_SQUARE, factors, tiny_plan, write_lora, write_tiny_manifest

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"


def _problems(folder: Path, **settings: object) -> list[str]:
    """What is wrong with the small job of these settings."""
    loras = settings.pop("loras", [])
    with pytest.raises(InvalidJobs) as caught:
        tiny_plan(folder, "job", loras, **settings)  # type: ignore[arg-type]  # checked by pydantic
    return [str(problem) for problem in caught.value.problems]


def _request(folder: Path, name: str, **settings: object) -> JobRequest:
    image = str(tiny_plan(folder).job.pictures[0])
    keys = {"image": image, "prompt": "a ball", "name": name, **settings}
    (request,), problems = request_from_settings(settings_document((), keys), name=name)
    assert problems == []
    return request


def test_plan_of_a_job(tmp_path: Path) -> None:
    """A plan has the job with the pack's defaults, the pack, and the matched LoRAs with their weights."""
    lora = write_lora(tmp_path / "lora.safetensors", factors(TO_Q, TINY_SQUARE, rank=3))
    (plan,) = plan_renders([_request(tmp_path, "job", loras=[{"path": str(lora), "weight": 0.6}])])
    assert plan.pack == find_pack("tiny")
    assert (plan.job.sampling.steps, plan.job.sections.window) == (8, 3)
    assert plan.job.sections.family is Family.INVERTED
    (planned,) = plan.loras
    assert (planned.adapter.path, planned.use.weight) == (lora, 0.6)
    assert planned.adapter.modules[0].form.rank == 3
    assert plan.notes == ()


def test_family_is_the_pack_s(tmp_path: Path) -> None:
    """The sections are planned in the direction that the pack was trained for."""
    manifest = write_tiny_manifest(tmp_path / "pack.yaml", family="f1")
    assert tiny_plan(tmp_path, model=str(manifest)).job.sections.family is Family.F1


def test_weight_zero(tmp_path: Path) -> None:
    """A LoRA of weight 0 is matched like any other, then left out with a note."""
    lora = write_lora(tmp_path / "lora.safetensors", factors(TO_Q, TINY_SQUARE))
    plan = tiny_plan(tmp_path, "job", [(lora, 0.0)])
    assert plan.loras == ()
    assert plan.notes == ("lora.safetensors has weight 0 and is left out",)
    broken = write_lora(tmp_path / "broken.safetensors", factors(TO_Q, (65, 64)))
    assert len(_problems(tmp_path, loras=[(broken, 0.0)])) == 1


def test_skipped_tensors_are_noted(tmp_path: Path) -> None:
    """What a rule leaves out of a LoRA is told with its number."""
    text = {"lora_te1_x.alpha": torch.tensor(1.0), "lora_te1_y.alpha": torch.tensor(1.0)}
    lora = write_lora(tmp_path / "lora.safetensors", factors(TO_Q, TINY_SQUARE) | text)
    (note,) = tiny_plan(tmp_path, "job", [(lora, 1.0)]).notes
    assert note == "lora.safetensors: skipped 2 text encoder tensors"


def test_every_wrong_lora_is_a_problem(tmp_path: Path) -> None:
    """All LoRAs that do not fit are told at once, each under its own key with its reason."""
    good = write_lora(tmp_path / "good.safetensors", factors(TO_Q, TINY_SQUARE))
    wide = write_lora(tmp_path / "wide.safetensors", factors(TO_Q, (128, 128)))
    other = write_lora(tmp_path / "other.safetensors", factors("lora_unet_blocks_0_self_attn_q", TINY_SQUARE))
    problems = _problems(tmp_path, loras=[(wide, 1.0), (good, 1.0), (other, 1.0)])
    assert len(problems) == 2
    assert "loras[0].path" in problems[0]
    assert f"transformer_blocks.0.attn.to_q is {TINY_CONFIG.width} x {TINY_CONFIG.width}" in problems[0]
    assert "loras[2].path" in problems[1]
    assert "trained for Wan" in problems[1]


def test_unknown_model_is_a_problem_of_the_job(tmp_path: Path) -> None:
    """A model that is not there is told under the job's own key, with the nearest name."""
    (problem,) = _problems(tmp_path, model="tinny")
    assert "model" in problem
    assert "tiny" in problem


def test_two_jobs_of_one_video(tmp_path: Path) -> None:
    """Two jobs that would write the same file are told, letter case aside, as some file systems have it."""
    out = {"dir": str(tmp_path / "out")}
    requests = [_request(tmp_path, name, output=out) for name in ("clip", "CLIP", "other")]
    with pytest.raises(InvalidJobs) as caught:
        plan_renders(requests)
    (problem,) = caught.value.problems
    assert "two jobs would write" in problem.message
    assert [plan.job.name for plan in plan_renders(requests[1:])] == ["CLIP", "other"]


@pytest.mark.parametrize(
    ("image", "output"),
    [("job.sheet.png", {"contact_sheet": True}), ("job.latents.safetensors", {"keep_latents": True})],
)
def test_no_result_replaces_an_input(tmp_path: Path, image: str, output: dict[str, bool]) -> None:
    """A start image that lies where the job would write is refused, if the job would write there."""
    where = str(tmp_path / "out")
    start = tmp_path / "out" / image
    start.parent.mkdir()
    start.write_bytes(tiny_plan(tmp_path).job.pictures[0].read_bytes())
    harmless = _request(tmp_path, "job", image=str(start), output={"dir": where})
    assert len(plan_renders([harmless])) == 1
    with pytest.raises(InvalidJobs, match="would replace a file that a job is made from"):
        plan_renders([_request(tmp_path, "job", image=str(start), output={"dir": where, **output})])


def test_given_problems_stop_the_plans(tmp_path: Path) -> None:
    """Problems found while loading are told with those of planning, and no plan comes of it."""
    bad, problems = request_from_settings(settings_document((), {"prompt": "a ball", "steps": 0}), name="job")
    with pytest.raises(InvalidJobs) as caught:
        plan_renders([*bad, _request(tmp_path, "good")], problems)
    told = "\n".join(str(problem) for problem in caught.value.problems)
    assert "steps" in told
    assert "image" in told


def test_packs_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many jobs name a pack, right or wrong, it is looked for once."""
    asked: list[str] = []

    def counting(model: str) -> Pack:
        asked.append(model)
        return find_pack(model)

    requests = [_request(tmp_path, f"job-{number}") for number in range(3)]
    monkeypatch.setattr(plan_module, "find_pack", counting)
    assert len(plan_renders(requests)) == 3
    assert asked == ["tiny"]


def test_out_folder(tmp_path: Path) -> None:
    """A folder given for the whole run takes the place of the jobs' own."""
    (plan,) = plan_renders([_request(tmp_path, "job", output={"dir": "/elsewhere"})], out=tmp_path / "all")
    assert plan.job.video == tmp_path / "all" / "job.mp4"
