"""`smollm3 generate`"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import click

from smollm3_finetune.cli.options import F, Number, composition_options, plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import find_plugins, prints_result, result_stream
from smollm3_finetune.model_files.loading import quiet_transformers

if TYPE_CHECKING:
    from smollm3_finetune.config.schema import RunConfig
    from smollm3_finetune.data.chat_template.renderer import RenderOptions
    from smollm3_finetune.runs.rundir import RunDir


def generating_options(f: F) -> F:
    return composition_options(f, quant="Quantizer; default: the adapter's, else the checkpoint's, else none.")


@click.command(cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="RUN|MODEL")
@click.option("--prompt", required=True, help="Prompt to answer; - reads standard input.")
@click.option("--system", default=None, help="System message before the prompt.")
@click.option("--adapter-path", default=None, metavar="DIR", help="Saved adapter to apply to MODEL.")
@click.option("--adapter", default=None, metavar="NAME", help="Adapter method, if its directory does not name it.")
@click.option("--any-base", is_flag=True, help="Allow an adapter that was trained on other weights.")
@generating_options
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--temperature", type=Number(0, 100), default=0.0, show_default=True, help="Sampling temperature; 0 is greedy."
)
@click.option(
    "--top-p",
    type=Number(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="Nucleus sampling; ignored at temperature 0.",
)
@click.option("--think/--no-think", default=None, help="Reasoning mode; default: as the run was trained.")
@click.option(
    "--date", metavar="DAY", help="Date for the chat template: YYYY-MM-DD or today; default: the run's, else today."
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed for sampling."
)
@click.option(
    "--stream/--no-stream", default=None, help="Print the answer while it is generated; default: on a terminal."
)
@click.option("--json", "as_json", is_flag=True, help="Print the prompt and the answer as JSON.")
@plugin_options
@prints_result
def generate(target: str, prompt: str, as_json: bool, stream: bool | None, **values: Any) -> str | None:
    """Answer a prompt with a run's fine-tuned model, or with any other model.

    \b
    Examples:
      smollm3 generate runs/20261122-101500-tiny-lora --prompt 'What is the capital of France?'
      smollm3 generate HuggingFaceTB/SmolLM3-3B --quant bnb-4bit --prompt 'Hello!' --temperature 0.6
    """
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.cli.session import given, model_request, options_of
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.runs.plugin_files import check_missing_plugin_files, check_plugin_files
    from smollm3_finetune.runs.reopen import run_request
    from smollm3_finetune.runs.rundir import RunDir

    if as_json and stream:
        raise ConfigError("--json prints one object at the end, so it cannot be used with --stream", hint="--no-stream")
    _check_text("--prompt", prompt)
    _check_text("--system", values["system"] or "")
    text = _standard_input() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty", hint="--prompt 'What is the capital of France?'")
    run = RunDir(user_path(target, "the run or model"))
    is_run = run.config.exists()
    if is_run:
        check_plugin_files(run, values["plugin"])
    registry = find_plugins(values["plugin"], values["no_plugins"])
    if is_run:
        check_missing_plugin_files(run, values["plugin"], registry)
        request, _ = run_request(
            run, given(values), options_of(values, "loader_opt", "loader"), "generate", Purpose.INFER
        )
    else:
        request = model_request(target, values, Purpose.INFER)
    own = run if is_run else None
    options, mode = _render_options(own, values["date"]), _mode(own, values["think"])
    from smollm3_finetune.data.chat_template.renderer import Renderer
    from smollm3_finetune.data.vocabulary import embeddings_of
    from smollm3_finetune.inference.generate import answer, room_for
    from smollm3_finetune.model.load import build_context, compose
    from smollm3_finetune.model.plan import plan_model, plan_tokenizer, select_model
    from smollm3_finetune.model.trained_context import check_trained_context
    from smollm3_finetune.progress import for_stream

    selected = select_model(registry, request)
    import transformers

    quiet_transformers()
    context = build_context(
        request.purpose, values["device"] or "auto", _dtype(own, values), values["seed"],
        progress=for_stream(),
    )  # fmt: skip
    plan = plan_model(registry, selected, context)
    if not values["any_base"]:
        check_trained_context(plan)
    tokenizer = plan_tokenizer(plan)
    messages = [{"role": "system", "content": values["system"]}] if values["system"] else []
    messages.append({"role": "user", "content": text})
    renderer = Renderer(tokenizer, options, embeddings=embeddings_of(plan.source.config))
    if not renderer.template:
        context.progress.say("the model has no chat template, so it continues the prompt as plain text")
    prompt_ids = renderer.prompt_ids(messages, **mode)
    renderer.check_ids(prompt_ids, "the prompt")
    length = len(prompt_ids)
    room = room_for(plan, length, values["max_new_tokens"], fixed=is_run)
    if room < values["max_new_tokens"]:
        context.progress.say(f"--max-new-tokens is reduced to {room}: no more fits after a prompt of {length} tokens")
    loaded = compose(plan, check_base=not values["any_base"])
    transformers.set_seed(values["seed"])
    out = result_stream()
    streams = not as_json and (out.isatty() if stream is None else stream)
    with _ended_line(out) if streams else contextlib.nullcontext() as write:
        reply = answer(
            loaded.model,
            tokenizer,
            messages,
            max_new_tokens=room,
            temperature=values["temperature"],
            top_p=values["top_p"],
            template_kwargs=mode,
            renderer=renderer,
            stream=write,
        )
    if streams:
        return None
    return json.dumps({"prompt": text, "answer": reply}, ensure_ascii=False) if as_json else reply


@contextlib.contextmanager
def _ended_line(out: TextIO) -> Iterator[Callable[[str], None]]:
    """A function that writes text at once; the line is ended afterwards, also if the answer is interrupted."""

    def write(text: str) -> None:
        out.write(text)
        out.flush()

    try:
        yield write
    finally:
        write("\n")


def _check_text(flag: str, text: str) -> None:
    """Raises ConfigError if an argument is not UTF-8: Python decodes its invalid bytes to lone surrogates."""
    from smollm3_finetune.errors import ConfigError

    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ConfigError(
            f"{flag} is not UTF-8 text: invalid byte at character {e.start + 1}",
            hint=f'if it is latin1: {flag} "$(printf %s TEXT | iconv -f latin1 -t utf-8)"',
        ) from e


def _standard_input() -> str:
    from smollm3_finetune.errors import ConfigError

    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"--prompt -: standard input is not UTF-8 text: {e.reason} at byte {e.start}") from e
    return text.removeprefix("\ufeff").removesuffix("\n").removesuffix("\r")


def _dtype(run: RunDir | None, values: Mapping[str, Any]) -> str:
    """The dtype of `--dtype`, else the run's own if it ran on the same kind of device, else `auto`."""
    if values["dtype"]:
        return str(values["dtype"])
    if run is None:
        return "auto"
    from smollm3_finetune.model.device import resolve_device

    config = _config(run)
    here = resolve_device(values["device"] or "auto").partition(":")[0]
    return config.dtype if config.dtype == "float64" or here == config.device.partition(":")[0] else "auto"


