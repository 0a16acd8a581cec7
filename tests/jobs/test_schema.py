"""What a job file may say, and the JSON schema of it."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from goan_cli.jobs.fields import memory_bytes
from goan_cli.jobs.json_schema import json_schema
from goan_cli.jobs.schema import GatesSpec, JobEntry, JobSpec, LoraSpec, OutputSpec, StepCacheSpec

SCHEMA = json_schema()
# The vocabulary of draft 2020-12 that a schema like this one can need.
KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "default", "examples", "type", "enum", "const", "anyOf",
    "not", "properties", "additionalProperties", "required", "items", "prefixItems", "minItems", "maxItems",
    "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}  # fmt: skip
TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def subschemas(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and all that it is made of."""
    yield schema
    inside = ("not", "items", "additionalProperties")
    nested = [schema[key] for key in inside if isinstance(schema.get(key), dict)]
    for key in ("properties", "$defs"):
        nested += schema.get(key, {}).values()
    for inner in nested + schema.get("anyOf", []):
        yield from subschemas(inner)


def accepts(schema: Mapping[str, Any], value: Any) -> bool:
    """Whether a value is valid, by the keywords of JSON schema that the job schema uses."""
    if "$ref" in schema:
        return accepts(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], value)
    of_type = "type" not in schema or (
        isinstance(value, TYPES[schema["type"]])
        and not (isinstance(value, bool) and schema["type"] in {"integer", "number"})
    )
    return (
        of_type
        and ("const" not in schema or value == schema["const"])
        and ("enum" not in schema or value in schema["enum"])
        and ("anyOf" not in schema or any(accepts(choice, value) for choice in schema["anyOf"]))
        and ("not" not in schema or not accepts(schema["not"], value))
        and _accepts_content(schema, value)
    )


def _accepts_content(schema: Mapping[str, Any], value: Any) -> bool:
    if isinstance(value, dict):
        return _accepts_object(schema, value)
    if isinstance(value, list):
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return size and all(accepts(schema.get("items", {}), item) for item in value)
    if isinstance(value, str):
        return len(value) >= int(schema.get("minLength", 0))
    return not isinstance(value, int | float) or _accepts_number(schema, value)


