"""Which algorithm a module's tensors belong to, and what shape of change they make. Shapes only; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from goan_cli.errors import LoraRefused
from goan_cli.lora.keys import Role

Shape = tuple[int, ...]


class Algorithm(StrEnum):
    """How the change of a weight is stored."""

    LORA = "LoRA"
    LOHA = "LoHa"
    LOKR = "LoKr"
    FULL = "full difference"
    BIAS = "bias only"


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a module's tensors make: the algorithm, the rank (None where there is none), rows and row size.

    `rows` x `columns` is the change of the weight, flattened to two axes; both None where only a bias changes.
    """

    algorithm: Algorithm
    rank: int | None
    rows: int | None
    columns: int | None
    dora: bool


_LORA = {Role.DOWN, Role.UP}
_LOHA = {Role.HADA_W1_A, Role.HADA_W1_B, Role.HADA_W2_A, Role.HADA_W2_B}
_BIASES = {Role.DIFF_BIAS, Role.UP_BIAS}
_COMMON = {Role.ALPHA, Role.DIFF_BIAS, Role.DORA_SCALE}
# Roles that each algorithm may have.
_MAY: Mapping[Algorithm, set[Role]] = {
    Algorithm.LORA: _LORA | _COMMON | {Role.MID, Role.UP_BIAS, Role.MAGNITUDE},
    Algorithm.LOHA: _LOHA | _COMMON | {Role.HADA_T1, Role.HADA_T2},
    Algorithm.LOKR: {role for role in Role if role.startswith("lokr_")} | _COMMON,
    Algorithm.FULL: {Role.DIFF, Role.DIFF_BIAS},
    Algorithm.BIAS: {Role.DIFF_BIAS},
}


def form_of(source: str, shapes: Mapping[Role, Shape]) -> Form:
    """The form of one module by the shapes of its tensors.

    Raises LoraRefused for half pairs, factors that do not multiply, and mixtures of algorithms.
    """
    algorithm = _algorithm(source, shapes)
    if strangers := set(shapes) - _MAY[algorithm]:
        names = ", ".join(sorted(strangers))
        raise LoraRefused(f"{source}: {names} has no place beside {algorithm}")
    if Role.ALPHA in shapes and prod(shapes[Role.ALPHA]) != 1:
        raise LoraRefused(f"{source}: alpha holds {prod(shapes[Role.ALPHA])} values instead of one")
    if any(size == 0 for shape in shapes.values() for size in shape):
        raise LoraRefused(f"{source}: a tensor without values")
    rank, rows, columns = _SHAPES[algorithm](source, shapes)
    return Form(
        algorithm=algorithm,
        rank=rank,
        rows=rows,
        columns=columns,
        dora=Role.DORA_SCALE in shapes or Role.MAGNITUDE in shapes,
    )


def _algorithm(source: str, shapes: Mapping[Role, Shape]) -> Algorithm:
    if shapes.keys() & (_LORA | {Role.MID, Role.UP_BIAS, Role.MAGNITUDE}):
        return Algorithm.LORA
    if any(role.startswith("hada_") for role in shapes):
        return Algorithm.LOHA
    if any(role.startswith("lokr_") for role in shapes):
        return Algorithm.LOKR
    if not shapes.keys() & {Role.DIFF, Role.DIFF_BIAS}:
        raise LoraRefused(f"{source}: half a module: only {', '.join(sorted(shapes))}")
    return Algorithm.FULL if Role.DIFF in shapes else Algorithm.BIAS


def _need(source: str, shapes: Mapping[Role, Shape], needed: set[Role]) -> None:
    if missing := needed - shapes.keys():
        raise LoraRefused(f"{source}: half a module: {', '.join(sorted(shapes))} without {', '.join(sorted(missing))}")


def _multiply(source: str, what: str, fits: bool) -> None:
    if not fits:
        raise LoraRefused(f"{source}: the shapes of {what} do not multiply")


def _lora(source: str, shapes: Mapping[Role, Shape]) -> tuple[int, int, int]:
    _need(source, shapes, _LORA)
    down, up = shapes[Role.DOWN], shapes[Role.UP]
    fits = len(down) >= 2 and len(up) >= 2 and prod(up[2:]) == 1
    kernel: Shape = ()
    if fits and Role.MID in shapes:
        mid = shapes[Role.MID]
        kernel = mid[2:]
        fits = len(mid) > 2 and mid[0] == up[1] and mid[1] == down[0] and prod(down[2:]) == 1
    elif fits:
        fits = up[1] == down[0]
    _multiply(source, f"down {list(down)} and up {list(up)}", fits)
    return down[0], up[0], prod(down[1:]) * prod(kernel)


def _loha(source: str, shapes: Mapping[Role, Shape]) -> tuple[int, int, int]:
    _need(source, shapes, _LOHA)
    first = _product(source, shapes, Role.HADA_W1_A, Role.HADA_W1_B, Role.HADA_T1)
    second = _product(source, shapes, Role.HADA_W2_A, Role.HADA_W2_B, Role.HADA_T2)
    _multiply(source, "the two halves", first[1:] == second[1:])
    return first


def _product(source: str, shapes: Mapping[Role, Shape], a: Role, b: Role, core: Role | None) -> tuple[int, int, int]:
    """Rank, rows and columns of `a @ b`, or of the Tucker form around `core`, whose `a` is transposed."""
    left, right = shapes[a], shapes[b]
    what = f"{a} {list(left)} and {b} {list(right)}"
    _multiply(source, what, len(left) == len(right) == 2)
    if core is not None and core in shapes:
        middle = shapes[core]
        _multiply(source, f"{what} around {core} {list(middle)}", len(middle) > 2 and middle[:2] == (left[0], right[0]))
        return right[0], left[1], right[1] * prod(middle[2:])
    _multiply(source, what, left[1] == right[0])
    return right[0], left[0], right[1]


def _lokr(source: str, shapes: Mapping[Role, Shape]) -> tuple[int | None, int, int]:
    rank, sizes = None, []
    for whole, a, b, core in (
        (Role.LOKR_W1, Role.LOKR_W1_A, Role.LOKR_W1_B, None),
        (Role.LOKR_W2, Role.LOKR_W2_A, Role.LOKR_W2_B, Role.LOKR_T2),
    ):
        if whole in shapes:
            if a in shapes or b in shapes:
                raise LoraRefused(f"{source}: {whole} is there both whole and in factors")
            _multiply(source, whole, len(shapes[whole]) >= 2)
            sizes.append((shapes[whole][0], prod(shapes[whole][1:])))
            continue
        _need(source, shapes, {a, b})
        factor_rank, rows, columns = _product(source, shapes, a, b, core)
        rank = factor_rank
        sizes.append((rows, columns))
    (rows_1, columns_1), (rows_2, columns_2) = sizes
    return rank, rows_1 * rows_2, columns_1 * columns_2


def _full(_: str, shapes: Mapping[Role, Shape]) -> tuple[None, int, int]:
    diff = shapes[Role.DIFF]
    return None, diff[0] if diff else 1, prod(diff[1:])


def _bias(_: str, __: Mapping[Role, Shape]) -> tuple[None, None, None]:
    return None, None, None


_SHAPES = {
    Algorithm.LORA: _lora,
    Algorithm.LOHA: _loha,
    Algorithm.LOKR: _lokr,
    Algorithm.FULL: _full,
    Algorithm.BIAS: _bias,
}


def biases_of(shapes: Mapping[Role, Shape]) -> Mapping[Role, int]:
    """The bias changes among a module's tensors and their lengths."""
    return {role: prod(shape) for role, shape in shapes.items() if role in _BIASES}
