"""The engine: loads a pack once, keeps the right LoRAs baked, and turns plans into latents and frames."""

import gc
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goan_cli.errors import Interrupted, QualityFailed, RenderFailed
from goan_cli.jobs.job import Compile, Gate
from goan_cli.lora.report import BakeReport
from goan_cli.model.step_cache import MagCache
from goan_cli.model.transformer import PackedTransformer
from goan_cli.render.budget import foreseen_memory
from goan_cli.render.cache import EmbeddingCache
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.decode import decoded, to_uint8, vae_decoder
from goan_cli.render.device import Precision, choose_device, device_name, precision_for
from goan_cli.render.device_memory import DeviceMemory
from goan_cli.render.encoding import Encoding
from goan_cli.render.events import (
    Event,
    Listener,
    Note,
    SectionFinished,
    Stage,
    StageFinished,
    StageStarted,
    StepFinished,
    ignore,
)
from goan_cli.render.execution import (
    ResolvedExecution,
    attention_function,
    block_calls,
    lacking_compiler,
    resolve_execution,
)
from goan_cli.render.identity import bake_recipe
from goan_cli.render.lora_files import lora_file
from goan_cli.render.memory import describe
from goan_cli.render.parts import Parts
from goan_cli.render.plan import RenderPlan
from goan_cli.render.preview import filmstrip
from goan_cli.render.sampling import MakeCache, Progress, Stopped, sample_sections, teacache_of
from goan_cli.render.transformers import Transformers

Keep = Callable[[Progress, BakeReport | None], None]


