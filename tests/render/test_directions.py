"""What sections are told, down to the bits: each changes what it should, from its section on, and nothing before."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import goan_cli.render.identity as identity_module
from goan_cli.jobs.sections import Family, default_paddings
from goan_cli.jobs.sizes import fit
from goan_cli.lora.report import BakeReport
from goan_cli.model.transformer import PackedTransformer, TextConditioning
from goan_cli.render.budget import foreseen_memory, memory_of
from goan_cli.render.conditioning import blended
from goan_cli.render.engine import Engine, Sampled
from goan_cli.render.identity import job_identity, latents_identity
from goan_cli.render.image import filled_pixels, fitted_pixels
from goan_cli.render.plan import RenderPlan
from goan_cli.render.sampling import Progress
from goan_cli.render.text import TextEncoders
from tests.helpers import TINY_SQUARE, factors, tiny_plan, write_lora

FAMILIES = ("tiny", "tiny-f1")
# Four sections of two latent frames, at 8 frames a second: a section is a second.
SECTIONS, WINDOW = 4, 2
PROMPT, OTHER = "a red ball moves to the left", "a blue square stands still"


@pytest.fixture(autouse=True, scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of embeddings for all these renders."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def engine(embeddings: Path) -> Engine:
    """One engine for all, so that every test also shows that nothing is left from the one before."""
    return Engine(device="cpu", cache=embeddings)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that acts on the tiny model."""
    tensors = factors("lora_unet_transformer_blocks_0_attn_to_q", TINY_SQUARE, seed=1, size=0.5)
    return write_lora(tmp_path_factory.mktemp("loras") / "a.safetensors", tensors)


def _plan(folder: Path, timeline: Sequence[dict[str, Any]] = (), **keys: Any) -> RenderPlan:
    settings = {"size": [16, 16], "sections": SECTIONS, "window": WINDOW, "fps": 8, "steps": 2, **keys}
    return tiny_plan(folder, **{"prompt": PROMPT, "timeline": list(timeline) or None, **settings})


def _latents(engine: Engine, plan: RenderPlan, **options: Any) -> Tensor:
    return engine.sample(plan, engine.conditioning_for(plan), **options).latents


def _parts(latents: Tensor) -> list[Tensor]:
    """The sections' latents in viewing order, without the start's."""
    return list(latents[:, :, 1:].split(WINDOW, dim=2))


def _same(one: Tensor, other: Tensor) -> list[bool]:
    """Which sections, in viewing order, are the same bit for bit."""
    return [torch.equal(first, second) for first, second in zip(_parts(one), _parts(other), strict=True)]


# Bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", FAMILIES)
def test_told_the_same_in_other_words(tmp_path: Path, engine: Engine, model: str) -> None:
    """A timeline that changes nothing a section looks at renders the plain job's bits."""
    plain = _plan(tmp_path, model=model)
    directed = _plan(tmp_path, [{"at": 1, "negative_prompt": "dark"}, {"at": 2, "prompt": PROMPT}], model=model)
    assert directed.job.is_directed
    assert not plain.job.is_directed
    assert torch.equal(_latents(engine, directed), _latents(engine, plain))


CHANGES: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": OTHER},
    "guidance": {"guidance_scale": 3},
    "true CFG": {"true_cfg_scale": 2, "negative_prompt": "dark"},
    "picture": {"image": "start.png"},
    "LoRA": {"loras": ["lora"]},
}


@pytest.mark.parametrize(
    ("change", "cache"),
    [*((change, "off") for change in CHANGES), ("prompt", "teacache"), ("true CFG", "magcache"), ("LoRA", "teacache")],
)
@pytest.mark.parametrize("model", FAMILIES)
def test_sections_sampled_before_the_change(
    tmp_path: Path, engine: Engine, lora: Path, model: str, change: str, cache: str
) -> None:
    """Sections that are sampled before a change have the bits of a job that is told the same throughout.

    F1 goes from the job's own words to the moment's, the inverted family from the moment's to the job's.
    """
    keys: dict[str, Any] = {"model": model, "step_cache": cache, "steps": 2 if cache == "off" else 8}
    told = {key: str(tmp_path / value) if key == "image" else value for key, value in CHANGES[change].items()}
    told |= {"loras": [str(lora)]} if "loras" in told else {}
    own = _plan(tmp_path, **keys)
    throughout = _plan(tmp_path, [{"at": 0, **told}], **keys)
    turned = _latents(engine, _plan(tmp_path, [{"at": 2, **told}], **keys))
    if model == "tiny-f1":
        assert _same(turned, _latents(engine, own)) == [True, True, False, False]
    else:
        assert _same(turned, _latents(engine, throughout)) == [False, False, True, True]
        assert True not in _same(turned, _latents(engine, own))


