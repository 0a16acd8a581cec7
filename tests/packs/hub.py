"""A Hugging Face hub on this machine: an HTTP server that speaks its API as huggingface_hub uses it.

    with local_hub({"org/name": folder}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)  # or in the environment of a subprocess

Weights (`*.safetensors`, `*.bin`) are LFS files, which the hub redirects to another host; the rest it serves itself.
What should go wrong is set on the hub between requests, by paths as `org/name/file`. What was asked for and sent is
in `hub.requests`.
"""

import hashlib
import json
import re
import shutil
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub.utils import _detect_agent
from safetensors.numpy import load_file, save_file

_LFS = (".safetensors", ".bin", ".pt", ".gguf")
_API = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(?:/(?P<what>revision|tree|auth-check)(?:/(?P<revision>[^/]+))?)?")
_RESOLVE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_STORE = re.compile(r"/store/(?P<name>[^/]+/[^/]+)/(?P<path>.+)")
FRAMEPACK = "lllyasviel/FramePackI2V_HY"
FRAMEPACK_F1 = "lllyasviel/FramePack_F1_I2V_HY_20250503"
HUNYUAN = "hunyuanvideo-community/HunyuanVideo"
REDUX = "lllyasviel/flux_redux_bfl"
_GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "packed"
_NEEDLESS = (
    f"{FRAMEPACK}/.gitattributes",
    f"{FRAMEPACK}/README.md",
    f"{FRAMEPACK_F1}/README.md",
    f"{HUNYUAN}/.gitattributes",
    f"{HUNYUAN}/README.md",
    f"{HUNYUAN}/model_index.json",
    f"{HUNYUAN}/scheduler/scheduler_config.json",
    f"{HUNYUAN}/transformer/config.json",
    f"{HUNYUAN}/transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
    f"{HUNYUAN}/text_encoder/pytorch_model.bin",
    f"{HUNYUAN}/text_encoder_2/model.fp16.safetensors",
    f"{HUNYUAN}/vae/diffusion_pytorch_model.bin",
    f"{REDUX}/flux1-redux-dev.safetensors",
    f"{REDUX}/image_embedder/config.json",
    f"{REDUX}/image_embedder/diffusion_pytorch_model.safetensors",
    f"{REDUX}/model_index.json",
)
_PATIENCE = 60.0  # seconds for which a held connection waits to be let go


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request and its answer: bytes from `start` on, of which `sent` of the body went out."""

    method: str
    path: str
    status: int
    start: int
    sent: int
    token: str | None


@dataclass(kw_only=True)
class Hub:
    """The hub's repositories, what should go wrong with them, and what was asked of it.

    `commits` are other names for what `main` is at; the earlier ones stay what they were.
    `cuts` end the connection after so many bytes of a file, each for one request. `holds` stop sending after so many,
    until the hub is closed. `damaged` files have a wrong byte in the middle, `longer` ones so many bytes too much
    (negative: too few). `private` repositories are there for their token alone, `gated` ones let only theirs
    download. `statuses` are the answer to all whose path begins so; of what is no file, it is `api/org/name`.
    Without `ranges` every answer is the whole file. `chunked` files are listed as being in the store of chunks (Xet),
    and without `chunks` there is no such store here. `page` is the length of a page of a listing.
    """

    endpoint: str
    repositories: dict[str, Path]
    commits: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    holds: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    longer: dict[str, int] = field(default_factory=dict)
    private: dict[str, str] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    chunked: set[str] = field(default_factory=set)
    chunks: bool = True
    ranges: bool = True
    page: int = 5
    requests: list[Request] = field(default_factory=list)
    told: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def store(self) -> str:
        """Where LFS files are: the same server by another name, so that no token should come along."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def commit_of(self, name: str) -> str:
        """The commit that `main` is: it changes with what the repository holds."""
        folder = self.repositories[name]
        state = [
            f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in _files(folder)
        ]
        return self.commits.get(name) or hashlib.sha1("\n".join(state).encode(), usedforsecurity=False).hexdigest()

    def sent(self, prefix: str = "") -> int:
        """Bytes of files that were sent, of all whose `org/name/file` begins so."""
        return sum(request.sent for request in self.requests if request.path.startswith(prefix))

    def downloaded(self) -> set[str]:
        """The files, as `org/name/file`, of which bytes were sent."""
        return {request.path for request in self.requests if request.sent}


