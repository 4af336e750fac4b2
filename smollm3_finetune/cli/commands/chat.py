"""`smollm3 chat`"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.answering import adapter_options, check_text, mode_options, opened, sampling_options
from smollm3_finetune.cli.options import plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import prints_result, result_stream

if TYPE_CHECKING:
    from smollm3_finetune.inference.chat import Chat, Side

DEFAULTS = {"temperature": 0.6, "top_p": 0.95}
"""Sampling of SmolLM3, for models whose generation config does not state it."""


@click.command(cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="RUN|MODEL")
@click.option("--compare", is_flag=True, help="Answer each message with and without the adapter, side by side.")
@click.option("--system", default=None, help="System message.")
@adapter_options
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=1024, show_default=True, help="Longest answer, in tokens."
)
@sampling_options()
@mode_options
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each message; for piped input.")
@plugin_options
@prints_result
def chat(target: str, compare: bool, as_json: bool, **values: Any) -> None:
    """Chat with a run's fine-tuned model, or with any other model.

    Commands in the chat begin with /, and /help lists them. If standard input is not a terminal, each line is a
    message or a command.

    \b
    Examples:
      smollm3 chat runs/20261122-101500-tiny-lora
      smollm3 chat runs/20261122-101500-tiny-lora --compare --temperature 0
      smollm3 chat HuggingFaceTB/SmolLM3-3B --quant bnb-4bit --think
    """
    check_text("--system", values["system"] or "")
    interactive, out = sys.stdin.isatty(), result_stream()
    if as_json and interactive:
        from smollm3_finetune.errors import ConfigError

        raise ConfigError("--json is for messages from a pipe", hint="smollm3 chat RUN --json < messages.txt")
    model = opened(target, values, "chat")
    from smollm3_finetune.inference.chat import Chat, base_problem, check_chat_template
    from smollm3_finetune.inference.sampling import Sampling

    check_chat_template(model.renderer, model.plan.ref)
    if compare and (problem := base_problem(model.plan)) is not None:
        raise problem
    loaded = model.compose(values["seed"])
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    config = getattr(loaded.base.model, "generation_config", None)
    session = Chat(
        loaded,
        model.renderer,
        sampling=Sampling.stated(config, {name: values[name] for name in names}, DEFAULTS),
        max_new_tokens=values["max_new_tokens"],
        mode=model.mode,
        compare=compare,
        system=values["system"],
    )
    _run(session, interactive=interactive, as_json=as_json, out=out)


def _run(session: Chat, *, interactive: bool, as_json: bool, out: Any) -> None:
    """Chat on this process's standard streams."""
    from smollm3_finetune.cli.chat.interrupts import Interrupts
    from smollm3_finetune.cli.chat.loop import converse
    from smollm3_finetune.cli.chat.reading import Reader, piped_line, terminal_line
    from smollm3_finetune.cli.chat.slash import COMMANDS
    from smollm3_finetune.cli.output.chat import Plain, Screen

    plan = session.loaded.plan
    adapter = plan.adapter.component.spec.name if plan.adapter is not None else None
    titles: dict[Side, str] = {"model": f"with {adapter}" if adapter else plan.ref, "base": "base"}
    screen: Screen
    if out.isatty() and not as_json:
        from smollm3_finetune.cli.output.chat_terminal import Terminal

        screen = Terminal(out, titles, session.limit)
    else:
        screen = Plain(out, titles, session.limit, as_json=as_json)
    if interactive:
        quant = plan.quantizer.component.spec.name
        parts = [plan.ref, *([] if quant == "none" else [quant]), *([adapter] if adapter else [])]
        screen.say(", ".join([*parts, session.sampling.shown()]))
        screen.say("/help lists the commands, Ctrl-D leaves\n")
    with Interrupts() as interrupts:
        line = terminal_line(out, list(COMMANDS)) if interactive else piped_line()
        converse(session, Reader(line), screen, interrupts, interactive=interactive)
