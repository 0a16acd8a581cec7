"""What a LoRA file is, told from its header: layout, writer, algorithms, ranks, targets. No torch."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from goan_cli.errors import LoraRefused
from goan_cli.lora.adapter import TEXT_ENCODER_RULE, Shapes, read_adapter
from goan_cli.lora.algorithms import form_of
from goan_cli.lora.foreign import refuse_foreign, trained_for
from goan_cli.lora.keys import Role, is_text_encoder, key_prefix, parse_key
from goan_cli.tensorfile import TensorHeader, read_header, read_scalars


@dataclass(frozen=True, kw_only=True)
class Family:
    """The modules of one name over all blocks: `double_blocks_N_img_attn_qkv`, how many, and their ranks."""

    name: str
    modules: int
    blocks: tuple[int, int] | None
    ranks: tuple[int, int] | None
    algorithm: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything a header tells. `targets` is None where no model was given; `refusal` is why a file cannot be used."""

    path: Path
    keys: int
    megabytes: float
    layout: str
    writer: str
    dtypes: tuple[str, ...]
    algorithms: tuple[str, ...]
    ranks: tuple[int, int] | None
    alphas: tuple[float, float] | None
    trained_for: str | None
    families: tuple[Family, ...]
    skipped: Mapping[str, int]
    targets: int | None
    refusal: str | None


# Layout letter, writer, and what its keys are like: (prefix, pattern in a module's name, role); None is any.
LAYOUTS: tuple[tuple[str, str, str | None, str | None, Role | None], ...] = (
    ("F", "Tencent HunyuanVideo-I2V", "Hunyuan_video_I2V_lora_", None, None),
    ("H", "OneTrainer (legacy)", "lora_transformer_", None, None),
    ("I", "LyCORIS", "lycoris_", None, None),
    ("I", "musubi-tuner LoHa", "lora_unet_", None, Role.HADA_W1_A),
    ("I", "musubi-tuner LoKr", "lora_unet_", None, Role.LOKR_W1),
    ("I", "musubi-tuner LoKr", "lora_unet_", None, Role.LOKR_W1_A),
    ("A", "musubi-tuner on FramePack", "lora_unet_", "transformer_blocks_", None),
    ("B", "musubi-tuner or kohya on HunyuanVideo", "lora_unet_", None, None),
    ("G", "ComfyUI extraction", "diffusion_model.", None, Role.DIFF),
    ("G", "ComfyUI extraction", "diffusion_model.", r"_mod(ulation)?_lin$|_mlp_[02]$", Role.DOWN),
    ("H", "OneTrainer (ComfyUI keys)", "diffusion_model.", None, Role.ALPHA),
    ("D", "musubi's converter, or diffusion-pipe for ComfyUI", "diffusion_model.", None, None),
    ("C", "diffusion-pipe", "transformer.", "double_blocks_", None),
    ("C", "diffusion-pipe", "transformer.", "single_blocks_", None),
    ("E", "diffusers or PEFT", "transformer.", None, None),
    ("H", "OneTrainer (original keys)", "", "double_blocks_", None),
    ("E", "diffusers or PEFT", "", None, None),
)


def inspect_lora(path: Path, base: Shapes | None = None, *, trusted: bool = False) -> Inspection:
    """Inspect a file by itself, or against a model's parameter shapes. Raises InvalidInput for a damaged file."""
    header = read_header(path)
    groups, text_keys = _groups(header)
    layout, writer = _layout(header, groups)
    families, refusal = _families(header, groups)
    try:
        refuse_foreign(header.entries, header.metadata)
    except LoraRefused as error:
        refusal = str(error)
    targets, skipped = None, {TEXT_ENCODER_RULE: text_keys} if text_keys else {}
    if base is not None:
        try:
            adapter = read_adapter(path, base, trusted=trusted)
            targets, skipped = len(adapter.targets), dict(adapter.skipped)
        except LoraRefused as error:
            refusal = str(error).removeprefix(f"{path}: ")
    alphas = read_scalars(path, [keys[Role.ALPHA] for keys in groups.values() if Role.ALPHA in keys])
    ranks = [rank for family in families for rank in family.ranks or ()]
    return Inspection(
        path=path,
        keys=len(header.entries),
        megabytes=round(path.stat().st_size / 1e6, 3),
        layout=layout,
        writer=writer,
        dtypes=tuple(sorted({entry.dtype for entry in header.entries.values()})),
        algorithms=tuple(sorted({family.algorithm for family in families})),
        ranks=(min(ranks), max(ranks)) if ranks else None,
        alphas=(min(alphas.values()), max(alphas.values())) if alphas else None,
        trained_for=trained_for(header.metadata),
        families=families,
        skipped=skipped,
        targets=targets,
        refusal=refusal,
    )


def _groups(header: TensorHeader) -> tuple[dict[str, dict[Role, str]], int]:
    groups: dict[str, dict[Role, str]] = {}
    text_keys = 0
    for key in header.entries:
        if is_text_encoder(key):
            text_keys += 1
        elif (parsed := parse_key(key)) is not None:
            groups.setdefault(parsed.module, {})[parsed.role] = key
    return groups, text_keys


def _layout(header: TensorHeader, groups: Mapping[str, Mapping[Role, str]]) -> tuple[str, str]:
    prefixes = Counter(key_prefix(key) for key in header.entries if not is_text_encoder(key))
    if not groups or not prefixes:
        return "?", "unknown: no LoRA keys"
    prefix = prefixes.most_common(1)[0][0]
    roles = {role for keys in groups.values() for role in keys}
    for letter, writer, wanted_prefix, part, role in LAYOUTS:
        part_fits = part is None or any(re.search(part, name) for name in groups)
        if wanted_prefix in (None, prefix) and part_fits and (role is None or role in roles):
            return letter, writer
    return "?", "unknown"


def _families(header: TensorHeader, groups: Mapping[str, Mapping[Role, str]]) -> tuple[tuple[Family, ...], str | None]:
    """Modules by name without their block number; and what is wrong with the first that is wrong."""
    members: dict[tuple[str, str], list[tuple[int | None, int | None]]] = {}
    refusal = None
    for source, keys in groups.items():
        try:
            form = form_of(source, {role: header.entries[key].shape for role, key in keys.items()})
        except LoraRefused as error:
            refusal = refusal or str(error)
            continue
        found = re.search(r"(?<=blocks_)\d+", source)
        name = source if found is None else f"{source[: found.start()]}N{source[found.end() :]}"
        algorithm = str(form.algorithm) + (" with DoRA" if form.dora else "")
        members.setdefault((name, algorithm), []).append((int(found[0]) if found else None, form.rank))
    families = []
    for (name, algorithm), each in sorted(members.items()):
        families.append(
            Family(
                name=name,
                modules=len(each),
                blocks=_range([number for number, _ in each if number is not None]),
                ranks=_range([rank for _, rank in each if rank is not None]),
                algorithm=algorithm,
            )
        )
    return tuple(families), refusal


def _range(values: Collection[int]) -> tuple[int, int] | None:
    return (min(values), max(values)) if values else None
