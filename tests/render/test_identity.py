"""What decides a render, row by row: settings and bytes do, names and places do not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import goan_cli.render.identity as identity_module
from goan_cli.errors import InvalidInput
from goan_cli.jobs.load import request_from_settings, settings_document
from goan_cli.packs.find import find_pack
from goan_cli.packs.magnitudes import Magnitudes, write_magnitudes
from goan_cli.render.identity import bake_recipe, job_identity, latents_identity, lora_source, refuse_vanished
from goan_cli.render.plan import RenderPlan, plan_renders
from tests.clips import numbered_frames, write_clip
from tests.helpers import PARTS, TINY_SQUARE, factors, write_lora, write_tiny_manifest

TO_Q = "lora_unet_transformer_blocks_0_attn_to_q"
# What a changed key changes: the latents and so the video, the video alone, or nothing.
LATENTS, VIDEO, NOTHING = (False, False), (True, False), (True, True)
Change = Callable[[Path], dict[str, Any]]


def _settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The job that every row changes: a picture, two LoRAs, true CFG off."""
    image = folder / "start.png"
    if not image.exists():
        Image.radial_gradient("L").resize((48, 40)).convert("RGB").save(image)
    for number in (1, 2):
        path = folder / f"lora-{number}.safetensors"
        if not path.exists():
            write_lora(path, factors(TO_Q, TINY_SQUARE, seed=number))
    return {
        "image": str(image),
        "prompt": "a red ball moves to the left",
        "size": [32, 48],
        "sections": 1,
        "steps": 2,
        "window": 2,
        "seed": 7,
        "shift": 3.0,
        "loras": [
            {"path": str(folder / "lora-1.safetensors"), "weight": 0.5, "include": ["*to_q*", "*blocks*"]},
            {"path": str(folder / "lora-2.safetensors"), "weight": 1.0},
        ],
        "output": {"dir": str(folder / "out"), "keep_latents": True},
        **changes,
    }


def _plan(folder: Path, *, name: str = "job", **changes: Any) -> RenderPlan:
    requests, problems = request_from_settings(settings_document((), _settings(folder, **changes)), name=name)
    (plan,) = plan_renders(requests, problems)
    return plan


def _lora(number: int, **changes: Any) -> Change:
    """The job with one LoRA's keys changed; None removes it."""

    def settings(folder: Path) -> dict[str, Any]:
        loras = _settings(folder)["loras"]
        loras[number - 1] |= changes
        return {"loras": loras}

    return settings


def _keys(**changes: Any) -> Change:
    return lambda _: changes


def _other_bytes(name: str) -> Change:
    """The file of this name, with other content, in the same place."""

    def settings(folder: Path) -> dict[str, Any]:
        _settings(folder)
        path = folder / name
        if path.suffix == ".png":
            Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(path)
        else:
            write_lora(path, factors(TO_Q, TINY_SQUARE, rank=3, seed=9))
        return {}

    return settings


def _copied(name: str) -> Change:
    """The job with a copy of the picture and of a LoRA, under other names in another folder."""

    def settings(folder: Path) -> dict[str, Any]:
        loras, other = _settings(folder)["loras"], folder / "elsewhere"
        other.mkdir()
        if name == "start.png":
            return {"image": str(shutil.copy(folder / name, other / "copy.png"))}
        loras[0]["path"] = str(shutil.copy(folder / name, other / "copy.safetensors"))
        return {"loras": loras}

    return settings


def _reversed_loras(folder: Path) -> dict[str, Any]:
    return {"loras": _settings(folder)["loras"][::-1]}


def _one_lora(folder: Path) -> dict[str, Any]:
    return {"loras": _settings(folder)["loras"][:1]}


def _one_more_of_weight_zero(folder: Path) -> dict[str, Any]:
    loras = _settings(folder)["loras"]
    return {"loras": [*loras, {**loras[1], "weight": 0}]}


