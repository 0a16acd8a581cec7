"""MagCache's calibration: how the size of what the blocks add changes from step to step, by pack and steps. No torch.

The ratios of a pack lie beside its manifest, and decide before a render which of its steps are computed.
Source: "MagCache: Fast Video Generation with Magnitude-Aware Cache" (arXiv 2506.09045).
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from goan_cli.errors import InvalidInput
from goan_cli.files import write_text
from goan_cli.model.checkpoint import read_json
from goan_cli.packs.manifest import EMBEDDED, SHIPPED, own_folder
from goan_cli.packs.pack import MAGNITUDES_SUFFIX, Pack

MAGNITUDES_VERSION = 1
# The first steps decide where everything goes, and a residual that is used too often has aged.
_ALWAYS_COMPUTED = 0.2
_MOST_SKIPPED = 3

_AGAIN = "remove it and calibrate again"
_Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Magnitudes:
    """One calibration: for each step, the mean ratio of its residual's norm to the one before; the first is 1.

    `transformer` is the identity of the weights, `window` and `shift` (of the noise schedule) are what it was
    made at; `spread` is the largest deviation of any ratio over the `samples`: sections and CFG branches.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    transformer: str
    window: int
    shift: _Positive
    samples: int
    spread: float
    ratios: Annotated[tuple[_Positive, ...], Field(min_length=1)]

    @property
    def steps(self) -> int:
        """The number of steps that it is for."""
        return len(self.ratios)


_CALIBRATIONS = TypeAdapter(dict[str, Magnitudes])


def steps_to_compute(ratios: Sequence[float], *, threshold: float) -> tuple[int, ...]:
    """The 0-based steps whose blocks run; the others reuse the last residual.

    A skipped step's error is how far the product of the ratios since the last computed step is from 1. Steps are
    skipped while their errors sum up to less than `threshold`: three in a row at most, none in the first fifth,
    and not the last.
    """
    computed: list[int] = []
    first = max(1, int(_ALWAYS_COMPUTED * len(ratios) + 0.5))
    product, error, skipped = 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        product *= ratio
        error += abs(1.0 - product)
        if first <= step < len(ratios) - 1 and skipped < _MOST_SKIPPED and error < threshold:
            skipped += 1
        else:
            computed.append(step)
            product, error, skipped = 1.0, 0.0, 0
    return tuple(computed)


def magnitudes_file(pack: Pack) -> Path:
    """Where a pack's calibrations lie: NAME.magcache.json beside its manifest NAME.yaml.

    Of a manifest that is part of the installation, unless its weights are too, in the user's own folder of packs.
    """
    name = pack.manifest.stem + MAGNITUDES_SUFFIX
    shipped = pack.manifest in SHIPPED.values() and pack.manifest not in EMBEDDED.values()
    return own_folder() / name if shipped else pack.manifest.with_name(name)


def ratios_for(pack: Pack, steps: int) -> Magnitudes:
    """A pack's calibration for a number of steps.

    Raises InvalidInput, with the command that makes one, when there is none or it is of other weights.
    """
    file = magnitudes_file(pack)
    calibrations = _read(file)
    found = calibrations.get(str(steps))
    if found is None:
        there = ", ".join(sorted(calibrations, key=int))
        known = f", only for {there}" if there else ""
        raise InvalidInput(f"{file}: no calibration of MagCache for {steps} steps{known}", hint=_command(pack, steps))
    if found.transformer != pack.identity_of("transformer"):
        raise InvalidInput(
            f"{file}: the calibration of MagCache for {steps} steps is of another transformer",
            hint=_command(pack, steps),
        )
    return found


def write_magnitudes(pack: Pack, magnitudes: Magnitudes) -> None:
    """Put a calibration into the pack's file, in place of the one for as many steps; the others stay.

    Raises InvalidInput for a file that is damaged or newer, and EnvironmentFault where it cannot be written.
    """
    file = magnitudes_file(pack)
    calibrations = {**_read(file), str(magnitudes.steps): magnitudes}
    ordered = {steps: asdict(calibrations[steps]) for steps in sorted(calibrations, key=int)}
    write_text(file, json.dumps({"version": MAGNITUDES_VERSION, "calibrations": ordered}, indent=2) + "\n")


def _read(file: Path) -> Mapping[str, Magnitudes]:
    """All calibrations of a file by their steps, none where there is no file."""
    if not file.exists():
        return {}
    content = read_json(file)
    if (version := content.get("version")) != MAGNITUDES_VERSION:
        raise InvalidInput(f"{file}: calibrations of version {version!r}, which this goan cannot read")
    damaged = f"{file}: not a file of calibrations"
    try:
        # As JSON, in which a list can be a tuple and still no number is a text.
        calibrations = _CALIBRATIONS.validate_json(json.dumps(content.get("calibrations")), strict=True)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise InvalidInput(f"{damaged}: {place}: {error.errors()[0]['msg']}", hint=_AGAIN) from error
    if wrong := [steps for steps, found in calibrations.items() if steps != str(found.steps)]:
        raise InvalidInput(
            f"{damaged}: {wrong[0]}: there are ratios for {calibrations[wrong[0]].steps} steps", hint=_AGAIN
        )
    return calibrations


def _command(pack: Pack, steps: int) -> str:
    named = {manifest.absolute(): name for name, manifest in SHIPPED.items()}
    if pack.manifest in {manifest.absolute() for manifest in EMBEDDED.values()}:
        return f"make it: goan bench --calibrate --model {named[pack.manifest]} --steps {steps}"
    model = named.get(pack.manifest) or shlex.quote(str(pack.manifest))
    return f"make it: goan bench --calibrate --model {model} --steps {steps} --image IMAGE --prompt TEXT"
