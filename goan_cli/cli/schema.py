"""`goan schema`: the JSON schemas of job files and of events."""

from typing import Annotated

import typer


def schema(
    events: Annotated[bool, typer.Option("--events", help="Of the lines that --log-json writes.")] = False,
) -> None:
    """Print the JSON schema of job files, for editors and CI."""
    import json

    if events:
        from goan_cli.cli.eventlines import events_schema

        typer.echo(json.dumps(events_schema(), indent=2))
        return

    from goan_cli.jobs.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
