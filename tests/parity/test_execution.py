"""The recorded tensors again, however the sampling is carried out: tables, streamed blocks, compiled, precisions.

`test_golden` has them for the default: float32 on a CPU, tables, every block resident, not compiled.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from goan_cli.model.calls import BlockCalls, compiled_calls
from goan_cli.model.embedders import sinusoid
from goan_cli.model.transformer import PackedTransformer, StepConditioning, TextConditioning
from goan_cli.model.weights import load_transformer
from goan_cli.render.execution import lacking_compiler
from goan_cli.render.streaming import BlockStream
from tests.helpers import CPU, relative_error
from tests.parity import adapter
from tests.parity.test_golden import PACKED, RUNS

FORWARD_BOUND, RENDER_BOUND = 1e-5, 1e-3  # of the recorded tensors, in float32
CASES = ("even", "padded", "bare")
RECORDED = load_file(PACKED / "forward.safetensors")
# Three jobs of one size and window: of both families, with TeaCache, with a shift.
ONE_SIZE = ("f1_3_sections", "teacache_2_sections", "shift_3")
CFG = "inverted_6_sections_cfg"


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A precision that runs on a CPU. Its rounding of weights and inputs alone makes most of its distance.

    `forward` and `render` bound what is left of it: how far a forward, and a whole render, may be from what float32
    makes of the same rounded weights and inputs.
    """

    dtype: torch.dtype
    fp8: bool
    forward: float
    render: float


# Half a unit in the last place is 2^-9 in bfloat16 and 2^-12 in float16; activations are rounded some dozens of times
# on their way through five blocks and the refiner, of which eight and four such halves are left. In fp8 every
# weight of the blocks is off by 2.6 % in the mean square, and the whole by no more.
PRECISIONS = {
    "fp32": Precision(dtype=torch.float32, fp8=False, forward=FORWARD_BOUND, render=RENDER_BOUND),
    "bf16": Precision(dtype=torch.bfloat16, fp8=False, forward=2**-6, render=2**-6),
    "fp16": Precision(dtype=torch.float16, fp8=False, forward=2**-10, render=2**-9),
    "fp8": Precision(dtype=torch.float32, fp8=True, forward=0.026, render=0.026),
    "fp8 with bf16": Precision(dtype=torch.bfloat16, fp8=True, forward=0.026, render=0.026),
}


def _loaded(precision: Precision, resident: Sequence[bool] | None = None) -> PackedTransformer:
    model, _ = load_transformer(
        PACKED / "transformer", device=CPU, dtype=precision.dtype, fp8=precision.fp8, resident=resident
    )
    return model