@pytest.mark.parametrize("model", FAMILIES)
def test_loras_of_some_sections(tmp_path: Path, engine: Engine, lora: Path, model: str) -> None:
    """A LoRA between two moments: what is sampled with it is sampled with its very weights, and what follows without.

    What a fresh engine makes of each section from the same progress, with that LoRA for the whole job, is the measure.
    """
    alone = [{"path": str(lora), "weight": 0.5}]
    turned = _plan(tmp_path, [{"at": 1, "loras": alone}, {"at": 3, "loras": []}], model=model)
    kept: list[tuple[Progress, BakeReport | None]] = []
    sampled = engine.sample(
        turned, engine.conditioning_for(turned), keep=lambda progress, report: kept.append((progress, report))
    )
    with_lora = [False, True, True, False]
    assert [report is not None for _, report in kept] == with_lora
    after: Progress | None = None
    for baked, (progress, report) in zip(with_lora, kept, strict=True):
        whole = _plan(tmp_path, model=model, loras=[(lora, 0.5)] if baked else [])
        following: list[tuple[Progress, BakeReport | None]] = []
        other = Engine(device="cpu", cache=engine._cache.folder)
        other.sample(
            whole, other.conditioning_for(whole), after=after, keep=lambda *each, into=following: into.append(each)
        )
        assert torch.equal(following[0][0].history, progress.history)
        assert (following[0][1] is None) == (report is None)
        if report is not None and following[0][1] is not None:
            assert replace(report, seconds=0) == replace(following[0][1], seconds=0)
        after = progress
    assert torch.equal(sampled.latents, kept[-1][0].history)
    assert not torch.equal(sampled.latents, _latents(engine, _plan(tmp_path, model=model)))


@pytest.mark.parametrize("model", FAMILIES)
def test_gone_on_with_after_every_section(tmp_path: Path, engine: Engine, lora: Path, model: str) -> None:
    """From the progress after any section another engine comes to the same bits, whatever had changed by then."""
    moments = [
        {"at": 1, "prompt": OTHER, "blend": 1, "loras": [str(lora)]},
        {"at": 2, "true_cfg_scale": 2, "image": str(tmp_path / "start.png")},
        {"at": 3, "loras": [], "guidance_scale": 2},
    ]
    end = {"end_image": str(tmp_path / "start.png"), "end_strength": 0.5} if model == "tiny" else {}
    _plan(tmp_path)
    plan = _plan(tmp_path, moments, model=model, step_cache="teacache", steps=4, **end)
    kept: list[Progress] = []
    whole = engine.sample(plan, engine.conditioning_for(plan), keep=lambda progress, _: kept.append(progress))
    assert len(whole.computed_steps) == SECTIONS
    for progress in kept[:-1]:
        other = Engine(device="cpu", cache=engine._cache.folder)
        rest = other.sample(plan, other.conditioning_for(plan), after=progress)
        assert torch.equal(rest.latents, whole.latents)
        assert rest.computed_steps == whole.computed_steps


