"""The parts of a pack: each loaded once, and on a small card one at a time on the device."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from goan_cli.packs.find import find_pack
from goan_cli.render.device import Precision
from goan_cli.render.parts import Parts
from tests.helpers import CPU


def _nothing() -> None:
    pass


FP32 = Precision(transformer=torch.float32, encoders=torch.float32)


def test_each_part_is_loaded_once() -> None:
    """Asking again gives the same object."""
    parts, pack = Parts(CPU, FP32, make_room=_nothing), find_pack("tiny")
    for ask in (parts.text_encoders, parts.image_encoder, parts.vae):
        assert ask(pack) is ask(pack)


def test_packs_share_what_they_name_together() -> None:
    """Two packs with the same folders have one encoder and one VAE."""
    parts, inverted, forward = Parts(CPU, FP32, make_room=_nothing), find_pack("tiny"), find_pack("tiny-f1")
    for ask in (parts.text_encoders, parts.image_encoder, parts.vae):
        assert ask(inverted) is ask(forward)


def test_a_part_is_told_apart_by_its_configuration(tmp_path: Path) -> None:
    """The same weights described by another file are another part."""
    parts, pack = Parts(CPU, FP32, make_room=_nothing), find_pack("tiny")
    configs = {part: tmp_path / f"{part}.json" for part in pack.configs}
    for part, config in configs.items():
        shutil.copyfile(pack.config_of(part), config)
    other = replace(pack, configs=configs)
    for ask in (parts.text_encoders, parts.image_encoder, parts.vae):
        assert ask(pack) is not ask(other)
        assert ask(other) is ask(other)


def test_text_encoders_can_be_let_go() -> None:
    """Once forgotten, they are loaded anew when asked for; the other parts stay."""
    parts, pack = Parts(CPU, FP32, make_room=_nothing), find_pack("tiny")
    text, vae = parts.text_encoders(pack), parts.vae(pack)
    parts.forget_text_encoders()
    assert parts.text_encoders(pack) is not text
    assert parts.vae(pack) is vae


def test_one_part_at_a_time_on_a_small_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the parts do not fit together, whichever is asked for is on the device and the others are not.

    Before the text encoders, which are the largest, the card is emptied of what is not among the parts.
    """
    # `cpu:0` stands for the card: the same memory, told apart from `cpu` by its name.
    card = torch.device("cpu", 0)
    monkeypatch.setattr("goan_cli.render.parts.is_roomy", lambda _: False)
    emptied: list[bool] = []
    parts, pack = Parts(card, FP32, make_room=lambda: emptied.append(True)), find_pack("tiny")
    text = parts.text_encoders(pack)
    assert text.device == card
    parts.vae(pack)
    assert text.device == CPU
    assert len(emptied) == 1
    assert parts.text_encoders(pack) is text
    assert text.device == card
    assert len(emptied) == 2
    parts.step_aside()
    assert text.device == CPU