def _same_pixels(folder: Path) -> dict[str, Any]:
    Image.open(folder / "start.png").save(folder / "start.bmp")
    return {"image": str(folder / "start.bmp")}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param(_keys(), NOTHING, id="nothing"),
        # What the job asks for.
        pytest.param(_keys(prompt="a red ball moves to the right"), LATENTS, id="prompt"),
        pytest.param(_keys(prompt="a red ball moves to the left "), LATENTS, id="a space in the prompt"),
        pytest.param(_keys(seed=8), LATENTS, id="seed"),
        pytest.param(_keys(seed=7 + 2**32), LATENTS, id="a long seed"),
        pytest.param(_keys(steps=3), LATENTS, id="steps"),
        pytest.param(_keys(sections=2), LATENTS, id="sections"),
        pytest.param(_keys(window=3), LATENTS, id="window"),
        pytest.param(_keys(size=[48, 32]), LATENTS, id="size"),
        pytest.param(_keys(guidance_scale=9), LATENTS, id="guidance_scale"),
        pytest.param(_keys(true_cfg_scale=1.5), LATENTS, id="true_cfg_scale"),
        pytest.param(_keys(shift=3.5), LATENTS, id="shift"),
        pytest.param(_keys(shift=None), LATENTS, id="no shift"),
        pytest.param(_keys(step_cache={"kind": "teacache", "threshold": 0.1}), LATENTS, id="step_cache"),
        pytest.param(_keys(model="tiny-f1"), LATENTS, id="family and transformer"),
        pytest.param(_keys(fps=24), VIDEO, id="fps"),
        pytest.param(_keys(output={"crf": 20}), VIDEO, id="crf"),
        pytest.param(_keys(negative_prompt="dark"), NOTHING, id="a negative prompt without true CFG"),
        # The same numbers in other words.
        pytest.param(_keys(guidance_scale=10, fps=30, true_cfg_scale=1, shift=3), NOTHING, id="whole numbers"),
        pytest.param(_keys(step_cache="off"), NOTHING, id="step_cache off"),
        # Files.
        pytest.param(_other_bytes("start.png"), LATENTS, id="another picture"),
        pytest.param(_same_pixels, LATENTS, id="the picture in another format"),
        pytest.param(_copied("start.png"), NOTHING, id="a copy of the picture"),
        # LoRAs.
        pytest.param(_other_bytes("lora-2.safetensors"), LATENTS, id="another LoRA of the name"),
        pytest.param(_copied("lora-1.safetensors"), NOTHING, id="a copy of a LoRA"),
        pytest.param(_keys(loras=[]), LATENTS, id="no LoRA"),
        pytest.param(_one_lora, LATENTS, id="one LoRA"),
        pytest.param(_reversed_loras, NOTHING, id="order of LoRAs"),
        pytest.param(_one_more_of_weight_zero, NOTHING, id="a LoRA of weight 0"),
        pytest.param(_lora(1, weight=0.51), LATENTS, id="weight"),
        pytest.param(_lora(2, weight=1), NOTHING, id="a whole weight"),
        pytest.param(_lora(1, weight=-0.5), LATENTS, id="sign of a weight"),
        pytest.param(_lora(1, include=["*to_q*"]), LATENTS, id="include"),
        pytest.param(_lora(1, include=["*blocks*", "*to_q*"]), NOTHING, id="order of include"),
        pytest.param(_lora(1, exclude=["*single*"]), LATENTS, id="exclude"),
        pytest.param(_lora(1, trusted=True), NOTHING, id="trusted"),
        # Where results go, and what is made of them.
        pytest.param(_keys(output={"dir": "/elsewhere"}), NOTHING, id="folder"),
        pytest.param(_keys(output={"keep_latents": False, "contact_sheet": True}), NOTHING, id="kept files"),
        pytest.param(_keys(output={"keep": ["sections", "preview"], "poster": True}), NOTHING, id="more kept files"),
        pytest.param(_keys(output={"format": "mp4", "codec": "h264", "crf": 16}), NOTHING, id="the usual coding"),
        pytest.param(_keys(output={"codec": "av1"}), VIDEO, id="codec"),
        pytest.param(_keys(output={"format": "gif"}), VIDEO, id="format"),
        pytest.param(_keys(output={"metadata": False}), VIDEO, id="no metadata"),
        pytest.param(_keys(output={"template": "{name}-{seed}"}), NOTHING, id="template"),
        pytest.param(_keys(gates={"black": "fail", "drift": "warn"}), NOTHING, id="gates"),
        pytest.param(_keys(retry_seeds=3), NOTHING, id="retry_seeds"),
    ],
)
def test_what_decides(tmp_path: Path, change: Change, same: tuple[bool, bool]) -> None:
    """Of two jobs that differ in one thing, latents and video are the same exactly where that decides nothing."""
    plan = _plan(tmp_path)
    before = latents_identity(plan), job_identity(plan)
    other = _plan(tmp_path, name="other", **change(tmp_path))
    assert (latents_identity(other) == before[0], job_identity(other) == before[1]) == same