def test_true_cfg_in_some_sections(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only sections with true CFG run the second branch, with the negative prompt of their own."""
    calls: list[int] = []
    forward = PackedTransformer.forward

    def counted(self: PackedTransformer, latents: Tensor, **options: Any) -> Tensor:
        calls.append(1)
        return forward(self, latents, **options)

    monkeypatch.setattr(PackedTransformer, "forward", counted)
    moments = [{"at": 1, "true_cfg_scale": 2}, {"at": 2, "true_cfg_scale": 1}]
    plan = _plan(tmp_path, moments, model="tiny-f1", negative_prompt="dark")
    counts: list[int] = []
    engine.sample(plan, engine.conditioning_for(plan), keep=lambda *_: counts.append(len(calls)))
    assert counts == [2, 6, 8, 10]


@pytest.mark.parametrize("model", FAMILIES)
def test_a_schedule_changes_scheduled_sections_alone(tmp_path: Path, engine: Engine, model: str) -> None:
    """A guidance that rolls off at the end leaves F1's sections before alone, and a trim the inverted ones after."""
    plain = _latents(engine, _plan(tmp_path, model=model))
    schedule = {"shape": "roll-off", "start_at": 0.5, "end": 2} if model == "tiny-f1" else {"end": 10, "trim": 0.5}
    scheduled = _latents(engine, _plan(tmp_path, model=model, guidance_schedule=schedule))
    assert _same(scheduled, plain) == ([True, True, False, False] if model == "tiny-f1" else [False, True, True, True])


# Blends ----------------------------------------------------------------------------------------------------


def _text(rows: int, seed: int) -> TextConditioning:
    generator = torch.Generator().manual_seed(seed)
    return TextConditioning(
        embeds=torch.randn((1, rows, 6), generator=generator), pooled=torch.randn((1, 4), generator=generator)
    )


@pytest.mark.parametrize("rows", [(5, 3), (3, 5), (4, 4)])
def test_ends_of_a_blend(rows: tuple[int, int]) -> None:
    """A share of 0 is the earlier prompt and one of 1 the later, with zeros up to the longer one's length."""
    earlier, later = _text(rows[0], 1), _text(rows[1], 2)
    for share, end in ((0.0, earlier), (1.0, later)):
        mixed = blended(earlier, later, share)
        own = end.embeds.shape[1]
        assert mixed.embeds.shape[1] == max(rows)
        assert torch.equal(mixed.embeds[:, :own], end.embeds)
        assert not mixed.embeds[:, own:].any()
        assert torch.equal(mixed.pooled, end.pooled)
    half, shared = blended(earlier, later, 0.5), min(rows)
    mean = (earlier.embeds[:, :shared] + later.embeds[:, :shared]) / 2
    torch.testing.assert_close(half.embeds[:, :shared], mean)
    torch.testing.assert_close(half.pooled, (earlier.pooled + later.pooled) / 2)


def test_sections_of_a_blend(tmp_path: Path, engine: Engine) -> None:
    """Through a blend the text comes nearer to the later prompt's, and ends as that."""
    plan = _plan(tmp_path, [{"at": 1, "prompt": OTHER, "blend": 2}], model="tiny-f1")
    told = [section.positive.pooled for section in engine.conditioning_for(plan).sections]
    first, last = (engine.conditioning_for(_plan(tmp_path, prompt=each)).positive for each in (PROMPT, OTHER))
    assert torch.equal(told[0], first.pooled)
    assert torch.equal(told[-1], last.pooled)
    shares = [float((each - first.pooled).norm() / (last.pooled - first.pooled).norm()) for each in told]
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=1e-5)


# What is worked out how often ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moments", "tables"),
    [
        ([], 1),
        ([{"at": 1, "negative_prompt": "dark"}], 1),
        ([{"at": 1, "image": "start.png"}], 1),
        ([{"at": 1, "prompt": OTHER}], 2),
        ([{"at": 1, "prompt": OTHER}, {"at": 2, "prompt": PROMPT}], 3),
        ([{"at": 1, "guidance_scale": 2}], 2),
        ([{"at": 1, "prompt": OTHER, "blend": 2}], 4),
        ([{"at": 1, "true_cfg_scale": 2}], 3),  # both branches anew
        ([{"at": 1, "loras": ["lora"]}], 2),  # modulations are weights too
    ],
)
def test_tables_are_made_anew_where_texts_change(
    tmp_path: Path,
    engine: Engine,
    lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    moments: list[dict[str, Any]],
    tables: int,
) -> None:
    """The conditioning of all steps is worked out again where a text, a scale or the weights change, and only there."""
    made: list[int] = []
    step_conditionings = PackedTransformer.step_conditionings

    def counted(self: PackedTransformer, *given: Any) -> Any:
        made.append(1)
        return step_conditionings(self, *given)

    monkeypatch.setattr(PackedTransformer, "step_conditionings", counted)
    _plan(tmp_path)
    places = {"image": str(tmp_path / "start.png"), "loras": [str(lora)]}
    told = [{key: places.get(key, value) for key, value in moment.items()} for moment in moments]
    _latents(engine, _plan(tmp_path, told))
    assert len(made) == tables


