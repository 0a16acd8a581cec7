"""`goan presets`: which presets there are, and what they set."""

import typer


def presets() -> None:
    """List the shipped presets and the keys they set."""
    from goan_cli.jobs.presets import preset_folder, preset_names

    for name in preset_names():
        typer.secho(name, bold=True)
        for line in (preset_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
            typer.echo(f"  {line}")
