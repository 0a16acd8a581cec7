"""Jobs with a timeline through stops, sidecars and replays: nothing is lost, and the account of them is true."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from goan_cli.batch.job import render_job
from goan_cli.batch.replay import replay
from goan_cli.batch.standing import OnExists, State, standing_of
from goan_cli.batch.stop import Stop
from goan_cli.errors import Interrupted
from goan_cli.files import sha256_of
from goan_cli.render.engine import Engine
from goan_cli.render.events import Event, SectionFinished, StepFinished
from goan_cli.render.identity import bake_recipe
from goan_cli.render.plan import RenderPlan
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora

FAMILIES = ("tiny", "tiny-f1")
SECTIONS = 4


@pytest.fixture(autouse=True, scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of embeddings for all these renders."""
    return tmp_path_factory.mktemp("shared")


def _plan(folder: Path, model: str = "tiny", *, results: str = "out", **keys: Any) -> RenderPlan:
    """A job of four sections, a second each: a LoRA in the middle two, another in the last, and an end image."""
    loras = {}
    for number, name in enumerate("ab", start=1):
        loras[name] = folder / f"{name}.safetensors"
        if not loras[name].exists():
            block = f"lora_unet_transformer_blocks_{number - 1}_attn_to_q"
            write_lora(loras[name], factors(block, TINY_SQUARE, seed=number, size=0.5))
    end = folder / "end.png"
    if not end.exists():
        Image.new("RGB", (16, 16), "blue").save(end)
    settings: dict[str, Any] = {
        "model": model,
        "size": [16, 16],
        "sections": SECTIONS,
        "fps": 8,
        "steps": 2,
        "timeline": [
            {"at": 1, "prompt": "a blue square grows", "blend": 1, "loras": [{"path": str(loras["a"]), "weight": 0.5}]},
            {"at": 3, "loras": [str(loras["b"])]},
        ],
        "output": {"dir": str(folder / results), "keep_latents": True},
        **({"end_image": str(end)} if model == "tiny" else {}),
        **keys,
    }
    return tiny_plan(folder, **settings)


def _render(plan: RenderPlan, cache: Path, stop_at: Callable[[Event], bool] = lambda _: False) -> bool:
    """Render with an engine of its own until it stops there; returns whether it came to the end."""
    stop = Stop()

    def listen(event: Event) -> None:
        if stop_at(event):
            stop.ask("stopped by SIGTERM")

    try:
        render_job(Engine(device="cpu", cache=cache), plan, stop=stop, listener=listen)
    except Interrupted:
        return False
    return True


def _sidecar(plan: RenderPlan) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(plan.job.sidecar.read_text(encoding="utf-8"))
    return content


