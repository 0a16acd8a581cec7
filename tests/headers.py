"""Full-size packs without their data: safetensors headers over sparse files, in the published repositories' layout.

A file's header is written out and its tensors are a hole: 42 GB to whoever asks for sizes, a few MB on the disk.
"""

import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from hashlib import sha1, sha256
from pathlib import Path

from goan_cli.packs.find import FULL_SIZE
from goan_cli.packs.manifest import PARTS, WEIGHTED, read_manifest
from goan_cli.packs.places import snapshots_of
from goan_cli.tensorfile import TensorEntry

GOLDEN = Path(__file__).parent / "data" / "golden"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I8": 1, "U8": 1}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLIP_TOKENS = 49408

Shapes = dict[str, tuple[int, ...]]

# What the repositories call a part's files, the largest shard, and the dtype.
_STEMS = {
    "transformer": ("diffusion_pytorch_model", 10_000_000_000, "BF16"),
    "text_encoder": ("model", 5_000_000_000, "F16"),
    "text_encoder_2": ("model", 5_000_000_000, "F16"),
    "vae": ("diffusion_pytorch_model", 10_000_000_000, "F16"),
    "image_encoder": ("model", 5_000_000_000, "F16"),
}


def write_headers(file: Path, tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file of these tensors, all zeros: its header, and a hole of the data's length."""
    header: dict[str, object] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, entry in tensors.items():
        start, end = end, end + size_of(entry)
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)
    return file


def size_of(entry: TensorEntry) -> int:
    """A tensor's bytes."""
    return entry.count * BYTES[entry.dtype]


def write_weights(folder: Path, stem: str, tensors: Mapping[str, TensorEntry], *, largest: int) -> list[Path]:
    """A part's weight file, or shards of at most `largest` bytes and their index."""
    shards: list[dict[str, TensorEntry]] = [{}]
    filled = 0
    for name, entry in tensors.items():
        if filled + size_of(entry) > largest:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += size_of(entry)
    if len(shards) == 1:
        return [write_headers(folder / f"{stem}.safetensors", tensors)]
    names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    files = [write_headers(folder / file, shard) for file, shard in zip(names, shards, strict=True)]
    index = {
        "metadata": {"total_size": sum(map(size_of, tensors.values()))},
        "weight_map": {name: file for file, shard in zip(names, shards, strict=True) for name in shard},
    }
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return files


def full_size_tensors(part: str) -> dict[str, TensorEntry]:
    """The tensors of a published part, under the names that its repository has."""
    shapes = {
        "transformer": _transformer,
        "text_encoder": _llama,
        "text_encoder_2": _clip,
        "vae": _vae,
        "image_encoder": _siglip,
    }[part]()
    return {name: TensorEntry(dtype=_STEMS[part][2], shape=shape) for name, shape in shapes.items()}


