"""`goan schema`: the JSON schema of job files, for editors."""

import typer


def schema() -> None:
    """Print the JSON schema of job files, for editors and CI."""
    import json

    from goan_cli.jobs.schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
