"""`goan plan` and its table."""

import json
import re
from pathlib import Path

import pytest

from goan_cli.batch.run import render_jobs
from goan_cli.batch.stop import Stop
from goan_cli.batch.survey import RunSettings
from goan_cli.render.events import CheckpointWritten
from tests.cli.conftest import Goan, content_of
from tests.clips import numbered_frames, write_clip
from tests.conftest import MINIMAL, plan_files, write_jobs

QUICK = {**MINIMAL, "steps": 1, "size": [32, 16], "window": 1, "seed": 7}


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
    output = squeezed(run.out.partition("\noutput ")[2].partition("\nstate ")[0])
    assert not any(character.isdecimal() for character in Path(output).name.removesuffix(".mp4"))


# -- many jobs


def rows_of(out: str) -> list[list[str]]:
    """The cells of a table's rows, its head first."""
    lines = [line.replace("┃", "│") for line in out.splitlines()]
    return [[cell.strip() for cell in line.split("│")] for line in lines if "│" in line]


def test_many_jobs_are_one_table(folder: Path, goan: Goan) -> None:
    """More than eight jobs are a row each, in order, with what they ask for; the last line counts the work."""
    loras = ["style.safetensors", {"path": "style.safetensors", "weight": 0.5}]
    job = {**MINIMAL, "prompt": "a [ball]", "size": [64, 48], "steps": 4, "fps": 24, "sections": 2, "loras": loras}
    weights = {"loras.1.weight": [0.5, 0.25], "seed": [1, 2, 3, 4, 5]}
    run = goan("plan", write_jobs(folder / "shot.yaml", {**job, "matrix": weights}))
    assert (run.code, run.err) == (0, "")
    rows = rows_of(run.out)
    assert rows[0] == ["job", "size", "seconds", "steps", "LoRAs", "state", "prompt"]
    assert rows[1:] == [
        [
            f"shot-weight={weight}-seed={seed}",
            "64x48",
            "1.04",
            "2 x 4",
            f"style x 1, style x {weight}",
            "new",
            "a [ball]",
        ]
        for weight in ("0.5", "0.25")
        for seed in range(1, 6)
    ]
    assert run.out.splitlines()[-1] == "10 jobs, 10 to render: 2 recipes, 80 steps"


@pytest.mark.parametrize(("count", "table"), [(8, False), (9, True)])
def test_few_jobs_are_shown_in_full(folder: Path, goan: Goan, count: int, table: bool) -> None:
    """Up to eight jobs are shown one by one, with their sections."""
    run = goan("plan", write_jobs(folder / "shot.yaml", {**MINIMAL, "matrix": {"seed": list(range(count))}}))
    assert run.out.count("sections in sampling order") == (0 if table else count)
    assert all(f"shot-seed={seed}" in run.out for seed in range(count))