def _accepts_object(schema: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    properties = schema.get("properties", {})
    if any(key not in value for key in schema.get("required", ())):
        return False
    others = schema.get("additionalProperties", True)
    if others is False and any(key not in properties for key in value):
        return False
    further = others if isinstance(others, dict) else {}
    return all(accepts(properties.get(key, further), item) for key, item in value.items())


def _accepts_number(schema: Mapping[str, Any], value: float) -> bool:
    return (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "shot 1"),
        ("name", "Größe-漢字_1.2+a@b=c,d"),
        ("name", "a" * 200),
        ("seconds", 0.5),
        ("seconds", 600),
        ("sections", 1),
        ("fps", 23.976),
        ("size", "auto"),
        ("size", [640, 608]),
        ("size", [16, 4096]),
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("steps", 1),
        ("guidance_scale", 0),
        ("true_cfg_scale", 1),
        ("guidance_rescale", 0.7),
        ("shift", 3),
        ("loras", ["a.safetensors", {"path": "b.safetensors", "weight": -1}]),
        ("loras", []),
        ("step_cache", "off"),
        ("step_cache", "teacache"),
        ("step_cache", {"kind": "teacache", "threshold": 0.1}),
        ("output", {"dir": "out", "keep_latents": True, "contact_sheet": True, "crf": 1}),
        ("gates", {}),
        ("gates", {"nan": "off", "black": "fail", "frozen": "warn", "drift": "warn"}),
        ("gates", {"black": None}),
        ("gates", None),
        ("retry_seeds", 0),
        ("retry_seeds", 100),
        ("video", "clip.mp4"),
        ("video", {"path": "clip.mp4", "audio": True, "cross_fade": "0.5s", "join": True}),
        ("video", {"path": "clip.mp4", "cross_fade": 0}),
        ("video", {"path": "clip.mp4", "cross_fade": None}),
        ("video", None),
        ("steps", None),
        ("size", None),
        ("step_cache", None),
    ],
)
def test_valid_values(key: str, value: object) -> None:
    """These values are valid, for the models and for the JSON schema alike."""
    JobSpec.model_validate({key: value})
    assert accepts(SCHEMA, {key: value})
    assert accepts(SCHEMA, {"jobs": [{key: value}], "defaults": {key: value}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", "a/b"),
        ("name", "..\\b"),
        ("name", ".hidden"),
        ("name", "ends."),
        ("name", "ends "),
        ("name", "a\nb"),
        ("name", "a" * 201),
        ("name", 7),
        ("seconds", 0),
        ("seconds", -1),
        ("seconds", 600.5),
        ("seconds", "5"),
        ("seconds", True),
        ("seconds", float("nan")),
        ("sections", 0),
        ("sections", 20_001),
        ("sections", 1.5),
        ("fps", 0),
        ("fps", 121),
        ("size", [640]),
        ("size", [640, 608, 1]),
        ("size", [640, 600]),
        ("size", [0, 16]),
        ("size", [-16, 16]),
        ("size", [4112, 16]),
        ("size", [640.0, 608.0]),
        ("size", "640x608"),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 1.0),
        ("steps", 0),
        ("video", 1),
        ("video", {"audio": True}),
        ("video", {"path": "clip.mp4", "join": "no"}),
        ("video", {"path": "clip.mp4", "cross_fade": -1}),
        ("video", {"path": "clip.mp4", "cross_fade": "soon"}),
        ("steps", 1001),
        ("window", 0),
        ("window", 65),
        ("guidance_scale", -1),
        ("true_cfg_scale", 0.5),
        ("guidance_rescale", 1.5),
        ("shift", 0),
        ("loras", "a.safetensors"),
        ("loras", [{}]),
        ("loras", [{"path": "a", "weight": 5}]),
        ("loras", [{"path": "a", "scale": 1}]),
        ("loras", ["a"] * 33),
        ("step_cache", "on"),
        ("step_cache", {"threshold": 0}),
        ("output", "out"),
        ("output", {"crf": 0}),
        ("output", {"crf": 64}),
        ("output", {"keep_latents": 1}),
        ("output", {"contact_sheet": "yes"}),
        ("gates", "off"),
        ("gates", {"black": "never"}),
        ("gates", {"black": False}),
        ("gates", {"blank": "off"}),
        ("retry_seeds", -1),
        ("retry_seeds", 101),
        ("retry_seeds", 1.0),
        ("matrix", {"seed": [1]}),
        ("images", "*.png"),
        ("frames", 12),
    ],
)
def test_invalid_values(key: str, value: object) -> None:
    """These values are refused."""
    with pytest.raises(ValidationError):
        JobSpec.model_validate({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sections", 0),
        ("steps", 1001),
        ("seed", -1),
        ("step_cache", "on"),
        ("loras", ["a"] * 33),
        ("output", {"crf": 64}),
        ("frames", 12),
        ("seconds", 0),
        ("seconds", 601),
        ("fps", 0.5),
        ("guidance_rescale", 1.5),
        ("true_cfg_scale", 0.5),
        ("loras", [{"path": "a", "weight": 5}]),
        ("step_cache", {"threshold": 0}),
        ("gates", {"black": "never"}),
        ("gates", {"blank": "off"}),
        ("retry_seeds", 101),
        ("images", 5),
        ("images", [5]),
        ("matrix", [1]),
        ("matrix", {"seed": 1}),
        ("matrix", {"seed": []}),
        ("matrix", {"max": 0, "seed": [1]}),
        ("matrix", {"max": [1], "seed": [1]}),
    ],
)
def test_schema_refuses_what_the_models_refuse(key: str, value: object) -> None:
    """The bounds and keys of the models stand in the JSON schema too, for whole and broken numbers."""
    assert not accepts(SCHEMA, {key: value})
    assert not accepts(SCHEMA, {"jobs": [{key: value}]})


