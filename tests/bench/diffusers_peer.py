"""diffusers' FramePack transformer and pipeline as peers: on goan's weights, and with the inputs that goan is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
)
from torch import Tensor

from goan_cli.bench.subjects import SubjectShape
from goan_cli.jobs.sections import Section, plan_sections
from goan_cli.model.config import TransformerConfig
from goan_cli.model.transformer import CleanLatents
from goan_cli.packs.find import find_pack
from goan_cli.render.loading import load_vae
from goan_cli.render.sampling import TIME_SCALE, clean_latents

WORDS, PADDED = 205, 256  # tokens of the prompt, and what the pipeline pads them to
GUIDANCE = 6.0
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows have in common; a video has `sections` of `steps` steps."""

    device: torch.device
    dtype: torch.dtype
    shape: SubjectShape
    size: tuple[int, int]
    steps: int
    sections: int
    runs: int
    compiled: bool
    fp8: bool


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs of a section: latents, padded text with its mask, pooled text, image features, start latent."""

    noise: Tensor
    text: Tensor
    mask: Tensor
    pooled: Tensor
    image: Tensor
    start: Tensor


class GivenPipeline(HunyuanVideoFramepackPipeline):  # type: ignore[misc]  # diffusers is untyped here
    """diffusers' pipeline with its encoders' results given."""

    given: Given

    def encode_image(self, *_: object, **__: object) -> Tensor:
        """The given SigLIP features."""
        return self.given.image

    def prepare_image_latents(self, *_: object, **__: object) -> Tensor:
        """The given start latent."""
        return self.given.start


def given_inputs(setting: Setting) -> Given:
    """Random inputs, the same every time; the noise is what both samplers draw from the seed."""
    config, generator = setting.shape.config, torch.Generator().manual_seed(1)
    columns, rows = (length // 8 for length in setting.size)

    def random(*lengths: int) -> Tensor:
        return torch.randn(lengths, generator=generator).to(setting.device)

    mask = torch.zeros((1, PADDED), device=setting.device)
    mask[:, :WORDS] = 1
    frames = (1, config.in_channels, setting.shape.window, rows, columns)
    return Given(
        noise=torch.randn(frames, generator=torch.Generator().manual_seed(SEED)).to(setting.device),
        text=random(1, PADDED, config.text_embed_dim).to(setting.dtype),
        mask=mask.to(setting.dtype),
        pooled=random(1, config.pooled_projection_dim).to(setting.dtype),
        image=random(1, setting.shape.image_tokens, config.image_proj_dim).to(setting.dtype),
        start=random(1, config.in_channels, 1, rows, columns),
    )


def diffusers_transformer(
    config: TransformerConfig, tensors: Mapping[str, Tensor]
) -> HunyuanVideoFramepackTransformer3DModel:
    """diffusers' transformer, whose weights are these tensors themselves."""
    with torch.device("meta"):
        theirs = HunyuanVideoFramepackTransformer3DModel(
            num_attention_heads=config.num_attention_heads,
            attention_head_dim=config.attention_head_dim,
            num_layers=config.num_layers,
            num_single_layers=config.num_single_layers,
            text_embed_dim=config.text_embed_dim,
            pooled_projection_dim=config.pooled_projection_dim,
            has_image_proj=True,
            image_proj_dim=config.image_proj_dim,
            has_clean_x_embedder=True,
        )
    theirs.load_state_dict(tensors, assign=True)
    return theirs.requires_grad_(requires_grad=False).eval()


def their_step(theirs: Any, given: Given, setting: Setting) -> Callable[[], Tensor]:
    """The call that the pipeline makes at every step, with its arguments."""
    section = only_section(setting)
    one, two, four = clean(given, setting)
    timestep = torch.tensor([TIME_SCALE / 2], device=setting.device)
    guidance = torch.tensor([GUIDANCE], dtype=setting.dtype, device=setting.device) * TIME_SCALE

    def step() -> Tensor:
        out: Tensor = theirs(
            hidden_states=given.noise.to(setting.dtype),
            timestep=timestep,
            encoder_hidden_states=given.text,
            encoder_attention_mask=given.mask,
            pooled_projections=given.pooled,
            image_embeds=given.image,
            indices_latents=torch.tensor(section.latent_indices),
            guidance=guidance,
            latents_clean=one.latents.to(setting.dtype),
            indices_latents_clean=one.indices,
            latents_history_2x=two.latents.to(setting.dtype),
            indices_latents_history_2x=two.indices,
            latents_history_4x=four.latents.to(setting.dtype),
            indices_latents_history_4x=four.indices,
            return_dict=False,
        )[0]
        return out

    return step


def only_section(setting: Setting) -> Section:
    """Where a video of one section has its frames."""
    return plan_sections(setting.shape.family, 1, setting.shape.window).sections[0]


def clean(given: Given, setting: Setting) -> list[CleanLatents]:
    """The clean latents of a video's only section: the start, and no history."""
    return clean_latents(only_section(setting), setting.shape.family, given.start[:, :, :0], given.start)


def pipeline_of(
    theirs: HunyuanVideoFramepackTransformer3DModel, given: Given, setting: Setting
) -> Callable[[], Tensor]:
    """A call of diffusers' pipeline for a video of one section, which gives its latents in fp32 on the CPU."""
    pipeline = GivenPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=theirs,
        vae=load_vae(find_pack("tiny").vae, setting.device, torch.float32),  # never called
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder_2=None,
        tokenizer_2=None,
        image_encoder=None,
        feature_extractor=None,
    )
    pipeline.given = given
    pipeline.set_progress_bar_config(disable=True)
    width, height = setting.size

    def run() -> Tensor:
        sections = pipeline(
            image=torch.zeros((1, 3, height, width)),
            height=height,
            width=width,
            num_frames=4 * setting.shape.window - 3,  # as many as one section has
            latent_window_size=setting.shape.window,
            num_inference_steps=setting.steps,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED),
            prompt_embeds=given.text,
            prompt_attention_mask=given.mask,
            pooled_prompt_embeds=given.pooled,
            output_type="latent",
        ).frames
        latents: Tensor = sections[0][:, :, 1:].float().cpu()
        return latents

    return run