def test_the_table_counts_what_is_left(folder: Path, goan: Goan) -> None:
    """Jobs that are up to date stand in the table as such, and are not counted as work."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "seed": None, "matrix": {"seed": list(range(10, 19))}})
    assert goan("render", path, "--jobs", "*=12", "--jobs", "*=15").code == 0
    run = goan("plan", path)
    states = [row[5] for row in rows_of(run.out)[1:]]
    assert states == ["new", "new", "up to date", "new", "new", "up to date", "new", "new", "new"]
    assert run.out.splitlines()[-1] == "9 jobs, 7 to render: 1 recipe, 7 steps"


# -- which jobs


def shown(out: str) -> list[str]:
    """The names of the jobs that are shown in full."""
    return [line.split(" ─")[0] for line in out.splitlines() if " ─" in line]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["night-*"], ["night-1", "night-2"]),
        (["day", "*-2"], ["night-2", "day"]),
        (["*"], ["night-1", "night-2", "day"]),
    ],
)
def test_jobs_by_name(folder: Path, goan: Goan, patterns: list[str], names: list[str]) -> None:
    """`--jobs` plans the jobs whose names match a pattern, in the order of the files."""
    first = write_jobs(folder / "night.yaml", {"jobs": [dict(MINIMAL), dict(MINIMAL)]})
    second = write_jobs(folder / "day.yaml", dict(MINIMAL))
    run = goan("plan", first, second, *(word for pattern in patterns for word in ("--jobs", pattern)))
    assert (run.code, shown(run.out)) == (0, names)


def test_no_job_of_that_name(folder: Path, goan: Goan) -> None:
    """A pattern that no job matches is refused with the nearest name, whatever the other patterns match."""
    path = write_jobs(folder / "night.yaml", {"jobs": [dict(MINIMAL), dict(MINIMAL)]})
    run = goan("plan", path, "--jobs", "night-1", "--jobs", "nihgt-2")
    assert (run.code, run.out) == (2, "")
    assert run.err == "error: --jobs nihgt-2: no job has such a name (did you mean night-2?)\n"


def test_problems_are_told_whatever_is_chosen(folder: Path, goan: Goan) -> None:
    """A job that is not chosen is still checked for what its file says wrongly."""
    path = write_jobs(folder / "night.yaml", {"jobs": [dict(MINIMAL), {**MINIMAL, "stpes": 3}]})
    run = goan("plan", path, "--jobs", "night-1")
    assert run.code == 2
    assert "jobs[1].stpes: unknown key" in run.err


def test_folder_of_jobs(folder: Path, goan: Goan) -> None:
    """A folder is planned as all its job files, by name; an empty one is refused."""
    (folder / "shots" / "empty").mkdir(parents=True)
    for name in ("b", "a"):
        write_jobs(folder / "shots" / f"{name}.yaml", {**MINIMAL, "image": "../start.png"})
    run = goan("plan", folder / "shots")
    assert (run.code, shown(run.out)) == (0, ["a", "b"])
    run = goan("plan", folder / "shots" / "empty")
    assert run.code == 2
    assert "shots/empty: no job files in this folder" in run.err


# -- what is there already


def state_of(out: str) -> str:
    """What the plan of one job says of its state, without white space."""
    return squeezed(out.partition("\nstate ")[2].partition("\nsections")[0])


def test_states_of_a_job(folder: Path, goan: Goan) -> None:
    """A job is new, then up to date; changed, it is new under the next name, since the first is taken."""
    path = write_jobs(folder / "shot.yaml", QUICK)
    assert state_of(goan("plan", path).out) == "new"
    assert goan("render", path).code == 0
    before = content_of(folder)
    assert state_of(goan("plan", path).out) == "uptodate"
    video = folder / "renders" / "shot.mp4"
    changed = goan("plan", path, "--set", "seed=8").out
    assert shown(changed) == ["shot-2"]
    assert state_of(changed) == squeezed(f"new, {video} is another recipe's result")
    assert content_of(folder) == before
    video.unlink()
    assert state_of(goan("plan", path).out) == squeezed("new, shot.mp4 is gone")


def test_state_of_a_job_that_was_stopped(folder: Path, goan: Goan) -> None:
    """A job that was stopped in its middle says how much of it is done."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "sections": 4})
    stop = Stop()

    def listen(event: object) -> None:
        if isinstance(event, CheckpointWritten):
            stop.ask("enough")

    render_jobs(plan_files(path), RunSettings(device="cpu", stop=stop), listener=listen)
    assert state_of(goan("plan", path).out) == "25%done"


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


def test_table_with_long_prompts(folder: Path, goan: Goan) -> None:
    """A long prompt is cut, and leaves the other columns their room."""
    prompt = "a ball that rolls down the long street and on and on " * 4
    job = {**MINIMAL, "prompt": prompt, "matrix": {"seed": list(range(9))}}
    out = goan("plan", write_jobs(folder / "shot.yaml", job)).out
    assert all(f"shot-seed={seed}" in out for seed in range(9))
    assert "…" in out


# -- how a job is carried out


def row_of(out: str, label: str) -> str | None:
    """What the plan of one job says beside a label, as one line; None where the label is not."""
    lines = iter(out.splitlines())
    for line in lines:
        if line.split("  ")[0] == label:
            rest = [line.removeprefix(label)]
            for following in lines:
                if following[:1].strip():
                    break
                rest.append(following)
            return " ".join(" ".join(rest).split())
    return None


