"""Makes README's pictures, of the terminal and of the frames, by rendering the quick start: `make picture`."""

import io
import sys
import tempfile
from pathlib import Path
from shutil import copyfile

from rich.console import Console
from rich.text import Text

from goan_cli.batch.run import render_jobs
from goan_cli.batch.standing import Standing, State
from goan_cli.batch.survey import RunSettings
from goan_cli.cli.console import RunConsole
from goan_cli.cli.plan_table import show_plan
from goan_cli.jobs.load import load_requests
from goan_cli.render.plan import plan_renders


def main(picture: Path, frames: Path) -> None:
    """Render the quick start on a recording console; save what it looked like, and the contact sheet."""
    console = Console(record=True, width=100, force_terminal=True, highlight=False, file=io.StringIO())
    requests, problems = load_requests([Path("examples/quickstart.yaml")])
    with tempfile.TemporaryDirectory() as folder:
        plans = plan_renders(requests, problems, out=Path(folder))
        console.print(Text("$ goan plan examples/quickstart.yaml", style="bold green"))
        for plan in plans:
            show_plan(console, Standing(plan=plan, state=State.NEW))
        console.print()
        console.print(Text("$ goan render examples/quickstart.yaml", style="bold green"))
        listener = RunConsole(console)  # not entered: live progress has no place in a still picture
        render_jobs(plans, RunSettings(device="cpu"), listener=listener)
        copyfile(plans[0].job.contact_sheet, frames)
        svg = console.export_svg(title="goan").replace(f"{Path.cwd()}/", "").replace(f"{folder}/", "renders/")
    picture.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
