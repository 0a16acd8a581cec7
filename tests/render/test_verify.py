"""Verifying packs by their headers: a full-size pack is right, and whatever is wrong is named, all of it at once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from goan_cli.errors import InvalidInput
from goan_cli.packs.find import FULL_SIZE, survey_pack
from goan_cli.packs.manifest import WEIGHTED
from goan_cli.packs.single_files import key_map
from goan_cli.render.verify import Fault, expected_shapes, pack_faults, part_faults
from goan_cli.tensorfile import TensorEntry, read_header
from tests.headers import (
    full_size_tensors,
    write_clip_tokenizer,
    write_headers,
    write_hub_cache,
    write_pack_folder,
    write_part,
)
from tests.helpers import GOLDEN

Tensors = dict[str, TensorEntry]

# One tensor of each part, what it is renamed to, and a wrong shape for it.
QUERY = "single_transformer_blocks.7.attn.to_q.weight"
CASES = [
    ("transformer", QUERY, (3072, 3073)),
    ("text_encoder", "layers.3.mlp.down_proj.weight", (4096, 14335)),
    ("text_encoder_2", "text_model.encoder.layers.5.mlp.fc1.bias", (3071,)),
    ("vae", "decoder.up_blocks.2.resnets.1.conv1.conv.weight", (256, 256, 3, 3)),
    ("image_encoder", "vision_model.encoder.layers.9.self_attn.q_proj.weight", (1152, 1151)),
]
SHARDED = ["transformer", "text_encoder"]
LARGE = {"transformer": "diffusion_pytorch_model-00002-of-00003", "text_encoder": "model-00002-of-00004"}


def faults_of(part: str, folder: Path) -> list[tuple[str, str]]:
    """What is wrong with a part, by the name of the file."""
    config = folder / "config.json" if folder.is_dir() else FULL_SIZE / f"{part}.json"
    return [(fault.path.name, fault.text) for fault in part_faults(part, folder, config)]


def file_with(folder: Path, name: str) -> Path:
    """The weight file that holds a tensor."""
    (file,) = (file for file in folder.glob("*.safetensors") if name in read_header(file).entries)
    return file


def change(file: Path, edit: Callable[[Tensors], Tensors]) -> None:
    """Rewrite a weight file with other tensors."""
    write_headers(file, edit(dict(read_header(file).entries)))


def test_full_size_pack_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts of FramePack in a hub cache, 42 GB in the published layout and sizes, are found and right."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    write_hub_cache(tmp_path)
    survey = survey_pack("framepack-i2v")
    assert pack_faults(survey) == dict.fromkeys((found.part for found in survey.parts), ())
    for found in survey.parts:
        if found.part in WEIGHTED:
            assert found.source is not None
            assert found.size == pytest.approx(found.source.size, rel=1e-3), found.part
    assert sum(found.size for found in survey.parts) > 42e9
    assert sum(file.lstat().st_blocks * 512 for file in tmp_path.rglob("*")) < 20e6


def test_pack_folder_passes(tmp_path: Path) -> None:
    """The same parts in a folder with a manifest."""
    root = write_pack_folder(tmp_path / "mine")
    assert set(pack_faults(survey_pack(str(root))).values()) == {()}


@pytest.mark.parametrize("pack", ["tiny", "tiny-f1"])
def test_embedded_packs_pass(pack: str) -> None:
    """The packs that are installed are right."""
    faults = pack_faults(survey_pack(pack))
    assert len(faults) == 8
    assert all(fault.harmless for told in faults.values() for fault in told)


def test_full_size_transformer_is_the_published_one() -> None:
    """What is expected of the transformer are the 1,274 names and shapes of the published checkpoints."""
    keys = json.loads((GOLDEN / "full_size_keys.json").read_text(encoding="utf-8"))
    expected = expected_shapes("transformer", FULL_SIZE / "transformer.json")
    assert len(expected) == 1274
    assert {name: list(shape) for name, shape in expected.items()} == keys


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae", "image_encoder"])
def test_full_size_parts(part: str) -> None:
    """What is expected of the other parts are the architectures as they were written down by hand."""
    shapes = {name: entry.shape for name, entry in full_size_tensors(part).items()}
    keys = key_map(part, shapes)
    assert expected_shapes(part, FULL_SIZE / f"{part}.json") == dict(keys.shapes)


@pytest.mark.parametrize(("part", "name", "shape"), CASES)
def test_renamed_tensor(tmp_path: Path, part: str, name: str, shape: tuple[int, ...]) -> None:
    """A renamed tensor is one that is missing and one too many, and both are told to be the same."""
    write_part(part, tmp_path)
    file, other = file_with(tmp_path, name), f"{name[:-2]}xx"
    change(file, lambda tensors: {other if key == name else key: entry for key, entry in tensors.items()})
    where = file.name if part in SHARDED else tmp_path.name  # an index says where it should be
    assert faults_of(part, tmp_path) == [
        (where, f"{name} is missing"),
        (file.name, f"{other} is not of this architecture: it looks like {name} renamed"),
    ]


@pytest.mark.parametrize(("part", "name", "shape"), CASES)
def test_another_shape(tmp_path: Path, part: str, name: str, shape: tuple[int, ...]) -> None:
    """A tensor of another shape is told with both."""
    write_part(part, tmp_path)
    file = file_with(tmp_path, name)
    right = list(read_header(file).entries[name].shape)
    change(file, lambda tensors: {**tensors, name: replace(tensors[name], shape=shape)})
    assert faults_of(part, tmp_path) == [(file.name, f"{name} has the shape {list(shape)} instead of {right}")]


@pytest.mark.parametrize(("part", "name", "shape"), CASES)
def test_quantised_tensor(tmp_path: Path, part: str, name: str, shape: tuple[int, ...]) -> None:
    """A tensor in fp8 is told with what is needed."""
    write_part(part, tmp_path)
    file = file_with(tmp_path, name)
    change(file, lambda tensors: {**tensors, name: replace(tensors[name], dtype="F8_E4M3")})
    assert faults_of(part, tmp_path) == [(file.name, f"{name} is F8_E4M3; a render needs bf16, fp16 or fp32 weights")]


@pytest.mark.parametrize("part", SHARDED)
def test_missing_shard(tmp_path: Path, part: str) -> None:
    """A shard that is missing is named once, and not each of its tensors."""
    write_part(part, tmp_path)
    file = tmp_path / f"{LARGE[part]}.safetensors"
    count = len(read_header(file).entries)
    file.unlink()
    assert faults_of(part, tmp_path) == [(file.name, f"this shard is missing; it is to hold {count} tensors")]


@pytest.mark.parametrize("part", WEIGHTED)
def test_truncated_file(tmp_path: Path, part: str) -> None:
    """A file that is a byte short is told to be truncated, and nothing is said of its tensors."""
    write_part(part, tmp_path)
    file = tmp_path / f"{LARGE[part]}.safetensors" if part in LARGE else next(tmp_path.glob("*.safetensors"))
    with file.open("r+b") as cut:
        cut.truncate(file.stat().st_size - 1)
    assert faults_of(part, tmp_path) == [
        (file.name, "not a usable safetensors file: it is truncated or damaged; download it again")
    ]


@pytest.mark.parametrize("part", SHARDED)
def test_tensor_in_two_shards(tmp_path: Path, part: str) -> None:
    """A tensor that stands in two shards is told with both."""
    write_part(part, tmp_path)
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    name, entry = next(iter(read_header(first).entries.items()))
    change(second, lambda tensors: {**tensors, name: entry})
    assert faults_of(part, tmp_path) == [(second.name, f"{name} stands in {first.name} too")]


@pytest.mark.parametrize("part", SHARDED)
def test_everything_at_once(tmp_path: Path, part: str) -> None:
    """Faults of every kind in one part are all told."""
    write_part(part, tmp_path)
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    second.unlink()
    shapes, gone, narrow, *_ = (name for name, entry in read_header(first).entries.items() if len(entry.shape) == 2)

    def edit(tensors: Tensors) -> Tensors:
        del tensors[gone]
        return {
            **tensors,
            shapes: replace(tensors[shapes], shape=(1, 2)),
            narrow: replace(tensors[narrow], dtype="I8"),
            "model_ema.decay": TensorEntry(dtype="F32", shape=()),
        }

    change(first, edit)
    told = "\n".join(f"{name}: {text}" for name, text in faults_of(part, tmp_path))
    assert len(told.splitlines()) == 5
    assert f"{second.name}: this shard is missing" in told
    assert f"{first.name}: {narrow} is I8" in told
    assert f"{first.name}: {shapes} has the shape [1, 2]" in told
    assert f"{first.name}: {gone} is missing" in told
    assert f"{first.name}: model_ema.decay is not of this architecture" in told


def test_index_of_other_tensors(tmp_path: Path) -> None:
    """A tensor that only the index knows is told."""
    write_part("transformer", tmp_path)
    (index,) = tmp_path.glob("*.index.json")
    content = json.loads(index.read_text(encoding="utf-8"))
    file = content["weight_map"]["proj_out.bias"]
    content["weight_map"]["proj_in.bias"] = file
    index.write_text(json.dumps(content), encoding="utf-8")
    assert faults_of("transformer", tmp_path) == [(file, "proj_in.bias is missing; the index says that it is here")]


def test_many_renamed_tensors_find_their_own(tmp_path: Path) -> None:
    """Where a name changed in every block, each is told to be that of its own block."""
    write_part("transformer", tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        change(file, lambda tensors: {name.replace(".attn.to_q.", ".attn.query."): tensors[name] for name in tensors})
    faults = [text for _, text in faults_of("transformer", tmp_path) if "looks like" in text]
    assert all(text.partition(" ")[0].replace(".attn.query.", ".attn.to_q.") == text.split()[-2] for text in faults)


@pytest.mark.parametrize(
    ("part", "dropped"),
    [("text_encoder", ("layers.30.", "layers.31.", "norm.")), ("image_encoder", ("vision_model.head.",))],
)
def test_what_a_render_does_without(tmp_path: Path, part: str, dropped: tuple[str, ...]) -> None:
    """Llama's last two layers and norm, and SigLIP's head, may be missing: it is told, and harmless."""
    tensors = {name: entry for name, entry in full_size_tensors(part).items() if not name.startswith(dropped)}
    shutil.copy(FULL_SIZE / f"{part}.json", tmp_path / "config.json")
    write_headers(tmp_path / "model.safetensors", tensors)
    (fault,) = part_faults(part, tmp_path, tmp_path / "config.json")
    assert fault.harmless
    assert f"a render does not need what is missing here: {dropped[0]}" in fault.text
    first = next(iter(tensors))
    change(tmp_path / "model.safetensors", lambda held: {name: held[name] for name in held if name != first})
    harmful = [fault for fault in part_faults(part, tmp_path, tmp_path / "config.json") if not fault.harmless]
    assert harmful == [Fault(path=tmp_path, text=f"{first} is missing")]


@pytest.mark.parametrize(
    ("part", "given", "prefix", "extra"),
    [
        ("transformer", "", "", ()),
        ("text_encoder", "", "model.", ("lm_head.weight",)),
        ("text_encoder_2", "text_model.", "text_model.", ("logit_scale",)),
        ("image_encoder", "vision_model.", "vision_model.", ()),
    ],
)
def test_single_files(tmp_path: Path, part: str, given: str, prefix: str, extra: tuple[str, ...]) -> None:
    """Single files in ComfyUI's packaging are right, and what is wrong is told by the names that they have."""
    tensors = {prefix + name.removeprefix(given): entry for name, entry in full_size_tensors(part).items()}
    tensors |= {name: TensorEntry(dtype="F16", shape=(2,)) for name in extra}
    file = write_headers(tmp_path / "part.safetensors", tensors)
    assert faults_of(part, file) == []
    name = next(iter(tensors))
    change(file, lambda held: {key: entry for key, entry in held.items() if key != name})
    assert faults_of(part, file) == [(file.name, f"{name} is missing")]