@pytest.mark.parametrize("key", ["negative_prompt", "guidance_rescale"])
def test_what_true_cfg_brings_in(tmp_path: Path, key: str) -> None:
    """With true CFG on, what belongs to the negative branch decides too."""
    values: dict[str, Any] = {"negative_prompt": "dark", "guidance_rescale": 0.5}
    first, second = (_plan(tmp_path, true_cfg_scale=1.5, **more) for more in ({}, {key: values[key]}))
    assert latents_identity(first) != latents_identity(second)


def test_identities_are_digests(tmp_path: Path) -> None:
    """Both identities are hex digests, and the job's is not the latents'."""
    plan = _plan(tmp_path, prompt="größe 漢字 \ud800")
    assert all(len(bytes.fromhex(identity)) == 32 for identity in (latents_identity(plan), job_identity(plan)))
    assert latents_identity(plan) != job_identity(plan)


def test_a_drawn_seed_is_a_seed(tmp_path: Path) -> None:
    """A job whose seed was drawn is the job that has this seed written down."""
    drawn = _plan(tmp_path, seed=None)
    written = _plan(tmp_path, seed=drawn.job.sampling.seed)
    assert job_identity(drawn) == job_identity(written)


def test_length_in_seconds_or_sections(tmp_path: Path) -> None:
    """A length in seconds is the number of sections that it comes to."""
    seconds = _plan(tmp_path, seconds=1.0, sections=None)
    sections = _plan(tmp_path, sections=len(seconds.job.sections.sections))
    assert job_identity(seconds) == job_identity(sections)


def test_version_of_the_renderer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of a goan that renders otherwise are not this one's."""
    plan = _plan(tmp_path)
    before = latents_identity(plan), job_identity(plan)
    monkeypatch.setattr(identity_module, "RENDER_VERSION", identity_module.RENDER_VERSION + 1)
    assert latents_identity(plan) != before[0]
    assert job_identity(plan) != before[1]


# Packs ----------------------------------------------------------------------------------------------------


def _pack_of_copies(folder: Path) -> Path:
    """A manifest whose parts are copies of the tiny pack's."""
    tiny = find_pack("tiny")
    parts = {part: folder / "copies" / part for part in PARTS}
    for part, place in parts.items():
        shutil.copytree(getattr(tiny, part), place)
    return write_tiny_manifest(folder / "pack.yaml", parts=parts)


def test_a_copied_pack(tmp_path: Path) -> None:
    """A pack's copy under another name renders the same."""
    manifest = _pack_of_copies(tmp_path)
    copied, shipped = _plan(tmp_path, model=str(manifest)), _plan(tmp_path)
    assert copied.pack.name != shipped.pack.name
    assert job_identity(copied) == job_identity(shipped)
    assert bake_recipe(copied).identity == bake_recipe(shipped).identity


def _weights(path: Path) -> None:
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    name = min(tensors)
    tensors[name] = tensors[name] + torch.ones((), dtype=tensors[name].dtype)
    save_file(tensors, file)


def _texts(path: Path) -> None:
    file = min(path.glob("*.json"))
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")), indent=7), encoding="utf-8")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        *((part, _weights) for part in ("transformer", "text_encoder", "text_encoder_2", "vae", "image_encoder")),
        *((part, _texts) for part in PARTS),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_part_of_a_pack_decides(tmp_path: Path, part: str, change: Callable[[Path], None]) -> None:
    """Other weights, another configuration or another vocabulary of any part make another render."""
    manifest = _pack_of_copies(tmp_path)
    plan = _plan(tmp_path, model=str(manifest))
    before, recipe = latents_identity(plan), bake_recipe(plan).identity
    change(getattr(plan.pack, part))
    assert latents_identity(plan) != before
    assert (bake_recipe(plan).identity != recipe) == (part == "transformer")


# LoRAs ----------------------------------------------------------------------------------------------------