def _untimed(value: Any) -> Any:
    """A bake report without what the clock says."""
    if isinstance(value, dict):
        return {key: _untimed(inner) for key, inner in value.items() if key != "seconds"}
    return [_untimed(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("model", "sections"), [("tiny", {"b": [1], "a": [2, 3], "": [4]}), ("tiny-f1", {"": [1], "a": [2, 3], "b": [4]})]
)
def test_account_of_changing_loras(
    tmp_path: Path, embeddings: Path, model: str, sections: dict[str, list[int]]
) -> None:
    """The sidecar has each set of LoRAs with its recipe, its report, and the sections that were sampled with it."""
    plan = _plan(tmp_path, model)
    assert _render(plan, embeddings)
    bake = _sidecar(plan)["bake"]
    files = {
        ", ".join(Path(file["path"]).stem for file in (each["report"] or {"files": []})["files"]): each
        for each in bake["sets"]
    }
    assert {name: each["sections"] for name, each in files.items()} == sections
    for each in bake["sets"]:
        recipe = bake_recipe(plan, each["sections"][0] - 1)
        assert each["recipe"] == (recipe.identity if recipe.loras else None)
        assert (each["report"] is None) == (not recipe.loras)
    assert files["a"]["report"]["files"][0]["weight"] == 0.5
    inputs = _sidecar(plan)["inputs"]
    assert inputs.get("pictures", {}) == {str(path): sha256_of(path) for path in plan.job.pictures[1:]}


@pytest.mark.parametrize("model", FAMILIES)
def test_stopped_after_every_section(tmp_path: Path, embeddings: Path, model: str) -> None:
    """Stopped after each section and once within each, with LoRAs that change between, all comes to the same."""
    whole, pieces = _plan(tmp_path, model), _plan(tmp_path, model, results="pieces")
    assert _render(whole, embeddings)
    rounds = 0
    for section in range(1, SECTIONS + 1):
        for stop_at in (
            lambda event, at=section: isinstance(event, StepFinished) and event.section == at,
            lambda event, at=section: isinstance(event, SectionFinished) and event.section == at,
        ):
            assert not _render(pieces, embeddings, stop_at)
            rounds += 1
    assert _render(pieces, embeddings)
    assert rounds == 2 * SECTIONS
    for one, other in zip(whole.job.results, pieces.job.results, strict=True):
        if one != whole.job.sidecar:
            assert one.read_bytes() == other.read_bytes()
    assert _untimed(_sidecar(pieces)["bake"]) == _untimed(_sidecar(whole)["bake"])


def test_sets_of_a_checkpoint_of_the_plain_job(tmp_path: Path, embeddings: Path) -> None:
    """A job begun with one LoRA throughout goes on where a timeline names a copy of it from some time on."""
    lora = write_lora(tmp_path / "a.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE))
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(lora.read_bytes())
    keys: dict[str, Any] = {"loras": [(lora, 1.0)]}
    plain = _plan(tmp_path, timeline=None, **keys)
    other = _plan(tmp_path, timeline=[{"at": 2, "loras": [str(copy)]}], **keys)
    assert not _render(plain, embeddings, lambda event: isinstance(event, SectionFinished) and event.section == 2)
    standing = standing_of(other, OnExists.NUMBER)
    assert (standing.state, standing.share) == (State.PARTIAL, 0.5)
    assert _render(other, embeddings)
    assert [each["sections"] for each in _sidecar(other)["bake"]["sets"]] == [[1, 2, 3, 4]]


def test_up_to_date(tmp_path: Path, embeddings: Path) -> None:
    """A finished job with a timeline is up to date, in other words too; with one moment changed it is another."""
    plan = _plan(tmp_path)
    assert _render(plan, embeddings)
    assert standing_of(_plan(tmp_path), OnExists.NUMBER).state is State.UP_TO_DATE
    timeline = json.loads(json.dumps(_sidecar(plan)["settings"]["timeline"]))
    timeline[0]["at"] = 1.2
    timeline[1]["negative_prompt"] = "dark"
    assert standing_of(_plan(tmp_path, timeline=timeline), OnExists.NUMBER).state is State.UP_TO_DATE
    timeline[1]["at"] = 2
    assert standing_of(_plan(tmp_path, timeline=timeline), OnExists.SKIP).state is State.TAKEN


@pytest.mark.parametrize("model", FAMILIES)
def test_replayed_from_the_sidecar(tmp_path: Path, embeddings: Path, model: str) -> None:
    """From the sidecar alone come the same latents, frames and file; another end or section's image is named."""
    picture = tmp_path / "section.png"
    Image.new("RGB", (24, 16), "red").save(picture)
    moments = [{"at": 1, "image": str(picture), "true_cfg_scale": 2, "prompt": "", "loras": []}]
    plan = _plan(tmp_path, model, timeline=moments, fit="pad", image=None, start="grey", guidance_schedule={"end": 2})
    assert _render(plan, embeddings)
    found = replay(plan.job.sidecar, tmp_path / "again", device="cpu", cache=embeddings)
    assert (found.same, found.video, found.causes) == (True, True, ())
    Image.new("RGB", (24, 16), "green").save(picture)
    found = replay(plan.job.sidecar, tmp_path / "third", device="cpu", cache=embeddings)
    assert not found.same
    assert found.causes == ("another picture of the timeline or the end",)


def test_another_lora_of_the_timeline_is_named(tmp_path: Path, embeddings: Path) -> None:
    """Where the LoRA of a moment has changed since, a replay differs and says that the recipe is another."""
    plan = _plan(tmp_path)
    assert _render(plan, embeddings)
    write_lora(tmp_path / "b.safetensors", factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE, seed=9))
    found = replay(plan.job.sidecar, tmp_path / "again", device="cpu", cache=embeddings)
    assert not found.same
    assert found.causes == ("another LoRA recipe",)
