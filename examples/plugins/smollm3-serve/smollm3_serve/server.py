"""The server: `POST /v1/chat/completions` with and without streaming, and `GET /v1/models`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from smollm3_finetune.api import DataError, OpenedModel, SmolLM3Error

LARGEST = 16 * 2**20  # bytes of a request
LIMIT = 512  # tokens of an answer to a request that does not state them
UNSUPPORTED = (
    "stop", "tools", "functions", "logprobs", "response_format", "logit_bias", "presence_penalty", "frequency_penalty",
)  # fmt: skip
"""What changes an answer, and is refused instead of ignored."""
ROLES = ("system", "user", "assistant")


class Server(HTTPServer):
    """Answers one request at a time, so that the model computes one answer at a time."""

    model: OpenedModel

    def __init__(self, address: tuple[str, int], name: str, say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.say("a client closed its connection, or sent nothing")


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 30  # a client that sends nothing must not keep others waiting

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.respond(200, {"object": "list", "data": [{"id": self.server.name, "object": "model"}]})
        else:
            self.fail(404, f"there is no {self.path}")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.fail(413, f"a request must state its length, at most {LARGEST} bytes")
            return
        body, self.streaming = self.rfile.read(int(length)), False
        if self.path != "/v1/chat/completions":
            self.fail(404, f"there is no {self.path}")
            return
        try:
            self.complete(parsed(body))
        except SmolLM3Error as e:
            self.fail(400, e.message)
        except OSError:  # the connection
            raise
        except Exception as e:  # the next request may work
            self.server.say(f"error: {type(e).__name__}: {e}")
            self.fail(500, f"{type(e).__name__}: {e}")

    def complete(self, request: Mapping[str, Any]) -> None:
        """Answer a chat, as one object or as a stream of chunks."""
        self.about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.server.name}
        stream = request.get("stream") is True
        sampling = {n: request[n] for n in ("temperature", "top_p", "seed") if request.get(n) is not None}
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or LIMIT
        send = (lambda text: self.chunk({"content": text})) if stream else None
        reply = self.server.model.reply(request["messages"], limit, stream=send, **sampling)
        total = reply.prompt_tokens + reply.tokens
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.tokens, "total_tokens": total}
        if stream:
            self.chunk({}, reply.finish)
            if (request.get("stream_options") or {}).get("include_usage"):
                self.event({**self.about, "object": "chat.completion.chunk", "choices": [], "usage": usage})
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            message = {"role": "assistant", "content": reply.text}
            choices = [{"index": 0, "message": message, "finish_reason": reply.finish}]
            self.respond(200, {**self.about, "object": "chat.completion", "choices": choices, "usage": usage})

    def chunk(self, delta: Mapping[str, str], finish: str | None = None) -> None:
        if not self.streaming:
            self.streaming = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.chunk({"role": "assistant"})
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        self.event({**self.about, "object": "chat.completion.chunk", "choices": choices})

    def event(self, content: Mapping[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

    def respond(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, status: int, message: str) -> None:
        error = {"error": {"message": message, "type": "invalid_request_error", "code": status}}
        if getattr(self, "streaming", False):  # the status was sent
            self.event(error)
        else:
            self.respond(status, error)

    def log_message(self, format: str, *args: Any) -> None:
        self.server.say(format % args)


def parsed(body: bytes) -> dict[str, Any]:
    """The request in a body. Raises DataError."""
    try:
        request: Any = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise DataError(f"the body is not JSON: {e}") from e
    if not isinstance(request, dict) or not isinstance(request.get("messages"), list) or not request["messages"]:
        raise DataError("the body must be an object with a list of messages")
    if ignored := next((name for name in UNSUPPORTED if request.get(name)), None):
        raise DataError(f"{ignored} is not supported")
    if request.get("n") not in (None, 1):
        raise DataError("only n=1 is supported")
    return {**request, "messages": [_message(number, one) for number, one in enumerate(request["messages"])]}


def _message(number: int, message: Any) -> Mapping[str, Any]:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(p.get("text", "")) for p in content)
    if not isinstance(content, str) or message.get("role") not in ROLES:
        raise DataError(f"messages[{number}] must have one of the roles {', '.join(ROLES)}, and a text as its content")
    return {"role": message["role"], "content": content}
