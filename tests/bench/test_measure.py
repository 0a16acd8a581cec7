"""What `goan bench` measures and counts: operations, random models, and that the figures hold together."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from goan_cli.bench.flops import step_flops
from goan_cli.bench.measure import BenchResult, measure, refuse_full_on_cpu, resident_weights
from goan_cli.bench.section import (
    BenchInput,
    make_context,
    make_tables,
    one_forward,
    random_input,
    relative_error,
)
from goan_cli.bench.subjects import SYNTHETIC, PackSubject, SubjectShape, SyntheticSubject, shape_of
from goan_cli.bench.weights import synthetic_transformer
from goan_cli.errors import EnvironmentFault
from goan_cli.jobs.job import AttentionBackend, Execution, WantedPrecision
from goan_cli.jobs.sections import Family
from goan_cli.model.config import TransformerConfig
from goan_cli.model.fp8 import E4M3, quantised
from goan_cli.model.transformer import PackedTransformer
from goan_cli.model.weights import empty_transformer
from goan_cli.packs.find import find_pack
from goan_cli.render.execution import ResolvedExecution
from goan_cli.render.memory import MemoryPlan, Tokens, plan_memory, tokens_of
from tests.helpers import CPU, SMALL

FULL, MID = SYNTHETIC["full"], SYNTHETIC["mid"]
SHAPE = SubjectShape(name="small", config=SMALL, family=Family.F1, size=(64, 48), window=2, image_tokens=3, steps=4)
EXACT = ResolvedExecution(dtype=torch.float32, fp8=False, compiled=False, attention=AttentionBackend.AUTO)


def tokens_for(shape: SubjectShape) -> Tokens:
    """The tokens of a shape's own size."""
    return tokens_of(size=shape.size, window=shape.window, image=shape.image_tokens, text=200)


# Operations -----------------------------------------------------------------------------------------------


def test_operations_by_hand() -> None:
    """One block of each kind, 7 tokens of width 4: every product counted by hand."""
    config = TransformerConfig(
        num_attention_heads=1, attention_head_dim=4, num_layers=1, num_single_layers=1, mlp_ratio=2.0
    )
    tokens = Tokens(noisy=3, clean=2, image=1, text=1)
    double, single = 4 * 4 * 4 + 2 * 4 * 8, 3 * 4 * 4 + 4 * 8 + (4 + 8) * 4
    patches = 3 * (64 * 4 + 4 * 64)
    every = step_flops(config, tokens)
    assert every.linears == 2 * (7 * double + 7 * single + patches)
    assert every.attention == 2 * (2 * 7 * 7 * 4 + 2 * 7 * 7 * 4)
    assert every.total == every.linears + every.attention
    last = step_flops(config, tokens, kept=3)
    left_out = 4 * (4 * 4 + 4 * 8 + (4 + 8) * 4)  # four rows of all but keys and values
    assert last.linears == every.linears - 2 * left_out
    assert last.attention == every.attention - 2 * (2 * 4 * 7 * 4)


def test_operations_of_the_released_checkpoints() -> None:
    """At full size, 640x608 and window 9 a step is 501 TFLOP, half of them attention's; the last block saves 0.4%."""
    tokens = tokens_for(FULL)
    assert tokens.total == 18_429
    work = step_flops(FULL.config, tokens)
    assert round(work.linears / 1e12, 1) == 250.5
    assert round(work.attention / 1e12, 1) == 250.4
    assert round(work.total / 1e12) == 501
    assert step_flops(FULL.config, tokens, kept=tokens.noisy).total / work.total == pytest.approx(0.996, abs=0.001)


