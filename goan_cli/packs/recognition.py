"""What a checkpoint is, from the names, shapes and dtypes of its tensors; what cannot be used is refused by name."""

from pathlib import Path

from goan_cli.model.checkpoint import Checkpoint, refuse_quantised


def refuse_unusable(part: str, path: Path, checkpoint: Checkpoint) -> None:
    """Raise InvalidInput for a checkpoint that is no such part, or is quantised, saying what to use instead."""
    del path
    if part == "transformer":
        refuse_quantised(checkpoint)
