"""Tests: the promises of every command (conformance kit), and real requests to the built-in model."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.testing import CommandConformance

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


class TestServe(CommandConformance):
    component = "serve"

    def refused(self, directory: Path) -> Iterable[Sequence[str]]:
        return [["no-such-model", "--port", "0"], ["tiny", "--port", "0", "--quant", "no-such-quantizer"]]

    def test_a_port_in_use_is_refused_before_the_model_is_loaded(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            done = self.call("no-such-model", "--port", taken.getsockname()[1])
        assert done.code == 2 and "cannot listen on 127.0.0.1:" in done.stderr


class Process:
    """The command in a process of its own, as a user starts it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "smollm3_finetune.main", "serve", "tiny", "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.said: list[str] = []
        threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()), daemon=True).start()
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:"), self.said

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", int(self.url.split(":")[2].split("/")[0]), timeout=120)
        try:
            raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, raw)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()
        finally:
            connection.close()

    def chat(self, **values: Any) -> tuple[int, Any]:
        status, _, content = self.request("POST", "/v1/chat/completions", {"messages": QUESTION, **values})
        return status, json.loads(content)


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    started = Process()
    yield started
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(60) == 0, started.said
    assert "stopped\n" in started.said
    assert not any("Traceback" in line for line in started.said)
    assert started.process.stdout is not None and started.process.stderr is not None
    started.process.stdout.close()


def test_it_answers_a_chat(server: Process) -> None:
    status, answer = server.chat(max_tokens=20)
    assert status == 200 and answer["object"] == "chat.completion" and answer["model"] == "tiny"
    assert answer["choices"][0] == {
        "index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop",
    }  # fmt: skip
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] and usage["prompt_tokens"] > 10


def test_it_streams_a_chat(server: Process) -> None:
    body = {"messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 20}
    status, kind, content = server.request("POST", "/v1/chat/completions", body)
    assert (status, kind) == (200, "text/event-stream")
    events = [e.removeprefix("data: ") for e in content.decode().split("\n\n") if e]
    assert events[-1] == "[DONE]"
    *chunks, last = [json.loads(e) for e in events[:-1]]
    assert {c["id"] for c in chunks} == {last["id"]} and last["usage"]["completion_tokens"] > 3
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant"} and len(deltas) > 4
    assert "".join(d.get("content", "") for d in deltas) == ANSWER
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]


def test_the_limit_of_tokens_is_kept(server: Process) -> None:
    status, answer = server.chat(max_completion_tokens=2)
    assert status == 200 and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


def test_parts_of_text_are_joined(server: Process) -> None:
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}]
    status, answer = server.chat(messages=[{"role": "user", "content": parts}], max_tokens=20)
    assert status == 200 and answer["choices"][0]["message"]["content"] == ANSWER


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"messages": []}, "a list of messages"),
        ({"messages": [{"role": "user"}]}, "messages[0] must have"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0] must have"),
        ({"stop": ["x"]}, "stop is not supported"),
        ({"n": 2}, "only n=1"),
        ({"temperature": -1}, "temperature: expected a number"),
        ({"max_tokens": "many"}, "max_new_tokens: expected an integer"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "tokens long"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(server: Process, values: dict[str, Any], problem: str) -> None:
    status, answer = server.chat(**values)
    assert status == 400 and problem in answer["error"]["message"], answer


def test_other_requests_are_refused(server: Process) -> None:
    assert server.request("POST", "/v1/chat/completions", b"{")[0] == 400
    assert server.request("POST", "/v1/embeddings", {})[0] == 404
    assert server.request("GET", "/v2")[0] == 404
    assert json.loads(server.request("GET", "/v1/models")[2])["data"] == [{"id": "tiny", "object": "model"}]


def test_a_client_that_leaves_does_not_end_the_server(server: Process) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))) as client:
        body = json.dumps({"messages": QUESTION, "stream": True}).encode()
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.recv(20)
    assert server.chat(max_tokens=20)[1]["choices"][0]["message"]["content"] == ANSWER
