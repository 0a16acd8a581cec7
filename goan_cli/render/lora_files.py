"""LoRA files of a plan as the bake takes them, and a bake for its report alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from goan_cli.errors import InvalidJobs, LoraRefused, Problem
from goan_cli.lora.bake import LoraFile, bake
from goan_cli.lora.change import read_factors
from goan_cli.lora.report import BakeReport
from goan_cli.model.weights import WeightStore, check_transformer
from goan_cli.packs.find import find_part
from goan_cli.render.identity import lora_source
from goan_cli.render.plan import PlannedLora, RenderPlan, match_loras


def lora_file(lora: PlannedLora) -> LoraFile:
    """A matched LoRA with its content's hash. Raises InvalidInput when the file has vanished since."""
    return LoraFile(adapter=lora.adapter, source=lora_source(lora))


def refuse_misfits(plans: Sequence[RenderPlan]) -> None:
    """Compare each transformer with its configuration before anything loads. Raises InvalidInput."""
    for part, config in dict.fromkeys((plan.pack.transformer, plan.pack.config_of("transformer")) for plan in plans):
        check_transformer(part, config)


def refuse_broken_values(plans: Sequence[RenderPlan]) -> None:
    """Read every LoRA's values once, before anything is rendered. Raises InvalidJobs for NaN and infinite ones."""
    problems: dict[Path, Problem] = {}
    seen: set[tuple[Path, tuple[str, ...], tuple[str, ...]]] = set()
    for plan in plans:
        for lora in plan.every_lora:
            path = lora.use.path
            if (path, lora.use.include, lora.use.exclude) in seen:
                continue
            seen.add((path, lora.use.include, lora.use.exclude))
            try:
                with safe_open(path, framework="pt") as file:
                    for module in lora.adapter.modules:
                        read_factors(module, file.get_tensor, lora.adapter.peft_scale, torch.device("cpu"))
            except (OSError, SafetensorError):
                continue  # gone or spoilt since it was planned: the failure of its job, not of the run
            except LoraRefused as error:
                problems[path] = Problem(file=path, message=error.message, hint=error.hint)
    if problems:
        raise InvalidJobs(list(problems.values()))


def bake_in_memory(model: str, loras: Sequence[Mapping[str, Any]]) -> BakeReport:
    """Bake LoRAs (keys as in a job) into copies of the weights that they change, in their dtype, for the report."""
    transformer = find_part(model, "transformer")
    matched = match_loras(transformer.usable, loras)
    names = {name for lora in matched for name in lora.adapter.parameters}
    with WeightStore(transformer.usable).opened() as pristine:
        copies = {name: torch.empty_like(pristine(name)) for name in names}
        return bake(copies, pristine, [lora_file(lora) for lora in matched], base=transformer.identity)