def test_own_base_model(tmp_path: Path) -> None:
    """HunyuanVideo's own transformer is refused by its name, with the tensors that it lacks."""
    lacking = ("clean_x_embedder.", "image_projection.")
    tensors = {n: entry for n, entry in full_size_tensors("transformer").items() if not n.startswith(lacking)}
    (refusal, *missing) = [
        text for _, text in faults_of("transformer", write_headers(tmp_path / "a.safetensors", tensors))
    ]
    assert "is a HunyuanVideo transformer" in refusal
    assert len(missing) == 10
    assert all(text.startswith(lacking) and text.endswith(" is missing") for text in missing)


def test_another_model(tmp_path: Path) -> None:
    """Another part's weights are refused by what they are, and none of their tensors is listed."""
    file = write_headers(tmp_path / "clip.safetensors", full_size_tensors("text_encoder_2"))
    for part in WEIGHTED:
        if part != "text_encoder_2":
            ((_, told),) = faults_of(part, file)
            assert "is the CLIP-L text encoder" in told


def test_quantised_model(tmp_path: Path) -> None:
    """A re-pack whose blocks are in fp8 is refused as such, in one line with what to use instead."""
    tensors = {
        name: replace(entry, dtype="F8_E4M3") if name.endswith("weight") and len(entry.shape) == 2 else entry
        for name, entry in full_size_tensors("transformer").items()
    }
    file = write_headers(tmp_path / "fp8.safetensors", tensors)
    ((name, told),) = faults_of("transformer", file)
    assert name == file.name
    assert "in fp8" in told
    assert "FramePackI2V_HY_bf16.safetensors" in told


