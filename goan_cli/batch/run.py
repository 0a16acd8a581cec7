"""Render planned jobs: what is left of each, grouped by bake; one job's failure never stops the others."""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

from goan_cli.batch.job import render_job
from goan_cli.batch.leftovers import remember_failure, tidy_up
from goan_cli.batch.lock import held
from goan_cli.batch.matrix import complete_matrix, matrices
from goan_cli.batch.outcome import End, JobStarted, Outcome, RunFinished, RunListener, RunStarted, ignore_run
from goan_cli.batch.post import refuse_unfinishable
from goan_cli.batch.schedule import scheduled
from goan_cli.batch.standing import Standing, standing_of
from goan_cli.batch.survey import RunSettings, nothing_to_do, survey
from goan_cli.errors import GoanError, Interrupted
from goan_cli.media.ffmpeg import ffmpeg_version
from goan_cli.output.encoders import refuse_missing
from goan_cli.render.cache import EmbeddingCache
from goan_cli.render.engine import Engine
from goan_cli.render.events import Event, Note, SectionFinished, Stage
from goan_cli.render.lora_files import refuse_broken_values, refuse_misfits
from goan_cli.render.plan import RenderPlan

log = logging.getLogger(__name__)


def render_jobs(
    plans: Sequence[RenderPlan],
    settings: RunSettings | None = None,
    *,
    listener: RunListener = ignore_run,
) -> list[Outcome]:
    """Render what is not up to date with one engine, telling `listener`; every job has an outcome, in its place.

    All prompts and images are encoded first, then jobs are sampled grouped by bake recipe, each decoded as soon
    as its latents are on disk. Raises EnvironmentFault where the device, ffmpeg, or what a job's execution needs is
    missing, and InvalidInput or InvalidJobs for a transformer that does not fit its configuration and for LoRA files
    with NaN in them.
    """
    return _Run(plans, settings or RunSettings(), listener).render()


