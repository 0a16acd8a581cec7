"""`python -m goan_cli` is the `goan` command."""

from goan_cli.cli.app import main

main()
