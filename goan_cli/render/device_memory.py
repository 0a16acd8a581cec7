"""How a device's memory is shared out: what a job may use, measured once, and what that leaves to its decode."""

from typing import Any

import torch

from goan_cli.render.budget import memory_of
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.decode import shape_of
from goan_cli.render.memory import MemoryPlan, automatic_budget
from goan_cli.render.plan import RenderPlan
from goan_cli.render.vae_memory import Tiling, choose_tiling


class DeviceMemory:
    """The memory of one device. On a CPU everything is where it is, and nothing is planned."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._free: int | None = None
        self._sampling: MemoryPlan | None = None

    def measure(self) -> None:
        """Take what is free now, with no transformer on the device, for what jobs may use."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            self._free = automatic_budget(torch.cuda.mem_get_info(self._device)[0])

    def plan_sampling(self, plan: RenderPlan, conditioning: Conditioning, precision: str) -> MemoryPlan:
        """Where the transformer's weights go for a job: within its own budget, and within what is free.

        `precision` is fp32, fp16, bf16 or fp8. Raises EnvironmentFault when not even streaming fits.
        """
        own = (conditioning.positive, conditioning.negative)
        told = (text for each in conditioning.sections for text in (each.positive, each.negative))
        texts = [text for text in (*own, *told) if text is not None]
        budget = self._free
        if budget is not None and plan.job.execution.memory is not None:
            budget = min(budget, plan.job.execution.memory)
        self._sampling = memory_of(
            plan,
            precision=precision,
            image=conditioning.image_embeds.shape[1],
            text=max(text.embeds.shape[1] for text in texts),
            budget=budget,
        )
        return self._sampling

    def tiling_for(self, plan: RenderPlan, vae: Any) -> Tiling | None:  # noqa: ANN401 - see decode
        """The tiles that decode a plan's video in what is free beside the transformer, None for whole frames."""
        if self._device.type != "cuda":
            return None
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._device)[0]
        if self._sampling is not None and self._sampling.decode_room is not None:
            weights = sum(parameter.nbytes for parameter in vae.parameters())
            free = min(free, self._sampling.decode_room - weights)
        width, height = plan.job.size
        sections = plan.job.decoded_sections
        return choose_tiling(shape_of(vae), sections, plan.job.decode, height=height, width=width, free=free)
