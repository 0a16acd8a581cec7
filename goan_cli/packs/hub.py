"""The Hugging Face hub as goan asks it: where it is, who asks, and what its refusals mean. No torch."""

import errno
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# Of the library's own HTTP client, whose name changes with the library's version.
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

from goan_cli.errors import EnvironmentFault

_DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = {"1", "ON", "YES", "TRUE"}
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_AGAIN = "what has arrived stays: run it again, and it goes on where it was"
_CORRECT = "correct the pack's manifest"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# What a hub's status means for the user, where its library has no error of its own.
_STATUS_HINTS = {
    401: "the token is not valid: log in again with `hf auth login`, or correct HF_TOKEN",
    403: "the token gives no access to it: see its rights in your settings on the hub",
    429: "too many requests: wait some minutes, and log in with `hf auth login` to be allowed more",
}


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A hub, the token to ask it with (None for nobody's), and the cache that its files go to."""

    endpoint: str
    token: str | None = field(repr=False)
    cache: Path


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository at a revision (a branch, a tag or a commit)."""

    name: str
    revision: str


def hub_of_environment(cache: Path) -> Hub:
    """The hub by the variables that its library knows: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH and HF_HOME.

    They are read now: the library reads them when it is imported. Raises EnvironmentFault for an endpoint that is
    no URL.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EnvironmentFault(f"HF_ENDPOINT: {endpoint} is no URL", hint=f"unset it, or write {_DEFAULT_ENDPOINT}")
    return Hub(endpoint=endpoint, token=_token(), cache=cache)


def is_offline() -> bool:
    """Whether the user forbids requests, by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE."""
    return _is_set("HF_HUB_OFFLINE") or _is_set("TRANSFORMERS_OFFLINE")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in _TRUE


def _token() -> str | None:
    if _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    for variable in _TOKENS:
        if given := os.environ.get(variable, "").strip():
            return given
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    file = os.path.expandvars(os.environ.get("HF_TOKEN_PATH") or f"{home}/token")
    try:
        path = Path(file).expanduser()
        if path == Path(constants.HF_TOKEN_PATH):
            return get_token()  # which renews one that is about to expire
        return path.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # of any way by which the library gets one
        raise EnvironmentFault(f"{file}: no token for the hub: {error}", hint=_LOG_IN) from error


@contextmanager
def quiet_library() -> Iterator[None]:
    """Neither warnings nor log lines of the hub's library: what matters of them is an error or an event of goan's."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def explained(hub: Hub, repository: Repository) -> Iterator[None]:
    """Turn what the hub's library, the network and the disk raise into an EnvironmentFault that says what to do."""
    try:
        yield
    except BrokenPipeError:  # of who is told of the progress
        raise
    except (OSError, TransportError, ValueError, RuntimeError) as error:
        raise _fault(error, hub, repository) from error


def _fault(error: Exception, hub: Hub, repository: Repository) -> EnvironmentFault:
    name = repository.name
    match error:
        case GatedRepoError():
            message = f"{name} is gated: its owner wants conditions to be accepted first"
            hint = f"accept them at {hub.endpoint}/{name}; {'your account has no access' if hub.token else _LOG_IN}"
        case RepositoryNotFoundError():
            how = "your token gives no access to a private one" if hub.token else f"if it is private, {_LOG_IN}"
            message, hint = f"{hub.endpoint} has no repository {name}", f"check its name; {how}"
        case RevisionNotFoundError():
            message, hint = f"{name} has no revision {repository.revision}", _CORRECT
        case RemoteEntryNotFoundError():
            message, hint = f"{name} no longer has {error.response.url}", "it has just changed: run it again"
        case HfHubHTTPError():
            status = error.response.status_code
            message = f"{hub.endpoint} answers {status} for {name}"
            hint = _STATUS_HINTS.get(status, f"the hub has a problem; {_AGAIN}")
        case HFValidationError():
            message, hint = f"{name} is no name of a repository", _CORRECT
        case OfflineModeIsEnabled():
            return offline_fault(name)
        case _:
            return _local_fault(error, hub, repository)
    return EnvironmentFault(message, hint=hint)


def _local_fault(error: Exception, hub: Hub, repository: Repository) -> EnvironmentFault:
    """Of what is no answer of the hub: the way there, and the disk."""
    cause = _first(error, TransportError)
    if cause is not None and not isinstance(cause, HfHubHTTPError):
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        return EnvironmentFault(
            f"{repository.name}: the connection to {hub.endpoint} failed: {reason}",
            hint=f"check the connection, a proxy and HF_ENDPOINT; {_AGAIN}",
        )
    if isinstance(cause, HfHubHTTPError):
        return _fault(cause, hub, repository)
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return EnvironmentFault(
            f"{hub.cache}: the disk is full", hint=f"make room, or move the cache with HF_HOME; {_AGAIN}"
        )
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename if error.filename is not None else hub.cache
        return EnvironmentFault(
            f"{where}: cannot be written: {error.strerror or error}",
            hint="check the rights of the cache, or move it with HF_HOME",
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, ValueError):
        return EnvironmentFault(
            f"{hub.endpoint} does not answer as a hub: {reason}", hint="check HF_ENDPOINT, and what stands between"
        )
    return EnvironmentFault(f"{repository.name}: the download failed: {reason}", hint=_AGAIN)


def _first(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first of that kind among an error and its causes."""
    here: BaseException | None = error
    while here is not None:
        if isinstance(here, kind):
            return here
        here = here.__cause__
    return None


def offline_fault(what: str) -> EnvironmentFault:
    """The error for a download that the user forbids."""
    return EnvironmentFault(
        f"{what} must be downloaded, and HF_HUB_OFFLINE forbids it",
        hint="unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE)",
    )
