"""What the command line asks for, and everything that it can get wrong: one message, exit code 2, nothing written."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from goan_cli.cli.options import Asked, plans_for
from goan_cli.errors import InvalidInput, InvalidJobs
from goan_cli.packs.manifest import SHIPPED
from tests.cli.conftest import Goan, content_of
from tests.conftest import MINIMAL, TARGET, write_jobs, write_lora
from tests.helpers import TINY_CONFIG, TINY_SQUARE


def asked(**given: Any) -> Asked:
    """A command line of these options only."""
    nothing: dict[str, Any] = {
        "files": (),
        "image": None,
        "prompt": None,
        "loras": (),
        "model": None,
        "preset": None,
        "seconds": None,
        "seed": None,
        "name": None,
        "settings": (),
        "out": None,
    }
    return Asked(**{**nothing, **given})


def test_a_job_without_a_file(folder: Path) -> None:
    """An image and a prompt make a job, named after the image and its seed."""
    (plan,) = plans_for(asked(image=Path("start.png"), prompt="x", seed=7))
    assert plan.job.name == "start-7"
    assert plan.job.pictures[0] == folder / "start.png"
    assert plan.job.output.dir == folder / "renders"
    (drawn,) = plans_for(asked(image=Path("start.png"), prompt="x"))
    assert drawn.job.name == f"start-{drawn.job.sampling.seed}"


def test_every_option(folder: Path) -> None:
    """Every option sets its key, and `--set` reaches the rest."""
    (plan,) = plans_for(
        asked(
            image=Path("start.png"),
            prompt="x",
            loras=["style.safetensors:0.5", "style.safetensors"],
            model="tiny",
            preset="draft",
            seconds=0.4,
            seed=3,
            name="mine",
            settings=["fps=24", "output.crf=20"],
            out=Path("there"),
        )
    )
    job = plan.job
    assert (job.name, job.model, job.seconds, job.fps) == ("mine", "tiny", 0.4, 24.0)
    assert (job.sampling.steps, job.sampling.seed) == (15, 3)
    assert [(lora.path.name, lora.weight) for lora in job.loras] == [
        ("style.safetensors", 0.5),
        ("style.safetensors", 1.0),
    ]
    assert (job.output.dir, job.output.crf) == (folder / "there", 20)


def test_options_override_every_file(folder: Path) -> None:
    """Options stand above all jobs of all files; `--out` above their folders."""
    first = write_jobs(folder / "a.yaml", {"jobs": [{**MINIMAL, "seed": 1}, {**MINIMAL, "steps": 9}]})
    second = write_jobs(folder / "b.yaml", {**MINIMAL, "output": {"dir": "x"}})
    plans = plans_for(asked(files=[first, second], seed=5, settings=["steps=2"], out=Path("there")))
    assert [plan.job.sampling.seed for plan in plans] == [5, 5, 5]
    assert [plan.job.sampling.steps for plan in plans] == [2, 2, 2]
    assert {plan.job.output.dir for plan in plans} == {folder / "there"}


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.75", "style.safetensors", 0.75),
        ("style.safetensors:-1", "style.safetensors", -1.0),
        ("./style.safetensors:1e-1", "style.safetensors", 0.1),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("a:b.safetensors:2", "a:b.safetensors", 2.0),
    ],
)
def test_lora_options(folder: Path, text: str, path: str, weight: float) -> None:
    """A LoRA is a file, or a file and a weight after the last colon; other colons belong to the name."""
    shutil.copy(folder / "style.safetensors", folder / "a:b.safetensors")
    (plan,) = plans_for(asked(image=Path("start.png"), prompt="x", loras=[text]))
    assert [(lora.adapter.path, lora.use.weight) for lora in plan.loras] == [(folder / path, weight)]


def test_nothing_asked_for() -> None:
    """Neither a file nor a setting is an error with a hint."""
    with pytest.raises(InvalidInput, match="nothing to render"):
        plans_for(asked())


def test_one_setting_wrong(folder: Path) -> None:
    """A wrong option is told as the command line's."""
    with pytest.raises(InvalidJobs) as caught:
        plans_for(asked(image=Path("start.png"), prompt="x", seconds=0.0, name="a/b"))
    keys = sorted(problem.key or "" for problem in caught.value.problems)
    assert keys == ["name", "seconds"]
    assert all(problem.file == Path("command line") for problem in caught.value.problems)