@pytest.mark.parametrize(
    ("key", "value", "shown_as"),
    [
        ("precision", "fp8", "fp8 (approximate)"),
        ("precision", "bf16", "bf16"),
        ("compile", "on", "on"),
        ("compile", True, "on"),
        ("compile", "off", "off"),
        ("attention", "sage", "sage (approximate)"),
        ("attention", "sdpa", "sdpa"),
        ("decode", "single", "single (cheaper, not FramePack's pixels)"),
    ],
)
def test_what_is_asked_of_the_execution(folder: Path, goan: Goan, key: str, value: object, shown_as: str) -> None:
    """Each key has a row where it is asked for, and none where it is left to goan."""
    run = goan("plan", write_jobs(folder / "shot.yaml", {**QUICK, key: value}))
    assert (run.code, row_of(run.out, key)) == (0, shown_as)
    rest = {"precision", "compile", "attention", "decode", "memory"} - {key}
    assert [row_of(run.out, each) for each in rest] == [None] * len(rest)
    default = {"decode": "overlap"}.get(key, "auto")
    assert row_of(goan("plan", folder / "shot.yaml", "--set", f"{key}={default}").out, key) is None


@pytest.mark.parametrize("memory", ["12GB", "7.5 GiB", "900MB"])
def test_memory_plan(folder: Path, goan: Goan, memory: str) -> None:
    """With a budget the plan says what stays on the device, and how much is used in all."""
    run = goan("plan", write_jobs(folder / "shot.yaml", {**QUICK, "memory": memory}))
    row = row_of(run.out, "memory")
    assert run.code == 0
    assert row is not None
    assert "all 6 blocks resident" in row
    assert row.endswith("in all")


def test_memory_that_is_too_small(folder: Path, goan: Goan) -> None:
    """A budget in which nothing fits is told in the plan, with what is needed."""
    run = goan("plan", write_jobs(folder / "shot.yaml", {**QUICK, "memory": "100MB"}))
    row = row_of(run.out, "memory")
    assert row is not None
    assert "too few" in row
    assert "the job needs" in row


@pytest.mark.parametrize(
    ("settings", "shown_as"),
    [
        ({"step_cache": "teacache"}, "TeaCache, threshold 0.15 (approximate)"),
        ({"step_cache": {"kind": "teacache", "threshold": 0.3}}, "TeaCache, threshold 0.3 (approximate)"),
        (
            {"step_cache": {"kind": "magcache", "threshold": 0.5}, "steps": 25},
            r"MagCache, threshold 0.5: computes \d+ of 25 steps (approximate)",
        ),
        ({"step_cache": "off"}, "off"),
    ],
)
def test_step_caches(folder: Path, goan: Goan, settings: dict[str, object], shown_as: str) -> None:
    """A step cache is shown with its threshold, MagCache with the steps that it computes."""
    row = row_of(goan("plan", write_jobs(folder / "shot.yaml", {**QUICK, **settings})).out, "step cache")
    assert row is not None
    pattern = re.escape(shown_as).replace(re.escape(r"\d+"), r"(\d+)")
    found = re.fullmatch(pattern, row)
    assert found
    assert all(1 < int(count) < 25 for count in found.groups())


@pytest.mark.parametrize(
    ("output", "shown_as"),
    [
        ({}, ["output", "shot.mp4"]),
        ({"format": "webm", "codec": "av1", "crf": 30}, ["shot.webm", "format", "webm, av1, crf 30"]),
        ({"format": "gif"}, ["shot.gif", "format", "gif"]),
        ({"keep": ["sections", "latents"], "poster": True}, ["beside it", "latents, sections, poster"]),
        ({"metadata": False}, ["metadata", "none"]),
        ({"template": "{name}-{steps}"}, ["shot-25.mp4"]),
    ],
)
def test_outputs(folder: Path, goan: Goan, output: dict[str, object], shown_as: list[str]) -> None:
    """A plan says how the video is written where it is no plain MP4, and what comes beside it."""
    shown = goan("plan", write_jobs(folder / "shot.yaml", {**QUICK, "steps": 25, "seed": 1, "output": output})).out
    assert all(word in " ".join(shown.split()) for word in shown_as), shown
    if not output:
        assert "beside it" not in shown
        assert "format" not in shown
        assert "metadata" not in shown


