"""Weights as those see them who write them: wide, on one device, stored into whatever memory and form they have."""

import math

import pytest
import torch
from torch import Tensor, nn

from goan_cli.errors import InvalidInput
from goan_cli.model.fp8 import quantised, use_fp8
from goan_cli.model.resident import ResidentWeights
from tests.helpers import CPU, random_transformer


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _bits(model: nn.Module) -> list[Tensor]:
    return [tensor.contiguous().view(torch.uint8) for tensor in model.state_dict().values()]


def test_what_lies_elsewhere_is_written_by_way_of_the_device() -> None:
    """A weight that is not on the device is read as an empty tensor there, of its own dtype, and stored where it is."""
    state = {"here": _random(3, 2), "fp32": _random(4, 6)}
    weights = ResidentWeights(state, dtype=torch.bfloat16, device=torch.device("meta"))
    scratch = weights["fp32"]
    assert (scratch.device.type, scratch.dtype, scratch.shape) == ("meta", torch.float32, (4, 6))
    address, value = state["fp32"].data_ptr(), _random(4, 6, seed=3).double()
    weights.store("fp32", value)
    assert state["fp32"].data_ptr() == address
    assert torch.equal(state["fp32"], value.float())


def _state(*shape: int) -> dict[str, Tensor]:
    codes, scale = quantised(_random(*shape))
    return {"a.proj.weight": _random(3, 2), "b.to_q.weight": codes, "b.to_q.scale": scale, "b.to_q.bias": _random(4)}


def test_parameters_have_the_checkpoints_names() -> None:
    """Scales are not among the names, fp8 weights are read as empty tensors in the wide dtype, the rest as it is."""
    state = _state(4, 6)
    parameters = ResidentWeights(state, dtype=torch.bfloat16, device=CPU)
    assert list(parameters) == ["a.proj.weight", "b.to_q.weight", "b.to_q.bias"]
    assert len(parameters) == 3
    assert "b.to_q.weight" in parameters
    assert "b.to_q.scale" not in parameters
    assert parameters["a.proj.weight"] is state["a.proj.weight"]
    first, second = parameters["b.to_q.weight"], parameters["b.to_q.weight"]
    assert (first.dtype, first.shape, first.device) == (torch.bfloat16, (4, 6), CPU)
    assert first.data_ptr() != second.data_ptr()
    with pytest.raises(KeyError):
        parameters["b.to_q.scale"]


@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_in_place(source: torch.dtype) -> None:
    """A value is rounded to the wide dtype, then quantised, into the memory that was there; others are copied."""
    state = _state(4, 6)
    addresses = {name: tensor.data_ptr() for name, tensor in state.items()}
    parameters = ResidentWeights(state, dtype=torch.bfloat16, device=CPU)
    values = {"a.proj.weight": _random(3, 2, seed=9).to(source), "b.to_q.weight": _random(4, 6, seed=9).to(source)}
    for name, value in values.items():
        parameters.store(name, value)
    codes, scale = quantised(values["b.to_q.weight"].bfloat16())
    assert torch.equal(state["b.to_q.weight"].float(), codes.float())
    assert torch.equal(state["b.to_q.scale"], scale)
    assert torch.equal(state["a.proj.weight"], values["a.proj.weight"].float())
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == addresses


def test_what_is_not_finite_is_not_stored() -> None:
    """The refusal names the weight, which stays as it was."""
    state = _state(4, 6)
    before = {name: tensor.clone() for name, tensor in state.items()}
    with pytest.raises(InvalidInput, match=r"^b\.to_q\.weight: .*not finite"):
        ResidentWeights(state, dtype=torch.bfloat16, device=CPU).store("b.to_q.weight", torch.full((4, 6), math.nan))
    assert all(torch.equal(state[name].float(), before[name].float()) for name in state)


def test_storing_acts_on_the_model() -> None:
    """The state of a model is the model's own memory: filling it tensor by tensor gives what quantising it gives."""
    source, model = random_transformer(seed=1), random_transformer(seed=2)
    use_fp8(model)
    parameters = ResidentWeights(model.state_dict(), dtype=torch.float32, device=CPU)
    values = dict(source.named_parameters())
    assert parameters.keys() == values.keys()
    for name, value in values.items():
        parameters.store(name, value)
    use_fp8(source)
    assert all(torch.equal(made, wanted) for made, wanted in zip(_bits(model), _bits(source), strict=True))