def _config(run: RunDir) -> RunConfig:
    from smollm3_finetune.config.load import assemble, file_settings

    return assemble([file_settings(run.config)]).config


def _render_options(run: RunDir | None, date: str | None) -> RenderOptions:
    """The run's history and date, else the template's default and today; `date` overrides both.

    The chat template is that of the saved tokenizer.
    """
    import datetime

    from smollm3_finetune.data.chat_template.renderer import RenderOptions
    from smollm3_finetune.errors import ConfigError

    if date is not None and date != "today":
        try:
            datetime.date.fromisoformat(date)
        except ValueError as e:
            raise ConfigError(f"--date: expected YYYY-MM-DD or today, got {date!r}", hint="--date 2026-01-01") from e
    if run is None:
        return RenderOptions(date=None if date == "today" else date)
    data = _config(run).data
    day = data.date if date is None else None if date == "today" else date
    return RenderOptions(history=data.history, date=day)


def _mode(run: RunDir | None, think: bool | None) -> dict[str, bool]:
    """The reasoning mode for the template: `--think`, else the mode in which the run's sample prompt was answered."""
    from smollm3_finetune.errors import ModelError
    from smollm3_finetune.files.limits import load_json

    if think is None and run is not None:
        think = _config(run).data.enable_thinking
        if run.report.exists():
            try:
                trained = load_json(run.report).get("enable_thinking")
            except (OSError, ValueError, AttributeError) as e:
                raise ModelError(f"{run.report} is damaged: {e}", hint="pass --think or --no-think") from e
            think = trained if isinstance(trained, bool) else think
    return {} if think is None else {"enable_thinking": think}
