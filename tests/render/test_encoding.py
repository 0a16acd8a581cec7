"""Conditioning with and without the cache: the same bits, and encoders that load only for what is new."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import goan_cli.render.encoding as encoding_module
from goan_cli.errors import InvalidInput
from goan_cli.jobs.clips import Clip, clip_frames
from goan_cli.jobs.sizes import Fit
from goan_cli.packs.find import find_pack
from goan_cli.render.cache import EmbeddingCache
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.device import Precision
from goan_cli.render.encoding import Encoding
from goan_cli.render.events import Note, Stage
from goan_cli.render.parts import Parts
from goan_cli.render.plan import RenderPlan
from tests.clips import Frames, write_clip
from tests.helpers import CPU, tiny_plan, write_tiny_manifest

FP32 = Precision(transformer=torch.float32, encoders=torch.float32)
BF16 = Precision(transformer=torch.bfloat16, encoders=torch.bfloat16)
ALL = {"text", "image", "vae"}


class _Counted(Parts):
    """Parts that remember what was asked for."""

    def __init__(self, precision: Precision = FP32) -> None:
        super().__init__(CPU, precision, make_room=lambda: None)
        self.asked: list[str] = []

    def text_encoders(self, pack: Any) -> Any:
        self.asked.append("text")
        return super().text_encoders(pack)

    def image_encoder(self, pack: Any) -> Any:
        self.asked.append("image")
        return super().image_encoder(pack)

    def vae(self, pack: Any) -> Any:
        self.asked.append("vae")
        return super().vae(pack)


@contextmanager
def _untimed(_: Stage) -> Iterator[None]:
    yield


def _encoded(
    plan: RenderPlan, folder: Path | None, *, precision: Precision = FP32
) -> tuple[Conditioning, list[str], list[str]]:
    """A plan's conditioning by new encoders, what was asked of them, and the notes that were told."""
    parts, notes = _Counted(precision), []

    def tell(note: Note) -> None:
        notes.append(note.text)

    encoding = Encoding(parts, EmbeddingCache(folder), stage=_untimed, tell=tell)
    return encoding.conditioning_for(plan), parts.asked, notes


def _tensors(conditioning: Conditioning) -> list[Tensor]:
    texts = [text for text in (conditioning.positive, conditioning.negative) if text is not None]
    return [
        conditioning.image_embeds,
        conditioning.start_latent,
        *(tensor for text in texts for tensor in (text.embeds, text.pooled)),
    ]


def _assert_same(first: Conditioning, second: Conditioning) -> None:
    for one, other in zip(_tensors(first), _tensors(second), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 2.0], ids=["one branch", "true CFG"])
def test_cached_is_as_encoded(tmp_path: Path, scale: float, precision: Precision) -> None:
    """What comes from the cache has the bits of what was encoded, and nothing is loaded for it."""
    plan = tiny_plan(tmp_path, true_cfg_scale=scale, negative_prompt="dark")
    without, _, _ = _encoded(plan, None, precision=precision)
    first, asked, _ = _encoded(plan, tmp_path / "cache", precision=precision)
    again, asked_again, _ = _encoded(plan, tmp_path / "cache", precision=precision)
    assert set(asked) == ALL
    assert asked_again == []
    assert (again.negative is None) == (scale == 1.0)
    _assert_same(first, without)
    _assert_same(again, without)


def test_repeated_prompts_are_encoded_once(tmp_path: Path) -> None:
    """A negative prompt that is the prompt itself is no new text."""
    plan = tiny_plan(tmp_path, prompt="dark", negative_prompt="dark", true_cfg_scale=2.0)
    conditioning, asked, _ = _encoded(plan, tmp_path / "cache")
    assert asked.count("text") == 1
    assert conditioning.negative is not None
    assert torch.equal(conditioning.negative.embeds, conditioning.positive.embeds)


def _other_picture(folder: Path) -> dict[str, Any]:
    Image.linear_gradient("L").resize((48, 40)).convert("RGB").save(folder / "other.png")
    return {"image": str(folder / "other.png")}