def _keep_nothing(_progress: Progress, _report: BakeReport | None) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The final latents `(1, 16, n, h/8, w/8)` in fp32, and per section the steps whose blocks ran.

    `computed_steps` is empty where no step cache was used; `bake` is None where no LoRA was asked for; `memory` says
    where the weights were, None on a CPU.
    """

    latents: Tensor
    computed_steps: tuple[tuple[int, ...], ...]
    bake: BakeReport | None
    memory: str | None = None


class Engine:
    """Holds the models between jobs. Prints nothing: it tells its `listener`.

    A job is `conditioning_for`, then `sample`, then `frames`; `timings` has the seconds of each stage of the
    job since `begin`. Embeddings are kept in the folder `cache`, None for nowhere. Raises EnvironmentFault when
    the device is not there.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        listener: Listener = ignore,
        previews: bool = False,
        cache: Path | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.device = choose_device(device)
        torch.backends.cudnn.allow_tf32 = False  # fp32 is asked for where it matters, and 10 bits are not it
        self.precision = precision or precision_for(self.device)
        self.listener = listener
        self.previews = previews
        self.timings: dict[Stage, float] = {}
        self.steps_ahead = 0.0  # of the run, which decide whether compiling pays
        self._memory = DeviceMemory(self.device)
        self._transformers = Transformers(self.device, cache=cache, stage=self._stage, tell=self._tell)
        self._parts = Parts(self.device, self.precision, make_room=self._transformers.forget)
        self._cache = EmbeddingCache(cache)
        self._encoding = Encoding(self._parts, self._cache, stage=self._stage, tell=self._tell)
        self._at_work: tuple[Stage, float] | None = None

    @property
    def device_name(self) -> str:
        """What renders, for the record."""
        return device_name(self.device)

    def begin(self, timings: Mapping[Stage, float] | None = None) -> None:
        """Start the timings of a new job, or go on with those of an earlier session of it."""
        self.timings = dict(timings or {})

    @property
    def elapsed(self) -> dict[Stage, float]:
        """Seconds of each stage since `begin`, the one at work so far included."""
        if self._at_work is None:
            return dict(self.timings)
        stage, started = self._at_work
        return {**self.timings, stage: self.timings.get(stage, 0.0) + time.perf_counter() - started}

    def free_memory(self) -> None:
        """Give back what a failed job left on the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def keeps_embeddings(self) -> bool:
        """Whether what is encoded ahead will be found again."""
        return self._cache.keeps

    def encode(self, plan: RenderPlan) -> None:
        """Bring what a plan is conditioned on into the cache, so that `conditioning_for` loads nothing."""
        self._encoding.conditioning_for(plan)

    def forget_text_encoders(self) -> None:
        """Let go of the text encoders, once every prompt is encoded."""
        self._parts.forget_text_encoders()
        self.free_memory()

    def conditioning_for(self, plan: RenderPlan) -> Conditioning:
        """A plan's prompts and image, encoded or from the cache."""
        return self._encoding.conditioning_for(plan)

    def sample(
        self,
        plan: RenderPlan,
        conditioning: Conditioning,
        *,
        after: Progress | None = None,
        compiled: bool | None = None,
        make_cache: MakeCache | None = None,
        keep: Keep = _keep_nothing,
        stop: Callable[[], bool] = _never,
    ) -> Sampled:
        """Bake the plan's LoRAs where they are not baked yet, and sample the sections that `after` has not.

        `compiled` says how `after` was sampled; `make_cache` takes the place of the plan's own step caches.
        `keep` is given the progress after every section. Raises Interrupted when `stop()` says so after a step,
        with the progress kept.
        """
        execution = self.execution_of(plan, compiled=compiled)
        self._parts.step_aside()
        if not self._transformers.loaded:
            self._memory.measure()
        memory = self._memory.plan_sampling(plan, conditioning, execution.short_precision)
        progress = after
        report: BakeReport | None = None
        for first, until in _bakes(plan, after):
            loras = [lora_file(lora) for lora in plan.loras_of(first)]
            model, report = self._transformers.ready(plan.pack, execution, memory, loras, bake_recipe(plan, first))
            with self._stage(Stage.SAMPLE):
                try:
                    for done in self._sections(plan, model, conditioning, progress, make_cache, stop):
                        progress = done
                        keep(done, report)
                        if done.sections == until:
                            break
                except Stopped as stopped:
                    keep(stopped.progress, report)
                    raise Interrupted(f"in section {stopped.progress.sections + 1}") from None
        if progress is None:
            raise RenderFailed("there was no section to sample")
        return Sampled(
            latents=progress.history,
            computed_steps=progress.computed_steps,
            bake=report,
            memory=None if memory.budget is None else describe(memory),
        )

    def frames(
        self, plan: RenderPlan, latents: Tensor, *, stop: Callable[[], bool] = _never
    ) -> Generator[NDArray[np.uint8]]:
        """Decode latents to frames `(n, h, w, 3)` in viewing order, a stretch at a time.

        Raises Interrupted when `stop()` says so before a stretch, and QualityFailed for pixels that are not
        finite where the job's gates refuse them.
        """
        with self._stage(Stage.LOAD):
            vae = self._parts.vae(plan.pack)
            self._transformers.step_aside()
            tiling = self._memory.tiling_for(plan, vae)
            decode = vae_decoder(vae, plan.job.decode, tiling)
        if tiling is not None:
            self._tell(Note(text=f"decoded in tiles of {tiling.width}x{tiling.height} pixels, by the memory there is"))
        with self._stage(Stage.DECODE):
            for pixels in decoded(latents, plan.job.sections, decode, plan.job.decode):
                if stop():
                    raise Interrupted("while decoding")
                finite = bool(pixels.isfinite().all())
                if not finite and plan.job.gates.nan is Gate.FAIL:
                    raise QualityFailed("decoded pixels are not finite", hint="the VAE overflows in this precision")
                yield to_uint8(pixels if finite else pixels.nan_to_num()).numpy()

    def execution_of(self, plan: RenderPlan, *, compiled: bool | None = None) -> ResolvedExecution:
        """What a plan's wishes come to here; `compiled`, where given, decides for a plan that leaves it open.

        Raises EnvironmentFault for a precision that the device has not.
        """
        wanted = plan.job.execution
        if compiled is not None and wanted.compile is Compile.AUTO:
            can = compiled and lacking_compiler(self.device) is None
            wanted = replace(wanted, compile=Compile.ON if can else Compile.OFF)
        own = self.precision.transformer
        return resolve_execution(wanted, self.device, own, steps_ahead=self.steps_ahead)

    def check(self, plan: RenderPlan) -> None:
        """Whether what the plan asks for can run here, before anything is loaded.

        Raises EnvironmentFault for a precision, a compiler or an attention kernel that is not to be had, and for a
        memory budget that no plan fits.
        """
        if self.device.type == "cuda" and plan.job.execution.memory is not None:
            foreseen_memory(plan)
        execution = self.execution_of(plan)
        block_calls(execution, self.device)
        attention_function(execution, self.device)

    def _sections(
        self,
        plan: RenderPlan,
        model: PackedTransformer,
        conditioning: Conditioning,
        after: Progress | None,
        make_cache: MakeCache | None,
        stop: Callable[[], bool],
    ) -> Iterator[Progress]:
        """Sample section by section, telling of steps and sections."""
        job = plan.job
        total, steps = len(job.sections.sections), job.sampling.steps
        number, section_started = 1 + (after.sections if after else 0), time.perf_counter()
        step_started = section_started

        def on_step(step: int) -> None:
            nonlocal step_started
            now = time.perf_counter()
            self._tell(
                StepFinished(section=number, sections=total, step=step + 1, steps=steps, seconds=now - step_started)
            )
            step_started = now

        for done in sample_sections(
            model,
            conditioning,
            job.sections,
            job.sampling,
            after=after,
            make_cache=make_cache or _step_cache_of(plan),
            must_be_finite=job.gates.nan is Gate.FAIL,
            on_step=on_step,
            stop=stop,
        ):
            now = time.perf_counter()
            self._tell(
                SectionFinished(
                    section=number,
                    sections=total,
                    seconds=now - section_started,
                    computed_steps=len(done.progress.computed_steps[-1]) or steps,
                    preview=filmstrip(done.latents).numpy() if self.previews else None,
                )
            )
            yield done.progress
            number, section_started = number + 1, time.perf_counter()
            step_started = section_started

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        self._tell(StageStarted(stage=stage))
        started = time.perf_counter()
        self._at_work = stage, started
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if _is_of_the_compiler(error):
                first = str(error).strip().split("\n", maxsplit=1)[0]
                raise RenderFailed(f"torch cannot compile the blocks: {first}", hint="compile: off") from error
            if not _is_out_of_memory(error):
                raise
            hint = "a smaller size or window needs less; memory: leaves room for other programs"
            raise RenderFailed(f"{self.device_name}: out of memory ({stage})", hint=hint) from error
        finally:
            seconds = time.perf_counter() - started
            self._at_work = None
            self.timings[stage] = self.timings.get(stage, 0.0) + seconds
            self._tell(StageFinished(stage=stage, seconds=seconds))

    def _tell(self, event: Event) -> None:
        self.listener(event)


def _bakes(plan: RenderPlan, after: Progress | None) -> Iterator[tuple[int, int]]:
    """Runs of sections, half open in sampling order, that are sampled with the same LoRAs, from `after` on."""
    first, total = after.sections if after else 0, len(plan.job.sections.sections)
    while first < total:
        until = first + 1
        while until < total and plan.loras_of(until) == plan.loras_of(first):
            until += 1
        yield first, until
        first = until


def _step_cache_of(plan: RenderPlan) -> MakeCache | None:
    """What makes the step caches that the plan's job wants."""
    computes = plan.computes
    if computes is None:
        return teacache_of(plan.job.sampling)
    return lambda: MagCache(computes=computes)


def _is_of_the_compiler(error: BaseException) -> bool:
    """By where its class is defined, since asking for the class would import the compiler."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))


def _is_out_of_memory(error: BaseException) -> bool:
    """Main memory running out is a plain RuntimeError of torch's allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
