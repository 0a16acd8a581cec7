"""The scale of a LoRA module from PEFT's metadata: rank and alpha patterns, rsLoRA. No torch."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from goan_cli.errors import LoraRefused

METADATA_KEY = "lora_adapter_metadata"
METADATA_KEYS = (METADATA_KEY, "lora_config")  # diffusers and PEFT; finetrainers
SIDECAR = "adapter_config.json"
_ALTER_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class PeftScale:
    """`lora_alpha` and its exceptions by module name, as PEFT's LoraConfig has them."""

    lora_alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def scale(self, names: tuple[str, ...], rank: int) -> float:
        """alpha / rank (or alpha / sqrt(rank) with rsLoRA) of a module by any of its dotted names, strongest first."""
        exceptions = (
            value
            for name in names
            for pattern, value in self.alpha_pattern.items()
            if re.match(rf"(.*\.)?({pattern})$", name)
        )
        alpha = next(exceptions, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_peft_scale(path: Path, metadata: Mapping[str, str]) -> PeftScale | None:
    """The scale that a file's metadata states, or PEFT's `adapter_config.json` beside it, or None.

    Raises LoraRefused for a configuration that cannot be read, and for initialisations that change the base weights.
    """
    for key in METADATA_KEYS:
        if key in metadata:
            return _scale_of(metadata[key], f"its metadata {key}")
    config = sidecar_config(path)
    if config is None:
        return None
    try:
        return _scale_of(config.read_text(encoding="utf-8"), config.name)
    except (OSError, UnicodeDecodeError) as error:
        raise LoraRefused(f"{config.name} beside it cannot be read: {error}") from error


def sidecar_config(path: Path) -> Path | None:
    """PEFT's `adapter_config.json` beside a file of PEFT's own name, or beside the only LoRA in a folder."""
    config = path.parent / SIDECAR
    if not config.is_file():
        return None
    its_own = path.name == "adapter_model.safetensors" or len(list(path.parent.glob("*.safetensors"))) == 1
    return config if its_own else None


def _scale_of(text: str, where: str) -> PeftScale | None:
    try:
        values = json.loads(text)
        # Written by a pipeline, every key carries the component's name.
        config: dict[str, Any] = {key.removeprefix("transformer."): value for key, value in values.items()}
        initialisation = str(config.get("init_lora_weights", "")).lower()
        if initialisation.startswith(_ALTER_THE_BASE):
            raise LoraRefused(f"trained with init_lora_weights={initialisation}, which alters the base weights")
        if "lora_alpha" not in config:
            return None
        scale = PeftScale(
            lora_alpha=float(config["lora_alpha"]),
            use_rslora=bool(config.get("use_rslora")),
            use_dora=bool(config.get("use_dora")),
            alpha_pattern={str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()},
        )
        for pattern in scale.alpha_pattern:
            re.compile(pattern)
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise LoraRefused(f"{where} cannot be read: {error}") from error
    return scale
