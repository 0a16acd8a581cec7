"""The scale of a LoRA module from PEFT's metadata: rank and alpha patterns, rsLoRA. No torch."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from goan_cli.errors import LoraRefused

METADATA_KEY = "lora_adapter_metadata"


@dataclass(frozen=True, kw_only=True)
class PeftScale:
    """`lora_alpha` and its exceptions by module name, as PEFT's LoraConfig has them."""

    lora_alpha: float
    use_rslora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """alpha / rank (or alpha / sqrt(rank) with rsLoRA) of a dotted module name."""
        alpha = next(
            (value for pattern, value in self.alpha_pattern.items() if re.match(rf"(.*\.)?({pattern})$", module)),
            self.lora_alpha,
        )
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_peft_scale(metadata: Mapping[str, str]) -> PeftScale | None:
    """The scale that a file's metadata states, or None when it states none.

    Raises LoraRefused for metadata that cannot be read, and for initialisations that change the base weights.
    """
    if METADATA_KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[METADATA_KEY])
        # Written by a pipeline, every key carries the component's name.
        config: dict[str, Any] = {key.removeprefix("transformer."): value for key, value in values.items()}
        initialisation = str(config.get("init_lora_weights", "")).lower()
        if initialisation.startswith(("pissa", "olora")):
            raise LoraRefused(f"trained with init_lora_weights={initialisation}, which alters the base weights")
        if "lora_alpha" not in config:
            return None
        scale = PeftScale(
            lora_alpha=float(config["lora_alpha"]),
            use_rslora=bool(config.get("use_rslora")),
            alpha_pattern={str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()},
        )
        for pattern in scale.alpha_pattern:
            re.compile(pattern)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise LoraRefused(f"its metadata {METADATA_KEY} cannot be read: {error}") from error
    return scale