def test_each_text_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sections are told a text, it is encoded once, without a cache on disk too."""
    texts: list[str] = []
    encode = TextEncoders.encode

    def counted(self: TextEncoders, prompt: str) -> Any:
        texts.append(prompt)
        return encode(self, prompt)

    monkeypatch.setattr(TextEncoders, "encode", counted)
    moments = [{"at": 1, "prompt": OTHER, "true_cfg_scale": 2}, {"at": 2, "prompt": PROMPT}]
    plan = _plan(tmp_path, moments, negative_prompt="dark")
    conditioning = Engine(device="cpu").conditioning_for(plan)
    assert sorted(texts) == sorted([PROMPT, OTHER, "dark"])
    assert len({id(section.positive) for section in conditioning.sections}) == 2


# Memory ----------------------------------------------------------------------------------------------------


def test_memory_of_two_branches(tmp_path: Path) -> None:
    """One section with true CFG needs what a job with true CFG throughout needs, and more than one without."""
    plain, throughout = _plan(tmp_path), _plan(tmp_path, true_cfg_scale=2)
    once = _plan(tmp_path, [{"at": 2, "true_cfg_scale": 2}])
    assert foreseen_memory(once).total == foreseen_memory(throughout).total > foreseen_memory(plain).total


def test_memory_of_the_longest_text(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is planned for the longest of all sections' texts."""
    seen: list[int] = []

    def noted(plan: RenderPlan, **given: Any) -> Any:
        seen.append(given["text"])
        return memory_of(plan, **given)

    monkeypatch.setattr("goan_cli.render.device_memory.memory_of", noted)
    long = "a red circle moves to the left and a green square gets smaller"
    for prompt, moments in ((PROMPT, []), (long, []), (PROMPT, [{"at": 3, "prompt": long}])):
        _latents(engine, _plan(tmp_path, moments, prompt=prompt))
    assert seen[0] < seen[1] == seen[2]


# Pictures --------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_apart(tmp_path: Path, engine: Engine) -> None:
    """One file as start, end and section's picture has the same features, and three draws of its latent."""
    _plan(tmp_path)
    picture = str(tmp_path / "start.png")
    plan = _plan(tmp_path, [{"at": 1, "image": picture}, {"at": 2, "prompt": OTHER}], end_image=picture)
    found = engine.conditioning_for(plan)
    plain = engine.conditioning_for(_plan(tmp_path))
    assert found.end_latent is not None
    section = found.sections[0].start_latent
    for one, other in (
        (found.start_latent, found.end_latent),
        (found.start_latent, section),
        (found.end_latent, section),
    ):
        assert not torch.equal(one, other)
        assert float((one - other).abs().mean()) < float(one.abs().mean())
    assert torch.equal(found.start_latent, plain.start_latent)
    assert found.sections[0] is not found.sections[1]
    assert found.sections[0].start_latent is found.sections[1].start_latent
    assert torch.equal(found.sections[0].image_embeds, plain.image_embeds)
    # The job's own features and its end's, alike here, are half and half.
    torch.testing.assert_close(found.sections[-1].image_embeds, plain.image_embeds)


def test_strength_of_the_end(tmp_path: Path, engine: Engine) -> None:
    """The end's latent is scaled by its strength, and its features come in by half of it at the most."""
    _plan(tmp_path)
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "end.png")
    keys: dict[str, Any] = {"end_image": str(tmp_path / "end.png")}
    plain = engine.conditioning_for(_plan(tmp_path))
    full, weak = (engine.conditioning_for(_plan(tmp_path, **keys, end_strength=each)) for each in (1, 0.25))
    assert full.end_latent is not None
    assert weak.end_latent is not None
    assert torch.equal(weak.end_latent, 0.25 * full.end_latent)
    moved = full.image_embeds - plain.image_embeds
    torch.testing.assert_close(weak.image_embeds - plain.image_embeds, 0.25 * moved, atol=1e-5, rtol=1e-4)
    assert torch.equal(full.start_latent, plain.start_latent)
    assert plain.end_latent is None


