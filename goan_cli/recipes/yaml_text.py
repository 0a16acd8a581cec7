"""Jobs as the YAML of a job file, as a person would write it: short things in one line, long texts as blocks."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from goan_cli.documents import Data, parse_document
from goan_cli.errors import InvalidInput, InvalidJobs

_WIDTH = 100
_SHORT = 64
_LONGEST_COMMENT = 200
# What a reader by YAML 1.2 may take for a number, which this writer's rules of YAML 1.1 do not all know: 1e5, 0x1F.
_LIKE_A_NUMBER = re.compile(r"[-+.0-9][-+.0-9A-Za-z]*")


class _Flow(dict[str, Data]):
    """Keys and values that fit into one line."""


class _FlowList(list[Data]):
    """A list that fits into one line."""


class _Dumper(yaml.SafeDumper):
    """Block texts, whole numbers without a point, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002 - PyYAML's own signature
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: FBT002, ARG002
        """Lists stand further in than their key."""
        return super().increase_indent(flow, indentless=False)


class _PlainDumper(_Dumper):
    """The same with every text in quotes or plain, for those that no block can hold."""


def _plain(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "'" if _LIKE_A_NUMBER.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    if "\n" not in text and len(text) <= _WIDTH - 20:
        return _plain(dumper, text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else ">")


def _number(dumper: _Dumper, number: float) -> yaml.ScalarNode:
    whole = number.is_integer() and abs(number) < 1e15
    return dumper.represent_int(int(number)) if whole else dumper.represent_float(number)


for _each in (_Dumper, _PlainDumper):
    _each.add_representer(float, _number)
    _each.add_representer(
        _Flow, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
    )
    _each.add_representer(
        _FlowList, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
    )
_Dumper.add_representer(str, _text)
_PlainDumper.add_representer(str, _plain)


def job_file_text(
    jobs: Sequence[Mapping[str, Data]], *, defaults: Mapping[str, Data] | None = None, comments: Sequence[str] = ()
) -> str:
    """A job file of one job, or of several with their `defaults`, under `comments` of one line each.

    Raises InvalidInput for what no YAML file can hold, such as a path with bytes that are no text.
    """
    content: dict[str, Data] = {**(defaults or {}), **jobs[0]}
    if len(jobs) > 1:
        content = {**({"defaults": dict(defaults)} if defaults else {}), "jobs": [dict(job) for job in jobs]}
    arranged = {
        key: [_job(job) for job in content[key]] if key == "jobs" else _one_line(content[key]) for key in content
    }
    # The last resort is for letters that YAML takes for line ends or leaves out: it writes all but ASCII as escapes.
    for dumper, letters in ((_Dumper, True), (_PlainDumper, True), (_PlainDumper, False)):
        text = yaml.dump(arranged, Dumper=dumper, sort_keys=False, allow_unicode=letters, width=_WIDTH)
        if _holds(text, content):
            return "".join(f"# {comment_text(comment)}\n" for comment in comments) + text
    raise InvalidInput("no YAML file can hold this job", hint="is a name of a file in it no text?")


def _holds(text: str, content: Data) -> bool:
    try:
        text.encode("utf-8")
        return bool(parse_document(text).data == content)
    except (UnicodeEncodeError, InvalidJobs):
        return False


def _job(job: Mapping[str, Data]) -> dict[str, Data]:
    return {key: _one_line(value) for key, value in job.items()}


def _one_line(value: Data) -> Data:
    """The value with whatever is short and has no lists or keys inside marked to be written in one line."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    leaf = not any(isinstance(each, dict | list) for each in inside) and len(repr(value)) <= _SHORT
    if isinstance(value, dict):
        return _Flow(value) if leaf else {key: _one_line(each) for key, each in value.items()}
    if isinstance(value, list):
        return _FlowList(value) if leaf else [_one_line(each) for each in value]
    return value


def comment_text(text: str) -> str:
    """Text for one line, whatever it holds: line ends and other controls become spaces, what is long is cut."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _LONGEST_COMMENT else f"{line[:_LONGEST_COMMENT]}…"