@contextmanager
def local_hub(repositories: Mapping[str, Path]) -> Iterator[Hub]:
    """A hub of repositories that are folders, for as long as the block runs."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    # Once in a process the library would ask the real hub which programs may call it, wherever the endpoint is.
    _detect_agent._registry = {"standardEnvVars": [], "harnesses": {}}
    hub = Hub(endpoint=f"http://127.0.0.1:{server.server_address[1]}", repositories=dict(repositories))
    Handler.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


def golden_repositories(folder: Path) -> dict[str, Path]:
    """The golden pack as the repositories of `framepack-i2v` and `framepack-f1`, in the layout that they really have.

    Weights of three and four shards, and beside them what nobody needs. The two transformers are not the same.
    """
    repositories = {name: folder / name for name in (FRAMEPACK, FRAMEPACK_F1, HUNYUAN, REDUX)}
    for name, sign in ((FRAMEPACK, 1.0), (FRAMEPACK_F1, -1.0)):
        _write_shards(_GOLDEN / "transformer", repositories[name], shards=3, last_sign=sign)
    _write_shards(_GOLDEN / "text_encoder", repositories[HUNYUAN] / "text_encoder", shards=4)
    for part in ("tokenizer", "tokenizer_2", "text_encoder_2", "vae"):
        shutil.copytree(_GOLDEN / part, repositories[HUNYUAN] / part)
    for part in ("image_encoder", "feature_extractor"):
        shutil.copytree(_GOLDEN / part, repositories[REDUX] / part)
    for path in _NEEDLESS:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not needed: " + path.encode() * 100)
    return repositories


def _write_shards(part: Path, folder: Path, *, shards: int, last_sign: float = 1.0) -> None:
    (file,) = part.glob("*.safetensors")
    tensors = load_file(file)
    last = sorted(tensors)[-1]
    tensors[last] = tensors[last] * last_sign
    folder.mkdir(parents=True)
    shutil.copyfile(part / "config.json", folder / "config.json")
    placed: dict[str, str] = {}
    for number in range(shards):
        name = f"{file.stem}-{number + 1:05}-of-{shards:05}.safetensors"
        chosen = {key: tensors[key] for key in sorted(tensors)[number::shards]}
        save_file(chosen, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(chosen, name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    (folder / f"{file.stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True, kw_only=True)
class _Blob:
    """A file as the hub knows it: git's hash, and for LFS its sha256."""

    size: int
    oid: str
    sha256: str | None

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid


def _blob(file: Path) -> _Blob:
    stat = file.stat()
    return _known_blob(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _known_blob(file: Path, size: int, modified: int) -> _Blob:
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest() if file.name.endswith(_LFS) else None
    kept = content
    if sha256 is not None:
        kept = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    oid = hashlib.sha1(b"blob %d\0" % len(kept) + kept, usedforsecurity=False).hexdigest()
    return _Blob(size=size, oid=oid, sha256=sha256)


class _Handler(BaseHTTPRequestHandler):
    """One connection. A method answers with a status and a body, and notes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body would wait for one another
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the base class
        """Say nothing."""

    def do_HEAD(self) -> None:
        """As a GET, without the body."""
        self._answer()

    def do_GET(self) -> None:
        """Find out what is asked for."""
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if api := _API.fullmatch(path):
            self._api(api["name"], api["what"], unquote(unquote(api["revision"] or "main")), parse_qs(url.query))
        elif asked := _RESOLVE.fullmatch(path):
            self._resolve(asked["name"], asked["revision"], asked["path"])
        elif stored := _STORE.fullmatch(path):
            self._send(self.hub.repositories[stored["name"]] / stored["path"], f"{stored['name']}/{stored['path']}", {})
        else:
            self._refuse(path, 404, None)

    @property
    def _token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given else None

    # Refusals ---------------------------------------------------------------------------------------------

    def _refused(self, about: str, name: str, revision: str) -> bool:
        """Whether a request was answered with an error: one that was ordered, or for who asks for what."""
        hub = self.hub
        for prefix, status in hub.statuses.items():
            if about.startswith(prefix):
                self._refuse(about, status, None)
                return True
        if name not in hub.repositories or hub.private.get(name, self._token) != self._token:
            self._refuse(about, 404 if self._token else 401, "RepoNotFound")
            return True
        if revision != "main" and revision not in (hub.commit_of(name), *hub.told[name]):
            self._refuse(about, 404, "RevisionNotFound")
            return True
        return False

    def _gated(self, about: str, name: str) -> bool:
        if self.hub.gated.get(name, self._token) == self._token:
            return False
        self._refuse(about, 403 if self._token else 401, "GatedRepo")
        return True

    def _refuse(self, about: str, status: int, code: str | None) -> None:
        self._say(about, status, b"{}", {"X-Error-Code": code, "X-Error-Message": code} if code else {})

    def _say(self, about: str, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._note(about, status)
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _note(self, about: str, status: int, start: int = 0, sent: int = 0) -> None:
        self.hub.requests.append(
            Request(method=self.command, path=about, status=status, start=start, sent=sent, token=self._token)
        )

    # The API ----------------------------------------------------------------------------------------------

    def _api(self, name: str, what: str | None, revision: str, query: Mapping[str, list[str]]) -> None:
        about = f"api/{name}/{what or 'info'}"
        if self._refused(about, name, revision):
            return
        if what == "auth-check":
            if not self._gated(about, name):
                self._say(about, 200, b"{}", {})
        elif what == "tree":
            self._tree(about, name, revision, int(query.get("cursor", ["0"])[0]))
        else:
            self.hub.told[name].add(self.hub.commit_of(name))
            info = {
                "id": name,
                "modelId": name,
                "sha": self.hub.commit_of(name),
                "private": name in self.hub.private,
                "gated": "auto" if name in self.hub.gated else False,
                "siblings": [{"rfilename": entry["path"]} for entry in self._entries(name) if entry["type"] == "file"],
            }
            self._say(about, 200, json.dumps(info).encode(), {})

    def _tree(self, about: str, name: str, revision: str, start: int) -> None:
        entries, end = self._entries(name), start + self.hub.page
        rest = {}
        if end < len(entries):
            following = f"{self.hub.endpoint}/api/models/{name}/tree/{revision}?recursive=True&cursor={end}"
            rest = {"Link": f'<{following}>; rel="next"'}
        self._say(about, 200, json.dumps(entries[start:end]).encode(), rest)

    def _entries(self, name: str) -> list[dict[str, Any]]:
        folder = self.hub.repositories[name]
        below = sorted({path.parent for path in _files(folder)} - {folder})
        entries: list[dict[str, Any]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": path.relative_to(folder).as_posix()}
            for path in below
        ]
        for file in _files(folder):
            blob, path = _blob(file), file.relative_to(folder).as_posix()
            entry = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
            if blob.sha256 is not None:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
            if f"{name}/{path}" in self.hub.chunked:
                entry["xetHash"] = blob.etag
            entries.append(entry)
        return entries

    # Files ------------------------------------------------------------------------------------------------

    def _resolve(self, name: str, revision: str, path: str) -> None:
        about = f"{name}/{path}"
        if self._refused(about, name, revision) or self._gated(about, name):
            return
        file = self.hub.repositories[name] / path
        if not file.is_file():
            self._refuse(about, 404, "EntryNotFound")
            return
        blob = _blob(file)
        commit = self.hub.commit_of(name) if revision == "main" else revision
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if blob.sha256 is None:
            self._send(file, about, headers)
        else:
            linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            where = {"Location": f"{self.hub.store}/store/{about}", "ETag": f'"{blob.oid}"'}
            if self.hub.chunks and about in self.hub.chunked:
                route = f"{self.hub.endpoint}/api/models/{name}/xet-read-token/{commit}"
                where |= {"X-Xet-Hash": blob.sha256, "X-Xet-Refresh-Route": route}
            self._say(about, 302, b"", {**headers, **linked, **where})

    def _send(self, file: Path, about: str, headers: Mapping[str, str]) -> None:
        body = self._body(file, about)
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and self.hub.ranges:
            start = int(asked[1])
            if start >= len(body):
                self._say(about, 416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
        part = body[start:]
        self.send_response(206 if asked and self.hub.ranges else 200)
        said = {"Accept-Ranges": "bytes", "Content-Length": str(len(part)), **headers}
        if asked and self.hub.ranges:
            said["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        for key, value in said.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            self._note(about, 200)
            return
        self._write(about, part, start)

    def _body(self, file: Path, about: str) -> bytes:
        body = file.read_bytes()
        if about in self.hub.damaged:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        more = self.hub.longer.get(about, 0)
        return body + b"\0" * more if more >= 0 else body[:more]

    def _write(self, about: str, part: bytes, start: int) -> None:
        status = 206 if start else 200
        held = self.hub.holds.get(about)
        cuts = self.hub.cuts.get(about)
        if held is not None:
            part = part[: max(0, held - start)]
        elif cuts:
            part = part[: cuts.pop(0)]
        else:
            cuts = None
        self._note(about, status, start, len(part))
        self.wfile.write(part)
        self.wfile.flush()
        if held is not None:
            self.hub.closing.wait(_PATIENCE)
        if held is not None or cuts is not None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