def test_end_is_what_follows_the_first_sampled_section(tmp_path: Path, engine: Engine) -> None:
    """The end image is no part of the video: as many latents as without, and every section is another."""
    Image.new("RGB", (16, 16), "blue").save(tmp_path / "end.png")
    plain = _latents(engine, _plan(tmp_path))
    ended = _latents(engine, _plan(tmp_path, end_image=str(tmp_path / "end.png")))
    assert ended.shape == plain.shape
    assert True not in _same(ended, plain)


def test_starts_without_an_image() -> None:
    """A colour is every pixel; noise is the seed's, and of every value."""
    assert np.unique(filled_pixels("#0a141e", (32, 16), 1).reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]
    assert filled_pixels("grey", (32, 16), 1).shape == (16, 32, 3)
    noise = filled_pixels("noise", (64, 64), 1)
    assert np.array_equal(noise, filled_pixels("noise", (64, 64), 1))
    assert not np.array_equal(noise, filled_pixels("noise", (64, 64), 2))
    assert len(np.unique(noise)) == 256


@pytest.mark.parametrize(("source", "black"), [((40, 20), (slice(0, 8), slice(24, 32))), ((20, 40), None)])
def test_padded_pixels(tmp_path: Path, source: tuple[int, int], black: tuple[slice, slice] | None) -> None:
    """A padded image lies whole in the middle, and beside it there is black."""
    Image.new("RGB", source, "white").save(tmp_path / "a.png")
    pixels = fitted_pixels(tmp_path / "a.png", fit(source, (32, 32), pad=True))
    bars = [pixels[part] if black else pixels[:, part] for part in (slice(0, 8), slice(24, 32))]
    assert pixels.shape == (32, 32, 3)
    assert not np.concatenate([each.ravel() for each in bars]).any()
    middle = pixels[8:24] if black else pixels[:, 8:24]
    assert middle.min() == 255


# Identity --------------------------------------------------------------------------------------------------


def _keys(folder: Path, lora: Path) -> dict[str, tuple[dict[str, Any], bool]]:
    """By name: keys of a job and whether they leave the latents as they are."""
    picture = str(folder / "start.png")
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "other.png")
    at = {"at": 2}
    zero = [{"path": str(lora), "weight": 0}]
    return {
        "nothing": ({}, True),
        "empty timeline": ({"timeline": []}, True),
        "moment of nothing": ({"timeline": [at]}, True),
        "same prompt": ({"timeline": [{**at, "prompt": PROMPT}]}, True),
        "same prompt blended": ({"timeline": [{**at, "prompt": PROMPT, "blend": 1}]}, True),
        "negative prompt without true CFG": ({"timeline": [{**at, "negative_prompt": "dark"}]}, True),
        "LoRA of weight 0": ({"timeline": [{**at, "loras": zero}]}, True),
        "prompt": ({"timeline": [{**at, "prompt": OTHER}]}, False),
        "prompt earlier": ({"timeline": [{"at": 1, "prompt": OTHER}]}, False),
        "prompt, asked for a little later": ({"timeline": [{"at": 2.1, "prompt": OTHER}]}, False),
        "blend": ({"timeline": [{**at, "prompt": OTHER, "blend": 1}]}, False),
        "guidance": ({"timeline": [{**at, "guidance_scale": 3}]}, False),
        "true CFG": ({"timeline": [{**at, "true_cfg_scale": 3}]}, False),
        "true CFG, negative prompt": ({"timeline": [{**at, "true_cfg_scale": 3, "negative_prompt": "dark"}]}, False),
        "picture": ({"timeline": [{**at, "image": picture}]}, False),
        "another picture": ({"timeline": [{**at, "image": str(folder / "other.png")}]}, False),
        "LoRA": ({"timeline": [{**at, "loras": [str(lora)]}]}, False),
        "weaker LoRA": ({"timeline": [{**at, "loras": [{"path": str(lora), "weight": 0.5}]}]}, False),
        "schedule to the same": ({"guidance_schedule": {"end": 10}}, True),
        "schedule": ({"guidance_schedule": {"end": 2}}, False),
        "roll-off": ({"guidance_schedule": {"end": 2, "shape": "roll-off"}}, False),
        "end": ({"end_image": picture}, False),
        "weaker end": ({"end_image": picture, "end_strength": 0.5}, False),
        "no loop": ({"loop": False}, True),
        "usual paddings": ({"paddings": list(default_paddings(SECTIONS))}, True),
        "paddings": ({"paddings": [2, 2, 1, 0]}, False),
        "crop": ({"fit": "crop"}, True),
        "pad": ({"fit": "pad"}, False),
        "grey": ({"image": None, "start": "grey"}, False),
        "#7f7f7e": ({"image": None, "start": "#7f7f7e"}, False),
        "noise": ({"image": None, "start": "noise"}, False),
    }