def write_part(part: str, folder: Path) -> Path:
    """A whole part as its repository has it: weights (sparse) and configuration, or a tokenizer's or processor's files.

    Llama's tokenizer is the golden pack's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if part in WEIGHTED:
        stem, largest, _ = _STEMS[part]
        write_weights(folder, stem, full_size_tensors(part), largest=largest)
        shutil.copy(FULL_SIZE / f"{part}.json", folder / "config.json")
    elif part == "tokenizer_2":
        write_clip_tokenizer(folder)
    else:
        shutil.copytree(
            GOLDEN / "packed" / part if part == "tokenizer" else FULL_SIZE / part, folder, dirs_exist_ok=True
        )
    return folder


def write_hub_cache(cache: Path, model: str = "framepack-i2v", parts: Iterable[str] = PARTS) -> None:
    """A pack's parts in the layout of a hub cache: blobs, the links of one snapshot to them, and the ref `main`.

    Blobs are named by their hashes, but those of weights.
    """
    manifest = read_manifest(model)
    for part in parts:
        spec = manifest.parts[part].spec
        assert spec is not None
        assert spec.repository is not None
        repository = snapshots_of(spec.repository, cache)
        folder = write_part(part, repository / "snapshots" / COMMIT / spec.subfolder)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
        (repository / "blobs").mkdir(exist_ok=True)
        up = Path(*[".."] * len(folder.relative_to(repository).parts))
        for file in sorted(folder.iterdir()):
            if file.is_file() and not file.is_symlink():
                blob = repository / "blobs" / _blob_name(part, file)
                file.rename(blob)
                file.symlink_to(up / "blobs" / blob.name)


def _blob_name(part: str, file: Path) -> str:
    """git's hash of a small file's content; for weights, whose SHA-256 would take minutes, a made-up one."""
    if file.suffix == ".safetensors":
        return sha256(f"{part}/{file.name}".encode()).hexdigest()
    content = file.read_bytes()
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - it is what git names blobs by


def write_pack_folder(root: Path, model: str = "framepack-i2v") -> Path:
    """A pack as a folder with a manifest, each part in the folder of its own name."""
    for part in PARTS:
        write_part(part, root / part)
    manifest = read_manifest(model)
    # JSON is YAML.
    (root / "pack.yaml").write_text(json.dumps({"name": root.name, "family": manifest.family}), encoding="utf-8")
    return root


def write_clip_tokenizer(folder: Path, size: int = CLIP_TOKENS) -> None:
    """A CLIP tokenizer of the full number of tokens: every byte, and made-up pairs of them."""
    letters = [chr(code) for code in range(0x100, 0x200)]  # the byte-level alphabet is any 256 letters to a vocabulary
    letters[: 0x7F - 0x21] = [chr(code) for code in range(0x21, 0x7F)]
    count = size - 2 * len(letters) - 2
    pairs = [(first, second) for first in letters for second in letters][:count]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(first + second for first, second in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in pairs)])
    (folder / "merges.txt").write_text(merges + "\n", encoding="utf-8")
    shutil.copy(GOLDEN / "packed" / "tokenizer_2" / "tokenizer_config.json", folder)


def _transformer() -> Shapes:
    keys = json.loads((GOLDEN / "full_size_keys.json").read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape in keys.items()}


def _llama() -> Shapes:
    """LlamaModel: no prefix, and no head."""
    shapes: Shapes = {"embed_tokens.weight": (128320, 4096)}
    for layer in range(32):
        name = f"layers.{layer}"
        shapes |= {f"{name}.self_attn.{kind}_proj.weight": (4096, 4096) for kind in "qo"}
        shapes |= {f"{name}.self_attn.{kind}_proj.weight": (1024, 4096) for kind in "kv"}
        shapes |= {f"{name}.mlp.{kind}_proj.weight": (14336, 4096) for kind in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (4096, 14336)
        shapes |= {f"{name}.{kind}_layernorm.weight": (4096,) for kind in ("input", "post_attention")}
    return {**shapes, "norm.weight": (4096,)}


def _clip() -> Shapes:
    """CLIPTextModel as transformers 4 wrote it."""
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (CLIP_TOKENS, 768),
        "embeddings.position_embedding.weight": (77, 768),
        **_encoder_layers(12, 768, 3072),
        **_affine("final_layer_norm", 768),
    }
    return {f"text_model.{name}": shape for name, shape in shapes.items()}


def _siglip() -> Shapes:
    """SiglipVisionModel as transformers 4 wrote it, with its head."""
    shapes: Shapes = {
        **_affine("embeddings.patch_embedding", 1152, 3, 14, 14),
        "embeddings.position_embedding.weight": (729, 1152),
        **_encoder_layers(27, 1152, 4304),
        **_affine("post_layernorm", 1152),
        "head.probe": (1, 1, 1152),
        "head.attention.in_proj_weight": (3 * 1152, 1152),
        "head.attention.in_proj_bias": (3 * 1152,),
        **_affine("head.attention.out_proj", 1152, 1152),
        **_affine("head.layernorm", 1152),
        **_affine("head.mlp.fc1", 4304, 1152),
        **_affine("head.mlp.fc2", 1152, 4304),
    }
    return {f"vision_model.{name}": shape for name, shape in shapes.items()}


def _encoder_layers(count: int, width: int, inner: int) -> Shapes:
    """The layers that CLIP and SigLIP have in common."""
    shapes: Shapes = {}
    for layer in range(count):
        name = f"encoder.layers.{layer}"
        for kind in ("k", "v", "q", "out"):
            shapes |= _affine(f"{name}.self_attn.{kind}_proj", width, width)
        shapes |= _affine(f"{name}.layer_norm1", width) | _affine(f"{name}.layer_norm2", width)
        shapes |= _affine(f"{name}.mlp.fc1", inner, width) | _affine(f"{name}.mlp.fc2", width, inner)
    return shapes


def _vae() -> Shapes:
    """AutoencoderKLHunyuanVideo."""
    wide, latents, image = 512, 16, 3
    down, up = (128, 128, 256, 512, 512), (512, 512, 512, 256, 128)
    shapes = _conv("encoder.conv_in", down[0], image)
    for level in range(4):
        block = f"encoder.down_blocks.{level}"
        shapes |= _resnets(block, 2, down[level], down[level + 1])
        if level < 3:
            shapes |= _conv(f"{block}.downsamplers.0.conv", down[level + 1], down[level + 1])
    shapes |= _middle("encoder.mid_block", wide) | _affine("encoder.conv_norm_out", wide)
    shapes |= _conv("encoder.conv_out", 2 * latents, wide) | _conv("decoder.conv_in", wide, latents)
    for level in range(4):
        block = f"decoder.up_blocks.{level}"
        shapes |= _resnets(block, 3, up[level], up[level + 1])
        if level < 3:
            shapes |= _conv(f"{block}.upsamplers.0.conv", up[level + 1], up[level + 1])
    shapes |= _middle("decoder.mid_block", wide) | _affine("decoder.conv_norm_out", up[-1])
    shapes |= _conv("decoder.conv_out", image, up[-1])
    shapes |= _affine("quant_conv", 2 * latents, 2 * latents, 1, 1, 1)
    return shapes | _affine("post_quant_conv", latents, latents, 1, 1, 1)


def _middle(name: str, width: int) -> Shapes:
    attention = f"{name}.attentions.0"
    shapes = _affine(f"{attention}.group_norm", width)
    for kind in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= _affine(f"{attention}.{kind}", width, width)
    return shapes | _resnets(name, 2, width, width)


def _resnets(name: str, count: int, inputs: int, outputs: int) -> Shapes:
    shapes: Shapes = {}
    for number in range(count):
        resnet, given = f"{name}.resnets.{number}", outputs if number else inputs
        shapes |= _affine(f"{resnet}.norm1", given) | _conv(f"{resnet}.conv1", outputs, given)
        shapes |= _affine(f"{resnet}.norm2", outputs) | _conv(f"{resnet}.conv2", outputs, outputs)
        if given != outputs:
            shapes |= _affine(f"{resnet}.conv_shortcut.conv", outputs, given, 1, 1, 1)
    return shapes


def _conv(name: str, outputs: int, inputs: int) -> Shapes:
    """A causal convolution, whose kernel is a module of its own."""
    return _affine(f"{name}.conv", outputs, inputs, 3, 3, 3)


def _affine(name: str, outputs: int, *rest: int) -> Shapes:
    """Weight and bias."""
    return {f"{name}.weight": (outputs, *rest), f"{name}.bias": (outputs,)}
