"""The command line: parse, call, print, and map errors to exit codes."""
