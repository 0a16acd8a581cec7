"""The original goan's keys: what each becomes, and what is said of those that become nothing."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goan_cli.checking import checked
from goan_cli.documents import Document, parse_document
from goan_cli.jobs.schema import JobSpec
from goan_cli.recipes.original import IMAGE_KEYS, ROWS, converted
from goan_cli.recipes.yaml_text import job_file_text
from tests.recipes.files import DEFAULTS

_LINEAR = {"variable_cfg_shape": "Linear", "distilled_cfg_end": 5}
_ROLL_OFF = {"variable_cfg_shape": "Roll-off", "distilled_cfg_end": 5}

# Key -> its value, what must stand beside it, the job it comes to (beside the prompt), and a word of the note on it.
CASES: Mapping[str, tuple[object, Mapping[str, Any], Mapping[str, Any], str]] = {
    "prompt": ("a cat", {}, {"prompt": "a cat"}, ""),
    "negative_prompt": ("blurry", {}, {"negative_prompt": "blurry"}, ""),
    "n_prompt": ("blurry", {}, {"negative_prompt": "blurry"}, ""),
    "video_length": (2.5, {}, {"seconds": 2.5}, "33 frames"),
    "total_second_length": (7, {}, {"seconds": 7}, "33 frames"),
    "seed": (42.0, {}, {"seed": 42}, ""),
    "fps": (24, {}, {"fps": 24}, ""),
    "steps": (30, {}, {"steps": 30}, ""),
    "latent_window_size": (9, {}, {"window": 9}, ""),
    "distilled_cfg_start": (7.5, {}, {"guidance_scale": 7.5}, ""),
    "gs": (7.5, {}, {"guidance_scale": 7.5}, ""),
    "distilled_cfg_end": (3, {"variable_cfg_shape": "Linear"}, {"guidance_schedule": {"end": 3}}, ""),
    "variable_cfg_shape": ("Linear", {"distilled_cfg_end": 5}, {"guidance_schedule": {"end": 5}}, ""),
    "gs_schedule_shape": (True, {"distilled_cfg_end": 5}, {"guidance_schedule": {"end": 5}}, ""),
    "roll_off_start": (
        60,
        _ROLL_OFF,
        {"guidance_schedule": {"shape": "roll-off", "end": 5, "start_at": 0.6}},
        "",
    ),
    "roll_off_factor": (2, _ROLL_OFF, {"guidance_schedule": {"shape": "roll-off", "end": 5, "curve": 2}}, ""),
    "real_cfg": (1.5, {}, {"true_cfg_scale": 1.5}, ""),
    "cfg": (1.5, {}, {"true_cfg_scale": 1.5}, ""),
    "guidance_rescale": (0.7, {}, {"guidance_rescale": 0.7}, ""),
    "rs": (0.7, {}, {"guidance_rescale": 0.7}, ""),
    "use_teacache": (True, {}, {"step_cache": "teacache"}, ""),
    "use_fp32_transformer_output": (False, {}, {}, "always so here"),
    "mp4_crf": (0, {}, {"output": {"crf": 1}}, "becomes 1"),
    "loras": (
        [{"path": "a.safetensors", "weight": 0.5}],
        {},
        {"loras": [{"path": "a.safetensors", "weight": 0.5}]},
        "",
    ),
    "lora_controls": ({"a": {"weight": -1}}, {}, {"loras": [{"path": "a.safetensors", "weight": -1}]}, ""),
    "gpu_memory_preservation": (6, {}, {}, "no counterpart"),
    "output_folder": ("/x", {}, {}, "no counterpart"),
    "preview_frequency": (5, {}, {}, "no counterpart"),
    "preview_specified_segments": ("1,2", {}, {}, "no counterpart"),
}


def test_every_row_has_a_case() -> None:
    """The table has nothing that is not looked at here, and each key once."""
    assert [row.key for row in ROWS] == list(dict.fromkeys(row.key for row in ROWS))
    assert {row.key for row in ROWS} == set(CASES)


@pytest.mark.parametrize("key", CASES)
def test_a_row(key: str) -> None:
    """Each key of the original's comes to its key here, and what is not the same is said."""
    value, beside, job, word = CASES[key]
    found = converted({"prompt": "x", **beside, key: value})
    assert found.job == {"prompt": "x", **job}
    assert len(found.notes) == bool(word)
    assert all(note.startswith(f"{key}: ") and word in note for note in found.notes)


@pytest.mark.parametrize(
    ("keys", "job"),
    [
        ({"negative_prompt": ""}, {}),
        ({"seed": -1}, {}),
        ({"use_teacache": False}, {}),
        ({"use_fp32_transformer_output": True}, {}),
        ({"mp4_crf": 18}, {"output": {"crf": 18}}),
        ({"loras": []}, {}),
        (
            {"loras": ["a.safetensors", ["b", 1]]},
            {"loras": [{"path": "a.safetensors", "weight": 0.8}, "b.safetensors"]},
        ),
        ({"loras": {"a": 0.3}}, {"loras": [{"path": "a.safetensors", "weight": 0.3}]}),
        ({"variable_cfg_shape": "Off", "distilled_cfg_end": 3}, {}),
        ({"gs_schedule_shape": False, "distilled_cfg_end": 3}, {}),
        ({**_LINEAR, "roll_off_start": 50, "roll_off_factor": 2}, {"guidance_schedule": {"end": 5}}),
        ({"distilled_cfg_start": 10, "real_cfg": 1.0, "guidance_rescale": 0, "fps": 30}, {}),
        (dict.fromkeys(IMAGE_KEYS, "x.png"), {}),
        (dict.fromkeys([*CASES, "whatever"]), {}),
    ],
    ids=str,
)
def test_without_a_word(keys: dict[str, Any], job: dict[str, Any]) -> None:
    """Values that say nothing, or nothing else than goan's defaults, are left out, and nothing needs saying."""
    found = converted({**keys, "prompt": "x"})
    assert (found.job, found.notes) == ({"prompt": "x", **job}, ())


