"""Files on the Hub, tested with a local server that answers like the Hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT, OTHER = "a" * 40, "d" * 40


class Hub(BaseHTTPRequestHandler):
    """One repository, `org/repo`, with one file, `tiny.gguf`, and a branch `main` that may be moved."""

    protocol_version = "HTTP/1.1"
    data = b""
    main = COMMIT
    sent: list[tuple[str, int]] = []  # noqa: RUF012  (one list for all threads)
    """Each answer with a part of the file: the request, and the number of bytes sent."""

    def log_message(self, *args): ...

    def reply(self, code, body, content=True, **headers):
        self.send_response(code)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if content:
            self.wfile.write(body)

    def commit(self):
        """The commit of the request, which names a commit or a branch."""
        return next((c for c in (COMMIT, OTHER) if c in self.path), Hub.main)

    def do_HEAD(self):
        self.answer(content=False)

    def do_GET(self):
        self.answer()

    def answer(self, content=True):
        if self.path == "/move":
            Hub.main = OTHER
            self.reply(200, b"", content)
        elif "/gone" in self.path:
            self.reply(404, b"{}", content, X_Error_Code="RevisionNotFound", Content_Type="application/json")
        elif "/tree/" in self.path and "/org/repo/" in self.path:
            files = [{"type": "file", "path": "tiny.gguf", "size": len(self.data), "oid": "b" * 40}]
            self.reply(200, json.dumps(files).encode(), Content_Type="application/json")
        elif self.path.startswith("/api/models/org/repo"):
            info = {"id": "org/repo", "sha": self.commit(), "siblings": [{"rfilename": "tiny.gguf"}], "private": False}
            self.reply(200, json.dumps(info).encode(), Content_Type="application/json")
        elif re.match(r"/org/repo/resolve/[^/]+/tiny\.gguf", self.path):
            code, part, extra = 200, self.data, {}
            if asked := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
                first, last = int(asked[1]), int(asked[2] or len(self.data) - 1)
                code, part = 206, self.data[first : last + 1]
                extra = {"Content_Range": f"bytes {first}-{last}/{len(self.data)}"}
            Hub.sent.append((f"{self.command} {self.path}", len(part) if content else 0))
            self.reply(
                code, part, content, ETag=f'"{"c" * 40}"', X_Repo_Commit=self.commit(), Accept_Ranges="bytes", **extra
            )
        else:
            self.reply(404, b"{}", content, X_Error_Code="RepoNotFound", Content_Type="application/json")


@pytest.fixture
def endpoint(tiny_gguf, tmp_path) -> Iterator[str]:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    Hub.data = (tmp_path / "tiny.gguf").read_bytes() + bytes(8 << 20)  # so that the header is a small part of the file
    Hub.sent.clear()
    Hub.main = COMMIT
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def run(code, endpoint, tmp_path):
    """The lines that `code` prints in a process whose Hub is `endpoint`."""
    hub = re.compile(r"HF_|HUGGINGFACE_|.*_PROXY$", re.IGNORECASE)  # for example the location of the user's cache
    env = {name: value for name, value in os.environ.items() if not hub.match(name)}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    code = "from smollm3_gguf.files import *\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_opening_downloads_only_the_header(endpoint, tmp_path):
    code = "file = find_file('org/repo/tiny.gguf', None); print(check_file(file).architecture, file.local)"
    assert run(code, endpoint, tmp_path) == ["llama None"]
    assert 0 < sum(size for _, size in Hub.sent) < 2 << 20, Hub.sent
    code = (
        "file = find_file('org/repo/tiny.gguf', 'main'); check_file(file)\n"
        "print(file.local, file.on_disk())\n"
        "print(find_file('org/repo/tiny.gguf', None).local)"
    )
    first, second = run(code, endpoint, tmp_path)
    assert first.startswith("None ")
    assert first.removeprefix("None ") == second
    assert COMMIT in second


def test_files_and_repositories_that_the_hub_lacks_are_named(endpoint, tmp_path):
    code = (
        "for ref in ('org/repo/tiny2.gguf', 'org/other/tiny.gguf'):\n"
        "    try: check_file(find_file(ref, None))\n"
        "    except ModelError as e: print(e.message, '|', e.hint)"
    )
    file, repository = run(code, endpoint, tmp_path)
    assert file == "org/repo on the Hub has no file tiny2.gguf | did you mean org/repo/tiny.gguf?"
    assert repository.startswith("the Hub has no org/other, or you have no access to it | ")


PINS = """
from smollm3_gguf import loader
from smollm3_gguf.loader import GgufLoader
from smollm3_gguf.options import GgufOptions
from smollm3_finetune.api import BuildContext, Purpose
from smollm3_finetune.testing import Cache
from pathlib import Path
from types import SimpleNamespace

ctx = BuildContext(purpose=Purpose.TRAIN, device="cpu", dtype="float32", seed=0, cache=Cache(Path("cache")),
                   progress=SimpleNamespace(say=print))

found = []
find = loader.find_file
loader.find_file = lambda *args: found.append(find(*args)) or found[-1]

def opened(**options):
    return GgufLoader(GgufOptions(**options)).open("org/repo/tiny.gguf", ctx)
"""


def test_a_file_on_the_hub_is_pinned_to_its_commit(endpoint, tmp_path):
    code = PINS + (
        "import urllib.request, os\n"
        "source = opened()\nprint(source.pins, found[-1].local)\n"
        "urllib.request.urlopen(os.environ['HF_ENDPOINT'] + '/move')\n"
        f"source = opened(revision='{COMMIT}')\nprint(source.pins['revision'], found[-1].on_disk())"
    )
    first, line = run(code, endpoint, tmp_path)
    assert first == f"{{'revision': '{COMMIT}'}} None"
    assert Hub.main == OTHER
    commit, path = line.split()
    assert commit == COMMIT
    assert f"/snapshots/{COMMIT}/" in path
    code = PINS + f"source = opened(revision='{COMMIT}')\nprint(source.pins['revision'], found[-1].local)"
    assert run(code, "http://127.0.0.1:9", tmp_path) == [line], "a file in the cache needs no network"


def test_a_branch_that_moves_after_the_header_was_read_is_not_followed(endpoint, tmp_path):
    code = PINS + (
        "import urllib.request, os\n"
        "source = opened(revision='main')\n"
        "urllib.request.urlopen(os.environ['HF_ENDPOINT'] + '/move')\n"
        "print(source.pins['revision'], found[-1].on_disk())"
    )
    (line,) = run(code, endpoint, tmp_path)
    assert line.startswith(f"{COMMIT} ")
    assert f"/snapshots/{COMMIT}/" in line
    assert Hub.main == OTHER


def test_a_revision_that_the_hub_lacks_is_named(endpoint, tmp_path):
    code = "try: check_file(find_file('org/repo/tiny.gguf', 'gone'))\nexcept ModelError as e: print(e.message)"
    assert run(code, endpoint, tmp_path) == ["the Hub has no org/repo at revision gone, or you have no access to it"]