class _Run:
    """One run: its engine, and the outcomes so far by place."""

    def __init__(self, plans: Sequence[RenderPlan], settings: RunSettings, listener: RunListener) -> None:
        ffmpeg_version()  # found missing now, or after hours of rendering
        self.asked = tuple(plans)
        self.plans = list(plans)  # under the names and seeds that they settle on
        self.settings = settings
        self.listener = listener
        self.engine = Engine(device=settings.device, previews=settings.previews, cache=settings.cache)
        self.names = {plan.job.sidecar for plan in plans}
        self.matrices = {place: places for places in matrices(plans).values() for place in places}
        self.outcomes: dict[int, Outcome] = {}
        self.spent: dict[int, Mapping[Stage, float]] = {}
        self.paces: dict[object, float] = {}  # seconds of a section, by what decides them

    def render(self) -> list[Outcome]:
        started = time.perf_counter()
        surveyed = survey(self.asked, self.settings)
        for place, standing in surveyed.todo.items():
            self.plans[place] = standing.plan
        places = list(surveyed.todo)
        order = scheduled([self.plans[place] for place in places], self.settings.order)
        todo = [places[index] for index in order]
        refuse_missing(self.plans[place].job.output.coding for place in todo)
        refuse_misfits([self.plans[place] for place in todo])
        refuse_broken_values([self.plans[place] for place in todo])
        refuse_unfinishable([self.plans[place].job for place in todo], self.engine.device)
        for place in todo:
            if surveyed.todo[place].share < 1:  # what is only to be decoded needs no transformer
                self.engine.check(self.plans[place])
        self.listener(RunStarted(standings=tuple(surveyed.todo[place] for place in todo)))
        for place, outcome in surveyed.finished.items():
            self._end(place, outcome)
        self._encode([place for place in todo if surveyed.todo[place].share < 1])
        self.engine.steps_ahead = sum(_steps(self.plans[place]) * (1 - surveyed.todo[place].share) for place in todo)
        for number, place in enumerate(todo, start=1):
            if place in self.outcomes:  # its image could not be encoded
                continue
            if self.settings.stop.due:
                self._end(place, Outcome(plan=self.plans[place], end=End.STOPPED, reason=self._not_begun()))
                continue
            self.listener(JobStarted(plan=self.plans[place], number=number, total=len(todo)))
            self._end(place, self._attempted(place, self._job))
        outcomes = [self.outcomes[place] for place in range(len(self.plans))]
        self.listener(RunFinished(outcomes=tuple(outcomes), seconds=time.perf_counter() - started))
        return outcomes

    def _standing(self, place: int) -> Standing:
        settings = self.settings
        return standing_of(self.asked[place], settings.on_exists, force=settings.force, names=self.names)

    def _encode(self, places: Sequence[int]) -> None:
        """Encode what jobs are conditioned on, so that the text encoders can go before the transformer comes."""
        if self.settings.cache is None:
            return
        EmbeddingCache(self.settings.cache).prune()
        own = self.engine.listener
        self.engine.listener = self._hear_stages
        for place in places:
            if self.settings.stop.due or not self.engine.keeps_embeddings:
                break
            self.engine.begin()
            outcome = self._attempted(place, self._encoded)
            if outcome.end is not End.DONE:
                self._end(place, outcome)
            self.spent[place] = dict(self.engine.timings)
        self.engine.listener = own
        if self.engine.keeps_embeddings:
            self.engine.forget_text_encoders()

    def _hear_stages(self, event: Event) -> None:
        """Notes are the jobs' own: each hears of its cut-off words when it takes them from the cache."""
        if not isinstance(event, Note):
            self.listener(event)

    def _encoded(self, place: int) -> Outcome:
        self.engine.encode(self.plans[place])
        return Outcome(plan=self.plans[place], end=End.DONE)

    def _job(self, place: int) -> Outcome:
        """Render one job, if no other run has it or has done it meanwhile."""
        stop, plan, wait = self.settings.stop, self.plans[place], False
        while True:
            with held(plan.job.lock, wait=wait, stop=stop) as is_ours:
                if not is_ours and not self.settings.wait:
                    return Outcome(plan=plan, end=End.BUSY, reason="another run is rendering it")
                if not is_ours:
                    wait = True
                    self.listener(Note(text="another run is rendering it: waiting"))
                    continue
                standing = self._standing(place)
                if standing.plan.job.name == plan.job.name:
                    self.plans[place] = standing.plan
                    return nothing_to_do(standing) or self._rendered(place, standing.share)
            # Another run has taken the name since: go on under the next one, with its lock.
            plan = self.plans[place] = standing.plan

    def _rendered(self, place: int, share: float) -> Outcome:
        plan, stop = self.plans[place], self.settings.stop
        if share < 1 and not stop.fits(self.paces.get(_pace_key(plan), 0.0)):
            return Outcome(plan=plan, end=End.STOPPED, reason=f"no section would end before {stop.reason}")

        def hear(event: Event) -> None:
            if isinstance(event, SectionFinished):
                self.paces[_pace_key(plan)] = event.seconds
            self.listener(event)

        result = render_job(self.engine, plan, stop=stop, spent=self.spent.get(place), listener=hear)
        return Outcome(plan=plan, end=End.DONE, result=result)

    def _attempted(self, place: int, work: Callable[[int], Outcome]) -> Outcome:
        """The outcome of some work on a job, whatever happens in it."""
        try:
            return work(place)
        except Interrupted as error:
            why = self.settings.stop.reason
            reason = error.message if why in error.message else f"{error.message}: {why}"
            return Outcome(plan=self.plans[place], end=End.STOPPED, reason=reason)
        except Exception as error:  # the next job may well succeed, so even our own mistakes stay in their job
            plan = self.plans[place]
            if not isinstance(error, GoanError):
                log.exception("%s: unexpected failure", plan.job.name)
            # Its traceback holds the tensors of the failed job; the next one needs their memory.
            _forget_frames(error)
            self.engine.free_memory()
            return Outcome(plan=plan, end=End.FAILED, error=error)

    def _end(self, place: int, outcome: Outcome) -> None:
        self.outcomes[place] = outcome
        if outcome.error is not None:
            remember_failure(outcome.plan.job, outcome.error)
        self.listener(outcome)
        if outcome.end is End.UP_TO_DATE:
            tidy_up(outcome.plan)
        places = self.matrices.get(place, ())
        if places and all(each in self.outcomes for each in places):
            for note in complete_matrix([self.outcomes[each] for each in places]):
                self.listener(note)

    def _not_begun(self) -> str:
        return f"not begun: {self.settings.stop.reason}"


def _steps(plan: RenderPlan) -> int:
    return plan.job.sampling.steps * len(plan.job.sections.sections)


def _pace_key(plan: RenderPlan) -> object:
    """What the time of a section depends on, besides the machine."""
    job = plan.job
    cache = job.sampling.step_cache
    guided = job.is_guided
    return plan.pack.transformer, job.size, job.sections.window, job.sampling.steps, guided, cache, job.execution


def _forget_frames(error: BaseException) -> None:
    """Let go of the local variables of an exception and of what it came from."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
