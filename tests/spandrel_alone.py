"""The real spandrel in a process that has no torchvision: a stand-in takes its place while spandrel is imported.

Two of spandrel's architectures import functions of torchvision, so that none can be had without it. torchvision itself
must not be beside the tests, because transformers would take its image processors. Where it is and can be imported, it
is left as it is.
"""

import importlib
import sys
from types import ModuleType
from typing import NoReturn

# Everything that spandrel imports of torchvision, all of it from this module.
TORCHVISION = "torchvision.transforms.functional"
NAMES = ("InterpolationMode", "normalize", "rotate")


class Absent:
    """A function or class of torchvision that is not there: whoever calls it or asks it for something is told."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError(f"torchvision's {self._name} is not here")

    def __getattr__(self, attribute: str) -> NoReturn:
        raise AttributeError(f"torchvision's {self._name}.{attribute} is not here")


def has_torchvision() -> bool:
    """Whether the real torchvision can be imported; one that goes with another torch cannot."""
    try:
        importlib.import_module(TORCHVISION)
    except (ImportError, RuntimeError):
        taken_out("torchvision")
        return False
    return True


def spandrel_modules() -> dict[str, ModuleType]:
    """Import spandrel; its modules by name, none of which, nor of the stand-in, is left in `sys.modules`."""
    before = taken_out("spandrel")
    real = has_torchvision()
    if not real:
        sys.modules.update(_stand_in())
    try:
        importlib.import_module("spandrel")
        return taken_out("spandrel")
    finally:
        if not real:
            taken_out("torchvision")
        taken_out("spandrel")
        sys.modules.update(before)


def taken_out(package: str) -> dict[str, ModuleType]:
    """Modules of a package, taken out of `sys.modules`."""
    names = [name for name in sys.modules if name == package or name.startswith(f"{package}.")]
    return {name: sys.modules.pop(name) for name in names}


def _stand_in() -> dict[str, ModuleType]:
    parts = TORCHVISION.split(".")
    modules = {name: ModuleType(name) for name in (".".join(parts[: count + 1]) for count in range(len(parts)))}
    for name in NAMES:
        setattr(modules[TORCHVISION], name, Absent(name))
    return modules
