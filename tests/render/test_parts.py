"""The parts of a pack: each loaded once, and on a small card one at a time on the device."""

import pytest
import torch

from goan_cli.model.pack import find_pack
from goan_cli.render.device import Precision
from goan_cli.render.parts import Parts
from tests.helpers import CPU

FP32 = Precision(transformer=torch.float32, encoders=torch.float32)


def test_each_part_is_loaded_once() -> None:
    """Asking again gives the same object."""
    parts = Parts(find_pack("tiny"), CPU, FP32)
    for ask in (parts.text_encoders, parts.image_encoder, parts.vae):
        assert ask() is ask()
    assert parts.transformer()[0] is parts.transformer()[0]
    assert parts.transformer()[1] is parts.transformer()[1]


def test_one_part_at_a_time_on_a_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parts do not fit together, whichever is asked for is on the device and the others are not."""
    # `cpu:0` stands for the card: the same memory, told apart from `cpu` by its name.
    card = torch.device("cpu", 0)
    monkeypatch.setattr("goan_cli.render.parts.is_roomy", lambda _: False)
    parts = Parts(find_pack("tiny"), card, FP32)
    text = parts.text_encoders()
    assert text.device == card
    parts.vae()
    assert text.device == CPU
    parts.transformer()
    assert parts.text_encoders() is text
    assert text.device == card
