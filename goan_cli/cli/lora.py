"""`goan lora`: look into LoRA files, bake them into a checkpoint, convert them, and see what they change."""

import typer

from goan_cli.cli.lora_bake import bake
from goan_cli.cli.lora_convert import convert
from goan_cli.cli.lora_inspect import inspect
from goan_cli.cli.lora_report import report

lora = typer.Typer(
    name="lora",
    help="Look into LoRA files, bake them into a checkpoint, convert them, and see what they change.",
    no_args_is_help=True,
)
for command in (inspect, bake, convert, report):
    lora.command()(command)
