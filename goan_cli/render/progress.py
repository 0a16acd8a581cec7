"""Progress of sampling to and from a checkpoint file: tensors beside the record of `render.checkpoint`."""

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from goan_cli.errors import InvalidInput
from goan_cli.files import write_bytes
from goan_cli.model.step_cache import StepCacheState
from goan_cli.render.checkpoint import METADATA_KEY, CheckpointRecord, read_record
from goan_cli.render.sampling import Progress, SectionProgress
from goan_cli.render.unipc import UniPCState


def write_checkpoint(path: Path, record: CheckpointRecord, progress: Progress) -> None:
    """Write progress and its record to one file, whole or not at all. Raises EnvironmentFault as `write_bytes` does."""
    tensors = {"history": progress.history, "noise_state": progress.noise_state}
    section_state = None
    if progress.within is not None:
        sampler, caches = progress.within.sampler, progress.within.caches
        tensors["x"] = sampler.x
        tensors |= {f"prediction.{number}": each for number, each in enumerate(sampler.predictions)}
        for number, cache in enumerate(caches):
            held = {"previous_input": cache.previous_input, "residual": cache.residual}
            tensors |= {f"cache.{number}.{name}": each for name, each in held.items() if each is not None}
        section_state = {
            "done": sampler.done,
            "caches": [{"computed": c.computed, "step": c.step, "accumulated": c.accumulated} for c in caches],
        }
    record = replace(
        record,
        sections=progress.sections,
        computed_steps=progress.computed_steps,
        section_state=section_state,
    )
    # Copies: the file holds no tensor twice, and safetensors takes no views.
    written = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(written, metadata={METADATA_KEY: record.as_text()}))


def read_progress(path: Path) -> tuple[CheckpointRecord, Progress]:
    """A checkpoint's record and progress, on the CPU. Raises InvalidInput for a missing or damaged file."""
    record = read_record(path)
    try:
        tensors = load(path.read_bytes())
        within = None if record.section_state is None else _within(record, tensors)
        progress = Progress(
            history=tensors["history"],
            noise_state=tensors["noise_state"],
            computed_steps=record.computed_steps,
            within=within,
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: not a usable checkpoint: {error}") from error
    return record, progress


def _within(record: CheckpointRecord, tensors: dict[str, Tensor]) -> SectionProgress:
    state = record.section_state or {}
    count = sum(name.startswith("prediction.") for name in tensors)
    return SectionProgress(
        sampler=UniPCState(
            done=state["done"],
            x=tensors["x"],
            predictions=tuple(tensors[f"prediction.{number}"] for number in range(count)),
        ),
        caches=tuple(
            StepCacheState(
                computed=tuple(cache["computed"]),
                step=cache["step"],
                accumulated=cache["accumulated"],
                previous_input=tensors.get(f"cache.{number}.previous_input"),
                residual=tensors.get(f"cache.{number}.residual"),
            )
            for number, cache in enumerate(state["caches"])
        ),
    )
