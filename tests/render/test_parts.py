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
    parts, pack = Parts(CPU, FP32), find_pack("tiny")
    for ask in (parts.text_encoders, parts.image_encoder, parts.vae):
        assert ask(pack) is ask(pack)
    assert parts.transformer(pack)[0] is parts.transformer(pack)[0]
    assert parts.transformer(pack)[1] is parts.transformer(pack)[1]


def test_packs_share_what_they_name_together() -> None:
    """Two packs with the same folders have one encoder and one VAE; of transformers, one is held at a time."""
    parts, inverted, forward = Parts(CPU, FP32), find_pack("tiny"), find_pack("tiny-f1")
    for ask in (parts.text_encoders, parts.image_encoder, parts.vae):
        assert ask(inverted) is ask(forward)
    first = parts.transformer(inverted)[0]
    assert parts.transformer(forward)[0] is not first
    assert parts.has_transformer(forward)
    assert not parts.has_transformer(inverted)


def test_text_encoders_can_be_let_go() -> None:
    """Once forgotten, they are loaded anew when asked for; the other parts stay."""
    parts, pack = Parts(CPU, FP32), find_pack("tiny")
    text, vae = parts.text_encoders(pack), parts.vae(pack)
    parts.forget_text_encoders()
    assert parts.text_encoders(pack) is not text
    assert parts.vae(pack) is vae


def test_one_part_at_a_time_on_a_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parts do not fit together, whichever is asked for is on the device and the others are not."""
    # `cpu:0` stands for the card: the same memory, told apart from `cpu` by its name.
    card = torch.device("cpu", 0)
    monkeypatch.setattr("goan_cli.render.parts.is_roomy", lambda _: False)
    parts, pack = Parts(card, FP32), find_pack("tiny")
    text = parts.text_encoders(pack)
    assert text.device == card
    parts.vae(pack)
    assert text.device == CPU
    parts.transformer(pack)
    assert parts.text_encoders(pack) is text
    assert text.device == card