def _copied_picture(folder: Path) -> dict[str, Any]:
    shutil.copy(folder / "start.png", folder / "copy.png")
    return {"image": str(folder / "copy.png")}


def _same_pixels(folder: Path) -> dict[str, Any]:
    Image.open(folder / "start.png").save(folder / "start.bmp")
    return {"image": str(folder / "start.bmp")}


def _pack_with(part: str, file: str, change: Callable[[Path], None]) -> Callable[[Path], dict[str, Any]]:
    """A pack whose `part` is a copy of the tiny pack's, one file of it changed."""

    def settings(folder: Path) -> dict[str, Any]:
        shutil.copytree(getattr(find_pack("tiny"), part), folder / part)
        change(folder / part / file)
        manifest = write_tiny_manifest(folder / "other.yaml", parts={part: folder / part})
        return {"model": str(manifest)}

    return settings


def _spaced(path: Path) -> None:
    """The same JSON in other bytes."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=3), encoding="utf-8")


def _kept(path: Path) -> None:
    """The same bytes."""


@pytest.mark.parametrize(
    ("change", "loaded"),
    [
        pytest.param(lambda _: {"prompt": "a red ball moves to the right"}, {"text"}, id="prompt"),
        pytest.param(lambda _: {"prompt": "a red ball moves to the left "}, {"text"}, id="a space more"),
        pytest.param(lambda _: {"true_cfg_scale": 2.0, "negative_prompt": "dark"}, {"text"}, id="true CFG"),
        pytest.param(lambda _: {"negative_prompt": "dark"}, set(), id="a negative prompt that nobody looks at"),
        pytest.param(lambda _: {"seed": 8}, set(), id="seed"),
        pytest.param(lambda _: {"steps": 3, "sections": 2, "guidance_scale": 3}, set(), id="sampling"),
        pytest.param(lambda _: {"size": [48, 32]}, {"image", "vae"}, id="size"),
        pytest.param(_other_picture, {"image", "vae"}, id="another picture"),
        pytest.param(_copied_picture, set(), id="a copy of the picture"),
        pytest.param(_same_pixels, set(), id="the same pixels in another file"),
        pytest.param(lambda _: {"model": "tiny-f1"}, set(), id="another transformer"),
        pytest.param(_pack_with("text_encoder", "config.json", _kept), set(), id="a copy of a part"),
        pytest.param(_pack_with("text_encoder", "config.json", _spaced), {"text"}, id="Llama's configuration"),
        pytest.param(_pack_with("tokenizer", "tokenizer.json", _spaced), {"text"}, id="Llama's tokenizer"),
        pytest.param(_pack_with("text_encoder_2", "config.json", _spaced), {"text"}, id="CLIP's configuration"),
        pytest.param(_pack_with("tokenizer_2", "vocab.json", _spaced), {"text"}, id="CLIP's tokenizer"),
        pytest.param(_pack_with("vae", "config.json", _spaced), {"vae"}, id="the VAE"),
        pytest.param(_pack_with("image_encoder", "config.json", _spaced), {"image"}, id="the image encoder"),
        pytest.param(
            _pack_with("feature_extractor", "preprocessor_config.json", _spaced), {"image"}, id="its processor"
        ),
    ],
)
def test_only_what_is_new_is_encoded(
    tmp_path: Path, change: Callable[[Path], dict[str, Any]], loaded: set[str]
) -> None:
    """After one job, another's encoders load only for what they see in another way."""
    _encoded(tiny_plan(tmp_path), tmp_path / "cache")
    plan = tiny_plan(tmp_path, "other", **change(tmp_path))
    found, asked, _ = _encoded(plan, tmp_path / "cache")
    assert set(asked) == loaded
    _assert_same(found, _encoded(plan, None)[0])


