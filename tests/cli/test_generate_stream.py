"""`smollm3 generate` prints an answer while it is generated, and the same text as without streaming."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smollm3_finetune.api import directory_source
from smollm3_finetune.builtin.tiny_loader import DIRECTORY
from smollm3_finetune.inference.streaming import TextStream

ASK = ("generate", "tiny", "--prompt", "What is the capital of France?", "--max-new-tokens", "12")
ANSWER = "The capital of France is Paris."


class Terminal(io.StringIO):
    """Standard output that is a terminal and keeps each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    out = Terminal()
    monkeypatch.setattr("smollm3_finetune.cli.commands.generate.result_stream", lambda: out)
    return out


def test_a_terminal_shows_the_answer_piece_by_piece(cli: Callable[..., Any], terminal: Terminal) -> None:
    result = cli(*ASK)
    assert (result.code, result.stdout) == (0, ""), result.stderr
    assert terminal.getvalue() == f"{ANSWER}\n"
    assert len(terminal.writes) > 4
    assert "streamer" not in result.stderr


@pytest.mark.parametrize("flags", [("--json",), ("--no-stream",)])
def test_json_and_no_stream_print_the_whole_answer(
    cli: Callable[..., Any], terminal: Terminal, flags: tuple[str, ...]
) -> None:
    result = cli(*ASK, *flags)
    assert terminal.writes == [] and ANSWER in result.stdout


def test_a_pipe_gets_the_whole_answer_unless_it_is_asked_for_in_pieces(cli: Callable[..., Any]) -> None:
    whole, streamed = cli(*ASK), cli(*ASK, "--stream")
    assert whole.stdout == streamed.stdout == f"{ANSWER}\n"


def test_sampling_gives_the_same_answer_in_pieces(cli: Callable[..., Any]) -> None:
    sampling = ("--temperature", "20", "--top-p", "1", "--seed", "3")
    whole, streamed = cli(*ASK, *sampling), cli(*ASK, *sampling, "--stream")
    assert whole.stdout == streamed.stdout != f"{ANSWER}\n"


def test_stream_and_json_exclude_each_other(cli: Callable[..., Any]) -> None:
    result = cli(*ASK, "--stream", "--json")
    assert (result.code, result.stdout) == (2, "")
    assert "--json prints one object at the end" in result.stderr


def test_an_interrupted_answer_keeps_what_was_printed(
    cli: Callable[..., Any], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = TextStream.put

    def interrupted(self: TextStream, value: Any) -> None:
        if len(self.ids) == 3:
            raise KeyboardInterrupt
        own(self, value)

    monkeypatch.setattr(TextStream, "put", interrupted)
    result = cli(*ASK)
    assert result.code == 130 and result.stderr.endswith("smollm3: interrupted\n")
    text = terminal.getvalue()
    assert text.endswith("\n") and text.strip() and ANSWER.startswith(text.strip()) and text.strip() != ANSWER


@pytest.mark.parametrize("text", ["  It is 5 °C.\n\n- größer\n\n", "日本語 🙂🙃 end", "", " \n "])
def test_the_pieces_are_the_decoded_text_without_white_space_around_it(text: str) -> None:
    tokenizer = directory_source(DIRECTORY, ref="tiny").tokenizer()
    pieces: list[str] = []
    stream = TextStream(tokenizer, pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        stream.put(torch.tensor([token]))
        assert not any("\ufffd" in piece for piece in pieces)
    stream.end()
    assert "".join(pieces) == text.strip()
    assert all(pieces)


def test_a_tokenizer_that_changes_the_text_before_a_token_still_shows_the_whole_text() -> None:
    class Contracting:
        def decode(self, ids: list[int], **_: Any) -> str:
            return {1: "I", 2: "I do", 3: "I do n", 4: "I don't", 5: "I don't know"}[len(ids)]

    pieces: list[str] = []
    stream = TextStream(Contracting(), pieces.append)  # type: ignore[arg-type]
    stream.put(torch.tensor([[9]]))
    for token in range(5):
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces).splitlines() == ["I do n", "I don't know"]
