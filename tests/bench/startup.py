"""Time from the start of `goan render` to its first step, against importing torch and diffusers: `make bench-startup`.

The tiny pack, everything encoded before. Every time is from the start of a process to what it prints, seen from
outside; processes run in turn, so that a busy machine slows them all. Nothing here is a test.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

EXAMPLES = Path(__file__).parents[2] / "examples"
IMPORTS = "import torch, diffusers"
FIRST_EVENT, FIRST_STEP = "goan render: the run begins", "goan render: the first step is done"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each process")
    options = parser.parse_args()
    console = Console(width=110)
    machine = platform.processor() or platform.machine()
    console.print(f"{machine}, {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as folder:
        console.print(startup_table(Path(folder), options.runs))


def startup_table(folder: Path, runs: int) -> Table:
    """Seconds of each process, medians of runs in turn with the fastest and slowest, and as a ratio to the imports."""
    render = render_command(folder)
    environment = {**os.environ, "GOAN_CACHE": str(folder / "cache")}
    subprocess.run([*render, "--quiet"], env=environment, check=True)  # encodes, and brings all files into memory
    seconds: dict[str, list[float]] = {}
    for run in range(runs + 1):
        measured = {
            **imports_times("import torch", environment),
            **imports_times(IMPORTS, environment),
            **render_times(render, environment),
        }
        for what, time_taken in measured.items():
            seconds.setdefault(what, []).extend([time_taken] if run else [])  # the first one is a warm-up
    table = Table(title=f"start to first step, the tiny pack, {runs} counted runs", title_justify="left")
    for column in ("what", "s", "from", "to", f"to {IMPORTS}"):
        table.add_column(column, justify="left" if column == "what" else "right")
    reference = statistics.median(seconds[IMPORTS])
    for what, values in seconds.items():
        median = statistics.median(values)
        table.add_row(what, f"{median:.2f}", f"{min(values):.2f}", f"{max(values):.2f}", f"{median / reference:.2f}x")
    return table


def render_command(folder: Path) -> list[str]:
    """One section of the tiny pack."""
    image, prompt = EXAMPLES / "start.png", "a red circle moves right"
    job = ["--image", str(image), "--prompt", prompt, "--model", "tiny", "--set", "sections=1", "--name", "startup"]
    return [sys.executable, "-m", "goan_cli", "render", *job, "--out", str(folder / "renders"), "--force"]


def imports_times(statement: str, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of a Python that does no more than a statement."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], env=environment, check=True)
    return {statement: time.perf_counter() - started}


def render_times(render: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Seconds until the render's first event, and until its first step, after which it is killed."""
    times: dict[str, float] = {}
    started = time.perf_counter()
    command = [*render, "--log-json", "-"]  # what is meant for people then goes to standard error
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        for line in process.stdout or ():
            times.setdefault(FIRST_EVENT, time.perf_counter() - started)
            if json.loads(line)["event"] == "step":
                times[FIRST_STEP] = time.perf_counter() - started
                break
        process.kill()
    if FIRST_STEP not in times:
        sys.exit("the render ended before its first step")
    return times


if __name__ == "__main__":
    main()