@pytest.mark.parametrize("what", ["precision", "torch", "transformers", "diffusers", "goan"])
def test_entries_of_another_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Entries of another precision, or of another version of what makes them, are not used."""
    plan = tiny_plan(tmp_path)
    _encoded(plan, tmp_path / "cache")
    precision = BF16 if what == "precision" else FP32
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "0.0.1")
    if what in {"transformers", "diffusers"}:
        monkeypatch.setattr(encoding_module, "version", lambda name: "0.0.1" if name == what else version(name))
    if what == "goan":
        monkeypatch.setattr(encoding_module, "_VERSION", encoding_module._VERSION + 1)
    _, asked, _ = _encoded(plan, tmp_path / "cache", precision=precision)
    assert set(asked) == ALL


def test_the_seed_draws_the_start_latent_alone(tmp_path: Path) -> None:
    """With the posterior from the cache, each seed still has a start latent of its own."""
    first, second = tiny_plan(tmp_path, seed=7), tiny_plan(tmp_path, seed=8)
    one, other = (_encoded(plan, tmp_path / "cache")[0] for plan in (first, second))
    assert not torch.equal(one.start_latent, other.start_latent)
    assert torch.equal(one.image_embeds, other.image_embeds)
    assert torch.equal(one.positive.embeds, other.positive.embeds)


def test_cut_prompts_are_told_from_the_cache_too(tmp_path: Path) -> None:
    """What an encoder could not take is a note also where the prompt comes from the cache."""
    plan = tiny_plan(tmp_path, prompt="red " * 90, negative_prompt="größe " * 300, true_cfg_scale=2.0)
    _, _, first = _encoded(plan, tmp_path / "cache")
    _, asked, again = _encoded(plan, tmp_path / "cache")
    assert asked == []
    assert again == first
    assert [note.split(" cannot", maxsplit=1)[0] for note in first] == [
        "prompt: CLIP",
        "negative_prompt: Llama",
        "negative_prompt: CLIP",
    ]


@pytest.mark.parametrize("content", [b"", b"\0" * 300, b"<html>"], ids=["empty", "zeros", "a page"])
def test_damaged_entries_are_encoded_anew(tmp_path: Path, content: bytes) -> None:
    """Entries that cannot be read are encoded again, and are whole afterwards."""
    plan, cache = tiny_plan(tmp_path), tmp_path / "cache"
    whole, _, _ = _encoded(plan, cache)
    for file in cache.glob("*/*"):
        file.write_bytes(content)
    mended, asked, _ = _encoded(plan, cache)
    assert set(asked) == ALL
    _assert_same(mended, whole)
    assert _encoded(plan, cache)[1] == []


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Without a place for the cache the conditioning is the same; only nothing is kept."""
    plan = tiny_plan(tmp_path)
    (tmp_path / "taken").write_text("in the way")
    found, asked, _ = _encoded(plan, tmp_path / "taken")
    assert set(asked) == ALL
    _assert_same(found, _encoded(plan, None)[0])
    assert set(_encoded(plan, tmp_path / "taken")[1]) == ALL


def _video_plan(folder: Path, model: str, **settings: Any) -> RenderPlan:
    path = folder / "clip.mkv"
    if not path.exists():
        write_clip(path, np.random.default_rng(4).integers(0, 256, (23, 32, 32, 3), dtype=np.uint8))
    keys = {"image": None, "video": str(path), "model": model, **settings}
    return tiny_plan(folder, **keys)


def test_a_video_that_is_gone_on_with(tmp_path: Path) -> None:
    """A forward model sees the last frames, and is anchored at the first of those; all from the cache again."""
    plan = _video_plan(tmp_path, "tiny-f1")
    first, asked, _ = _encoded(plan, tmp_path / "cache")
    again, asked_again, _ = _encoded(plan, tmp_path / "cache")
    assert set(asked) == ALL
    assert asked_again == []
    assert first.video is not None
    assert again.video is not None
    assert first.video.shape == (1, 16, 6, 4, 4)
    assert torch.equal(first.start_latent, first.video[:, :, :1])
    assert torch.equal(first.video, again.video)
    _assert_same(first, again)


