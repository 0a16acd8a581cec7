"""`goan lora bake`: a standalone transformer with LoRAs in its weights."""

from pathlib import Path
from typing import Annotated

import typer

from goan_cli.cli.options import Trusted, lora_and_weight


def bake(
    model: Annotated[str, typer.Option(help="Model pack whose transformer is the base.")],
    lora: Annotated[list[str], typer.Option(help="LoRA, FILE or FILE:WEIGHT; may be repeated.")],
    out: Annotated[Path, typer.Option(help="A .safetensors file, or a folder.")],
    trusted: Trusted = False,
) -> None:
    """Write a transformer with LoRAs baked in, in the checkpoint's dtype, sharded as its source is."""
    from goan_cli.cli.terminal import make_console
    from goan_cli.packs.find import find_part
    from goan_cli.render.export import write_baked
    from goan_cli.render.plan import match_loras

    base = find_part(model, "transformer")
    loras = match_loras(base.usable, [{**lora_and_weight(text), "trusted": trusted} for text in lora])

    from goan_cli.render.lora_files import lora_file

    report, written = write_baked(
        base.usable, [lora_file(each) for each in loras], out.absolute(), base=base.identity, config=base.config
    )
    console = make_console()
    for each in loras:
        for note in (*each.adapter.warnings, *(f"skipped {n} {rule}" for rule, n in each.adapter.skipped.items())):
            console.print(f"[yellow]note[/yellow] {each.use.path.name}: {note}")
    for path in written:
        console.print(f"[green]wrote[/green] {path}")
    console.print(
        f"{len(report.parameters)} parameters changed: {report.relative_change:.2%} of their norm, "
        f"{report.moved:.1%} of their values moved in {report.dtype}"
    )
