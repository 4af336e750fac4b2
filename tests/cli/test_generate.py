"""`smollm3 generate`: the mode and the date of a run, and prompts that leave no room for an answer."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smollm3_finetune.api import directory_source
from smollm3_finetune.builtin.tiny_loader import DIRECTORY
from smollm3_finetune.config.schema import DataConfig
from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.data.plan import render_options

QUICK = ("train", "--adapter", "full", "--max-steps", "2", "--set", "train.sample_tokens=4", "--output", "out")
QUESTION = "What is 2 + 2?"


def write_rows(answer: str) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": answer.format(n)}]}
        for n in range(8)
    ]
    file = Path("rows.jsonl")
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def dated(day: str) -> tuple[str, ...]:
    """A run whose template contains the date."""
    own = (DIRECTORY / "chat_template.jinja").read_text()
    Path("dated.jinja").write_text("Today is {{ strftime_now('%Y-%m-%d') }}. " + own)
    return "--set", "data.template=dated.jinja", "--set", f"data.date={day}"


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that models received, in order."""
    seen: list[str] = []
    own = Renderer.prompt

    def kept(self: Renderer, messages: Any, **template_kwargs: Any) -> str:
        seen.append(own(self, messages, **template_kwargs))
        return seen[-1]

    monkeypatch.setattr(Renderer, "prompt", kept)
    return seen


def generated(cli: Callable[..., Any], prompts: list[str], *args: str) -> str:
    """The rendered prompt of one answer."""
    prompts.clear()
    result = cli("generate", *args, "--prompt", QUESTION, "--max-new-tokens", "2")
    assert result.code == 0, result.stderr
    (only,) = set(prompts)
    return only


@pytest.mark.parametrize(("answer", "mode"), [("It is {}.", False), ("<think>\nEasy.\n</think>\nIt is {}.", True)])
def test_a_run_answers_with_the_mode_and_the_date_of_its_training(
    cli: Callable[..., Any], prompts: list[str], answer: str, mode: bool
) -> None:
    made = cli(
        *QUICK, "--data", write_rows(answer), *dated("2001-02-03"), "--set", f"train.sample_prompt={QUESTION}", "--json"
    )
    assert made.code == 0, made.stderr
    assert json.loads(made.stdout)["enable_thinking"] is mode
    (sample,) = set(prompts)
    assert sample.startswith("Today is 2001-02-03.")
    assert generated(cli, prompts, "out") == sample
    flags = {True: "--think", False: "--no-think"}
    assert generated(cli, prompts, "out", flags[mode]) == sample
    assert generated(cli, prompts, "out", flags[not mode]) != sample


def test_a_mode_of_the_configuration_is_kept_without_a_report(cli: Callable[..., Any], prompts: list[str]) -> None:
    rows = write_rows("It is {}.")
    assert cli(*QUICK, "--data", rows, "--set", "data.enable_thinking=true").code == 0
    thinking = generated(cli, prompts, "out", "--think")
    Path("out/report.json").unlink()
    assert generated(cli, prompts, "out") == thinking
    Path("out/report.json").write_text("{")
    damaged = cli("generate", "out", "--prompt", QUESTION)
    assert (damaged.code, damaged.stdout) == (6, "")
    assert "report.json is damaged" in damaged.stderr


def test_the_date_can_be_another(cli: Callable[..., Any], prompts: list[str]) -> None:
    assert cli(*QUICK, "--data", write_rows("It is {}."), *dated("2001-02-03")).code == 0
    assert generated(cli, prompts, "out").startswith("Today is 2001-02-03.")
    assert generated(cli, prompts, "out", "--date", "2033-04-05").startswith("Today is 2033-04-05.")
    today = datetime.date.today().isoformat()
    assert generated(cli, prompts, "out", "--date", "today").startswith(f"Today is {today}.")
    by_path = ("tiny", "--adapter-path", "out/adapter")
    assert generated(cli, prompts, *by_path).startswith(f"Today is {today}.")
    wrong = cli("generate", "out", "--prompt", QUESTION, "--date", "tomorrow")
    assert wrong.code == 2
    assert "--date: expected YYYY-MM-DD or today" in wrong.stderr


def length(prompt: str) -> int:
    tokenizer = directory_source(DIRECTORY, ref="tiny").tokenizer()
    text = Renderer(tokenizer, RenderOptions(date=None)).prompt([{"role": "user", "content": prompt}])
    return len(tokenizer(text, add_special_tokens=False).input_ids)


def test_a_prompt_that_does_not_fit_is_an_error_before_weights_are_read(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3_finetune.model.load.compose", lambda *a, **k: pytest.fail("weights were read"))
    prompt = "one two three " * 2000
    refused = cli("generate", "tiny", "--prompt", prompt)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"error: the prompt is {length(prompt)} tokens long, but 'tiny' supports 2048, including the answer\n"
        "  hint: use a shorter --prompt\n"
    )
    longer = cli("generate", DIRECTORY, "--prompt", prompt, "--max-new-tokens", "10")
    assert f"hint: --loader-opt context={length(prompt) + 10} (YaRN)" in longer.stderr


def test_an_answer_is_cut_to_what_fits(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[int] = []
    monkeypatch.setattr(
        "smollm3_finetune.inference.generate.answer", lambda *a, **k: wanted.append(k["max_new_tokens"]) or "yes"
    )
    prompt = "one " * 1000
    size = length(prompt)
    assert 100 < size < 2000
    assert cli("generate", "tiny", "--prompt", prompt, "--max-new-tokens", str(2048 - size)).stderr == ""
    cut = cli("generate", "tiny", "--prompt", prompt, "--max-new-tokens", str(2049 - size))
    assert cut.stderr == f"--max-new-tokens is reduced to {2048 - size}: no more fits after a prompt of {size} tokens\n"
    assert wanted == [2048 - size, 2048 - size]


def test_a_byte_order_mark_is_removed_from_prompts_and_templates(
    cli: Callable[..., Any], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smollm3_finetune.inference.generate.answer", lambda *a, **k: "yes")

    def answered(typed: bytes) -> Any:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
        return cli("generate", "tiny", "--prompt", "-", "--json")

    assert answered(b"\xef\xbb\xbfHello\r\n").report() == {"prompt": "Hello", "answer": "yes"}
    assert "the prompt is empty" in answered(b"\xef\xbb\xbf\n").stderr
    assert "invalid start byte at byte 4" in answered(b"\xef\xbb\xbfa\xff").stderr
    Path("marked.jinja").write_bytes(b"\xef\xbb\xbfIt is {{ strftime_now('%Y') }}.")
    template = render_options(DataConfig(template="marked.jinja")).template
    assert template == "It is {{ strftime_now('%Y') }}."


@pytest.mark.parametrize("flag", ["--prompt", "--system"])
def test_an_argument_that_is_not_utf_8_is_named(cli: Callable[..., Any], flag: str) -> None:
    typed = {"--prompt": "Hello!", flag: "caf\udce9 au lait"}  # as Python hands on the byte 0xe9
    result = cli("generate", "tiny", *(word for pair in typed.items() for word in pair))
    assert (result.code, result.stdout) == (2, "")
    message, hint = result.stderr.splitlines()
    assert message == f"error: {flag} is not UTF-8 text: invalid byte at character 4"
    assert hint.startswith(f"  hint: if it is latin1: {flag} ")
