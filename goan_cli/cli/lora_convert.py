"""`goan lora convert`: a plain LoRA in another tool's layout."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    file: Annotated[Path, typer.Argument(help="A plain LoRA.")],
    to: Annotated[Literal["comfy", "diffusers"], typer.Option(help="comfy (HunyuanVideo's names) or diffusers.")],
    out: Annotated[Path, typer.Option(help="File to write.")],
    model: Annotated[str | None, typer.Option(help="Model pack it belongs to (default: full-size FramePack).")] = None,
) -> None:
    """Write a plain LoRA in another layout; what it changes stays exactly the same."""
    from goan_cli.errors import InvalidInput
    from goan_cli.lora.adapter import read_adapter
    from goan_cli.lora.convert import Layout
    from goan_cli.lora.convert import convert as write
    from goan_cli.model.checkpoint import read_checkpoint
    from goan_cli.packs.find import find_part

    if out.resolve() == file.resolve():
        raise InvalidInput(f"--out {out}: is the file itself")
    if model is None:
        from goan_cli.model.config import TransformerConfig
        from goan_cli.model.weights import empty_transformer

        parameters = empty_transformer(TransformerConfig()).named_parameters()
        base = {name: tuple(parameter.shape) for name, parameter in parameters}
    else:
        base = read_checkpoint(find_part(model, "transformer").usable).shapes
    adapter = read_adapter(file, base, trusted=True)  # whatever it is, its names are FramePack's
    count = write(adapter, base, Layout(to), out.absolute())
    typer.echo(f"wrote {out}: {count} modules")
    for rule, number in adapter.skipped.items():
        typer.echo(f"left out: {number} {rule}")