def test_nothing_to_read(tmp_path: Path) -> None:
    """A folder without weights, or with some that no index joins, is told as such."""
    shutil.copy(FULL_SIZE / "transformer.json", tmp_path / "config.json")
    assert faults_of("transformer", tmp_path) == [(tmp_path.name, "holds no safetensors weights")]
    for name in ("a", "b"):
        write_headers(tmp_path / f"{name}.safetensors", {name: TensorEntry(dtype="F32", shape=(1,))})
    (fault,) = faults_of("transformer", tmp_path)
    assert "several weight files and no index" in fault[1]


@pytest.mark.parametrize("part", WEIGHTED)
@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "bert", "_class_name": "Wan"}', None])
def test_unusable_configuration(tmp_path: Path, part: str, text: str | None) -> None:
    """A configuration that is missing, damaged, or another model's is told, beside what its files say by themselves."""
    write_part(part, tmp_path)
    config = tmp_path / "config.json"
    config.unlink()
    if text is not None:
        config.write_text(text, encoding="utf-8")
    (fault,) = part_faults(part, tmp_path, config)
    assert "config.json" in str(fault)
    with pytest.raises(InvalidInput):
        expected_shapes(part, config)


def test_llama_tokenizer(tmp_path: Path) -> None:
    """Llama's tokenizer must make 95 tokens of the template's prefix, and not more than its encoder has room for."""
    config = FULL_SIZE / "text_encoder.json"
    folder = write_part("tokenizer", tmp_path / "tokenizer")
    assert part_faults("tokenizer", folder, config) == ()
    small = tmp_path / "small.json"
    small.write_text('{"vocab_size": 300}', encoding="utf-8")
    (fault,) = part_faults("tokenizer", folder, small)
    assert fault.text == "has 504 tokens, and the text encoder room for 300"
    small.write_text("{", encoding="utf-8")
    assert part_faults("tokenizer", folder, small) == ()  # what is wrong with the encoder is told there
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}
    file.write_text(json.dumps(content), encoding="utf-8")
    (fault,) = part_faults("tokenizer", folder, config)
    assert "tokens instead of 95" in fault.text
    file.write_text("{", encoding="utf-8")
    (fault,) = part_faults("tokenizer", folder, None)
    assert "not a usable tokenizer" in fault.text


