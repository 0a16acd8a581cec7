"""`goan replay`: render a sidecar's job again, and say whether the same came of it."""

from pathlib import Path
from typing import Annotated

import typer


def replay(
    sidecar: Annotated[Path, typer.Argument(help="The JSON beside a rendered video.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Keep the new video here, instead of in a temporary folder.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Render again from a sidecar alone, and compare latents and frames with what it recorded.

    Exits with 0 when both are the same to the last bit, and with 1 when they are not; then it says what was
    different: files, versions, device.
    """
    from goan_cli.output.sidecar import read_sidecar

    read_sidecar(sidecar)  # what is none is told before torch is imported

    import tempfile

    from goan_cli.batch.replay import replay as rendered_again
    from goan_cli.cli.console import RunConsole
    from goan_cli.cli.terminal import make_console
    from goan_cli.errors import InvalidInput
    from goan_cli.files import cache_folder

    if out is not None and out.absolute() == sidecar.absolute().parent:
        raise InvalidInput(f"--out {out}: there lies the video to compare with")
    with tempfile.TemporaryDirectory() as temporary, RunConsole(make_console()) as console:
        folder = (out or Path(temporary)).absolute()
        found = rendered_again(sidecar, folder, device=device, cache=cache_folder(), listener=console)
        for what, same in (("latents", found.latents), ("frames", found.frames), ("video file", found.video)):
            console.console.print(f"{what}: " + ("[green]the same[/green]" if same else "[red]different[/red]"))
        if found.psnr is not None:
            console.console.print(f"the videos agree to {found.psnr:.1f} dB")
        for cause in found.causes:
            console.console.print(f"  {cause}", markup=False)
        if not found.same and not found.causes:
            console.console.print("  nothing on record explains it")
    if not found.same:
        raise typer.Exit(1)