def test_recipe_is_of_the_weights_alone(tmp_path: Path) -> None:
    """Jobs that differ in all but their LoRAs have one recipe; a job without LoRAs has the base's own."""
    first = _plan(tmp_path)
    second = _plan(tmp_path, name="b", prompt="x", seed=1, steps=5, sections=3, size=[48, 48], fps=24)
    assert bake_recipe(first).identity == bake_recipe(second).identity
    assert bake_recipe(_plan(tmp_path, loras=[])).identity != bake_recipe(first).identity
    assert bake_recipe(_plan(tmp_path, loras=[])).loras == ()


@pytest.mark.parametrize("alpha", [4, 8])
def test_scale_beside_a_lora_decides(tmp_path: Path, alpha: int) -> None:
    """An adapter_config.json beside a LoRA belongs to it, and its bytes decide too."""
    folder = tmp_path / "peft"
    folder.mkdir()
    write_lora(folder / "adapter_model.safetensors", factors(TO_Q, TINY_SQUARE))
    use = [{"path": str(folder / "adapter_model.safetensors"), "weight": 1.0}]
    plain = _plan(tmp_path, loras=use)
    before = latents_identity(plain)
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha, "r": 2}))
    scaled = latents_identity(_plan(tmp_path, loras=use))
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha + 1, "r": 2, "x": 1}))
    assert len({before, scaled, latents_identity(_plan(tmp_path, loras=use))}) == 3


@pytest.mark.parametrize("name", ["start.png", "lora-1.safetensors"])
def test_files_that_have_vanished(tmp_path: Path, name: str) -> None:
    """A picture or LoRA that is gone since the job was planned is told by its path."""
    plan = _plan(tmp_path)
    (tmp_path / name).unlink()
    for ask in (latents_identity, job_identity):
        with pytest.raises(InvalidInput, match=f"{name}: cannot be read any more"):
            ask(plan)


def test_source_of_a_lora(tmp_path: Path) -> None:
    """A LoRA's source has its content's hash; a file changed since is another one."""
    plan = _plan(tmp_path)
    before = lora_source(plan.loras[1])
    write_lora(plan.loras[1].use.path, factors(TO_Q, TINY_SQUARE, rank=4))
    after = lora_source(plan.loras[1])
    assert before.sha256 != after.sha256
    assert replace(before, sha256=after.sha256) == after


# How it is carried out --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "same"),
    [
        *(pytest.param(_keys(precision=word), LATENTS, id=word) for word in ("fp32", "fp16", "bf16", "fp8")),
        pytest.param(_keys(attention="sage"), LATENTS, id="sage"),
        pytest.param(_keys(decode="single"), VIDEO, id="single decode"),
        pytest.param(_keys(precision="auto"), NOTHING, id="the device's precision"),
        *(pytest.param(_keys(attention=word), NOTHING, id=word) for word in ("auto", "sdpa", "cudnn", "flash")),
        *(pytest.param(_keys(compile=word), NOTHING, id=f"compile {word}") for word in ("auto", "on", "off")),
        *(pytest.param(_keys(memory=size), NOTHING, id=size) for size in ("auto", "24GB", "6GB", "800MB")),
        pytest.param(_keys(decode="overlap"), NOTHING, id="overlapped decode"),
    ],
)
def test_what_of_the_execution_decides(tmp_path: Path, change: Change, same: tuple[bool, bool]) -> None:
    """What changes the output by more than rounding decides; where it runs, and by which exact kernel, does not."""
    plan = _plan(tmp_path)
    other = _plan(tmp_path, name="other", **change(tmp_path))
    found = latents_identity(other) == latents_identity(plan), job_identity(other) == job_identity(plan)
    assert found == same


def test_executions_that_decide_are_told_apart(tmp_path: Path) -> None:
    """Every precision, sage, and every step cache has latents of its own, also together."""
    keys: list[dict[str, Any]] = [
        *({"precision": word} for word in ("auto", "fp32", "fp16", "bf16", "fp8")),
        {"attention": "sage"},
        {"attention": "sage", "precision": "fp8"},
        *({"step_cache": {"kind": kind, "threshold": 0.1}} for kind in ("teacache", "magcache")),
    ]
    identities = [latents_identity(_plan(tmp_path, steps=8, **each)) for each in keys]
    assert len(set(identities)) == len(keys)


