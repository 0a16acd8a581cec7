"""What a run looks like: live progress on a terminal, plain lines elsewhere."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from goan_cli.batch.run import JobStarted, Outcome, RunEvent
from goan_cli.cli.terminal import make_console
from goan_cli.errors import GoanError
from goan_cli.lora.report import BakeReport
from goan_cli.render.events import Baked, Note, SectionFinished, StageStarted, StepFinished
from goan_cli.render.plan import RenderPlan


class RunConsole:
    """Listens to a run and shows it. A context manager, since live progress must be taken down."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[pace]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def announce(self, plans: Sequence[RenderPlan]) -> None:
        """Say what will run."""
        for plan in plans:
            job, count = plan.job, len(plan.job.sections.sections)
            plural = "" if len(plan.loras) == 1 else "s"
            loras = f", {len(plan.loras)} LoRA{plural}" if plan.loras else ""
            self._line(
                f"[bold]{escape(job.name)}[/bold]: {escape(plan.pack.name)}, {job.size[0]}x{job.size[1]}, "
                f"{job.sections.frames} frames ({job.sections.frames / job.fps:.2f} s), "
                f"{count} x {job.sampling.steps} steps, seed {job.sampling.seed}{loras}"
            )

    def __call__(self, event: RunEvent) -> None:
        """Show one event."""
        match event:
            case JobStarted():
                self._job_started(event)
            case StageStarted():
                self._update(stage=str(event.stage))
            case StepFinished():
                self._update(stage=f"section {event.section}/{event.sections}", pace=f"{event.seconds:.2f} s/step")
                if self._task is not None:
                    self.progress.advance(self._task)
            case SectionFinished():
                skipped = "" if event.preview is None else ", preview written"
                self._line(
                    f"  section {event.section}/{event.sections}: {event.seconds:.1f} s, "
                    f"{event.computed_steps} steps computed{skipped}"
                )
            case Baked():
                self._bake(event.report)
            case Note():
                self._line(f"  [yellow]note[/yellow] {escape(event.text)}")
            case Outcome():
                self._outcome(event)
            case _:
                pass

    def interrupted(self) -> None:
        """Say that the run was stopped by hand."""
        self._line("[red]interrupted[/red]: no half-written video or sidecar is left")

    def summarise(self, outcomes: Sequence[Outcome]) -> None:
        """A final table when there was more than one job."""
        if len(outcomes) < 2:
            return
        table = Table(show_edge=False)
        for column in ("job", "", "frames", "s/step", "seconds", "where or why"):
            table.add_column(column, overflow="fold")
        for outcome in outcomes:
            name, result = escape(outcome.plan.job.name), outcome.result
            if result is None:
                table.add_row(name, "[red]failed[/red]", "", "", "", escape(str(outcome.error)))
            else:
                pace, seconds = f"{result.seconds_per_step:.3f}", f"{result.seconds:.1f}"
                table.add_row(name, "[green]done[/green]", str(result.frames), pace, seconds, escape(str(result.video)))
        self.console.print(table)

    def _job_started(self, event: JobStarted) -> None:
        job = event.plan.job
        name = escape(job.name) if event.total == 1 else f"{event.number}/{event.total} {escape(job.name)}"
        if event.total > 1:
            self._line(f"[bold]{name}[/bold]")
        total = len(job.sections.sections) * job.sampling.steps
        self._task = self.progress.add_task(name, total=total, stage="", pace="")

    def _bake(self, report: BakeReport) -> None:
        for file in report.files:
            low, high = file.ranks or (0, 0)
            rank = f", rank {low}" if low == high else f", ranks {low} to {high}"
            self._line(
                f"  baked {escape(file.path.name)} x {file.weight:g}: {file.matched_keys} of {file.keys} keys, "
                f"{file.modules} modules, {' and '.join(file.algorithms)}{rank if file.ranks else ''}"
            )
        self._line(
            f"  change {report.relative_change:.2%} of the weights' norm, {report.moved:.1%} of their values moved "
            f"in {report.dtype} ({report.seconds:.1f} s)"
        )

    def _outcome(self, outcome: Outcome) -> None:
        if self._task is not None:
            self.progress.remove_task(self._task)
            self._task = None
        result = outcome.result
        if result is None:
            name = escape(outcome.plan.job.name)
            kind = "" if not isinstance(outcome.error, Exception) else _unexpected(outcome.error)
            self._line(f"  [red]failed[/red] {name}: {kind}{escape(str(outcome.error))}")
            return
        self._line(
            f"  [green]done[/green] {escape(str(result.video))}: {result.frames} frames, "
            f"{result.seconds_per_step:.2f} s/step, {result.seconds:.1f} s in all"
        )

    def _update(self, **fields: str) -> None:
        if self._task is not None:
            self.progress.update(self._task, **fields)  # type: ignore[arg-type]  # rich's fields are any value

    def _line(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)


def _unexpected(error: Exception) -> str:
    return "" if isinstance(error, GoanError) else f"unexpected {type(error).__name__}: "
