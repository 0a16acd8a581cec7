"""What a job needs on the device, from its plan: for the engine, and for people before anything is loaded. No torch."""

import math

from goan_cli.jobs.job import DecodeMode, WantedPrecision
from goan_cli.jobs.resolve import DEFAULT_FPS, DEFAULT_SECONDS
from goan_cli.jobs.sections import Family, SectionPlan, plan_sections, section_count
from goan_cli.jobs.sizes import nearest_bucket
from goan_cli.model.checkpoint import read_checkpoint, read_json
from goan_cli.model.config import read_config
from goan_cli.packs.pack import Pack
from goan_cli.render.memory import MemoryPlan, plan_memory, tokens_of
from goan_cli.render.plan import RenderPlan
from goan_cli.render.vae_memory import least_decode_bytes, vae_shape

_FP16 = 2  # bytes
# The longest prompt that Llama's features are taken of.
_MOST_TEXT = 256


def memory_of(plan: RenderPlan, *, precision: str, image: int, text: int, budget: int | None) -> MemoryPlan:
    """Where everything is while the job samples; `image` and `text` are the tokens of SigLIP and of the prompt.

    `precision` is fp32, fp16, bf16 or fp8; the budget is in bytes, None without a limit. Raises EnvironmentFault when
    it is too small.
    """
    job = plan.job
    return plan_memory(
        read_config(plan.pack.config_of("transformer")),
        precision=precision,
        tokens=tokens_of(size=job.size, window=job.sections.window, image=image, text=text),
        steps=job.sampling.steps,
        branches=2 if job.is_guided else 1,
        step_cache=job.sampling.step_cache is not None,
        budget=budget,
        decode=0 if budget is None else _decode_bytes(plan.pack, job.decoded_sections, job.decode, job.size),
    )


def _decode_bytes(pack: Pack, sections: SectionPlan, mode: DecodeMode, size: tuple[int, int]) -> int:
    """The least that decoding a video of `size` (width, height) takes on a GPU, where the VAE is in fp16."""
    shape = vae_shape(read_json(pack.config_of("vae")), _FP16)
    weights = sum(math.prod(each) for each in read_checkpoint(pack.vae).shapes.values()) * _FP16
    width, height = size
    return weights + least_decode_bytes(shape, sections, mode, height=height, width=width)


def foreseen_memory(plan: RenderPlan) -> MemoryPlan:
    """The same before anything is encoded: for the longest prompt, and in bf16 where the device decides.

    Raises as `memory_of`.
    """
    wanted = plan.job.execution
    precision = "bf16" if wanted.precision is WantedPrecision.AUTO else str(wanted.precision)
    return memory_of(plan, precision=precision, image=_image_tokens(plan.pack), text=_MOST_TEXT, budget=wanted.memory)


def usual_memory(pack: Pack, *, precision: str, budget: int | None) -> MemoryPlan:
    """The same for a job that sets nothing, with a square image and the longest prompt. Raises as `memory_of`."""
    height, width = nearest_bucket(1, 1, pack.resolution)
    count = section_count(DEFAULT_SECONDS, DEFAULT_FPS, pack.window)
    sections = plan_sections(Family(pack.family), count, pack.window)
    return plan_memory(
        read_config(pack.config_of("transformer")),
        precision=precision,
        tokens=tokens_of(size=(width, height), window=pack.window, image=_image_tokens(pack), text=_MOST_TEXT),
        steps=pack.steps,
        budget=budget,
        decode=0 if budget is None else _decode_bytes(pack, sections, DecodeMode.OVERLAP, (width, height)),
    )


def _image_tokens(pack: Pack) -> int:
    """SigLIP's, by its configuration."""
    vision = read_json(pack.config_of("image_encoder"))
    return (int(vision.get("image_size", 384)) // int(vision.get("patch_size", 14))) ** 2