def _calibrated(folder: Path, ratios: list[float], *, steps: int = 4) -> Path:
    """A pack of the tiny one's parts, with a calibration of MagCache beside its manifest."""
    manifest = write_tiny_manifest(folder / "pack.yaml")
    write_magnitudes(
        find_pack(str(manifest)),
        Magnitudes(
            transformer=find_pack("tiny").identity_of("transformer"),
            window=2,
            shift=3.0,
            samples=2,
            spread=0.0,
            ratios=tuple(ratios),
        ),
    )
    assert len(ratios) == steps
    return manifest


def test_computed_steps_of_magcache(tmp_path: Path) -> None:
    """Of a calibration the steps decide that are computed for it, and not the ratios that led to them."""
    settings: dict[str, Any] = {"steps": 4, "step_cache": {"kind": "magcache", "threshold": 0.1}}
    manifest = _calibrated(tmp_path, [1.0, 0.99, 0.98, 0.97])
    first = _plan(tmp_path, model=str(manifest), **settings)
    _calibrated(tmp_path, [1.0, 0.985, 0.985, 0.97])
    same = _plan(tmp_path, model=str(manifest), **settings)
    assert first.computes == same.computes == (0, 3)
    assert latents_identity(first) == latents_identity(same)
    _calibrated(tmp_path, [1.0, 0.5, 0.98, 0.97])
    other = _plan(tmp_path, model=str(manifest), **settings)
    assert other.computes == (0, 1, 3)
    assert latents_identity(other) != latents_identity(first)
    plain = _plan(tmp_path, model=str(manifest), steps=4)
    assert plain.computes is None


def test_recipes_are_of_no_precision(tmp_path: Path) -> None:
    """The weights' recipe is the same in every precision: what is baked is the pristine weights."""
    plans = [_plan(tmp_path, precision=word) for word in ("auto", "bf16", "fp8")]
    assert len({bake_recipe(plan).identity for plan in plans}) == 1


def _clip(folder: Path, name: str = "clip.mkv", first: int = 20) -> str:
    path = folder / name
    if not path.exists():
        write_clip(path, numbered_frames(24, height=48, width=32) + np.uint8(first))
    return str(path)


def _video(folder: Path, **keys: Any) -> dict[str, Any]:
    return {"image": None, "video": {"path": _clip(folder), **keys}}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param(_video, NOTHING, id="nothing"),
        pytest.param(lambda folder: {"video": _clip(folder)}, NOTHING, id="a bare path"),
        pytest.param(lambda folder: {"video": str(shutil.copy(_clip(folder), folder / "b.mkv"))}, NOTHING, id="a copy"),
        pytest.param(lambda folder: {"video": _clip(folder, "c.mkv", 21)}, LATENTS, id="another video"),
        pytest.param(lambda _: {"fps": 24}, LATENTS, id="fps, which resamples it"),
        pytest.param(lambda folder: {"image": str(folder / "start.png")}, LATENTS, id="an image to begin from"),
        pytest.param(lambda folder: _video(folder, cross_fade=0.1), VIDEO, id="cross-fade"),
        pytest.param(lambda folder: _video(folder, cross_fade=9), NOTHING, id="a cross-fade longer than can be"),
        pytest.param(lambda folder: _video(folder, join=False), VIDEO, id="join"),
        pytest.param(lambda folder: _video(folder, audio=True), NOTHING, id="audio where there is none"),
    ],
)
def test_what_of_a_video_decides(tmp_path: Path, change: Change, same: tuple[bool, bool]) -> None:
    """Of a video that is gone on with: its content decides the latents, how it is joined the file."""
    own = _video(tmp_path)
    plan = _plan(tmp_path, **own)
    before = latents_identity(plan), job_identity(plan)
    other = _plan(tmp_path, name="other", **{**own, **change(tmp_path)})
    assert (latents_identity(other) == before[0], job_identity(other) == before[1]) == same


def test_a_video_that_has_vanished(tmp_path: Path) -> None:
    """It is told of before anything is read."""
    plan = _plan(tmp_path, **_video(tmp_path))
    Path(_clip(tmp_path)).unlink()
    with pytest.raises(InvalidInput, match=r"clip\.mkv: cannot be read any more"):
        refuse_vanished(plan)
    with pytest.raises(InvalidInput, match=r"clip\.mkv: cannot be read any more"):
        latents_identity(plan)