@pytest.mark.parametrize("model", ["tiny", "tiny-f1"])
def test_a_video_is_read_for_what_is_not_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """A video is decoded once for all that is encoded of it, and not at all when that is in the cache."""
    read: list[Path] = []

    def reading(clip: Clip, fit: Fit, *seen: int) -> Iterator[Frames]:
        read.append(clip.path)
        return clip_frames(clip, fit, *seen)

    monkeypatch.setattr(encoding_module, "clip_frames", reading)
    plan, cache = _video_plan(tmp_path, model), tmp_path / "cache"
    first, _, _ = _encoded(plan, cache)
    assert read == [tmp_path / "clip.mkv"]
    again, _, _ = _encoded(plan, cache)
    assert read == [tmp_path / "clip.mkv"]
    _assert_same(first, again)
    plain, _, _ = _encoded(plan, None)
    _assert_same(first, plain)


def test_what_decides_the_frames_of_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is the same video; another ffmpeg, other frames, another fit or another content are encoded anew."""
    cache = tmp_path / "cache"
    _encoded(_video_plan(tmp_path, "tiny-f1"), cache)
    copied = str(shutil.copy(tmp_path / "clip.mkv", tmp_path / "copy.mkv"))
    assert _encoded(_video_plan(tmp_path, "tiny-f1", video=copied), cache)[1] == []
    for other in ({"fps": 24}, {"size": [48, 32]}):
        assert "vae" in _encoded(_video_plan(tmp_path, "tiny-f1", **other), cache)[1]
    another = write_clip(tmp_path / "b.mkv", np.zeros((23, 32, 32, 3), np.uint8))
    assert "vae" in _encoded(_video_plan(tmp_path, "tiny-f1", video=str(another)), cache)[1]
    monkeypatch.setattr(encoding_module, "ffmpeg_version", lambda: "ffmpeg version 0")
    assert "vae" in _encoded(_video_plan(tmp_path, "tiny-f1"), cache)[1]


def test_a_video_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of a file that has become another are not kept as those of the one that was there."""
    plan, cache = _video_plan(tmp_path, "tiny-f1"), tmp_path / "cache"

    def changing(clip: Clip, fit: Fit, *seen: int) -> Iterator[Frames]:
        write_clip(clip.path, np.zeros((23, 32, 32, 3), np.uint8))
        return clip_frames(clip, fit, *seen)

    monkeypatch.setattr(encoding_module, "clip_frames", changing)
    with pytest.raises(InvalidInput, match="was changed while it was read"):
        _encoded(plan, cache)
    assert not any("mean" in safe_open(file, "pt").keys() for file in cache.glob("*/*"))  # noqa: SIM118


def test_a_video_that_is_led_up_to(tmp_path: Path) -> None:
    """An inverted model has the first frames behind it, and begins from the first one, or from an image."""
    alone, _, _ = _encoded(_video_plan(tmp_path, "tiny"), tmp_path / "cache")
    image = tmp_path / "other.png"
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(image)
    begun, _, _ = _encoded(_video_plan(tmp_path, "tiny", image=str(image)), tmp_path / "cache")
    only, _, _ = _encoded(_video_plan(tmp_path, "tiny", image=str(image), video=None), tmp_path / "cache")
    assert alone.video is not None
    assert begun.video is not None
    # 23 frames have 1 + 4 x 5 in them; the latent of a single frame is left out.
    assert alone.video.shape == (1, 16, 5, 4, 4)
    assert torch.equal(begun.video, alone.video)
    assert torch.equal(begun.start_latent, only.start_latent)
    assert not torch.equal(begun.start_latent, alone.start_latent)
    # Features of both pictures, as with an end image.
    expected = torch.lerp(only.image_embeds, alone.image_embeds, 0.5)
    torch.testing.assert_close(begun.image_embeds, expected)


def test_latents_of_a_video_are_the_seed_s(tmp_path: Path) -> None:
    """Another seed draws other latents of the same frames."""
    one, _, _ = _encoded(_video_plan(tmp_path, "tiny-f1"), tmp_path / "cache")
    other, asked, _ = _encoded(_video_plan(tmp_path, "tiny-f1", seed=8), tmp_path / "cache")
    assert asked == []
    assert one.video is not None
    assert other.video is not None
    assert not torch.equal(one.video, other.video)