def test_the_defaults() -> None:
    """A recipe as the original writes it comes to a short job."""
    found = converted(DEFAULTS)
    assert found.job == {
        "prompt": "a dancer turns",
        "seconds": 5.0,
        "steps": 25,
        "window": 9,
        "step_cache": "teacache",
        "output": {"crf": 18},
    }
    assert {note.split(":")[0] for note in found.notes} == {
        "video_length",
        "use_fp32_transformer_output",
        "preview_frequency",
        "preview_specified_segments",
        "gpu_memory_preservation",
        "output_folder",
    }


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("prompt", 3, "must be text, not 3"),
        ("prompt", ["a"], "must be text, not a list"),
        ("prompt", "\ud800", "holds half characters"),
        ("video_length", "5", "must be a number, not '5'"),
        ("video_length", True, "must be a number, not true"),
        ("video_length", float("nan"), "must be a number in reach"),
        ("video_length", 10**400, "must be a number in reach"),
        ("video_length", 0, "must be greater than 0"),
        ("video_length", 900, "must be less than or equal to 600"),
        ("seed", 1.5, "must be a whole number, not 1.5"),
        ("seed", -2, "must be greater than or equal to 0"),
        ("seed", float("inf"), "must be a number in reach"),
        ("fps", 0, "must be greater than or equal to 1"),
        ("steps", {}, "must be a number, not keys and values"),
        ("steps", 10**9, "must be less than or equal to 1000"),
        ("distilled_cfg_start", -1, "must be greater than or equal to 0"),
        ("distilled_cfg_end", 101, "must be less than or equal to 100"),
        ("variable_cfg_shape", "Wavy", "must be Off, Linear or Roll-off"),
        ("gs_schedule_shape", 1, "must be text, not 1"),
        ("roll_off_start", 101, "must be a percentage"),
        ("roll_off_factor", 0, "must be greater than 0"),
        ("use_teacache", "yes", "must be true or false, not 'yes'"),
        ("mp4_crf", 60, "must be from 0 to 51"),
        ("loras", "a", "must be a list, not 'a'"),
        ("loras", [3], "must be LoRAs with weights, not 3"),
        ("loras", [{}], "must be text, not null"),
        ("loras", [" "], "must have a path"),
        ("loras", [{"path": "a", "weight": 5}], "must be less than or equal to 4"),
        ("loras", ["a\0"], "no file name can hold a NUL"),
    ],
    ids=str,
)
def test_values_that_cannot_be(key: str, value: object, reason: str) -> None:
    """A value of the wrong kind or out of reach is left out and told; the rest is taken over."""
    found = converted({"negative_prompt": "y", key: value})
    assert found.job == {"negative_prompt": "y"}
    (note,) = [note for note in found.notes if note.startswith(f"{key}: ") and "missing" not in note]
    assert note.startswith(f"{key}: {reason}")
    assert note.endswith("; left out")


def test_unknown_keys() -> None:
    """Each unknown key is a line, and no line of anything else, whatever its name is."""
    found = converted({"prompt": "x", "zoom": 3, "a\nnote: b": 1, "y" * 1000: 2})
    assert found.job == {"prompt": "x"}
    assert found.notes[0] == "zoom: unknown key, left out"
    assert all(note.isprintable() and len(note) < 120 for note in found.notes)


def test_one_thing_said_twice() -> None:
    """Where two keys say two things of one, the first is taken, and the other told."""
    found = converted({"prompt": "x", "real_cfg": 2.0, "cfg": 3.0})
    assert found.job == {"prompt": "x", "true_cfg_scale": 2.0}
    assert found.notes == ("cfg: real_cfg says otherwise; left out",)


def test_a_schedule_without_an_end() -> None:
    """A shape alone makes no schedule, and that is said."""
    found = converted({"prompt": "x", "variable_cfg_shape": "Linear"})
    assert found.job == {"prompt": "x"}
    assert found.notes == ("distilled_cfg_end: missing, so the guidance stays the same throughout",)


def test_roll_off_at_the_very_end() -> None:
    """A roll-off that never begins is one of the last section alone."""
    found = converted({"prompt": "x", **_ROLL_OFF, "roll_off_start": 100})
    assert found.job["guidance_schedule"] == {"shape": "roll-off", "end": 5, "start_at": 0.99}
    assert found.notes == ("roll_off_start: 100 becomes 99: only the last section is changed",)


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters())),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@given(st.dictionaries(st.one_of(st.sampled_from(list(CASES)), st.text()), _JSON))
def test_whatever_it_holds(params: dict[str, Any]) -> None:
    """Any JSON comes to a job that a job file can hold and goan has keys for, and to lines on the rest."""
    found = converted(params)
    assert checked(JobSpec, found.job, Document(data=None, file=None)).problems == []
    assert parse_document(job_file_text([{**found.job, "model": "tiny"}])).data == {**found.job, "model": "tiny"}
    assert all(note.isprintable() for note in found.notes)
