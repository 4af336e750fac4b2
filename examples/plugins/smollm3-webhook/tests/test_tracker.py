"""Tests: the promises of every tracker (conformance kit), and the messages that a local server gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from smollm3_webhook import check
from smollm3_webhook.options import WebhookOptions
from smollm3_webhook.tracker import WebhookTracker

from smollm3_finetune.api import ConfigError, Env, Purpose
from smollm3_finetune.testing import TrackerConformance

SECRET = "/services/a-secret-of-the-test"


class Server(HTTPServer):
    """Keeps the messages that it gets."""

    status = 200

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}{SECRET}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        assert self.path == SECRET
        assert self.headers["Content-Type"] == "application/json"
        self.server.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


SERVER = Server()


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    SERVER.shutdown()
    SERVER.server_close()


@pytest.fixture(autouse=True)
def server() -> Iterator[Server]:
    SERVER.messages.clear()
    yield SERVER
    SERVER.status = 200


class TestWebhook(TrackerConformance):
    component = "webhook"
    environment: ClassVar = {"SMOLLM3_WEBHOOK_URL": SERVER.address}

    def test_it_says_how_a_run_starts_and_ends(self, tmp_path: Path, server: Server) -> None:
        opened = self.open(self.tracker(tmp_path), self.run_in(tmp_path, "mine"))
        opened.log(2, {"loss": 2.25})
        report = {"before": {"held_out_loss": 2.5}, "after": {"held_out_loss": 2.125}}
        opened.end("finished", report)
        first, last = server.messages
        assert (first["event"], first["text"]) == ("started", "mine starts: tiny, 2 steps")
        assert last["text"] == (
            "mine finished after 2 of 2 steps, loss 2.2500, held-out loss 2.5000 before, 2.1250 after"
        )
        assert last["event"] == "finished" and last["values"] == {"loss": 2.25}

    def test_a_failed_run_is_reported_with_its_last_step(self, tmp_path: Path, server: Server) -> None:
        opened = self.open(self.choose(starts=False).create(), self.run_in(tmp_path, "mine", first_step=1))
        opened.end("failed", None)
        assert [m["text"] for m in server.messages] == ["mine failed after 1 of 2 steps"]

    def test_paths_of_this_machine_are_not_sent(self, tmp_path: Path, server: Server) -> None:
        run = self.run_in(tmp_path)
        run.configuration["model"] = str(tmp_path / "base-model")  # type: ignore[index]
        self.open(self.tracker(tmp_path), run).end("failed", None)
        assert "base-model" in server.messages[0]["text"]
        assert str(tmp_path) not in json.dumps(server.messages)

    def test_an_error_of_the_server_is_raised_without_the_address(self, tmp_path: Path, server: Server) -> None:
        server.status = 404
        with pytest.raises(OSError, match="404") as caught:
            self.tracker(tmp_path).open(self.run_in(tmp_path))
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/a secret", "http://127.0.0.1:secret/", "http://127.0.0.1/é secret"]
)
def test_a_wrong_address_is_not_in_the_error(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_URL", address)
    run = TestWebhook().run_in(tmp_path)
    with pytest.raises(ValueError, match="the value of MY_URL is not an http or https address") as caught:
        WebhookTracker(WebhookOptions(url_variable="MY_URL")).open(run)
    assert "secret" not in str(caught.value) and caught.value.__suppress_context__


@pytest.mark.parametrize(("address", "problem"), [
    ("", "is not set"), ("hooks.example", "is not an http"), ("https://hooks.example/a secret", "is not an http"),
    ("https://hooks.example/secret\n", "is not an http"),
])  # fmt: skip
def test_a_run_without_an_address_is_refused(address: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_URL", address)
    with pytest.raises(ConfigError, match=problem) as caught:
        check(WebhookOptions(url_variable="MY_URL"), Env(device="cpu", purpose=Purpose.TRAIN))
    assert "export MY_URL=https://" in str(caught.value.hint)
    assert "secret" not in str(caught.value)
