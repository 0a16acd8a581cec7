"""Recorded settings and the short job that comes to the same."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.checking import checked
from goan_cli.documents import Document
from goan_cli.errors import InvalidJobs
from goan_cli.jobs.paths import with_paths
from goan_cli.jobs.schema import JobSpec
from goan_cli.output.sidecar import settings_of
from goan_cli.recipes.settings import relative, short_job
from tests.conftest import MINIMAL, plan_files, write_jobs

NOWHERE = Document(data=None, file=None)


def test_relative_paths(tmp_path: Path) -> None:
    """Paths are relative where there is a way, and absolute where it leads over the root, or where it would mislead."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    assert relative(str(folder / "a.png"), folder) == "a.png"
    assert relative(str(tmp_path / "stills" / "a.png"), folder) == "../stills/a.png"
    assert relative("/somewhere/a.png", folder) == "/somewhere/a.png"
    assert relative(str(folder / "~a.png"), folder) == str(folder / "~a.png")
    # From a linked folder, `..` leads to the parent of what it links to.
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "deep")
    assert relative(str(tmp_path / "a.png"), link) == str(tmp_path / "a.png")
    assert relative(str(link / "a.png"), link) == "a.png"


def test_only_what_differs(folder: Path) -> None:
    """Of a job that leaves everything open, only what the model and the file decide is said."""
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**MINIMAL, "seed": 3}))
    job = short_job({**settings_of(plan.job), "output": {}}, None)
    assert list(job) == ["model", "image", "prompt", "sections", "size", "seed", "steps", "window"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"step_cache": "teacache"}, {"step_cache": "teacache"}),
        ({"step_cache": "magcache"}, {"step_cache": "magcache"}),
        ({"step_cache": {"threshold": 0.3}}, {"step_cache": {"kind": "teacache", "threshold": 0.3}}),
        ({"loras": ["style.safetensors"]}, {"loras": ["style.safetensors"]}),
        (
            {"loras": [{"path": "style.safetensors", "weight": 0.5, "exclude": "x*"}]},
            {"loras": [{"path": "style.safetensors", "weight": 0.5, "exclude": ["x*"]}]},
        ),
        ({"end_image": "start.png"}, {"end_image": "start.png"}),
        ({"loop": True, "end_strength": 0.5}, {"loop": True, "end_strength": 0.5}),
        (
            {"guidance_schedule": {"end": 4}, "guidance_scale": 6},
            {"guidance_schedule": {"end": 4}, "guidance_scale": 6},
        ),
        (
            {"timeline": [{"at": 0, "prompt": "x", "loras": ["style.safetensors"]}]},
            {"timeline": [{"at": 0, "prompt": "x", "loras": ["style.safetensors"]}]},
        ),
        ({"gates": {"black": "fail", "nan": "fail"}}, {"gates": {"black": "fail"}}),
        ({"output": {"crf": 20}}, {"output": {"crf": 20}}),
        ({"memory": "12GB"}, {"memory": "12000000000B"}),
        ({"retry_seeds": 2}, {"retry_seeds": 2}),
        ({"one_frame": {"target": 1, "no_2x": True}, "sections": None}, {"one_frame": {"target": 1, "no_2x": True}}),
        (
            {"one_frame": {"target": 4, "controls": [{"image": "start.png", "index": 0}]}, "sections": None},
            {"one_frame": {"target": 4, "controls": [{"image": "start.png", "index": 0}]}},
        ),
        ({"start": "grey", "image": None, "size": [32, 48]}, {"start": "grey", "size": [32, 48]}),
        ({"post": {"interpolate": 60}}, {"post": {"interpolate": 60}}),
        (
            {"output": {"format": "webm", "crf": 30, "poster": True}},
            {"output": {"format": "webm", "codec": "vp9", "crf": 30, "poster": True}},
        ),
    ],
    ids=str,
)
def test_what_differs(folder: Path, keys: dict[str, Any], said: dict[str, Any]) -> None:
    """What a job says beyond the defaults is said again, in its shortest form, and comes to the same job."""
    (plan,) = plan_files(write_jobs(folder / "shot.yaml", {**MINIMAL, "seed": 3, **keys}))
    settings = settings_of(plan.job)
    short = with_paths(short_job(settings, None), lambda path: relative(path, folder))
    (silent,) = plan_files(write_jobs(folder / "silent.yaml", {**MINIMAL, "seed": 3}))
    plain = with_paths(short_job(settings_of(silent.job), None), lambda path: relative(path, folder))
    new = {key: value for key, value in short.items() if plain.get(key) != value}
    if "output" in said:
        new["output"] = {key: value for key, value in new["output"].items() if key != "dir"}
    assert new == said
    (again,) = plan_files(write_jobs(folder / "shot.yaml", short))
    assert settings_of(again.job) == settings


def test_settings_that_are_no_job() -> None:
    """Every key that a job cannot have is told with its place."""
    with pytest.raises(InvalidJobs) as caught:
        short_job({"prompt": 3, "stepz": 1, "image": "a\0"}, Path("x.json"))
    assert sorted(str(problem).split(":")[1].strip() for problem in caught.value.problems) == [
        "image",
        "prompt",
        "stepz",
    ]


_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.sampled_from(["a.png", "/b", "off", "\0"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["path", "weight", "at", "image", "loras", "end", "dir", "crf"]), inner),
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(list(JobSpec.model_fields)), _JSON))
def test_whatever_it_holds(settings: dict[str, Any]) -> None:
    """Settings of any shape come to a job of goan's, or to the list of what is wrong with them."""
    moved = with_paths(settings, lambda path: relative(path, Path("/a/b")))
    problems = checked(JobSpec, {key: value for key, value in moved.items() if value is not None}, NOWHERE).problems
    if problems:
        with pytest.raises(InvalidJobs):
            short_job(moved, None)
    else:
        assert checked(JobSpec, short_job(moved, None), NOWHERE).problems == []
