"""Runs any golden set through the production code; no logic of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from goan_cli.jobs.images import open_image
from goan_cli.jobs.job import Sampling, StepCache
from goan_cli.jobs.sections import Family, plan_sections
from goan_cli.jobs.sizes import fit
from goan_cli.lora.adapter import read_adapter
from goan_cli.lora.bake import LoraFile
from goan_cli.lora.bake import bake as bake_loras
from goan_cli.lora.report import LoraSource
from goan_cli.model.transformer import CleanLatents, PackedTransformer, TextConditioning
from goan_cli.model.weights import load_transformer as load_weights
from goan_cli.model.weights import parameters_of
from goan_cli.render.conditioning import Conditioning
from goan_cli.render.decode import decode_video, vae_decoder
from goan_cli.render.image import ImageEncoder, fitted_pixels, posterior
from goan_cli.render.loading import load_vae as load_autoencoder
from goan_cli.render.sampling import sample_sections, teacache_of
from goan_cli.render.schedule import noise_sigmas
from goan_cli.render.text import TextEncoders

CPU = torch.device("cpu")
_CLEAN = (
    (1, "clean_latents", "clean_latent_indices"),
    (2, "clean_latents_2x", "clean_latent_2x_indices"),
    (4, "clean_latents_4x", "clean_latent_4x_indices"),
)


def load_transformer(directory: Path) -> PackedTransformer:
    """config.json and safetensors, on the CPU in float32."""
    model, _ = load_weights(directory, device=CPU, dtype=torch.float32)
    return model


@torch.inference_mode()
def transformer_forward(model: PackedTransformer, tensors: Mapping[str, Tensor]) -> Tensor:
    """One forward; tensors are named as in forward.safetensors without the `forward.CASE.` prefix."""
    latents = tensors["hidden_states"]
    indices = tensors.get("latent_indices", torch.arange(latents.shape[2])[None])
    context = model.context_for(
        latent_indices=indices[0],
        latent_size=(latents.shape[3], latents.shape[4]),
        clean=[
            CleanLatents(latents=tensors[name], indices=tensors[positions][0], pool=pool)
            for pool, name, positions in _CLEAN
            if name in tensors
        ],
        image_embeds=tensors["image_embeddings"],
    )
    text = _text(tensors["encoder_hidden_states"], tensors["encoder_attention_mask"], tensors["pooled_projections"])
    return model.velocity_at(
        latents, timestep=tensors["timestep"], guidance=tensors["guidance"], text=text, context=context
    )


def run_sections(
    model: PackedTransformer, vae: Any, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A whole render from given conditioning; settings are one entry of manifest["runs"]."""
    given = {name.removeprefix("conditioning."): tensor for name, tensor in tensors.items()}
    plan = plan_sections(Family(settings["mode"]), settings["sections"], settings["window"])
    conditioning = Conditioning(
        positive=_text(given["prompt_embeds"], given["prompt_embeds_mask"], given["prompt_poolers"]),
        negative=_text(
            given["negative_prompt_embeds"], given["negative_prompt_embeds_mask"], given["negative_prompt_poolers"]
        ),
        image_embeds=given["image_embeddings"],
        start_latent=given["start_latent"],
    )
    sampling = Sampling(
        steps=settings["steps"],
        seed=settings["seed"],
        guidance_scale=settings["guidance_scale"],
        true_cfg_scale=settings["true_cfg_scale"],
        guidance_rescale=settings["guidance_rescale"],
        shift=settings.get("shift"),
        step_cache=StepCache(threshold=settings.get("threshold", 0.15)) if settings.get("teacache") else None,
    )
    sections = list(sample_sections(model, conditioning, plan, sampling, make_cache=teacache_of(sampling)))
    latents = sections[-1].progress.history
    pixels = None
    if vae is not None:
        with torch.inference_mode():
            pixels = torch.cat(list(decode_video(latents, plan, vae_decoder(vae))), dim=2)
    return {
        "latents": latents,
        "sections": [section.latents for section in sections],
        "pixels": pixels,
        "computed_steps": [list(steps) for steps in sections[-1].progress.computed_steps if steps],
    }


def load_vae(directory: Path) -> Any:
    """The VAE on the CPU in float32."""
    return load_autoencoder(directory, CPU, torch.float32)


def encode_prompt(pack: Path, prompt: str) -> tuple[Tensor, Tensor]:
    """Llama features (1, n, d) and pooled CLIP (1, d)."""
    encoders = TextEncoders(
        llama=pack / "text_encoder",
        tokenizer=pack / "tokenizer",
        clip=pack / "text_encoder_2",
        clip_tokenizer=pack / "tokenizer_2",
        device=CPU,
        dtype=torch.float32,
    )
    text, _ = encoders.encode(prompt)
    return text.embeds, text.pooled


def encode_image(pack: Path, image: Path, width: int, height: int) -> dict[str, Any]:
    """Cropped pixels, SigLIP features, and the VAE posterior's mean and log-variance."""
    pixels = fitted_pixels(image, fit(open_image(image).size, (width, height)))
    encoder = ImageEncoder(
        model=pack / "image_encoder", processor=pack / "feature_extractor", device=CPU, dtype=torch.float32
    )
    mean, logvar = posterior(load_vae(pack / "vae"), pixels)
    features = encoder.encode(pixels)
    return {"pixels": torch.tensor(pixels), "siglip": features, "vae_mean": mean, "vae_logvar": logvar}


def bake(base_dir: Path, loras: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """Every parameter of the transformer with the LoRAs baked, float32."""
    model, store = load_weights(base_dir, device=CPU, dtype=torch.float32)
    parameters = parameters_of(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    files = [
        LoraFile(adapter=read_adapter(path, shapes), source=LoraSource(path=path, sha256=path.name, weight=weight))
        for path, weight in loras
    ]
    with store.opened() as pristine:
        bake_loras(parameters, pristine, files, touched=set())
    return parameters


def sigmas(steps: int, tokens: int, shift: float | None) -> Tensor:
    """The noise schedule, (steps + 1,)."""
    return noise_sigmas(steps, tokens=tokens, shift=shift)


def _text(embeds: Tensor, mask: Tensor, pooled: Tensor) -> TextConditioning:
    # Without the rows that the mask leaves out: at batch 1 the same as masking them.
    return TextConditioning(embeds=embeds[:, : int(mask.sum())], pooled=pooled)