@pytest.mark.parametrize(
    "keys",
    [
        {"images": "stills/*.png"},
        {"images": ["a.png", "stills/*.png"]},
        {"matrix": {"seed": [1, 2], "loras.0.weight": [0.5, 1]}},
        {"images": "*.png", "matrix": {"max": 1000, "prompt": ["a"], "step_cache": ["off", {"threshold": 0.1}]}},
    ],
)
def test_schema_of_jobs_that_stand_for_several(keys: Mapping[str, Any]) -> None:
    """Images and matrices stand in jobs, whether alone or in a list, and not in the defaults."""
    assert accepts(SCHEMA, keys)
    assert accepts(SCHEMA, {"jobs": [keys, {}]})
    assert not accepts(SCHEMA, {"jobs": [{}], "defaults": keys})


@pytest.mark.parametrize("size", [[640, 600], [600, 640], [0, 16], [4112, 16]])
def test_size_names_the_neighbours(size: list[int]) -> None:
    """A side that is no multiple of 16 in range is named, with valid neighbours."""
    bad = next(side for side in size if side % 16 or not 16 <= side <= 4096)
    with pytest.raises(ValidationError, match=f"multiples of 16 from 16 to 4096; {bad} is not") as caught:
        JobSpec.model_validate({"size": size})
    offered = caught.value.errors()[0]["msg"].partition("near it:")[2]
    neighbours = [int(word) for word in offered.replace(")", " ").replace(",", " ").split() if word.isdecimal()]
    assert neighbours
    assert all(side % 16 == 0 and 16 <= side <= 4096 for side in neighbours)


@pytest.mark.parametrize(
    ("value", "kind"), [("off", "off"), (False, "off"), ("teacache", "teacache"), ({"threshold": 0.2}, "teacache")]
)
def test_step_cache_spellings(value: object, kind: str) -> None:
    """The step cache may be a word or keys."""
    cache = JobSpec.model_validate({"step_cache": value}).step_cache
    assert isinstance(cache, StepCacheSpec)
    assert cache.kind == kind


def test_bare_lora() -> None:
    """A bare path is a LoRA of weight 1."""
    spec = JobSpec.model_validate({"loras": ["a.safetensors"]})
    assert spec.loras == [LoraSpec(path="a.safetensors", weight=1.0)]


def test_schema_is_draft_2020_12() -> None:
    """The JSON schema names its draft and uses only that draft's keywords, with types that exist."""
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    unknown = {key for schema in subschemas(SCHEMA) for key in schema if key not in KEYWORDS}
    assert unknown == set()
    assert {schema["type"] for schema in subschemas(SCHEMA) if "type" in schema} <= set(TYPES)


def test_schema_references_resolve() -> None:
    """Every reference in the JSON schema leads to a definition, and every definition is used."""
    names = {schema["$ref"].removeprefix("#/$defs/") for schema in subschemas(SCHEMA) if "$ref" in schema}
    assert names == set(SCHEMA["$defs"])


@pytest.mark.parametrize(
    ("definition", "model"),
    [
        ("JobSpec", JobSpec),
        ("JobEntry", JobEntry),
        ("LoraSpec", LoraSpec),
        ("OutputSpec", OutputSpec),
        ("GatesSpec", GatesSpec),
        ("StepCacheSpec", StepCacheSpec),
    ],
)
def test_schema_has_every_key(definition: str, model: type[JobSpec]) -> None:
    """Every key of every model is in the JSON schema, described, and no other is allowed."""
    schema = SCHEMA["$defs"][definition]
    assert set(schema["properties"]) == set(model.model_fields)
    assert schema["additionalProperties"] is False
    assert all(described.get("description") for described in schema["properties"].values())


def test_schema_of_one_job_has_every_key() -> None:
    """A file of one job may hold every key of a job, and the version."""
    single = next(choice for choice in SCHEMA["anyOf"] if "jobs" not in choice["properties"])
    assert set(single["properties"]) == {*JobEntry.model_fields, "version"}
    assert accepts(SCHEMA, {"version": 1, "prompt": "x"})
    assert not accepts(SCHEMA, {"version": 2, "prompt": "x"})
    assert not accepts(SCHEMA, {"jobs": [], "version": 1})
    assert not accepts(SCHEMA, {"jobs": [{}], "prompt": "x"})


# -- how a job is carried out

EXECUTION: Mapping[str, tuple[str, ...]] = {
    "precision": ("auto", "fp32", "fp16", "bf16", "fp8"),
    "compile": ("auto", "on", "off"),
    "attention": ("auto", "sdpa", "cudnn", "flash", "sage"),
    "decode": ("overlap", "single"),
}


@pytest.mark.parametrize(("key", "words"), EXECUTION.items())
def test_words_of_the_execution(key: str, words: tuple[str, ...]) -> None:
    """Each key has its words, null as if it were absent, and no others: neither in other cases nor as booleans."""
    for value in (*words, None):
        assert getattr(JobSpec.model_validate({key: value}), key) == value
        assert accepts(SCHEMA, {"jobs": [{key: value}], "defaults": {key: value}})
    for wrong in ("", words[-1].upper(), f"{words[0]} ", "none", 1, 0, 1.0, [words[0]]):
        with pytest.raises(ValidationError):
            JobSpec.model_validate({key: wrong})
        assert not accepts(SCHEMA, {key: wrong})
    for flag in (True, False):
        if key != "compile":
            with pytest.raises(ValidationError):
                JobSpec.model_validate({key: flag})


@pytest.mark.parametrize(("flag", "word"), [(True, "on"), (False, "off")])
def test_compile_as_a_boolean(flag: bool, word: str) -> None:
    """`compile: true` and `compile: false` are what they seem, as older YAML reads on and off."""
    assert JobSpec.model_validate({"compile": flag}).compile == word


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("auto", None),
        ("12GB", 12_000_000_000),
        ("7.5GiB", 15 << 29),
        ("7.5 GiB", 15 << 29),
        ("800MB", 800_000_000),
        ("512 MiB", 512 << 20),
        ("8053063680B", 8_053_063_680),
        (" 12  gb ", 12_000_000_000),
        ("6mib", 6 << 20),
        (None, None),
    ],
)
def test_memory(text: str | None, size: int | None) -> None:
    """A budget is a number with its unit, in tens or in twos; auto and nothing are no budget."""
    assert JobSpec.model_validate({"memory": text}).memory == text
    assert memory_bytes(text) == size
    assert accepts(SCHEMA, {"memory": text})


@pytest.mark.parametrize(
    "value",
    [
        *("", "12", "GB", "B", "12 gigabytes", "12G", "-12GB", "+12GB", "1e3GB", ".5GB", "12.GB", "0GB", "0.0 MB"),
        *("0.4B", "AUTO", "1_000MB", "1,5GB", "1 2GB", "nanGB", "infGB", "\uff11\uff12GB", "12 GB of it"),
        *(12, 12.5, 0, True, ["12GB"], {"gpu": "12GB"}),
        pytest.param("9" * 400 + "GB", id="a number beyond all floats"),
    ],
)
def test_memory_that_is_none(value: object) -> None:
    """Whatever else is refused in the same words, and not by an error of its own."""
    with pytest.raises(ValidationError, match="must be auto or a size such as 12GB, not ") as caught:
        JobSpec.model_validate({"memory": value})
    assert len(caught.value.errors()) == 1


@pytest.mark.parametrize("kind", ["teacache", "magcache"])
def test_kinds_of_step_cache(kind: str) -> None:
    """A step cache is a word, or keys in which the threshold may be left to the kind."""
    for value in (kind, {"kind": kind}, {"kind": kind, "threshold": None}):
        cache = JobSpec.model_validate({"step_cache": value}).step_cache
        assert cache == StepCacheSpec(kind=kind, threshold=None)
        assert accepts(SCHEMA, {"step_cache": value})
    with pytest.raises(ValidationError, match="must be off, teacache, magcache"):
        JobSpec.model_validate({"step_cache": True})
