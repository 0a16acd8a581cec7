"""The training loop: what it saves, and that stopping it changes nothing."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from goan_cli.errors import InvalidInput
from goan_cli.tiny import training
from goan_cli.tiny.training import LossPart, Schedule, seeded, train

SCHEDULE = Schedule(name="line", steps=40, matrix_rate=0.02, vector_rate=0.05, warm_up=5)


class Stopped(Exception):
    """What ends a training early."""


class Line(nn.Module):
    """A small layer with a matrix and a vector, and a frozen one that no training may touch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trained = nn.Linear(6, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(self.trained(x))
        return out


def run(model: Line, folder: Path, *, stop_at: int | None = None) -> dict[str, float]:
    """Train towards a fixed map; raise Stopped at a step, as a killed process would end there."""
    target = torch.randn((6, 4), generator=seeded(0))

    def loss_of(step: int, part: int) -> Tensor:
        x = torch.randn((16, 6), generator=seeded(step, part))
        loss: Tensor = (model(x) - x @ target).square().mean()
        return loss

    def parts(step: int) -> list[LossPart]:
        if step == stop_at:
            raise Stopped
        return [partial(loss_of, step, part) for part in range(2)]

    return train(model, SCHEDULE, parts, lambda: {"weight": model.trained.weight.sum().item()}, folder)


@pytest.fixture(autouse=True)
def saving_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save every ten steps."""
    monkeypatch.setattr(training, "_SAVE_EVERY", 10)


def test_training_learns_and_leaves_the_frozen_alone(tmp_path: Path) -> None:
    """The loss falls, the frozen layer stays bit for bit, and the log has the figures."""
    model = Line()
    frozen = model.frozen.weight.clone()
    figures = run(model, tmp_path)
    lines = [json.loads(text) for text in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert figures["weight"] == lines[-1]["weight"] == pytest.approx(float(model.trained.weight.detach().sum()))
    assert lines[-1]["step"] == SCHEDULE.steps
    assert torch.equal(model.frozen.weight, frozen)
    assert not torch.equal(model.trained.weight, Line().trained.weight)
    x = torch.randn((64, 6), generator=seeded(99))
    wanted = x @ torch.randn((6, 4), generator=seeded(0))
    assert (model(x) - wanted).square().mean() < 0.9 * (Line()(x) - wanted).square().mean()


@pytest.mark.parametrize("stop_at", [3, 10, 27])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    """Stopped anywhere and started again, it ends with the weights of one that was never stopped."""
    whole = Line()
    run(whole, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(Line(), tmp_path / "parts", stop_at=stop_at)
    resumed = Line()
    run(resumed, tmp_path / "parts")
    assert torch.equal(resumed.trained.weight, whole.trained.weight)
    assert torch.equal(resumed.trained.bias, whole.trained.bias)


def test_a_finished_training_is_only_loaded(tmp_path: Path) -> None:
    """Run again, a finished training takes no step and gives the same weights and figures."""
    first, second = Line(), Line()
    figures = run(first, tmp_path)
    assert run(second, tmp_path, stop_at=0) == figures
    assert torch.equal(first.trained.weight, second.trained.weight)


def test_schedule_warms_up_and_decays_to_nothing() -> None:
    """The rate rises over the warm-up, holds, and falls to almost nothing at the last step."""
    scales = [SCHEDULE.scale(step) for step in range(SCHEDULE.steps)]
    assert scales[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert scales[5:20] == [1.0] * 15
    assert scales[20:] == sorted(scales[20:], reverse=True)
    assert 0 < scales[-1] <= 0.05


def test_another_schedule_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is not carried on under other rates or lengths; the file is named and stays as it is."""
    with pytest.raises(Stopped):
        run(Line(), tmp_path, stop_at=20)
    before = (tmp_path / "line.pt").read_bytes()
    monkeypatch.setattr(f"{__name__}.SCHEDULE", replace(SCHEDULE, steps=80))
    with pytest.raises(InvalidInput, match=r"line\.pt"):
        run(Line(), tmp_path)
    assert (tmp_path / "line.pt").read_bytes() == before


def test_log_has_each_step_once_and_figures_where_they_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between two savings and resumed, no step is listed twice, and old figures are not repeated."""
    monkeypatch.setattr(training, "_LOG_EVERY", 5)
    with pytest.raises(Stopped):
        run(Line(), tmp_path, stop_at=27)
    run(Line(), tmp_path)
    lines = [json.loads(text) for text in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 45, 5))
    assert [line["step"] for line in lines if "weight" in line] == [10, 20, 30, 40]


def test_gradients_are_the_mean_of_the_parts() -> None:
    """Threads give what one backward pass of the mean loss gives, also for kernels and for what no part uses."""
    torch.manual_seed(1)
    kernel, unused = nn.Conv3d(2, 3, (1, 2, 2)), nn.Linear(2, 2)
    x = torch.randn((2, 4, 2, 3, 4, 4))
    trained = [*kernel.parameters(), *unused.parameters()]
    parts = [partial(lambda part: kernel(x[0, part][None]).square().mean(), part) for part in range(3)]
    torch.stack([part() for part in parts]).mean().backward()
    wanted = [None if parameter.grad is None else parameter.grad.clone() for parameter in trained]
    with ThreadPoolExecutor(max_workers=2) as workers:
        loss = training._backward(trained, parts, workers)
    assert loss == pytest.approx(float(torch.stack([part().detach() for part in parts]).mean()))
    for parameter, gradient in zip(trained, wanted, strict=True):
        if gradient is None:
            assert parameter.grad is None
        else:
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)
