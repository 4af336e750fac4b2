"""`smollm3 generate`"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.common import composition_options, find_plugins, plugin_options

if TYPE_CHECKING:
    from smollm3_finetune.plan import ModelRequest


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="RUN|MODEL")
@click.option("--prompt", required=True, help="What to answer; - reads standard input.")
@click.option("--system", default=None, help="A system message before the prompt.")
@click.option("--adapter-path", default=None, metavar="DIR", help="A saved adapter to put on the model.")
@click.option("--adapter", default=None, metavar="NAME", help="Its method, where the directory does not say.")
@click.option("--any-base", is_flag=True, help="Use the adapter on other weights than it was trained on.")
@composition_options
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, help="0: the likeliest.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.95, show_default=True, help="With a temperature."
)
@click.option("--think/--no-think", default=None, help="The template's reasoning mode, where it has one.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="For sampling.")
@click.option("--json", "as_json", is_flag=True, help="Print the prompt and the answer as JSON.")
@plugin_options
def generate(target: str, prompt: str, as_json: bool, **values: Any) -> None:
    """Answer a prompt with a run's tuned model, or with any model.

    \b
    Examples:
      smollm3 generate runs/20261122-101500-tiny-lora --prompt 'What is the capital of France?'
      smollm3 generate HuggingFaceTB/SmolLM3-3B --quant bnb-4bit --prompt 'Hello!' --temperature 0.6
    """
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.train.rundir import RunDir

    text = _standard_input() if prompt == "-" else prompt
    if not text.strip():
        raise ConfigError("the prompt is empty", hint="--prompt 'What is the capital of France?'")
    run = RunDir(Path(target).expanduser())
    is_run = run.config.exists()
    if is_run:
        from smollm3_finetune.cli.resume import check_plugin_files

        check_plugin_files(run, values["plugin"])
    registry = find_plugins(values["plugin"], values["no_plugins"])
    request = _run_request(run, values) if is_run else _model_request(target, values)
    import transformers

    from smollm3_finetune.generate import answer
    from smollm3_finetune.model import build_context, compose
    from smollm3_finetune.plan import plan_model
    from smollm3_finetune.progress import for_stream

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    context = build_context(
        request.purpose, values["device"] or "auto", _dtype(run if is_run else None, values), values["seed"],
        progress=for_stream(),
    )  # fmt: skip
    loaded = compose(plan_model(registry, request, context), check_base=not values["any_base"])
    transformers.set_seed(values["seed"])
    from smollm3_finetune.data.render import check_template

    check_template(loaded.tokenizer, request.ref)
    messages = [{"role": "system", "content": values["system"]}] if values["system"] else []
    messages.append({"role": "user", "content": text})
    think = values["think"]
    reply = answer(
        loaded.model,
        loaded.tokenizer,
        messages,
        max_new_tokens=values["max_new_tokens"],
        temperature=values["temperature"],
        top_p=values["top_p"],
        template_kwargs={} if think is None else {"enable_thinking": think},
    )
    click.echo(json.dumps({"prompt": text, "answer": reply}, ensure_ascii=False) if as_json else reply)


def _standard_input() -> str:
    from smollm3_finetune.errors import ConfigError

    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"--prompt -: standard input is not UTF-8 text: {e.reason} at byte {e.start}") from e


def _options(values: Mapping[str, Any], flag: str, section: str) -> dict[str, Any]:
    from smollm3_finetune.config.load import assignment

    settings = [assignment(t, f"--{flag.replace('_', '-')}", section) for t in values[flag]]
    return {s.key[1]: s.value for s in settings}


def _model_request(ref: str, values: Mapping[str, Any]) -> ModelRequest:
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.plan import ModelRequest

    adapter = values["adapter"]
    path = values["adapter_path"]
    return ModelRequest(
        ref=ref,
        loader=ComponentConfig(name=values["loader"], options=_options(values, "loader_opt", "loader")),
        quant=ComponentConfig(name=values["quant"], options=_options(values, "quant_opt", "quant")),
        adapter=ComponentConfig(name=adapter) if adapter else None,
        adapter_path=Path(path).expanduser() if path else None,
    )


def _run_request(run: Any, values: Mapping[str, Any]) -> ModelRequest:
    """The model of a run with its adapter: everything as the run resolved it."""
    from smollm3_finetune.cli.resume import saved_configuration
    from smollm3_finetune.errors import ConfigError, ModelError
    from smollm3_finetune.plan import ModelRequest

    for name in ("loader", "quant", "adapter", "adapter_path", "quant_opt"):
        if values[name]:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(
                f"{flag}: {run.path} is a run, whose model is composed as it was trained",
                hint=f"smollm3 generate MODEL --adapter-path {run.adapter}",
            )
    if not run.adapter.exists():
        resumable = any(run.checkpoints.glob("checkpoint-*"))
        again = f"smollm3 train --resume {run.path}" if resumable else f"smollm3 train --config {run.config}"
        raise ModelError(f"the run {run.path} has not finished: it holds no adapter", hint=again)
    config = saved_configuration(run, _options(values, "loader_opt", "loader")).config
    return ModelRequest(
        ref=config.model, loader=config.loader, quant=config.quant, adapter=config.adapter, adapter_path=run.adapter
    )


def _dtype(run: Any, values: Mapping[str, Any]) -> str:
    """What was asked for, else the run's own, where it ran on the same kind of device."""
    if values["dtype"]:
        return str(values["dtype"])
    if run is None:
        return "auto"
    from smollm3_finetune.config.load import assemble, file_settings
    from smollm3_finetune.config.schema import RunConfig

    config: RunConfig = assemble([file_settings(run.config)]).config
    return config.dtype if config.dtype == "float64" else "auto"
