"""`goan plan` and its table."""

from pathlib import Path

import pytest

from tests.cli.conftest import Goan, content_of
from tests.conftest import MINIMAL, write_jobs


def squeezed(text: str | Path) -> str:
    """Text without white space: paths of any length, folded or not, compare."""
    return "".join(str(text).split())


def test_plan(folder: Path, goan: Goan) -> None:
    """A plan shows model, crop, exact length, sampling, guidance, seed, LoRA matches, output and sections."""
    job = {
        "image": "start.png",
        "prompt": "a ball",
        "seconds": 2,
        "seed": 7,
        "size": [64, 64],
        "loras": [{"path": "style.safetensors", "weight": 0.5}],
    }
    before = content_of(folder)
    run = goan("plan", write_jobs(folder / "shot.yaml", job))
    assert (run.code, run.err) == (0, "")
    for text in (
        "tiny (inverted)",
        "160x120, resized to 85x64, 25% cut off",
        "64x64, 61 frames, 2.03 s at 30 fps (asked for 2 s; a section is 0.4 s)",
        "5 sections of 8 steps, window 3",
        "distilled 10, true CFG off",
        "style.safetensors x 0.5: 3 of 3 keys act on 1 modules",
        str(folder / "renders" / "shot.mp4"),
    ):
        assert squeezed(text) in squeezed(run.out)
    rows = [line for line in run.out.splitlines() if line.startswith("│")]
    assert [row.split("│")[2].strip() for row in rows] == ["3", "2", "2", "1", "0"]
    assert [row.split("│")[3].strip() for row in rows] == ["49 - 60", "37 - 48", "25 - 36", "13 - 24", "0 - 12"]
    assert set(content_of(folder)) - set(before) == {"shot.yaml"}


def test_several_plans(folder: Path, goan: Goan) -> None:
    """Every job of every file is shown, in order."""
    first = write_jobs(folder / "a.yaml", {"jobs": [dict(MINIMAL), dict(MINIMAL)]})
    second = write_jobs(folder / "b.yaml", dict(MINIMAL))
    run = goan("plan", first, second)
    places = [run.out.index(f"{name} ─") for name in ("a-1", "a-2", "b")]
    assert places == sorted(places)


def test_notes(folder: Path, goan: Goan) -> None:
    """What acts otherwise than one may think is said: weight zero, an unused negative prompt, a step cache."""
    job = {
        **MINIMAL,
        "negative_prompt": "blur",
        "step_cache": "teacache",
        "loras": [{"path": "style.safetensors", "weight": 0}],
    }
    out = goan("plan", write_jobs(folder / "shot.yaml", job)).out
    assert "style.safetensors has weight 0 and is left out" in out
    assert "the negative prompt is not used" in out
    assert "TeaCache, threshold 0.15 (approximate)" in out


def test_a_drawn_seed_is_not_promised(folder: Path, goan: Goan) -> None:
    """Without a seed the plan promises none, neither in a row of its own nor in the name of the output."""
    run = goan("plan", "--image", folder / "start.png", "--prompt", "x")
    assert "drawn when it renders" in run.out
    output = squeezed(run.out.partition("\noutput ")[2].partition("\nsections")[0])
    assert not any(character.isdecimal() for character in Path(output).name.removesuffix(".mp4"))


@pytest.mark.parametrize(
    "prompt", ["a [/b] c", "a [red]ball[/red]", "[bold]", "[link=x]y", "back\\slash [x]", "(ball:1.2) [[cat]]"]
)
def test_brackets_are_shown_as_they_are(folder: Path, goan: Goan, prompt: str) -> None:
    """Brackets in a prompt are text, not markup of the console."""
    run = goan("plan", "--image", folder / "start.png", "--prompt", prompt)
    assert run.code == 0
    row = next(line for line in run.out.splitlines() if line.startswith("prompt"))
    assert row.split(maxsplit=1)[1].strip() == prompt


def test_brackets_in_paths(folder: Path, goan: Goan) -> None:
    """Brackets in paths are shown too."""
    (folder / "[draft]").mkdir()
    image = (folder / "start.png").rename(folder / "[draft]" / "start.png")
    run = goan("plan", "--image", image, "--prompt", "x", "--out", folder / "[bold]")
    assert run.code == 0
    assert squeezed(image) in squeezed(run.out)
    assert squeezed(folder / "[bold]") in squeezed(run.out)


def test_long_prompts(folder: Path, goan: Goan) -> None:
    """A prompt longer than the line is shown whole."""
    prompt = " ".join(f"word{number}" for number in range(100))
    run = goan("plan", "--image", folder / "start.png", "--prompt", prompt)
    assert all(word in run.out for word in prompt.split())
