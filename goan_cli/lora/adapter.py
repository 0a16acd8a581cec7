"""A LoRA file understood from its header alone: what each key is, and what it will change. No torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

from goan_cli.errors import LoraRefused
from goan_cli.lora.algorithms import Algorithm, Form, biases_of, form_of
from goan_cli.lora.aliases import Alias, alias_table
from goan_cli.lora.foreign import FLUX_WIDTH, model_of_width, refuse_flux, refuse_foreign
from goan_cli.lora.keys import ParsedKey, Role, is_text_encoder, parse_key, refused_as
from goan_cli.lora.scale import PeftScale, read_peft_scale
from goan_cli.tensorfile import TensorEntry, TensorHeader, read_header, read_scalars

Shapes = Mapping[str, tuple[int, ...]]
TEXT_ENCODER_RULE = "text encoder tensors"
OTHER_INPUT_RULE = "tensors of an input layer with other channels than FramePack's"
EXCLUDED_RULE = "tensors left out by include and exclude"
_SHOWN = 6
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
# The HunyuanVideo models for image-to-video and SkyReels take 32 or 33 channels here; FramePack takes 16.
_INPUT_MODULE = "x_embedder.proj"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which modules of the base a job lets a LoRA change: glob patterns on names such as `*.attn.to_q`."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def admits(self, module: str) -> bool:
        """Whether a module may change: among `include` (if any), and not among `exclude`."""
        included = not self.include or any(fnmatchcase(module, pattern) for pattern in self.include)
        return included and not any(fnmatchcase(module, pattern) for pattern in self.exclude)


EVERYTHING = Selection()


@dataclass(frozen=True, kw_only=True)
class Part:
    """One target of a source module, and its (start, stop) in the rows of the source's change."""

    target: str
    rows: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class AdapterModule:
    """One source module of a file: its tensors by role, what they make, and where that goes.

    `source` is its name flattened, `name` as the file has it, which is what PEFT's patterns match.

    `parts` are all targets, in the order of rows; `admitted` those that the job lets change. `squares_scale` marks
    the LoHa and LoKr files of LyCORIS itself, whose own merge applies alpha / rank twice (4.1.3: once in
    `get_weight`, again in `get_diff_weight`); the recorded files are merged so.
    """

    source: str
    name: str
    keys: Mapping[Role, str]
    form: Form
    alias: Alias
    parts: tuple[Part, ...]
    admitted: tuple[Part, ...]
    squares_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA file that fits a base model; every key is in a module or in `skipped` (rule -> count)."""

    path: Path
    modules: tuple[AdapterModule, ...]
    peft_scale: PeftScale | None
    keys: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def matched_keys(self) -> int:
        """Number of keys that act."""
        return sum(len(module.keys) for module in self.modules)

    @property
    def targets(self) -> frozenset[str]:
        """The modules of the base model that change."""
        return frozenset(part.target for module in self.modules for part in module.admitted)

    @property
    def parameters(self) -> frozenset[str]:
        """The parameters of the base model that change."""
        return frozenset(
            f"{part.target}.{kind}"
            for module in self.modules
            for kind in changed_kinds(module)
            for part in module.admitted
        )


def changed_kinds(module: AdapterModule) -> tuple[str, ...]:
    """`weight`, `bias` or both: what a module's tensors change."""
    weight = ("weight",) if module.form.rows is not None else ()
    bias = ("bias",) if {Role.DIFF_BIAS, Role.UP_BIAS} & module.keys.keys() else ()
    return weight + bias


def read_adapter(path: Path, base: Shapes, *, selection: Selection = EVERYTHING, trusted: bool = False) -> Adapter:
    """Match a LoRA file with a base model's parameter shapes (`name.weight` -> shape).

    `trusted` accepts a file that cannot be told from FLUX.1's. Raises InvalidInput for a damaged file and
    LoraRefused, with the reason, for whatever cannot be applied exactly: unknown keys, other models' files,
    unsupported kinds, half modules, wrong shapes, two keys for one target.
    """
    header = read_header(path)
    try:
        return _matched(header, base, selection, trusted=trusted)
    except LoraRefused as error:
        raise LoraRefused(f"{path}: {error.message}", hint=error.hint) from error