def test_identity_changes_where_latents_do(tmp_path: Path, lora: Path) -> None:
    """Keys that leave every section as it was leave the identity; all others have identities of their own."""
    plain = _plan(tmp_path)
    found: dict[str, str] = {}
    for name, (keys, same) in _keys(tmp_path, lora).items():
        plan = _plan(tmp_path, **{"fps": 8, **keys})
        found[name] = latents_identity(plan)
        assert (found[name] == latents_identity(plain)) == same, name
        assert (job_identity(plan) == job_identity(plain)) == same, name
    changed = [name for name, (_, same) in _keys(tmp_path, lora).items() if not same]
    alike = {"prompt, asked for a little later"}  # snapped to the same section
    assert len({found[name] for name in changed}) == len(changed) - len(alike)
    loop = latents_identity(_plan(tmp_path, loop=True))
    assert loop == found["end"]  # the end image is the start image there


def test_equal_identities_are_equal_latents(tmp_path: Path, engine: Engine, lora: Path) -> None:
    """What is said to leave the latents as they are leaves them so, bit for bit."""
    plain = _latents(engine, _plan(tmp_path))
    for name, (keys, same) in _keys(tmp_path, lora).items():
        if same and name not in ("nothing", "empty timeline", "moment of nothing"):
            assert torch.equal(_latents(engine, _plan(tmp_path, **keys)), plain), name


def test_files_of_moments_decide_by_their_content(tmp_path: Path, lora: Path) -> None:
    """Copies of a moment's picture and LoRA elsewhere are the same; other content under the same name is not."""
    _plan(tmp_path)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(lora.read_bytes())
    (tmp_path / "copy.png").write_bytes((tmp_path / "start.png").read_bytes())
    one = [{"at": 1, "loras": [str(lora)], "image": str(tmp_path / "start.png")}]
    other = [{"at": 1, "loras": [str(copy)], "image": str(tmp_path / "copy.png")}]
    first = latents_identity(_plan(tmp_path, one))
    assert latents_identity(_plan(tmp_path, other)) == first
    Image.new("RGB", (48, 40), "green").save(tmp_path / "copy.png")
    assert latents_identity(_plan(tmp_path, other)) != first


@pytest.mark.parametrize("family", list(Family))
def test_jobs_without_these_keys_have_the_identity_that_they_had(tmp_path: Path, family: Family) -> None:
    """Nothing of what was added since is in the digest of a job that uses none of it: results stay valid."""
    model = "tiny" if family is Family.INVERTED else "tiny-f1"
    for keys in ({}, {"true_cfg_scale": 2, "negative_prompt": "dark"}, {"step_cache": "teacache"}):
        assert identity_module._directed(_plan(tmp_path, model=model, **keys)) == {}


def test_sampled_says_what_was_baked_last(tmp_path: Path, engine: Engine, lora: Path) -> None:
    """An engine that has baked between sections renders a plain job afterwards from pristine weights."""
    plain = _plan(tmp_path)
    before = _latents(engine, plain)
    moments = [{"at": 2, "loras": [str(lora)]}]
    turned: Sampled = engine.sample(_plan(tmp_path, moments), engine.conditioning_for(_plan(tmp_path, moments)))
    assert turned.bake is None  # the inverted family ends with the job's own LoRAs, of which there are none
    assert torch.equal(_latents(engine, plain), before)