# -- bad input, through `goan render`


def _text_as_image(folder: Path) -> dict[str, Any]:
    (folder / "bad.png").write_text("no picture")
    return {"image": "bad.png"}


def _truncated_image(folder: Path) -> dict[str, Any]:
    Image.effect_noise((64, 64), 50).save(folder / "whole.png")
    (folder / "bad.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    return {"image": "bad.png"}


def _lora_of(content: bytes) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        (folder / "bad.safetensors").write_bytes(content)
        return {"loras": ["bad.safetensors"]}

    return make


def _truncated_lora(folder: Path) -> dict[str, Any]:
    (folder / "bad.safetensors").write_bytes((folder / "style.safetensors").read_bytes()[:-9])
    return {"loras": ["bad.safetensors"]}


def _other_model(folder: Path) -> dict[str, Any]:
    target = "lora_unet_down_blocks_0_attentions_0_proj_in"
    return {"loras": [str(write_lora(folder / "bad.safetensors", target=target))]}


def _other_width(folder: Path) -> dict[str, Any]:
    return {"loras": [str(write_lora(folder / "bad.safetensors", width=128))]}


def _half_pair(folder: Path) -> dict[str, Any]:
    return {"loras": [str(write_lora(folder / "bad.safetensors", drop="lora_up.weight"))]}


def _alpha_alone(folder: Path) -> dict[str, Any]:
    save_file({f"{TARGET}.alpha": np.array(1.0, dtype=np.float32)}, folder / "bad.safetensors")
    return {"loras": ["bad.safetensors"]}


def _whole_weights(folder: Path) -> dict[str, Any]:
    save_file(
        {"transformer_blocks.0.attn.to_q.weight": np.zeros(TINY_SQUARE, dtype=np.float32)}, folder / "bad.safetensors"
    )
    return {"loras": ["bad.safetensors"]}


def _no_tensors(folder: Path) -> dict[str, Any]:
    save_file({}, folder / "bad.safetensors")
    return {"loras": ["bad.safetensors"]}


def _pack(folder: Path) -> Path:
    shutil.copytree(SHIPPED["tiny"].parent, folder / "bad-pack")
    return folder / "bad-pack"


def _missing_part(folder: Path) -> dict[str, Any]:
    shutil.rmtree(_pack(folder) / "vae")
    return {"model": "./bad-pack"}


def _truncated_part(folder: Path) -> dict[str, Any]:
    file = _pack(folder) / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    return {"model": "./bad-pack"}


def _keys(**keys: Any) -> Callable[[Path], dict[str, Any]]:
    return lambda _: keys


BAD: list[tuple[str, Callable[[Path], dict[str, Any]], str]] = [
    ("unknown-key", _keys(stpes=3), r"shot.yaml:4: stpes: unknown key (did you mean steps?)"),
    ("wrong-type", _keys(steps="many"), "shot.yaml:4: steps: must be a whole number, not 'many'"),
    ("no-image", _keys(image="gone.png"), "gone.png: no such file"),
    ("folder-as-image", _keys(image="."), "is a folder, not an image"),
    ("text-as-image", _text_as_image, "bad.png: not an image"),
    ("truncated-image", _truncated_image, "bad.png: damaged or unreadable image"),
    ("no-seconds", _keys(seconds=0, sections=None), "seconds: must be greater than 0, not 0"),
    ("no-sections", _keys(sections=0), "sections: must be greater than or equal to 1, not 0"),
    ("odd-size", _keys(size=[72, 48]), "72 is not (near it: 64 and 80)"),
    ("no-lora", _keys(loras=["gone.safetensors"]), "loras[0].path: {folder}/gone.safetensors: no such file"),
    ("folder-as-lora", _keys(loras=["."]), "loras[0].path: "),
    (
        "text-as-lora",
        _lora_of(b"just words\n" * 9),
        "bad.safetensors: not a usable safetensors file: it holds plain text",
    ),
    ("empty-lora", _lora_of(b""), "the file is empty"),
    ("html-as-lora", _lora_of(b"<!DOCTYPE html><html>" * 9), "an HTML page"),
    ("pickle-as-lora", _lora_of(pickle.dumps({"a": 1}, protocol=2)), "goan never opens pickles"),
    ("lfs-as-lora", _lora_of(b"version https://git-lfs.github.com/spec/v1\noid x\n"), "git lfs pull"),
    ("gguf-as-lora", _lora_of(b"GGUF\3\0\0\0" + b"\0" * 99), "a GGUF file"),
    ("truncated-lora", _truncated_lora, "bad.safetensors: not a usable safetensors file: it is truncated"),
    ("other-model", _other_model, "trained for Stable Diffusion"),
    (
        "other-width",
        _other_width,
        f"transformer_blocks.0.attn.to_q is {TINY_CONFIG.width} x {TINY_CONFIG.width} (trained for a model",
    ),
    ("half-pair", _half_pair, "half a module: alpha, down without up"),
    ("alpha-alone", _alpha_alone, "half a module: only alpha"),
    ("whole-weights", _whole_weights, "a checkpoint of whole weights, not a LoRA"),
    ("no-tensors", _no_tensors, "holds no tensors"),
    ("no-pack", _keys(model="framepack"), "shot.yaml:4: model: no model pack named framepack"),
    ("no-pack-folder", _keys(model="./gone"), "model: {folder}/gone: no such model pack"),
    ("missing-part", _missing_part, "{folder}/bad-pack/vae: the pack's vae is missing"),
    ("truncated-part", _truncated_part, "not a usable safetensors file: it is truncated"),
]


@pytest.mark.parametrize(("make", "said"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(folder: Path, goan: Goan, make: Callable[[Path], dict[str, Any]], said: str) -> None:
    """Bad input is one clear line and exit code 2; nothing is written and earlier results stay, byte for byte."""
    keys = {**MINIMAL, **make(folder)}
    write_jobs(folder / "shot.yaml", {key: value for key, value in keys.items() if value is not None})
    (folder / "renders").mkdir()
    (folder / "renders" / "shot.mp4").write_bytes(b"an earlier video")
    (folder / "renders" / "shot.json").write_bytes(b"an earlier sidecar")
    before = content_of(folder)
    run = goan("render", "shot.yaml")
    assert (run.code, run.out) == (2, "")
    (line,) = run.err.splitlines()
    assert line.startswith("error: ")
    assert said.format(folder=folder) in line
    assert content_of(folder) == before


def test_one_bad_job_stops_all(folder: Path, goan: Goan) -> None:
    """One bad job among good ones, in another file too, stops the run before anything is rendered."""
    good = write_jobs(folder / "good.yaml", dict(MINIMAL))
    bad = write_jobs(folder / "bad.yaml", {"jobs": [dict(MINIMAL), {**MINIMAL, "loras": ["gone"]}]})
    before = content_of(folder)
    run = goan("render", good, bad)
    assert run.code == 2
    assert len(run.err.splitlines()) == 1
    assert content_of(folder) == before


def test_two_jobs_with_one_output(folder: Path, goan: Goan) -> None:
    """A name for several jobs on the command line would write one file twice, and is refused."""
    path = write_jobs(folder / "shots.yaml", {"jobs": [dict(MINIMAL), dict(MINIMAL)]})
    run = goan("render", path, "--name", "same")
    assert run.code == 2
    assert "two jobs would write" in run.err
    assert not (folder / "renders").exists()


def test_an_output_over_a_job_file(folder: Path) -> None:
    """A job in JSON, whose sidecar would replace the very file that describes it, is refused."""
    path = write_jobs(folder / "shot.json", '{"image": "start.png", "prompt": "x", "sections": 1}')
    with pytest.raises(InvalidInput):
        plans_for(asked(files=[path], out=folder))