def test_magcache_without_a_calibration(folder: Path, goan: Goan) -> None:
    """MagCache for steps that were not calibrated is refused at its line, with the command that calibrates them."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "step_cache": "magcache", "steps": 7})
    run = goan("plan", path)
    line = path.read_text(encoding="utf-8").splitlines().index("step_cache: magcache") + 1
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith(f"error: {path}:{line}: step_cache: ")
    assert "no calibration of MagCache for 7 steps" in run.err
    assert "goan bench --calibrate --model tiny --steps 7" in run.err


def test_wrong_memory(folder: Path, goan: Goan) -> None:
    """An amount that is none is refused at its line."""
    path = write_jobs(folder / "shot.yaml", {**QUICK, "memory": "12 apples"})
    run = goan("plan", path)
    line = path.read_text(encoding="utf-8").splitlines().index("memory: 12 apples") + 1
    assert run.code == 2
    assert run.err == f"error: {path}:{line}: memory: must be auto or a size such as 12GB, not '12 apples'\n"


def test_execution_in_the_sidecar(folder: Path, goan: Goan) -> None:
    """What was asked for is in the sidecar's settings, and what came of it in its record; so `plan` finds it done."""
    asked = {
        "precision": "fp8",
        "compile": "off",
        "attention": "sdpa",
        "memory": "12GB",
        "decode": "single",
        "step_cache": {"kind": "magcache", "threshold": 0.5},
        "steps": 8,
    }
    path = write_jobs(folder / "shot.yaml", {**QUICK, **asked})
    assert goan("render", path, "--device", "cpu").code == 0
    sidecar = json.loads((folder / "renders" / "shot.json").read_text(encoding="utf-8"))
    settings = {**asked, "memory": "12000000000B"}
    assert {key: sidecar["settings"][key] for key in asked} == settings
    assert (sidecar["dtype"], sidecar["compiled"], sidecar["memory"]) == ("fp8 linears, float32", False, None)
    (computed,) = sidecar["computed_steps"]
    assert computed[0] == 0
    assert len(computed) < 8
    (machine,) = sidecar["machines"]
    assert machine.startswith("cpu, fp8 linears, float32, sdpa attention, torch ")
    assert state_of(goan("plan", path).out) == "uptodate"
    for same in ("memory=6GB", "attention=cudnn", "compile=on"):
        assert state_of(goan("plan", path, "--set", same).out) == "uptodate"
    for other in ("precision=fp32", "attention=sage", "decode=overlap", "step_cache=off"):
        assert state_of(goan("plan", path, "--set", other).out).startswith("new")


@pytest.mark.parametrize(
    ("model", "keys", "told"),
    [
        (
            "tiny-f1",
            {"audio": True},
            (
                "goes on with",
                "48x32, resized to 96x64, 33% cut off; 40 frames at 30 fps, frames 3 - 39 are looked at",
                "before the new part, cross-faded over 9 frames, with its sound",
                "64x64, 64 frames, 2.13 s at 30 fps; 24 of them are new, 0.80 s",
                "none: it begins from the video",
            ),
        ),
        (
            "tiny",
            {"cross_fade": 0},
            ("leads up to", "frames 0 - 36 are looked at", "after the new part, not cross-faded"),
        ),
        ("tiny", {"join": False}, ("the new part alone, as it goes before", "64x64, 24 frames, 0.80 s at 30 fps")),
    ],
)
def test_a_video_that_is_gone_on_with(
    folder: Path, goan: Goan, model: str, keys: dict[str, object], told: tuple[str, ...]
) -> None:
    """The plan says how much of the video is read and looked at, and how long what is written will be."""
    write_clip(folder / "clip.mp4", numbered_frames(40), hertz=440)
    job = {"video": {"path": "clip.mp4", **keys}, "prompt": "a ball", "sections": 2, "size": [64, 64], "model": model}
    run = goan("plan", write_jobs(folder / "shot.yaml", job))
    assert (run.code, run.err) == (0, "")
    for text in told:
        assert squeezed(text) in squeezed(run.out)
    rows = [line.split("│") for line in run.out.splitlines() if line.startswith("│")]
    spans = [row[2 if model == "tiny-f1" else 3].strip() for row in rows]
    assert spans == (["40 - 51", "52 - 63"] if model == "tiny-f1" else ["13 - 23", "0 - 12"])


def test_post_is_shown(folder: Path, goan: Goan) -> None:
    """What finished frames go through is in the plan."""
    job = {**QUICK, "size": [64, 48], "post": {"interpolate": 60}}
    run = goan("plan", write_jobs(folder / "shot.yaml", job))
    assert (run.code, run.err) == (0, "")
    assert squeezed("post  interpolated to 60 fps") in squeezed(run.out)
    assert "interpolated" not in goan("plan", write_jobs(folder / "plain.yaml", QUICK)).out