def _matched(header: TensorHeader, base: Shapes, selection: Selection, *, trusted: bool) -> Adapter:
    refuse_foreign(header.entries, header.metadata)
    groups, skipped = _grouped(header)
    table = alias_table(name.removesuffix(".weight") for name in base if name.endswith(".weight"))
    _skip_other_input(groups, skipped, table, header.entries, base)
    _refuse_unknown(groups, skipped, table)
    modules = [_module(source, keys, table[source], header.entries, base) for source, keys in groups.items()]
    if _width(base) == FLUX_WIDTH:
        keys = [key for module in modules for key in module.keys.values()]
        refuse_flux(keys, header.metadata, blocks=_blocks(base), trusted=trusted)
    _refuse_overlaps(modules)
    admitted = [_selected(module, selection) for module in modules]
    if left_out := sum(len(module.keys) for module in admitted if not module.admitted):
        skipped[EXCLUDED_RULE] = left_out
    acting = tuple(module for module in admitted if module.admitted)
    if not acting:
        raise LoraRefused("include and exclude leave nothing of it", hint="patterns match names such as *.attn.to_q")
    scale = read_peft_scale(header.path, header.metadata)
    if scale is not None and scale.use_dora and not any(module.form.dora for module in modules):
        raise LoraRefused("its metadata says DoRA, but it holds no magnitudes")
    return Adapter(
        path=header.path,
        modules=acting,
        peft_scale=scale,
        keys=len(header.entries),
        skipped=dict(skipped),
        warnings=_alpha_warnings(header.path, acting),
    )


def _alpha_warnings(path: Path, modules: Sequence[AdapterModule]) -> tuple[str, ...]:
    """Alphas that no writer means, and those that LyCORIS itself applies in two ways."""
    alphas = read_scalars(path, [module.keys[Role.ALPHA] for module in modules if Role.ALPHA in module.keys])
    of = {module.source: alphas.get(module.keys.get(Role.ALPHA, "")) for module in modules}
    zero = sum(1 for alpha in of.values() if alpha == 0)
    twice = sum(1 for m in modules if m.squares_scale and m.form.rank and of[m.source] not in (None, m.form.rank))
    warnings = []
    if zero:
        warnings.append(f"alpha is 0 in {zero} of its modules, which change nothing")
    if twice:
        warnings.append(
            f"in {twice} of its modules alpha / rank is applied twice, as LyCORIS's own merge does; its training "
            "applies it once, so a larger weight may be wanted"
        )
    return tuple(warnings)


def _grouped(header: TensorHeader) -> tuple[dict[str, dict[Role, str]], Counter[str]]:
    """Keys by flattened source module and role, and the counts of what a rule skips."""
    groups: dict[str, dict[Role, str]] = {}
    skipped: Counter[str] = Counter()
    refused: dict[str, list[str]] = {}
    strange: list[str] = []
    for key, entry in header.entries.items():
        if is_text_encoder(key):
            skipped[TEXT_ENCODER_RULE] += 1
        elif kind := refused_as(key):
            refused.setdefault(kind, []).append(key)
        elif (parsed := parse_key(key)) is None:
            strange.append(key)
        else:
            _add(groups, parsed, key, entry)
    if refused:
        kinds = "; ".join(f"{kind} ({len(keys)} keys, {keys[0]})" for kind, keys in refused.items())
        raise LoraRefused(f"of a kind that is not supported: {kinds}")
    if strange and not groups:
        if all(key.endswith((".weight", ".bias")) for key in strange):
            raise LoraRefused(f"a checkpoint of whole weights, not a LoRA: {_some(strange)}")
        raise LoraRefused(f"no LoRA keys in it: {_some(strange)}")
    if strange:
        raise LoraRefused(f"{len(strange)} keys are not understood: {_some(strange)}")
    return groups, skipped


def _add(groups: dict[str, dict[Role, str]], parsed: ParsedKey, key: str, entry: TensorEntry) -> None:
    if entry.dtype not in _FLOATS and parsed.role is not Role.ALPHA:
        raise LoraRefused(f"{key} is {entry.dtype}, not floating point")
    roles = groups.setdefault(parsed.module, {})
    if parsed.role in roles:
        raise LoraRefused(f"{roles[parsed.role]} and {key} mean the same tensor")
    roles[parsed.role] = key


def _skip_other_input(
    groups: dict[str, dict[Role, str]],
    skipped: Counter[str],
    table: Mapping[str, Alias],
    entries: Mapping[str, TensorEntry],
    base: Shapes,
) -> None:
    """Leave out an input layer trained for other channels, as long as there is more in the file."""
    for source, keys in list(groups.items()):
        if len(groups) == 1 or source not in table or table[source].targets != (_INPUT_MODULE,):
            continue
        down = keys.get(Role.DOWN)
        channels = base[f"{_INPUT_MODULE}.weight"][1]
        if down is not None and len(entries[down].shape) > 1 and entries[down].shape[1] in (32, 33) and channels == 16:
            skipped[OTHER_INPUT_RULE] += len(groups.pop(source))


def _refuse_unknown(
    groups: Mapping[str, Mapping[Role, str]], skipped: Mapping[str, int], table: Mapping[str, Alias]
) -> None:
    unknown = [key for source, keys in groups.items() if source not in table for key in keys.values()]
    if unknown and all(source not in table for source in groups):
        raise LoraRefused(f"none of its {len(unknown)} keys belongs to this model: {_some(unknown)}")
    if unknown:
        raise LoraRefused(f"{len(unknown)} keys name modules that this model does not have: {_some(unknown)}")
    if not groups:
        why = "; ".join(f"{count} {rule}" for rule, count in skipped.items()) or "it holds no tensors"
        raise LoraRefused(f"nothing in it acts on the transformer: {why}")


