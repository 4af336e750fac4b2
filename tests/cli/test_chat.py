"""`smollm3 chat` with messages from a pipe: answers, commands, JSON, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smollm3_finetune import stopping
from smollm3_finetune.cli.chat.interrupts import Interrupts
from smollm3_finetune.cli.chat.loop import converse
from smollm3_finetune.cli.chat.reading import Reader, terminal_line
from smollm3_finetune.cli.chat.slash import COMMANDS, Command, is_command
from smollm3_finetune.model.load import load_model

BOTTLENECK = str(Path(__file__).parents[2] / "examples" / "bottleneck_adapter.py")
FRANCE, BIG = "What is the capital of France?", "What is the opposite of big?"
PARIS, SMALL = "The capital of France is Paris.", "The opposite of big is small."
GREEDY = ("--temperature", "0", "--max-new-tokens", "16")


@pytest.fixture
def talk(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`talk(LINES, ARGUMENTS)` runs `smollm3 chat` with these lines on standard input."""

    def run(lines: str | bytes, *args: str) -> Any:
        typed = lines if isinstance(lines, bytes) else lines.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
        return cli("chat", *args)

    return run


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved adapter that changes answers."""
    loaded = load_model("tiny", adapter="bottleneck", purpose="train", plugins=[BOTTLENECK], device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    path = tmp_path_factory.mktemp("saved") / "adapter"
    loaded.save(path)
    return str(path)


def test_each_line_of_a_pipe_is_a_turn(talk: Callable[..., Any]) -> None:
    result = talk(f"{FRANCE}\r\n\n/undo\n{BIG}\n/save chat.jsonl\n/exit\nnot read\n", "tiny", *GREEDY)
    assert (result.code, result.stdout) == (0, f"{PARIS}\n{SMALL}\n")
    assert result.stderr == f"removed the last turn: {FRANCE}\nsaved as row 1 of chat.jsonl\n"
    (row,) = Path("chat.jsonl").read_text().splitlines()
    assert json.loads(row) == {"messages": [{"role": "user", "content": BIG}, {"role": "assistant", "content": SMALL}]}


def test_a_typed_line_that_is_not_text_does_not_end_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter([UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), EOFError()])

    def read(prompt: str) -> str:
        raise next(typed)

    monkeypatch.setattr("builtins.input", read)
    said: list[str] = []
    screen: Any = SimpleNamespace(error=lambda e: said.append(e.message))
    chat: Any = None
    converse(chat, Reader(terminal_line(io.StringIO(), [])), screen, Interrupts(), interactive=True)
    assert said == ["the line is not UTF-8 text: invalid start byte"]
    assert next(typed, None) is None, "read until the end of the input"


@pytest.mark.parametrize(
    ("interactive", "raised"),
    [(True, None), (False, KeyboardInterrupt("typed")), (True, stopping.Stop("SIGTERM", 143))],
)
def test_an_interrupt_ends_a_command_and_not_the_chat(
    monkeypatch: pytest.MonkeyPatch, interactive: bool, raised: BaseException | None
) -> None:
    def interrupted(*args: Any) -> None:
        raise raised or KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "/reset", Command("", interrupted))
    typed = iter(["/reset", "/think", None])
    said: list[str] = []
    chat: Any = SimpleNamespace(set_thinking=lambda on: None)
    screen: Any = SimpleNamespace(say=said.append)
    with contextlib.nullcontext() if raised is None else pytest.raises(type(raised)):
        converse(chat, Reader(lambda prompt: next(typed)), screen, Interrupts(), interactive=interactive)
    assert said == (["\n/reset was interrupted", "reasoning is on"] if raised is None else [])


def test_json_has_a_line_for_each_message(talk: Callable[..., Any]) -> None:
    cut = talk(f"{FRANCE}\n{BIG}", "tiny", "--temperature", "0", "--max-new-tokens", "4", "--json")
    assert cut.code == 0 and cut.stderr == ""
    rows = [json.loads(line) for line in cut.stdout.splitlines()]
    assert [(r["prompt"], r["finish_reason"]) for r in rows] == [(FRANCE, "length"), (BIG, "length")]
    assert PARIS.startswith(rows[0]["answer"])


def test_compared_answers_have_titles_and_equal_ones_are_shown_once(talk: Callable[..., Any], adapter: str) -> None:
    flags = ("tiny", "--adapter-path", adapter, "-p", BOTTLENECK, *GREEDY)
    result = talk(f"{FRANCE}\n", *flags, "--compare")
    assert result.code == 0, result.stderr
    title, *own, base, answer = result.stdout.splitlines()
    assert (title, base, answer) == ("with bottleneck:", "base:", PARIS)
    as_json = talk(f"{FRANCE}\n", *flags, "--compare", "--json").report()
    assert as_json["answer"] == "\n".join(own).removesuffix("\n[cut at 16 new tokens: --max-new-tokens]")
    assert (as_json["base"], as_json["same"]) == (PARIS, False)
    switched = talk(f"/base\n{FRANCE}\n/base\n/reset\n{FRANCE}\n", *flags)
    assert switched.stdout.splitlines()[0] == PARIS
    assert "\n".join(switched.stdout.splitlines()[1:]) == "\n".join(own)
    fresh = load_model("tiny", adapter="bottleneck", purpose="train", plugins=[BOTTLENECK], device="cpu")
    fresh.save("fresh")
    same = talk(f"{FRANCE}\n", "tiny", "--adapter-path", "fresh", "-p", BOTTLENECK, *GREEDY, "--compare")
    assert same.stdout == f"with bottleneck:\n{PARIS}\nbase: same answer\n"


def test_a_saved_adapter_is_a_model_to_talk_to(talk: Callable[..., Any], cli: Callable[..., Any], adapter: str) -> None:
    flags = ("-p", BOTTLENECK, *GREEDY)
    named = talk(f"{FRANCE}\n", adapter, *flags, "--compare")
    assert named.code == 0, named.stderr
    assert named.stdout == talk(f"{FRANCE}\n", "tiny", "--adapter-path", adapter, *flags, "--compare").stdout
    assert named.stdout.startswith("with bottleneck:\n")
    answered = cli("generate", adapter, "--prompt", FRANCE, *flags)
    assert answered.stdout == cli("generate", "tiny", "--adapter-path", adapter, "--prompt", FRANCE, *flags).stdout
    assert answered.code == 0 and PARIS not in answered.stdout


def test_an_adapter_that_is_a_complete_model_needs_no_base(cli: Callable[..., Any]) -> None:
    whole = load_model("tiny", adapter="full", purpose="train", device="cpu")
    whole.save("whole")
    description = json.loads(Path("whole/smollm3.json").read_text())
    Path("whole/checksums.json").unlink()
    Path("whole/smollm3.json").write_text(json.dumps({**description, "model": "no-such-model"}))
    assert cli("generate", "whole", "--prompt", FRANCE, *GREEDY).stdout == f"{PARIS}\n"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("/undoo", "there is no command /undoo", "/undo?"),
        ("/xyz", "there is no command /xyz", "/help lists the commands"),
        ("/undo", "there is no turn to remove", ""),
        ("/undo 2", "/undo takes no argument", "/undo"),
        ("/save", "/save needs an argument", "/save FILE"),
        ("/reasoning", "the last answer has no reasoning", ""),
        ("/base", "'tiny' is used without an adapter, so there is nothing to switch off", "--adapter-path DIR"),
    ],
)
def test_a_wrong_command_ends_a_chat_of_a_script(talk: Callable[..., Any], line: str, message: str, hint: str) -> None:
    result = talk(f"{line}\n{FRANCE}\n", "tiny", *GREEDY)
    assert (result.code, result.stdout) == (3 if line == "/base" else 2, "")
    assert f"error: {message}" in result.stderr and hint in result.stderr


def test_what_cannot_be_compared_or_read_is_refused_before_weights_are_read(
    talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3_finetune.model.load.compose", lambda *a, **k: pytest.fail("weights were read"))
    result = talk("Hello!\n", "tiny", "--compare")
    assert result.code == 3 and "'tiny' is used without an adapter" in result.stderr


def test_input_that_is_not_utf_8_is_named_by_its_line(talk: Callable[..., Any]) -> None:
    result = talk(FRANCE.encode() + b"\ncaf\xe9\n", "tiny", *GREEDY)
    assert (result.code, result.stdout) == (5, f"{PARIS}\n")
    assert "line 2 of standard input is not UTF-8 text" in result.stderr


def test_commands_change_what_the_model_is_asked(talk: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from smollm3_finetune.data.chat_template.renderer import Renderer

    seen: list[tuple[list[str], dict[str, Any]]] = []
    own = Renderer.prompt_ids

    def kept(self: Renderer, messages: Any, **kwargs: Any) -> list[int]:
        seen.append(([m["content"] for m in messages], kwargs))
        return own(self, messages, **kwargs)

    monkeypatch.setattr(Renderer, "prompt_ids", kept)
    lines = ['/system Be "brief".', "/think", FRANCE, "/no_think", '/system ""', "/reset", '"""', "/undo", "two", '"""',
             "one \\", "line", " /undo", "/etc/hosts is a file", "/system", "/help"]  # fmt: skip
    result = talk("\n".join(lines) + "\n", "tiny", *GREEDY)
    assert result.code == 0, result.stderr
    prompts = [messages[-1] for messages, _ in seen]
    assert prompts == [FRANCE, "/undo\ntwo", "one \nline", "/undo", "/etc/hosts is a file"]
    assert seen[0] == (['Be "brief".', FRANCE], {"enable_thinking": True})
    assert seen[1] == (["/undo\ntwo"], {"enable_thinking": False})
    assert "reasoning is on\n" in result.stderr and "there is no system message\n" in result.stderr
    assert "/save FILE" in result.stderr


def test_a_block_or_a_continued_line_ends_with_the_input() -> None:
    def messages(*lines: str) -> list[str | None]:
        left = iter([*lines, None, None])
        reader = Reader(lambda prompt: next(left))
        found = []
        while (message := reader.read()) is not None:
            found.append(message)
        return found

    assert messages('"""a', "b") == ["a\nb"]
    assert messages('"""a"""', '"""', "b  ", '"""', "c") == ["a", "b  ", "c"]
    assert messages('"""pasted\ntext"""') == ["pasted\ntext"]
    assert messages("a\\") == ["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("/undo", True), ("/save a b", True), ("/etc/hosts", False), (" /undo", False), ("a /undo", False), ("/ x", False),
     ("/2 is a half", False), ("", False)],
)  # fmt: skip
def test_only_a_first_word_with_one_slash_is_a_command(text: str, expected: bool) -> None:
    assert is_command(text) is expected
