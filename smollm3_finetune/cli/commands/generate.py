"""`smollm3 generate`"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import click

from smollm3_finetune.cli.answering import adapter_options, check_text, mode_options, opened, sampling_options
from smollm3_finetune.cli.options import plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import prints_result, result_stream

if TYPE_CHECKING:
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.inference.sampling import Sampling


@click.command(cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="RUN|MODEL")
@click.option("--prompt", help="Prompt to answer; - reads standard input.")
@click.option(
    "--prompts", metavar="FILE",
    help="Answer all rows of a file: JSONL, or another format of rows, with `prompt` or `messages`.",
)  # fmt: skip
@click.option(
    "--output", metavar="FILE.jsonl",
    help="Write the answers to --prompts here, in the order of the rows. To continue after an interruption, run the "
    "command again. Default: standard output.",
)  # fmt: skip
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=8, show_default=True,
    help="Rows of --prompts that are answered together.",
)  # fmt: skip
@click.option("--system", default=None, help="System message before the prompt.")
@adapter_options
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer, in tokens."
)
@sampling_options(temperature=0.0, top_p=0.95)
@click.option(
    "--num-return", type=click.IntRange(min=1), default=1, show_default=True, help="Number of answers to each prompt."
)
@mode_options
@click.option(
    "--stream/--no-stream", default=None, help="Print the answer while it is generated; default: on a terminal."
)
@click.option("--json", "as_json", is_flag=True, help="Print the prompt and the answer as JSON.")
@plugin_options
@prints_result
def generate(target: str, prompt: str | None, as_json: bool, stream: bool | None, **values: Any) -> str | None:
    """Answer a prompt, or a file of prompts, with a run's fine-tuned model, or with any other model.

    \b
    Examples:
      smollm3 generate runs/20261122-101500-tiny-lora --prompt 'What is the capital of France?'
      smollm3 generate HuggingFaceTB/SmolLM3-3B --quant bnb-4bit --prompt 'Hello!' --temperature 0.6
      smollm3 generate runs/20261122-101500-tiny-lora --prompts questions.jsonl --output answers.jsonl
    """
    from smollm3_finetune.inference.sampling import Sampling

    _check_combination(prompt, as_json, stream, values)
    sampling = Sampling(**{name: values[name] for name in SAMPLING})
    if values["num_return"] > 1 and sampling.greedy:
        raise _error("--num-return: at temperature 0 all answers are the same", "--temperature 0.6")
    if prompt is None:
        _answer_file(target, values, sampling)
        return None
    return _answer_one(target, prompt, as_json, stream, values, sampling)


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def _check_combination(prompt: str | None, as_json: bool, stream: bool | None, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for options that exclude each other."""
    if as_json and stream:
        raise _error("--json prints one object at the end, so it cannot be used with --stream", "--no-stream")
    if stream and values["num_return"] > 1:
        raise _error("--stream shows a single answer, so it cannot be used with --num-return", "--no-stream")
    if prompt is None and values["prompts"] is None:
        raise _error("there is no prompt", "--prompt 'What is the capital of France?', or --prompts FILE.jsonl")
    if prompt is not None and values["prompts"] is not None:
        raise _error("--prompt and --prompts exclude each other", "omit one of them")
    if prompt is not None and values["output"] is not None:
        raise _error("--output is only for the answers to --prompts", "for one prompt: smollm3 generate … > FILE")
    if prompt is None and stream:
        raise _error("--stream shows a single answer, so it cannot be used with --prompts", "--no-stream")
    check_text("--prompt", prompt or "")
    check_text("--system", values["system"] or "")


