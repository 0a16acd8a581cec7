"""What a run looks like: live progress on a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from goan_cli.batch.outcome import End, JobStarted, Outcome, RunEvent, RunFinished, RunStarted
from goan_cli.batch.standing import State
from goan_cli.cli.terminal import make_console
from goan_cli.errors import GoanError
from goan_cli.lora.report import BakeReport
from goan_cli.render.events import Baked, Note, SectionFinished, StageStarted, StepFinished

_COLOURS = {
    End.DONE: "green",
    End.UP_TO_DATE: "green",
    End.SKIPPED: "yellow",
    End.STOPPED: "yellow",
    End.BUSY: "yellow",
    End.FAILED: "red",
}


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

    def __call__(self, event: RunEvent) -> None:
        """Show one event."""
        match event:
            case RunStarted():
                self._announce(event)
            case RunFinished():
                self._summarise(event)
            case JobStarted():
                self._job_started(event)
            case StageStarted():
                self._update(stage=str(event.stage))
            case StepFinished():
                self._update(stage=f"section {event.section}/{event.sections}", pace=f"{event.seconds:.2f} s/step")
                if self._task is not None:
                    done = (event.section - 1) * event.steps + event.step  # a job may begin in its middle
                    self.progress.update(self._task, completed=done)
            case SectionFinished():
                preview = "" if event.preview is None else ", preview written"
                self._line(
                    f"  section {event.section}/{event.sections}: {event.seconds:.1f} s, "
                    f"{event.computed_steps} steps computed{preview}"
                )
            case Baked():
                self._bake(event.report)
            case Note():
                self._line(f"  [yellow]note[/yellow] {escape(event.text)}")
            case Outcome():
                self._outcome(event)
            case _:
                pass

    def _announce(self, event: RunStarted) -> None:
        """Say what will run."""
        for standing in event.standings:
            job, plan = standing.plan.job, standing.plan
            count = len(job.sections.sections)
            plural = "" if len(plan.loras) == 1 else "s"
            loras = f", {len(plan.loras)} LoRA{plural}" if plan.loras else ""
            begun = f", {standing.share:.0%} done" if standing.state is State.PARTIAL else ""
            why = f" ({standing.reason})" if standing.reason else ""
            self._line(
                f"[bold]{escape(job.name)}[/bold]: {escape(plan.pack.name)}, {job.size[0]}x{job.size[1]}, "
                f"{job.frames} frames ({job.frames / job.fps:.2f} s), "
                f"{count} x {job.sampling.steps} steps, seed {job.sampling.seed}{loras}{begun}{escape(why)}"
            )

    def _summarise(self, event: RunFinished) -> None:
        """A final table when there was more than one job, and what to do about jobs that are not finished."""
        outcomes = event.outcomes
        if len(outcomes) > 1:
            table = Table(show_edge=False)
            for column in ("job", "", "frames", "s/step", "seconds", "where or why"):
                table.add_column(column, overflow="fold")
            for outcome in outcomes:
                table.add_row(*_summary_row(outcome))
            self.console.print(table)
        stopped = [outcome.plan.job for outcome in outcomes if outcome.end is End.STOPPED]
        if stopped:
            # A job that has its name from a seed that it drew would draw another one.
            job = stopped[0]
            seed = f" with --seed {job.sampling.seed}" if job.seed_drawn and str(job.sampling.seed) in job.name else ""
            self._line(f"[yellow]stopped[/yellow]: run the same command again{seed} to go on")

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
        result, name = outcome.result, escape(outcome.plan.job.name)
        if result is not None:
            self._line(
                f"  [green]done[/green] {escape(str(result.video))}: {result.frames} frames, "
                f"{result.seconds_per_step:.2f} s/step, {result.seconds:.1f} s in all"
            )
        elif outcome.error is not None:
            self._line(f"  [red]failed[/red] {name}: {_unexpected(outcome.error)}{escape(str(outcome.error))}")
        else:
            self._line(f"  [{_COLOURS[outcome.end]}]{outcome.end}[/] {name}: {escape(outcome.reason)}")

    def _update(self, **fields: str) -> None:
        if self._task is not None:
            self.progress.update(self._task, **fields)  # type: ignore[arg-type]  # rich's fields are any value

    def _line(self, markup: str) -> None:
        self.console.print(markup, soft_wrap=True)


def _summary_row(outcome: Outcome) -> tuple[str, ...]:
    name, result = escape(outcome.plan.job.name), outcome.result
    end = f"[{_COLOURS[outcome.end]}]{outcome.end}[/]"
    if result is None:
        return name, end, "", "", "", escape(str(outcome.error or outcome.reason))
    seen = "".join(f" ({finding.defect}: {finding.seen})" for finding in result.findings)
    pace, where = f"{result.seconds_per_step:.3f}", escape(f"{result.video}{seen}")
    return name, end, str(result.frames), pace, f"{result.seconds:.1f}", where


def _unexpected(error: Exception) -> str:
    return "" if isinstance(error, GoanError) else f"unexpected {type(error).__name__}: "
