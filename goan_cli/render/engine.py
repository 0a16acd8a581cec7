"""The engine: loads a pack once, keeps the right LoRAs baked, and turns plans into latents and frames."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from goan_cli.errors import RenderFailed
from goan_cli.lora.bake import LoraFile, bake, file_reports, recipe_of, restore
from goan_cli.lora.report import BakeRecipe, BakeReport
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import parameters_of
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.decode import decode_video, to_uint8, vae_decoder
from goan_cli.render.device import choose_device, device_name, precision_for
from goan_cli.render.events import (
    Baked,
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
from goan_cli.render.image import fitted_pixels, start_latent
from goan_cli.render.lora_files import lora_file
from goan_cli.render.parts import Parts
from goan_cli.render.plan import RenderPlan
from goan_cli.render.preview import filmstrip
from goan_cli.render.sampling import sample_sections
from goan_cli.render.text import Truncation


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """The final latents `(1, 16, n, h/8, w/8)` in fp32, and per section the steps whose blocks ran.

    `computed_steps` is empty where no step cache was used; `bake` is None where no LoRA was asked for.
    """

    latents: Tensor
    computed_steps: tuple[tuple[int, ...], ...]
    bake: BakeReport | None


class Engine:
    """Holds the models between jobs. Prints nothing: it tells its `listener`.

    A job is `conditioning_for`, then `sample`, then `frames`; `timings` has the seconds of each stage of the
    job since `begin`. Raises EnvironmentFault when the device is not there.
    """

    def __init__(self, *, device: str = "auto", listener: Listener = ignore, previews: bool = False) -> None:
        self.device = choose_device(device)
        self.precision = precision_for(self.device)
        self.listener = listener
        self.previews = previews
        self.timings: dict[Stage, float] = {}
        self._parts: Parts | None = None
        self._baked: str | None = None  # identity of the recipe in the weights
        self._touched: set[str] = set()
        self._report: BakeReport | None = None

    @property
    def device_name(self) -> str:
        """What renders, for the record."""
        return device_name(self.device)

    def begin(self) -> None:
        """Start the timings of a new job."""
        self.timings = {}

    def free_memory(self) -> None:
        """Give back what a failed job left on the device."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def conditioning_for(self, plan: RenderPlan) -> Conditioning:
        """Encode a plan's prompts and image."""
        job, parts = plan.job, self._parts_for(plan)
        with self._stage(Stage.LOAD):
            encoders = parts.text_encoders()
        with self._stage(Stage.ENCODE):
            positive, cut = encoders.encode(job.prompt)
            self._tell_truncation("prompt", cut)
            negative = None
            if job.sampling.true_cfg_scale != 1.0:
                negative, cut = encoders.encode(job.negative_prompt)
                self._tell_truncation("negative_prompt", cut)
        pixels = fitted_pixels(job.image, job.image_fit)
        with self._stage(Stage.LOAD):
            image_encoder = parts.image_encoder()
        with self._stage(Stage.ENCODE):
            image_embeds = image_encoder.encode(pixels)
        with self._stage(Stage.LOAD):
            vae = parts.vae()
        with self._stage(Stage.ENCODE):
            start = start_latent(vae, pixels, job.sampling.seed)
        return Conditioning(positive=positive, negative=negative, image_embeds=image_embeds, start_latent=start)

    def sample(self, plan: RenderPlan, conditioning: Conditioning) -> Sampled:
        """Bake the plan's LoRAs where they are not baked yet, and sample every section."""
        parts = self._parts_for(plan)
        loras = [lora_file(lora) for lora in plan.loras]
        wanted = recipe_of(parts.base_identity(), loras)
        to_bake = {name for lora in loras for name in lora.adapter.parameters}
        with self._stage(Stage.LOAD):
            if not parts.has_transformer:
                # What the bake will write is not read first.
                self._touched, self._baked = set(to_bake), None
            model, _ = parts.transformer(unread=to_bake)
        if self._baked != wanted.identity:
            with self._stage(Stage.BAKE):
                self._bake(parts, model, loras, wanted, to_bake)
        latents, computed_steps = conditioning.start_latent, []
        with self._stage(Stage.SAMPLE):
            for so_far, computed in self._sections(plan, model, conditioning):
                latents = so_far
                computed_steps.append(computed)
        # The same recipe may have been baked from other paths: the report names this job's.
        report = None if self._report is None else replace(self._report, files=file_reports(loras))
        return Sampled(latents=latents, computed_steps=tuple(computed_steps), bake=report)

    def frames(self, plan: RenderPlan, latents: Tensor) -> Iterator[NDArray[np.uint8]]:
        """Decode latents to frames `(n, h, w, 3)` in viewing order, a stretch at a time."""
        parts = self._parts_for(plan)
        with self._stage(Stage.LOAD):
            decode = vae_decoder(parts.vae())
        with self._stage(Stage.DECODE):
            for pixels in decode_video(latents, plan.job.sections, decode):
                yield to_uint8(pixels).numpy()

    def _parts_for(self, plan: RenderPlan) -> Parts:
        if self._parts is None or self._parts.pack != plan.pack:
            self._parts = None
            gc.collect()
            self._parts = Parts(plan.pack, self.device, self.precision)
        return self._parts

    def _bake(
        self, parts: Parts, model: PackedTransformer, loras: list[LoraFile], wanted: BakeRecipe, to_bake: set[str]
    ) -> None:
        """Bring the weights from the recipe they hold to the wanted one, from pristine bytes."""
        parameters = parameters_of(model)
        _, store = parts.transformer()
        self._baked, self._report = None, None
        with store.opened() as pristine:
            stale = self._touched - to_bake
            restore(parameters, pristine, stale)
            self._touched -= stale
            if loras:
                try:
                    self._report = bake(parameters, pristine, loras, base=wanted.base, touched=self._touched)
                except BaseException:
                    restore(parameters, pristine, self._touched)
                    self._touched = set()
                    self._baked = BakeRecipe(base=wanted.base).identity
                    raise
        self._baked = wanted.identity
        if self._report is not None:
            self._tell(Baked(report=self._report))

    def _sections(
        self, plan: RenderPlan, model: PackedTransformer, conditioning: Conditioning
    ) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
        """Sample section by section, telling of steps and sections; yields the latents so far."""
        total, steps = len(plan.job.sections.sections), plan.job.sampling.steps
        number, section_started = 1, time.perf_counter()
        step_started = section_started

        def on_step(step: int) -> None:
            nonlocal step_started
            now = time.perf_counter()
            self._tell(
                StepFinished(section=number, sections=total, step=step + 1, steps=steps, seconds=now - step_started)
            )
            step_started = now

        for done in sample_sections(model, conditioning, plan.job.sections, plan.job.sampling, on_step=on_step):
            now = time.perf_counter()
            self._tell(
                SectionFinished(
                    section=number,
                    sections=total,
                    seconds=now - section_started,
                    computed_steps=len(done.computed_steps) or steps,
                    preview=filmstrip(done.latents).numpy() if self.previews else None,
                )
            )
            number, section_started = number + 1, now
            yield done.history, done.computed_steps

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        self._tell(StageStarted(stage=stage))
        started = time.perf_counter()
        try:
            yield
        except torch.OutOfMemoryError as error:
            hint = "a smaller size or window needs less"
            raise RenderFailed(f"{self.device_name}: out of memory ({stage})", hint=hint) from error
        finally:
            seconds = time.perf_counter() - started
            self.timings[stage] = self.timings.get(stage, 0.0) + seconds
            self._tell(StageFinished(stage=stage, seconds=seconds))

    def _tell_truncation(self, what: str, cuts: tuple[Truncation, ...]) -> None:
        for cut in cuts:
            self._tell(Note(text=f"{what}: {cut.encoder} cannot take its last {cut.dropped} tokens: {cut.words!r}"))

    def _tell(self, event: Event) -> None:
        self.listener(event)
