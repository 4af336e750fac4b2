"""A small Hub on this machine: it speaks the upload protocol of huggingface_hub over HTTP, and keeps what arrives.

Repositories, branches, the upload mode of each file, LFS with one or several parts, commits, downloads, and tokens. A
request of `faults` is answered with a status instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"
OWNER = "me"


@dataclass
class Repository:
    """A repository: the commits of each branch, oldest first, each with all files."""

    private: bool
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{}]})
    messages: list[str] = field(default_factory=list)

    def sha(self, branch: str) -> str:
        """The commit that a branch is at: it depends on the files and on their history."""
        commits = self.branches[branch]
        about = repr([(len(commits), sorted(commits[-1].items()))])
        return hashlib.sha1(about.encode()).hexdigest()

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files at a branch or a commit. Raises KeyError if there is none."""
        if revision in self.branches:
            return self.branches[revision][-1]
        return {self.sha(name): commits[-1] for name, commits in self.branches.items()}[revision]


@dataclass
class LocalHub:
    """What the server keeps."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """`METHOD PATH`"""
    faults: dict[str, tuple[int, str] | Callable[[], None]] = field(default_factory=dict)
    """The beginning of `METHOD PATH` to the status and message of its answer, or to a function that is called first."""
    part_bytes: int | None = None
    """Large files are sent in parts of this size."""
    limit: int = 10_000_000_000
    endpoint: str = ""

    def sent(self, beginning: str) -> list[str]:
        return [r for r in self.requests if r.startswith(beginning)]


class Answer(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        body = self._body()
        self.hub.requests.append(request)
        try:
            for beginning, fault in list(self.hub.faults.items()):
                if request.startswith(beginning):
                    if not isinstance(fault, tuple):
                        fault()
                    else:
                        raise Answer(*fault)
            if not path.startswith("/blobs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Answer(401, "Invalid credentials in Authorization header")
            for method, pattern, action in ROUTES:
                if method == self.command and (found := re.fullmatch(pattern, path)):
                    value = action(self, *found.groups(), body)
                    self.send(*value) if isinstance(value, tuple) and value[0] == 400 else self.send(200, value)
                    return
            raise Answer(404, f"no route for {request}")
        except Answer as a:
            self.send(a.status, {"error": a.message}, {"X-Error-Message": a.message, "X-Error-Code": a.code})

    do_GET = do_POST = do_PUT = answer

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def send(self, status: int, value: Any, more: dict[str, str] | None = None) -> None:
        headers = dict(more or {})
        if isinstance(value, tuple):
            value, headers = value
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        if not isinstance(value, bytes):
            headers["Content-Type"] = "application/json"
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    # ------------------------------------------------------------------------------------------------ the answers

    def repository(self, name: str, branch: str | None = None) -> Repository:
        if name not in self.hub.repositories:
            raise Answer(404, "Repository not found", "RepoNotFound")
        found = self.hub.repositories[name]
        if branch is not None and branch not in found.branches:
            raise Answer(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return found

    def whoami(self, body: bytes) -> Any:
        return {"type": "user", "name": OWNER}

    def create(self, body: bytes) -> Any:
        about = json.loads(body)
        name = f"{about['organization'] or OWNER}/{about['name']}"
        if name in self.hub.repositories:
            raise Answer(409, "You already created this model repo")
        if not name.startswith(f"{OWNER}/"):
            raise Answer(403, "You don't have the rights to create a model under this namespace")
        private = about.get("visibility") == "private" or bool(about.get("private"))
        self.hub.repositories[name] = Repository(private)
        return {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": "1"}

    def info(self, name: str, revision: str | None, body: bytes) -> Any:
        found = self.repository(name, revision or "main")
        return {
            "id": name, "modelId": name, "private": found.private, "sha": found.sha(revision or "main"), "tags": [],
            "siblings": [{"rfilename": n} for n in found.files(revision or "main")],
        }  # fmt: skip

    def branch(self, name: str, branch: str, body: bytes) -> Any:
        found = self.repository(name)
        if branch in found.branches:
            raise Answer(409, "Reference already exists")
        found.branches[branch] = [found.files()]
        return {}

    def validate(self, body: bytes) -> Any:
        if "license: free" in json.loads(body)["content"]:
            return 400, {"errors": [{"message": '"license" must be one of [apache-2.0, mit]'}], "warnings": []}
        warned = [{"message": "no license"}] if "license" not in json.loads(body)["content"] else []
        return {"errors": [], "warnings": warned}

    def preupload(self, name: str, branch: str, body: bytes) -> Any:
        there = self.repository(name, branch).files(branch)
        files = []
        for about in json.loads(body)["files"]:
            lfs = about["path"].endswith((".safetensors", ".gguf", "tokenizer.json"))
            data = there.get(about["path"])
            sums = [] if data is None else [hashlib.sha256(data), hashlib.sha1(b"blob %d\0" % len(data) + data)]
            oid = sums[0 if lfs else 1].hexdigest() if sums else None
            mode = "lfs" if lfs else "regular"
            files.append({"path": about["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def batch(self, name: str, body: bytes) -> Any:
        self.repository(name)
        objects = []
        for about in json.loads(body)["objects"]:
            one: dict[str, Any] = {"oid": about["oid"], "size": about["size"]}
            if about["size"] > self.hub.limit:
                one["error"] = {"code": 413, "message": "You have exceeded your storage quota"}
            elif about["oid"] not in self.hub.blobs:
                href, header = f"{self.hub.endpoint}/blobs/{about['oid']}", {}
                if (size := self.hub.part_bytes) is not None:
                    count = -(-about["size"] // size)
                    header = {str(i + 1): f"{href}/part/{i + 1}" for i in range(count)} | {"chunk_size": str(size)}
                verify = {"href": f"{self.hub.endpoint}/verify/{about['oid']}"}
                one["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
            objects.append(one)
        return {"transfer": "basic", "objects": objects}

    def blob(self, oid: str, body: bytes) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer(400, "the content differs from its hash")
        self.hub.blobs[oid] = body
        return {}

    def part(self, oid: str, number: str, body: bytes) -> Any:
        self.hub.parts[oid, int(number)] = body
        return {}, {"ETag": hashlib.md5(body).hexdigest()}

    def complete(self, oid: str, body: bytes) -> Any:
        numbers = sorted(part["partNumber"] for part in json.loads(body)["parts"])
        return self.blob(oid, b"".join(self.hub.parts[oid, number] for number in numbers))

    def verify(self, oid: str, body: bytes) -> Any:
        if len(self.hub.blobs.get(oid, b"")) != json.loads(body)["size"]:
            raise Answer(404, "the file did not arrive")
        return {}

    def commit(self, name: str, branch: str, body: bytes) -> Any:
        found = self.repository(name, branch)
        files = dict(found.files(branch))
        for line in body.splitlines():
            about = json.loads(line)
            value = about["value"]
            if about["key"] == "header":
                found.messages.append(value["summary"])
            elif about["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif about["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        found.branches[branch].append(files)
        sha = found.sha(branch)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}"}

    def resolve(self, name: str, revision: str, file: str, body: bytes) -> Any:
        files = self.repository(name).files(revision)
        if file not in files:
            raise Answer(404, "Entry not found", "EntryNotFound")
        etag = hashlib.sha256(files[file]).hexdigest()
        return files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": revision}


REPO = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("GET", rf"/api/models/{REPO}(?:/revision/(.+))?", _Handler.info),
    ("POST", rf"/api/models/{REPO}/branch/(.+)", _Handler.branch),
    ("POST", rf"/api/models/{REPO}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/blobs/(\w+)", _Handler.blob),
    ("PUT", r"/blobs/(\w+)/part/(\d+)", _Handler.part),
    ("POST", r"/blobs/(\w+)", _Handler.complete),
    ("POST", r"/verify/(\w+)", _Handler.verify),
    ("GET", rf"/{REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


@contextmanager
def served() -> Iterator[LocalHub]:
    """A running server, at `endpoint`."""
    hub = LocalHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