def _module(
    source: str, keys: dict[Role, str], alias: Alias, entries: Mapping[str, TensorEntry], base: Shapes
) -> AdapterModule:
    shapes = {role: entries[key].shape for role, key in keys.items()}
    form = form_of(source, shapes)
    parts, start = [], 0
    for target in alias.targets:
        rows = base[f"{target}.weight"][0]
        parts.append(Part(target=target, rows=(start, start + rows)))
        start += rows
    weights = [base[f"{target}.weight"] for target in alias.targets]
    columns = prod(weights[0][1:])
    if form.rows is not None and ((form.rows, form.columns) != (start, columns) or not _axes_fit(shapes, weights[0])):
        raise LoraRefused(
            f"{source}: makes a change of {form.rows} x {form.columns}, but {' + '.join(alias.targets)} "
            f"is {start} x {columns}",
            hint=_other_width(shapes, start, form.rows),
        )
    if form.rows is not None and len(weights[0]) < 2 and form.algorithm is not Algorithm.FULL:
        raise LoraRefused(f"{source}: {form.algorithm} cannot change {alias.targets[0]}, a weight of one axis")
    magnitude = shapes.get(Role.MAGNITUDE, shapes.get(Role.DORA_SCALE))
    if magnitude is not None and not _magnitude_fits(magnitude, start, weights[0], rows_only=Role.MAGNITUDE in shapes):
        raise LoraRefused(f"{source}: DoRA magnitudes {list(magnitude)} fit neither rows nor columns")
    for role, length in biases_of(shapes).items():
        if length != start or any(f"{target}.bias" not in base for target in alias.targets):
            raise LoraRefused(f"{keys[role]} has {length} values and does not fit the bias of {alias.targets[0]}")
    parsed = parse_key(next(iter(keys.values())))
    lycoris = any(key.startswith("lycoris_") for key in keys.values())
    return AdapterModule(
        source=source,
        name=parsed.name if parsed else source,
        keys=keys,
        form=form,
        alias=alias,
        parts=tuple(parts),
        admitted=tuple(parts),
        squares_scale=lycoris and form.algorithm in (Algorithm.LOHA, Algorithm.LOKR),
    )


def _magnitude_fits(magnitude: tuple[int, ...], rows: int, weight: tuple[int, ...], *, rows_only: bool) -> bool:
    """One magnitude an output row, or (in older files) one an input channel."""
    by_rows = prod(magnitude) == rows and (rows_only or magnitude[:1] == (rows,))
    by_columns = not rows_only and magnitude[:1] == (1,) and magnitude[1:2] == (weight[1],)
    return by_rows or (by_columns and prod(magnitude) == weight[1])


def _axes_fit(shapes: Mapping[Role, tuple[int, ...]], weight: tuple[int, ...]) -> bool:
    """Whether a convolution's factor has the weight's own axes, trailing ones apart; flat forms always fit."""
    axes = shapes.get(Role.DOWN, shapes.get(Role.DIFF, ()))
    if len(axes) <= 2 or Role.MID in shapes:
        return True
    inner = axes[1:]
    while len(inner) > len(weight) - 1 and inner[-1] == 1:
        inner = inner[:-1]
    return inner == weight[1:]


def _other_width(shapes: Mapping[Role, tuple[int, ...]], expected: int, rows: int) -> str:
    down = shapes.get(Role.DOWN, (0, 0))
    known = model_of_width(down[1] if len(down) > 1 else rows)
    return f"trained for {known}?" if known and rows != expected else "trained for a model of another width?"


def _refuse_overlaps(modules: Sequence[AdapterModule]) -> None:
    owners: dict[str, str] = {}
    for module in modules:
        for part in module.parts:
            if part.target in owners:
                raise LoraRefused(f"{owners[part.target]} and {module.source} both change {part.target}")
            owners[part.target] = module.source


def _selected(module: AdapterModule, selection: Selection) -> AdapterModule:
    if selection == EVERYTHING:
        return module
    return replace(module, admitted=tuple(part for part in module.parts if selection.admits(part.target)))


def _width(base: Shapes) -> int:
    return base["proj_out.weight"][1] if "proj_out.weight" in base else 0


def _blocks(base: Shapes) -> tuple[int, int]:
    """How many double and single blocks the base has."""
    stacks = ("transformer_blocks", "single_transformer_blocks")
    double, single = (len({name.split(".")[1] for name in base if name.startswith(f"{stack}.")}) for stack in stacks)
    return double, single


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:_SHOWN])
    return f"{shown}, and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown
