"""The JSON schema of a job file, for editors, made from the models that check it."""

from typing import Any

from goan_cli.jobs.fields import SECONDS, STEP_CACHES
from goan_cli.jobs.schema import BatchFile, SingleJobFile


def json_schema() -> dict[str, Any]:
    """The JSON schema of a job file, for editors."""
    single = SingleJobFile.model_json_schema(ref_template="#/$defs/{model}")
    batch = BatchFile.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**single.pop("$defs", {}), **batch.pop("$defs", {})}
    # A LoRA may be a bare path; the models see that only before validation.
    lora = {"anyOf": [{"$ref": "#/$defs/LoraSpec"}, {"type": "string"}]}
    cache = {"enum": list(STEP_CACHES)}
    for properties in (single["properties"], *(definitions[name]["properties"] for name in ("JobSpec", "JobEntry"))):
        properties["loras"]["anyOf"][0]["items"] = lora
        properties["video"]["anyOf"].insert(0, {"type": "string"})
        properties["step_cache"]["anyOf"].insert(0, cache)
    definitions["VideoSpec"]["properties"]["cross_fade"]["anyOf"].insert(0, {"type": "string", "pattern": SECONDS})
    moment = definitions["MomentSpec"]["properties"]
    moment["loras"]["anyOf"][0]["items"] = lora
    # A time may have its unit, which makes it text.
    moment["at"] = {
        "title": moment["at"].pop("title"),
        "description": moment["at"].pop("description"),
        "anyOf": [moment["at"], {"type": "string", "pattern": SECONDS}],
    }
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "goan job file",
        "description": "One job, or defaults and a list of jobs.",
        "anyOf": [
            {**single, "title": "One job", "not": {"required": ["jobs"]}},
            {**batch, "title": "Several jobs"},
        ],
        "$defs": definitions,
    }
    return dict(_in_schema_words(schema))


# pydantic leaves its own names where a bound stands on an optional number.
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def _in_schema_words(value: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {_BOUNDS.get(key, key): _in_schema_words(inner) for key, inner in value.items()}
    return [_in_schema_words(inner) for inner in value] if isinstance(value, list) else value