@torch.inference_mode()
def test_operations_are_those_that_run() -> None:
    """What is counted from the architecture is what torch counts in a forward."""
    model, given = synthetic_transformer(SMALL, device=CPU, dtype=torch.float32), random_input(SHAPE, SHAPE.size)
    (step,), context = make_tables(model, given, 1), make_context(model, given)
    noise = torch.randn((1, 16, SHAPE.window, SHAPE.size[1] // 8, SHAPE.size[0] // 8))
    # By products that torch has counts for: it has none for a CPU's own attention.

    def in_place(_: object, left: tuple[int, int], right: tuple[int, int], out_shape: object = None) -> int:
        return 2 * left[0] * left[1] * right[1]

    counts = {torch.ops.aten.addmm_: in_place}  # torch has none for it
    with FlopCounterMode(display=False, custom_mapping=counts) as counter, sdpa_kernel(SDPBackend.MATH):
        model(noise, step=step, context=context)
    tokens = tokens_for(SHAPE)
    assert counter.get_total_flops() == step_flops(SMALL, tokens, kept=tokens.noisy).total


# Random models --------------------------------------------------------------------------------------------


def test_architectures() -> None:
    """The full-size random model has the released checkpoints' 12.87 B parameters, the other one about 50 M."""

    def count(shape: SubjectShape) -> int:
        return sum(parameter.numel() for parameter in empty_transformer(shape.config).parameters())

    assert count(FULL) == 12_874_314_816
    assert 45e6 < count(MID) < 60e6
    assert 1_900 < tokens_for(MID).total < 2_200


def test_random_model_is_the_architecture() -> None:
    """Every parameter is there, in the wanted dtype, the final projection in fp32; equal every time."""
    first, second = (synthetic_transformer(SMALL, device=CPU, dtype=torch.bfloat16) for _ in range(2))
    expected = {name: tuple(each.shape) for name, each in empty_transformer(SMALL).named_parameters()}
    assert {name: tuple(each.shape) for name, each in first.named_parameters()} == expected
    assert {name for name, each in first.named_parameters() if each.dtype != torch.bfloat16} == {
        "proj_out.weight",
        "proj_out.bias",
    }
    for name, tensor in first.state_dict().items():
        assert tensor.isfinite().all()
        assert torch.equal(tensor, second.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_model_keeps_the_size_of_activations(dtype: torch.dtype) -> None:
    """At the depth of the released checkpoints the velocity of noise is finite and of its order."""
    deep = replace(SMALL, num_layers=20, num_single_layers=40)
    model = synthetic_transformer(deep, device=CPU, dtype=dtype)
    velocity = one_forward(model, random_input(replace(SHAPE, config=deep), SHAPE.size))
    assert velocity.isfinite().all()
    assert 0.1 < float(velocity.std()) < 10


def test_random_model_in_fp8() -> None:
    """It is the same model, its blocks' linears quantised and nothing else."""
    wide = synthetic_transformer(SMALL, device=CPU, dtype=torch.bfloat16).state_dict()
    narrow = synthetic_transformer(SMALL, device=CPU, dtype=torch.bfloat16, fp8=True).state_dict()
    assert set(wide) <= set(narrow)
    in_fp8 = {name for name, tensor in narrow.items() if tensor.dtype == E4M3}
    assert len(in_fp8) == 12 * SMALL.num_layers + 5 * SMALL.num_single_layers
    for name, tensor in wide.items():
        expected = quantised(tensor)[0] if name in in_fp8 else tensor
        assert torch.equal(narrow[name].view(torch.uint8), expected.view(torch.uint8))


# Subjects -------------------------------------------------------------------------------------------------


def plan_for(shape: SubjectShape, *, less: int = 0, precision: str = "fp32") -> MemoryPlan:
    """A plan with every block resident, or with a budget that is so many bytes too small for that."""

    def plan(budget: int | None) -> MemoryPlan:
        return plan_memory(shape.config, precision=precision, tokens=tokens_for(shape), steps=4, budget=budget)

    return plan(plan(10**12).total - less) if less else plan(None)


def test_pack_is_what_is_rendered(subject: PackSubject) -> None:
    """A pack is measured at its own size and window, with SigLIP's tokens of its image encoder."""
    pack, shape = find_pack("tiny"), shape_of(find_pack("tiny"))
    assert (shape.name, shape.size, shape.window, shape.steps) == ("tiny", (64, 64), pack.window, pack.steps)
    assert subject.shape == shape
    memory = plan_for(shape)
    model = subject.load(EXACT, memory)
    assert subject.loaded.amount == sum(file.stat().st_size for file in pack.transformer.glob("*.safetensors"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    baked = subject.bake()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert baked.amount == sum(before[name].numel() for name in changed)
    assert changed == {name for name in before if _is_block_linear(model, name)}


def _is_block_linear(model: PackedTransformer, name: str) -> bool:
    path = name.removesuffix(".weight")
    in_block = name.startswith(("transformer_blocks.", "single_transformer_blocks."))
    modulation = path.split(".")[2:3] and path.split(".")[2] in ("norm1", "norm1_context", "norm")
    return path != name and in_block and not modulation and isinstance(model.get_submodule(path), nn.Linear)


@pytest.fixture
def subject() -> PackSubject:
    """The tiny pack's transformer."""
    return PackSubject(find_pack("tiny"), CPU, cache=None)


@pytest.mark.parametrize("fp8", [False, True])
def test_streamed_subject_is_the_resident_one(monkeypatch: pytest.MonkeyPatch, fp8: bool) -> None:
    """Where the plan streams blocks the same comes out, before a bake and after it, and the bake acts."""
    shape = replace(MID, size=(32, 32), window=1)
    execution, precision = replace(EXACT, dtype=torch.bfloat16, fp8=fp8), "fp8" if fp8 else "bf16"
    given, seen = random_input(shape, shape.size), []
    for memory in (plan_for(shape, precision=precision), plan_for(shape, less=1, precision=precision)):
        subject = SyntheticSubject("mid", CPU, cache=None)
        model = subject.load(execution, memory)
        before = one_forward(model, given)
        assert subject.loaded is None
        assert subject.bake().amount > 1e6
        seen.append((memory.streams, before, one_forward(model, given)))
    (streams, before, after), (also_streams, streamed_before, streamed_after) = seen
    assert (streams, also_streams) == (False, True)
    assert torch.equal(before, streamed_before)
    assert torch.equal(after, streamed_after)
    assert not torch.equal(before, after)


def test_resident_weights_are_the_plans() -> None:
    """Counted from the tensors, what stays on the device is what the memory plan says, streamed blocks apart."""
    shape = replace(MID, size=(32, 32), window=1)
    model = synthetic_transformer(shape.config, device=CPU, dtype=torch.bfloat16)
    for memory in (plan_for(shape, precision="bf16"), plan_for(shape, less=1, precision="bf16")):
        assert resident_weights(model, memory) == memory.weights


# Results --------------------------------------------------------------------------------------------------


def measured(subject: PackSubject, **wanted: object) -> BenchResult:
    """Three steps of the tiny pack."""
    return measure(subject, CPU, size=None, wanted=replace(Execution(), **wanted), steps=3)  # type: ignore[arg-type]


def test_figures_hold_together(subject: PackSubject) -> None:
    """Rates are work over the median, the share is of the measured products, and weights are the model's."""
    result = measured(subject)
    assert result.steps == 3
    assert 0 < result.fastest_step <= result.seconds_per_step <= result.slowest_step
    tokens = tokens_for(subject.shape)
    assert result.tokens == tokens
    assert result.tflop_per_step == step_flops(subject.shape.config, tokens, kept=tokens.noisy).total / 1e12
    assert result.tflops == pytest.approx(result.tflop_per_step / result.seconds_per_step)
    assert result.matmul_share == pytest.approx(result.tflops / result.matmul_tflops)
    assert result.parameters == sum(p.numel() for p in empty_transformer(subject.shape.config).parameters())
    assert (result.precision, result.matmul_dtype, result.fp8_error) == ("float32", "float32", None)
    assert result.first_step_seconds > 0


def test_error_of_fp8(subject: PackSubject) -> None:
    """It is the difference of one forward from the wide weights': that of e4m3's four bits, and not nothing."""
    result = measured(subject, precision=WantedPrecision.FP8)
    assert result.fp8_error is not None
    assert 0.001 < result.fp8_error < 0.15
    given = random_input(subject.shape, subject.shape.size)
    wide = one_forward(subject.load(EXACT, plan_for(subject.shape)), given)
    narrow = one_forward(subject.load(replace(EXACT, fp8=True), plan_for(subject.shape)), given)
    assert result.fp8_error == pytest.approx(relative_error(narrow, wide), rel=1e-6)


def test_what_the_device_lacks(subject: PackSubject) -> None:
    """An attention kernel that needs a GPU is refused before anything is loaded."""
    with pytest.raises(EnvironmentFault, match="cudnn needs a CUDA device"):
        measured(subject, attention=AttentionBackend.CUDNN)
    assert not subject._seconds


def test_full_size_on_a_cpu() -> None:
    """It is refused with the memory that it would take, which is the precision's."""
    with pytest.raises(EnvironmentFault, match=r"would take 5\d\.\d GB of main memory") as caught:
        refuse_full_on_cpu(CPU, Execution())
    assert "--synthetic mid" in str(caught.value)
    with pytest.raises(EnvironmentFault, match=r"would take 2\d\.\d GB of main memory"):
        refuse_full_on_cpu(CPU, Execution(precision=WantedPrecision.BF16))


def test_section_has_a_history() -> None:
    """The section that is sampled is a later one: its clean latents are not zeros."""
    given: BenchInput = random_input(SHAPE, SHAPE.size)
    assert given.before.sections == given.section.number == 1
    model = synthetic_transformer(SMALL, device=CPU, dtype=torch.float32)
    assert make_context(model, given).clean_tokens.shape[1] == tokens_for(SHAPE).clean
    assert len({row.tobytes() for row in make_context(model, given).clean_tokens[0].numpy()}) == tokens_for(SHAPE).clean