def _answer_one(
    target: str, prompt: str, as_json: bool, stream: bool | None, values: Mapping[str, Any], sampling: Sampling
) -> str | None:
    text = _standard_input() if prompt == "-" else prompt
    if not text.strip():
        raise _error("the prompt is empty", "--prompt 'What is the capital of France?'")
    model = opened(target, values)
    from smollm3_finetune.inference.generate import answer, answers, room_for

    messages = [{"role": "system", "content": values["system"]}] if values["system"] else []
    messages.append({"role": "user", "content": text})
    if not model.renderer.template:
        model.say("the model has no chat template, so it continues the prompt as plain text")
    prompt_ids = model.renderer.prompt_ids(messages, **model.mode)
    model.renderer.check_ids(prompt_ids, "the prompt")
    length = len(prompt_ids)
    room = room_for(model.plan, length, values["max_new_tokens"], fixed=model.is_run)
    if room < values["max_new_tokens"]:
        model.say(f"--max-new-tokens is reduced to {room}: no more fits after a prompt of {length} tokens")
    loaded = model.compose(values["seed"])
    about: dict[str, Any] = {
        "max_new_tokens": room,
        "sampling": sampling,
        "template_kwargs": model.mode,
        "renderer": model.renderer,
    }
    if values["num_return"] > 1:
        found = answers(loaded.model, model.tokenizer, messages, count=values["num_return"], **about)
        if as_json:
            return json.dumps({"prompt": text, "answers": found}, ensure_ascii=False)
        return "\n".join(f"--- answer {n} of {len(found)}\n{one}" for n, one in enumerate(found, 1))
    out = result_stream()
    streams = not as_json and (out.isatty() if stream is None else stream)
    with _ended_line(out) if streams else contextlib.nullcontext() as write:
        reply = answer(loaded.model, model.tokenizer, messages, stream=write, **about)
    if streams:
        return None
    return json.dumps({"prompt": text, "answer": reply}, ensure_ascii=False) if as_json else reply


def _answer_file(target: str, values: Mapping[str, Any], sampling: Sampling) -> None:
    """Answer the rows of `--prompts`, and write them to `--output` or print them."""
    from smollm3_finetune.inference.answer_rows import answer_rows, settings_of
    from smollm3_finetune.inference.answers_file import AnswersFile, InOrder, recorded_date
    from smollm3_finetune.inference.prompt_rows import read_prompts, rooms_for
    from smollm3_finetune.paths import user_path

    source = user_path(values["prompts"], "--prompts")
    if not source.is_file():
        raise _error(f"--prompts: {str(source)!r} is not a file", "--prompts prompts.jsonl")
    output = user_path(values["output"], "--output") if values["output"] is not None else None
    model = opened(target, values).on_day(None if output is None else recorded_date(output))
    rows = read_prompts(source, model.renderer, model.mode, values["system"])
    rooms = rooms_for(model.plan, rows, values["max_new_tokens"], fixed=model.is_run)
    if short := sum(room < values["max_new_tokens"] for room in rooms):
        model.say(f"--max-new-tokens is reduced for {short} of {len(rows)} rows: no more fits into the context")
    file = None
    if output is not None:
        more = {key: values[key] for key in ("system", "max_new_tokens", "num_return", "seed")}
        more["date"] = model.renderer.options.date
        settings = settings_of(model.plan, sampling, model.mode, more, values["batch_size"])
        file = AnswersFile(output, rows, settings)
        written = file.check()
        if written == len(rows):
            model.say(f"{file.path} has the answers to all {len(rows)} rows already")
            return
        if written:
            model.say(f"{file.path} has {written} of {len(rows)} rows already; continuing")
    loaded = model.compose(values["seed"])
    printed = InOrder(rows, _writer(result_stream()))
    with file.open() if file is not None else contextlib.nullcontext(printed) as out:
        answer_rows(
            loaded, model.renderer, out, rooms, batch_size=values["batch_size"], sampling=sampling,
            count=values["num_return"], seed=values["seed"], progress=model.plan.context.progress,
        )  # fmt: skip
    if file is not None:
        model.say(f"{file.path}: {len(rows)} rows")


def _error(message: str, hint: str) -> ConfigError:
    from smollm3_finetune.errors import ConfigError

    return ConfigError(message, hint=hint)


def _writer(out: TextIO) -> Callable[[str], None]:
    """A function that writes text at once."""

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    return write


@contextlib.contextmanager
def _ended_line(out: TextIO) -> Iterator[Callable[[str], None]]:
    """A function that writes text at once; the line is ended afterwards, also if the answer is interrupted."""
    write = _writer(out)
    try:
        yield write
    finally:
        write("\n")


def _standard_input() -> str:
    from smollm3_finetune.errors import ConfigError

    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"--prompt -: standard input is not UTF-8 text: {e.reason} at byte {e.start}") from e
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")