def _rounded(dtype: torch.dtype) -> PackedTransformer:
    """The float32 model with weights, and whatever enters its embedders, rounded to a dtype first."""
    model = _loaded(PRECISIONS["fp32"])

    def rounding(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(each.to(dtype).float() if isinstance(each, Tensor) else each for each in given)

    for name, parameter in model.named_parameters():
        if not name.startswith("proj_out."):
            parameter.data = parameter.data.to(dtype).float()
    for name, module in model.named_children():
        if name not in ("transformer_blocks", "single_transformer_blocks", "norm_out", "proj_out"):
            module.register_forward_pre_hook(rounding)
    return model


def _case(name: str, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of a recorded forward, in a dtype, and its output."""
    prefix = f"forward.{name}."
    tensors = {key.removeprefix(prefix): value for key, value in RECORDED.items() if key.startswith(prefix)}
    output = tensors.pop("output")
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}, output


def _forward(model: PackedTransformer, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return adapter.transformer_forward(model, _case(name, dtype)[0])


def _render(model: PackedTransformer, name: str) -> dict[str, Any]:
    tensors = load_file(PACKED / f"run_{name}.safetensors")
    return adapter.run_sections(model, None, tensors, RUNS[name])


def _assert_recorded(model: PackedTransformer, name: str) -> None:
    """A render's sections, latents and computed steps are the recorded ones."""
    result, recorded = _render(model, name), load_file(PACKED / f"run_{name}.safetensors")
    for number, section in enumerate(result["sections"]):
        assert relative_error(section, recorded[f"section.{number}"]) < RENDER_BOUND
    assert relative_error(result["latents"], recorded["latents"]) < RENDER_BOUND
    assert result["computed_steps"] == RUNS[name]["computed_steps"]


# Tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRECISIONS)
@pytest.mark.parametrize("case", ["even", "padded"])
@torch.inference_mode()
def test_tables_are_the_direct_path(case: str, name: str) -> None:
    """With the tables of all steps made at once, every step is bit for bit the step without tables."""
    model, dtype = _loaded(PRECISIONS[name]), PRECISIONS[name].dtype
    given, _ = _case(case, dtype)
    latents, guidance = given["hidden_states"], given["guidance"]
    text = adapter._text(given["encoder_hidden_states"], given["encoder_attention_mask"], given["pooled_projections"])
    context = model.context_for(
        latent_indices=given["latent_indices"][0],
        latent_size=(latents.shape[3], latents.shape[4]),
        clean=[],
        image_embeds=given["image_embeddings"],
    )
    timesteps = [torch.tensor([1000 * sigma]).to(dtype) for sigma in RUNS["f1_3_sections"]["sigmas"][:-1]]
    steps = model.step_conditionings(text, timesteps, guidance)
    assert len(steps) == len(timesteps) > 2
    for timestep, step in zip(timesteps, steps, strict=True):
        direct = model.velocity_at(latents, timestep=timestep, guidance=guidance, text=text, context=context)
        assert torch.equal(model(latents, step=step, context=context), direct)
        latents = (latents - 0.05 * direct).to(dtype)


@pytest.mark.parametrize("name", ["f1_3_sections", "teacache_2_sections", CFG])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whole_render_on_the_direct_path(name: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole render is bit for bit the one in which every step's conditioning is made by itself."""
    model = _loaded(PRECISIONS[precision])
    at_once = _render(model, name)
    make, calls = model.step_conditionings, list[int]()

    def one_by_one(text: TextConditioning, timesteps: Sequence[Tensor], guidance: Tensor) -> list[StepConditioning]:
        calls.append(len(timesteps))
        return [step for timestep in timesteps for step in make(text, [timestep], guidance)]

    monkeypatch.setattr(model, "step_conditionings", one_by_one)
    assert torch.equal(_render(model, name)["latents"], at_once["latents"])
    # Once for each CFG branch of the job, however many sections it has.
    assert calls == [RUNS[name]["steps"]] * (2 if name == CFG else 1)


# Streamed blocks ----------------------------------------------------------------------------------------------


SPLITS = {
    "all streamed": (False,) * 5,
    "double blocks resident": (True, True, False, False, False),
    "every other one": (False, True, False, True, False),
    "the last one resident": (False, False, False, False, True),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp8"])
def test_streamed_blocks(name: str, split: str) -> None:
    """Streamed, whichever blocks are, forwards and renders are bit for bit those of resident blocks."""
    precision, resident = PRECISIONS[name], SPLITS[split]
    ours, streamed = _loaded(precision), _loaded(precision, resident)
    streamed.block_source = BlockStream(tuple(streamed.own_blocks()), resident, CPU)
    for case in CASES:
        assert torch.equal(_forward(streamed, case, precision.dtype), _forward(ours, case, precision.dtype))
    assert torch.equal(_render(streamed, "two_steps")["latents"], _render(ours, "two_steps")["latents"])


@pytest.mark.parametrize("run", ["f1_3_sections", "teacache_2_sections", CFG])
def test_streamed_blocks_against_the_recorded(run: str) -> None:
    """Whole renders with every block streamed are the recorded ones, also where TeaCache leaves steps out."""
    model = _loaded(PRECISIONS["fp32"])
    model.block_source = BlockStream(tuple(model.own_blocks()), (False,) * 5, CPU)
    _assert_recorded(model, run)


# Compiled -----------------------------------------------------------------------------------------------------


@contextmanager
def _graphs_of_its_own() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def test_compiled_blocks() -> None:
    """Traced as a compiler takes them, renders are the recorded ones and within 1e-5 of the uncompiled.

    Jobs of one size, of both families, share three graphs, and those that stream blocks too.
    """
    with _graphs_of_its_own():
        model = _loaded(PRECISIONS["fp32"])
        plain = {run: _render(model, run)["latents"] for run in ONE_SIZE}
        model.calls = compiled_calls("eager")
        for run in ONE_SIZE:
            _assert_recorded(model, run)
            assert relative_error(_render(model, run)["latents"], plain[run]) < 1e-5
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
        whole = _render(model, "shift_3")["latents"]
        model.block_source = BlockStream(tuple(model.own_blocks()), (False, True) * 2 + (False,), CPU)
        assert torch.equal(_render(model, "shift_3")["latents"], whole)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@pytest.mark.slow
@pytest.mark.skipif(lacking_compiler(CPU) is not None, reason="no C++ compiler")
def test_inductor(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled to machine code, a forward is within 1e-5 of the recorded one and a render within 1e-3."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with _graphs_of_its_own():
        model = _loaded(PRECISIONS["fp32"])
        plain = _forward(model, "even")
        model.calls = compiled_calls()
        out = _forward(model, "even")
        assert not torch.equal(out, plain)  # so it was another code that ran
        assert relative_error(out, _case("even")[1]) < FORWARD_BOUND
        assert relative_error(out, plain) < 1e-6
        _assert_recorded(model, "two_steps")
        assert any(tmp_path.rglob("*.so"))


# Precisions ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[name for name in PRECISIONS if name != "fp32"])
def precise(request: pytest.FixtureRequest) -> tuple[Precision, PackedTransformer, PackedTransformer]:
    """A precision, the model in it, and the float32 model of the same rounded weights and inputs."""
    precision = PRECISIONS[request.param]
    return precision, _loaded(precision), _rounded(precision.dtype)


@pytest.mark.parametrize("case", CASES)
def test_forward_of_a_precision(precise: tuple[Precision, PackedTransformer, PackedTransformer], case: str) -> None:
    """Apart from the rounding of weights and inputs, a forward is within the precision's bound."""
    precision, model, rounded = precise
    out = _forward(model, case, precision.dtype)
    assert out.dtype == torch.float32  # the final projection is
    expected = _case(case)[1] if precision.dtype == torch.float32 else _forward(rounded, case)
    assert relative_error(out, expected) < precision.forward


@pytest.mark.parametrize("run", ["inverted_1_section", *ONE_SIZE, CFG])
def test_render_of_a_precision(precise: tuple[Precision, PackedTransformer, PackedTransformer], run: str) -> None:
    """So is a whole render, with the same steps computed."""
    precision, model, rounded = precise
    result = _render(model, run)
    if precision.dtype == torch.float32:
        expected, steps = load_file(PACKED / f"run_{run}.safetensors")["latents"], RUNS[run]["computed_steps"]
    else:
        reference = _render(rounded, run)
        expected, steps = reference["latents"], reference["computed_steps"]
    assert relative_error(result["latents"], expected) < precision.render
    assert result["computed_steps"] == steps


class _Sinusoid(nn.Module):
    """goan's timestep features, which round alike on every machine."""

    def forward(self, values: Tensor) -> Tensor:
        return sinusoid(values)


@pytest.mark.parametrize("case", ["even", "padded"])  # diffusers cannot do without history
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_no_farther_than_diffusers(dtype: torch.dtype, case: str) -> None:
    """In 16 bits a forward is as near to the recorded one as that of diffusers' class, within a hundredth."""
    config = {key: value for key, value in _config().items() if not key.startswith("_")}
    theirs = HunyuanVideoFramepackTransformer3DModel(**config)
    (file,) = (PACKED / "transformer").glob("*.safetensors")
    theirs.load_state_dict(load_file(file), strict=True)
    theirs.to(dtype).eval()
    given, recorded = _case(case, dtype)
    out: Tensor = theirs(
        hidden_states=given["hidden_states"],
        timestep=given["timestep"],
        encoder_hidden_states=given["encoder_hidden_states"],
        encoder_attention_mask=given["encoder_attention_mask"],
        pooled_projections=given["pooled_projections"],
        image_embeds=given["image_embeddings"],
        indices_latents=given["latent_indices"][0],
        guidance=given["guidance"],
        latents_clean=given["clean_latents"],
        indices_latents_clean=given["clean_latent_indices"][0],
        latents_history_2x=given["clean_latents_2x"],
        indices_latents_history_2x=given["clean_latent_2x_indices"][0],
        latents_history_4x=given["clean_latents_4x"],
        indices_latents_history_4x=given["clean_latent_4x_indices"][0],
        return_dict=False,
    )[0]
    precision = next(each for each in PRECISIONS.values() if each.dtype == dtype)
    ours = relative_error(_forward(_loaded(precision), case, dtype), recorded)
    assert ours < 1.01 * relative_error(out, recorded)


def _config() -> dict[str, Any]:
    config: dict[str, Any] = HunyuanVideoFramepackTransformer3DModel.load_config(PACKED / "transformer")
    return config


def test_the_default_is_not_compiled() -> None:
    """What `test_golden` shows is the plain way: the blocks as they are, where they are."""
    model = adapter.load_transformer(PACKED / "transformer")
    assert model.calls == BlockCalls()
    assert model.block_source is None
    assert list(model.own_blocks()) == [*model.transformer_blocks, *model.single_transformer_blocks]