def test_clip_tokenizer(tmp_path: Path) -> None:
    """CLIP's tokenizer must load, and have as many tokens as its text encoder."""
    config = FULL_SIZE / "text_encoder_2.json"
    write_clip_tokenizer(tmp_path, 1000)
    (fault,) = part_faults("tokenizer_2", tmp_path, config)
    assert fault == Fault(path=tmp_path, text="has 1000 tokens, and the text encoder is for 49408")
    nested = tmp_path / "clip.json"
    nested.write_text('{"model_type": "clip", "text_config": {"model_type": "clip_text_model", "vocab_size": 1000}}')
    assert part_faults("tokenizer_2", tmp_path, nested) == ()
    (tmp_path / "vocab.json").write_text("{", encoding="utf-8")
    (fault,) = part_faults("tokenizer_2", tmp_path, config)
    assert "not a usable tokenizer" in fault.text


def test_image_processor(tmp_path: Path) -> None:
    """The image processor must make images of the image encoder's size."""
    folder = GOLDEN / "packed" / "feature_extractor"
    assert part_faults("feature_extractor", folder, GOLDEN / "packed" / "image_encoder" / "config.json") == ()
    (fault,) = part_faults("feature_extractor", folder, FULL_SIZE / "image_encoder.json")
    assert "64" in fault.text
    assert "the image encoder is for 384 x 384" in fault.text
    (fault,) = part_faults("feature_extractor", tmp_path, None)
    assert "preprocessor_config.json" in str(fault)


def test_pack_with_missing_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are nowhere are left to the survey; whatever the survey refuses has a fault."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    write_hub_cache(tmp_path, parts=["transformer", "vae", "tokenizer_2"])
    next(tmp_path.rglob("vocab.json")).unlink()
    next(tmp_path.rglob("*vae/*.safetensors")).unlink()
    faults = pack_faults(survey_pack("framepack-i2v"))
    assert faults.keys() == {"transformer", "vae", "tokenizer_2"}
    assert faults["transformer"] == ()
    assert "holds no safetensors weights" in faults["vae"][0].text
    assert "lacks vocab.json" in faults["tokenizer_2"][-1].text
