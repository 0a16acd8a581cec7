"""What a batch costs besides encoding, sampling and decoding: `make bench-batch`.

Twenty jobs of the tiny pack with four sets of LoRAs, in mixed order, through the renderer that renders everything
else; counts of bakes and loads, and where the time went, in one run. Nothing here is a test.
"""

import argparse
import platform
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import goan_cli.batch.latents as latents_module
import goan_cli.render.parts as parts_module
from goan_cli.batch.outcome import RunEvent
from goan_cli.batch.run import render_jobs
from goan_cli.batch.survey import RunSettings
from goan_cli.jobs.load import request_from_settings, settings_document
from goan_cli.render.events import Baked, Stage, StageFinished
from goan_cli.render.plan import RenderPlan, plan_renders
from goan_cli.render.progress import write_checkpoint
from goan_cli.tiny.parts import LORAS, PACK
from goan_cli.tiny.rendering import write_start_image
from goan_cli.tiny.smoke import PROMPT, SCENE

JOBS = 20
WEIGHTS = (0.25, 0.5, 0.75, 1.0)  # of one LoRA: four recipes
_CONSOLE = Console(width=110)
WORK = (Stage.ENCODE, Stage.SAMPLE, Stage.DECODE)


class Clock:
    """Seconds and calls by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def timing(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        def timed(*positional: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return work(*positional, **named)
            finally:
                self.calls[name] += 1
                self.seconds[name] += time.perf_counter() - started

        return timed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)  # the tiny pack's tensors are too small to share out
    clock, seconds, bakes = Clock(), dict.fromkeys(map(str, Stage), 0.0), 0
    for name in ("load_transformer", "load_vae", "TextEncoders", "ImageEncoder"):
        setattr(parts_module, name, clock.timing(name, getattr(parts_module, name)))
    latents_module.__dict__["write_checkpoint"] = clock.timing("checkpoints", write_checkpoint)

    def listen(event: RunEvent) -> None:
        nonlocal bakes
        if isinstance(event, StageFinished):
            seconds[event.stage] += event.seconds
        bakes += isinstance(event, Baked)

    with tempfile.TemporaryDirectory() as folder:
        plans = _plans(Path(folder), options.sections, options.steps)
        settings = RunSettings(device=options.device, cache=Path(folder) / "cache")
        started = time.perf_counter()
        outcomes = render_jobs(plans, settings, listener=listen)
        wall = time.perf_counter() - started
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} jobs failed: {failed[0].error}")
    _show(wall, seconds, clock, options)
    _CONSOLE.print(f"bakes: {bakes}; loads: {', '.join(f'{name} {calls}' for name, calls in clock.calls.items())}")


def _plans(folder: Path, sections: int, steps: int) -> list[RenderPlan]:
    image = folder / "start.png"
    write_start_image(image, SCENE)
    plans = []
    for number in range(JOBS):
        keys: dict[str, Any] = {
            "image": str(image),
            "prompt": PROMPT if number % 2 else f"{PROMPT}, slowly",
            "model": "tiny",
            "seed": number,
            "sections": sections,
            "steps": steps,
            "output": {"dir": str(folder / "out")},
            "loras": [{"path": str(PACK / LORAS["dusk"]), "weight": WEIGHTS[number % len(WEIGHTS)]}],
        }
        requests, problems = request_from_settings(settings_document((), keys), name=f"job-{number:02d}")
        plans += plan_renders(requests, problems)
    return plans


def _show(wall: float, seconds: dict[str, float], clock: Clock, options: argparse.Namespace) -> None:
    work = sum(seconds[stage] for stage in WORK) - clock.seconds["checkpoints"]
    rows = [(stage, spent, "") for stage, spent in seconds.items()]
    rows.append(("checkpoints", clock.seconds["checkpoints"], f"{clock.calls['checkpoints']} written, within sample"))
    rows.append(("wall", wall, f"{JOBS} jobs, {options.sections} sections of {options.steps} steps"))
    rows.append(("overhead", wall - work, "wall less encode, sample (without checkpoints) and decode"))
    table = Table(title=f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.device}")
    for column in ("what", "seconds", "share of wall", ""):
        table.add_column(column, justify="right" if column in ("seconds", "share of wall") else "left")
    for name, spent, note in rows:
        table.add_row(name, f"{spent:.3f}", f"{spent / wall:.1%}", note)
    _CONSOLE.print(table)


if __name__ == "__main__":
    main()
