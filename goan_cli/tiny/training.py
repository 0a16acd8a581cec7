"""The loop every training of the tiny pack runs in: Muon for matrices, a warm-up, a linear decay, exact resuming.

Muon (Jordan et al. 2024) orthogonalises each matrix's update, so that a picture's few strong directions (its
background) do not drown the weak ones (edges). On the autoencoder's clips it was at 19.7 dB when Adam was at 18.3.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from goan_cli.errors import InvalidInput, RenderFailed
from goan_cli.files import replaced_when_complete, write_text

# With AMX, oneDNN (torch 2.13) leaves some weight gradients of bf16 convolutions unwritten: seen on Sapphire Rapids.
SAFE_ISA = "AVX512_CORE_FP16"
ISA_HINT = f"a processor with AMX? ONEDNN_MAX_CPU_ISA={SAFE_ISA} avoids what oneDNN gets wrong there"
SEED = 20_26_11
_LOG_EVERY = 50
_SAVE_EVERY = 200

log = logging.getLogger(__name__)

LossPart = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One training's length and learning rates; the decay begins at the share `decay_from` of the steps."""

    name: str
    steps: int
    matrix_rate: float
    vector_rate: float
    warm_up: int = 100
    decay_from: float = 0.5

    def scale(self, step: int) -> float:
        """The factor on both learning rates at `step`, which counts from 0."""
        start = self.decay_from * self.steps
        decay = 1.0 if step < start else (self.steps - step) / (self.steps - start)
        return min((step + 1) / self.warm_up, decay)


class Optimiser:
    """Muon over every matrix and kernel, flattened to (outputs, everything else), and Adam over the vectors."""

    def __init__(self, trained: Sequence[nn.Parameter], schedule: Schedule) -> None:
        self._shaped = [parameter for parameter in trained if parameter.dim() > 1]
        # Views of the same storage: Muon takes matrices only.
        self._flat = [nn.Parameter(parameter.detach().flatten(1)) for parameter in self._shaped]
        vectors = [parameter for parameter in trained if parameter.dim() == 1]
        self._schedule = schedule
        self._muon = torch.optim.Muon(
            self._flat, lr=schedule.matrix_rate, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        )
        self._adam = torch.optim.Adam(vectors, lr=schedule.vector_rate, betas=(0.9, 0.97)) if vectors else None

    def step(self, step: int) -> None:
        """Move the parameters by their gradients, and clear those."""
        scale = self._schedule.scale(step)
        for flat, shaped in zip(self._flat, self._shaped, strict=True):
            flat.grad = None if shaped.grad is None else shaped.grad.flatten(1)
        optimisers: tuple[tuple[Any, float], ...] = (
            (self._muon, self._schedule.matrix_rate),
            (self._adam, self._schedule.vector_rate),
        )
        for optimiser, rate in optimisers:
            if optimiser is not None:
                optimiser.param_groups[0]["lr"] = rate * scale
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
        for shaped in self._shaped:
            shaped.grad = None

    def state(self) -> dict[str, object]:
        """What `restore` needs to go on."""
        return {"muon": self._muon.state_dict(), "adam": self._adam.state_dict() if self._adam else {}}

    def restore(self, state: dict[str, dict[str, object]]) -> None:
        """Go on from what `state` returned."""
        self._muon.load_state_dict(state["muon"])
        if self._adam:
            self._adam.load_state_dict(state["adam"])


def seeded(step: int, stream: int = 0) -> torch.Generator:
    """The random numbers of one step: a resumed training draws what an uninterrupted one does."""
    return torch.Generator().manual_seed((SEED + stream) * 1_000_003 + step)


def train(
    model: nn.Module,
    schedule: Schedule,
    parts_of: Callable[[int], Sequence[LossPart]],
    validate: Callable[[], dict[str, float]],
    folder: Path,
) -> dict[str, float]:
    """Train `model`'s parameters that need a gradient in place; returns the last validation's figures.

    `parts_of(step)` computes scalars whose mean is the loss. Several are worked on at once, each by one thread,
    since operations this small gain nothing from being shared out. The state lies in `folder/NAME.pt` every 200
    steps and at the end, where a training that was stopped goes on and a finished one is only loaded;
    `folder/NAME.jsonl` is its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = Optimiser(trained, schedule)
    saved, log_file = folder / f"{schedule.name}.pt", folder / f"{schedule.name}.jsonl"
    begin, figures = _resumed(model, optimiser, schedule, saved)
    lines = log_file.read_text(encoding="utf-8").splitlines() if begin else []
    lines = [line for line in lines if json.loads(line)["step"] <= begin]
    losses: list[float] = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as workers:
        for step in range(begin, schedule.steps):
            losses.append(_backward(trained, parts_of(step), workers))
            if not nn.utils.clip_grad_norm_(trained, 1.0).isfinite():
                raise RenderFailed(f"{schedule.name}: the gradients of step {step} are not finite", hint=ISA_HINT)
            optimiser.step(step)
            done = step + 1
            to_save = done % _SAVE_EVERY == 0 or done == schedule.steps
            if to_save:
                figures = validate()
            if to_save or done % _LOG_EVERY == 0:
                line = {"step": done, "loss": sum(losses) / len(losses), **(figures if to_save else {})}
                losses.clear()
                log.info("%s %s", schedule.name, {key: round(value, 4) for key, value in line.items()})
                lines.append(json.dumps(line))
            if to_save:
                _save(model, optimiser, schedule, saved, done, figures)
                write_text(log_file, "\n".join(lines) + "\n")
    return figures


def _save(
    model: nn.Module, optimiser: Optimiser, schedule: Schedule, file: Path, step: int, figures: dict[str, float]
) -> None:
    state = {
        "weights": {name: value.detach() for name, value in model.named_parameters() if value.requires_grad},
        "optimiser": optimiser.state(),
        "schedule": asdict(schedule),
        "step": step,
        "figures": figures,
    }
    with replaced_when_complete(file) as part:
        torch.save(state, part)


def _resumed(model: nn.Module, optimiser: Optimiser, schedule: Schedule, file: Path) -> tuple[int, dict[str, float]]:
    """Load what was saved, and return its step and figures; step 0 where there is nothing.

    Raises InvalidInput for a state of another schedule: going on from it would be neither the one nor the other.
    """
    if not file.exists():
        return 0, {}
    state = torch.load(file, weights_only=True)
    if state.get("schedule") != asdict(schedule):
        raise InvalidInput(f"{file}: was trained by another schedule", hint="remove it to train anew")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["weights"][name])
    optimiser.restore(state["optimiser"])
    return state["step"], state["figures"]


def _backward(trained: Sequence[nn.Parameter], parts: Sequence[LossPart], workers: ThreadPoolExecutor) -> float:
    """Set the parameters' gradients to the mean of the parts', summed in order; returns the mean loss."""

    def gradients(part: LossPart) -> tuple[float, tuple[Tensor | None, ...]]:
        loss = part()
        return loss.item(), torch.autograd.grad(loss, trained, allow_unused=True)

    results = [gradients(parts[0])] if len(parts) == 1 else list(workers.map(gradients, parts))
    for parameter, *given in zip(trained, *(each for _, each in results), strict=True):
        known = [gradient for gradient in given if gradient is not None]
        parameter.grad = torch.stack(known).sum(dim=0) / len(parts) if known else None
    return sum(loss for loss, _ in results) / len(parts)
