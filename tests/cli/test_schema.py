"""`goan schema`."""

import json

from goan_cli.jobs.schema import JobSpec
from tests.cli.conftest import Goan


def test_schema(goan: Goan) -> None:
    """The schema is printed as JSON alone, of draft 2020-12, with every key of a job."""
    run = goan("schema")
    assert (run.code, run.err) == (0, "")
    schema = json.loads(run.out)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert set(schema["$defs"]["JobSpec"]["properties"]) == set(JobSpec.model_fields)
