"""`goan doctor`: what this machine can do."""

import typer


def doctor() -> None:
    """Tell what this machine can render with; exits with 3 when it cannot render at all."""
    import os
    import platform
    import shutil

    import torch
    from rich.markup import escape

    from goan_cli import __version__
    from goan_cli.cli.machine import gpu_rows, memory_text, pack_rows
    from goan_cli.cli.terminal import make_console
    from goan_cli.errors import GoanError
    from goan_cli.output.video import ffmpeg_version
    from goan_cli.render.device import choose_device, precision_for

    rows = [
        ("goan", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        (
            "torch",
            f"{torch.__version__}, {'CUDA ' + torch.version.cuda if torch.version.cuda else 'no CUDA'}",
        ),
        ("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for torch"),
        ("memory", memory_text()),
        ("disk", f"{shutil.disk_usage('.').free / 1e9:.0f} GB free here"),
        *gpu_rows(),
    ]
    device = choose_device("auto")
    precision = precision_for(device)
    rows.append(("renders on", f"{device} in {str(precision.transformer).removeprefix('torch.')}"))
    packs = pack_rows()
    rows += [("pack", text) for _, text in packs]
    can_render = any(usable for usable, _ in packs)
    try:
        rows.append(("ffmpeg", ffmpeg_version()))
    except GoanError as error:
        rows.append(("ffmpeg", str(error)))
        can_render = False

    console = make_console()
    for label, text in rows:
        console.print(f"[cyan]{label:<12}[/cyan]{escape(text)}")
    if not can_render:
        console.print("[red]this machine cannot render: see above[/red]")
        raise typer.Exit(3)
