"""Opening a run or a model to generate with it: what `generate` and `chat` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import F, Number, composition_options
from smollm3_finetune.cli.session import find_plugins

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.config.schema import RunConfig
    from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
    from smollm3_finetune.model.load import LoadedModel
    from smollm3_finetune.model.plan import ModelPlan, ModelRequest
    from smollm3_finetune.runs.rundir import RunDir


def adapter_options(f: F) -> F:
    """The options that select an adapter, and the composition of its base."""
    f = composition_options(f, quant="Quantizer; default: the adapter's, else the checkpoint's, else none.")
    f = click.option("--any-base", is_flag=True, help="Allow an adapter that was trained on other weights.")(f)
    f = click.option("--adapter", metavar="NAME", help="Adapter method, if its directory does not name it.")(f)
    return click.option("--adapter-path", metavar="DIR", help="Saved adapter to apply to MODEL.")(f)


def mode_options(f: F) -> F:
    """The options that decide how the chat template renders a conversation, and the seed."""
    f = click.option(
        "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed for sampling."
    )(f)
    f = click.option(
        "--date", metavar="DAY", help="Date for the chat template: YYYY-MM-DD or today; default: the run's, else today."
    )(f)
    return click.option("--think/--no-think", default=None, help="Reasoning mode; default: as the run was trained.")(f)


def sampling_options(temperature: float | None = None, top_p: float | None = None) -> Callable[[F], F]:
    """The options of `Sampling`, with these defaults; without them, those of the model's generation config apply."""
    config = "default: the model's generation config"

    def add(f: F) -> F:
        f = click.option(
            "--repetition-penalty", type=Number(0, 100, min_open=True),
            help=f"Divide the logits of tokens that occurred already; 1 has no effect; {config}.",
        )(f)  # fmt: skip
        f = click.option(
            "--min-p", type=Number(0, 1),
            help=f"Sample tokens at least this fraction as probable as the most probable one; {config}.",
        )(f)  # fmt: skip
        f = click.option(
            "--top-k", type=click.IntRange(min=0),
            help=f"Sample from the K most probable tokens; 0: from all; {config}, else 50.",
        )(f)  # fmt: skip
        text = "Nucleus sampling; ignored at temperature 0"
        f = click.option(
            "--top-p", type=Number(0, 1, min_open=True), default=top_p, show_default=top_p is not None,
            help=f"{text}{'' if top_p is not None else f'; {config}, else 0.95'}.",
        )(f)  # fmt: skip
        text = "Sampling temperature; 0 is greedy"
        return click.option(
            "--temperature", type=Number(0, 100), default=temperature, show_default=temperature is not None,
            help=f"{text}{'' if temperature is not None else f'; {config}, else 0.6'}.",
        )(f)  # fmt: skip

    return add


@dataclass
class Opened:
    """A planned model and how it is prompted; no weights are read yet."""

    plan: ModelPlan
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer
    mode: Mapping[str, bool]
    """Arguments of the chat template."""
    is_run: bool
    any_base: bool

    @property
    def say(self) -> Callable[[str], None]:
        """Prints a line about the model on standard error."""
        return self.plan.context.progress.say

    def on_day(self, earlier: str | None) -> Opened:
        """With a fixed date if the template uses the current one: that of `earlier` answers, else today's."""
        from smollm3_finetune.data.chat_template.fixed_date import today, uses_date
        from smollm3_finetune.data.chat_template.renderer import Renderer

        options = self.renderer.options
        if options.date is not None or not uses_date(self.renderer.template):
            return self
        day = earlier or today()
        if day != today():
            self.say(f"the chat template gets the date of the earlier answers, {day}")
        fixed = Renderer(self.tokenizer, replace(options, date=day), embeddings=self.renderer.embeddings)
        return replace(self, renderer=fixed)

    def compose(self, seed: int) -> LoadedModel:
        """Load the weights, then seed all random numbers."""
        import transformers

        from smollm3_finetune.model.load import compose

        loaded = compose(self.plan, check_base=not self.any_base)
        transformers.set_seed(seed)
        return loaded


def requested(
    target: str, values: Mapping[str, Any], command: str = "generate"
) -> tuple[Registry, ModelRequest, RunDir | None]:
    """The request for the model of a run, or for any other model, with the plugins and the run, if it is one."""
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.cli.session import given, options_of, target_request
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.runs.plugin_files import check_missing_plugin_files, check_plugin_files
    from smollm3_finetune.runs.reopen import run_request
    from smollm3_finetune.runs.rundir import RunDir

    run = RunDir(user_path(target, "the run or model"))
    is_run = run.config.exists()
    if is_run:
        check_plugin_files(run, values["plugin"])
    registry = find_plugins(values["plugin"], values["no_plugins"])
    if is_run:
        check_missing_plugin_files(run, values["plugin"], registry)
        request, _ = run_request(run, given(values), options_of(values, "loader_opt", "loader"), command, Purpose.INFER)
    else:
        request = target_request(target, values, Purpose.INFER)
    return registry, request, run if is_run else None


def opened(target: str, values: Mapping[str, Any], command: str = "generate") -> Opened:
    """Plan the model of a run, or any other model, with the options of `smollm3 COMMAND`."""
    registry, request, own = requested(target, values, command)
    options, mode = render_options_of(own, values["date"]), mode_of(own, values["think"])
    from smollm3_finetune.data.chat_template.renderer import Renderer
    from smollm3_finetune.model.load import build_context
    from smollm3_finetune.model.plan import plan_model, plan_tokenizer, select_model
    from smollm3_finetune.model.trained_context import check_trained_context
    from smollm3_finetune.model_files.loading import quiet_transformers
    from smollm3_finetune.progress import for_stream

    selected = select_model(registry, request)
    quiet_transformers()
    context = build_context(
        request.purpose, values["device"] or "auto", dtype_of(own, values), values["seed"], progress=for_stream()
    )
    plan = plan_model(registry, selected, context)
    if not values["any_base"]:
        check_trained_context(plan)
    tokenizer = plan_tokenizer(plan)
    renderer = Renderer(tokenizer, options, embeddings=plan.embeddings)
    return Opened(plan, tokenizer, renderer, mode, own is not None, values["any_base"])


def check_text(flag: str, text: str) -> None:
    """Raises ConfigError if an argument is not UTF-8: Python decodes its invalid bytes to lone surrogates."""
    from smollm3_finetune.errors import ConfigError

    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ConfigError(
            f"{flag} is not UTF-8 text: invalid byte at character {e.start + 1}",
            hint=f'if it is latin1: {flag} "$(printf %s TEXT | iconv -f latin1 -t utf-8)"',
        ) from e


def dtype_of(run: RunDir | None, values: Mapping[str, Any]) -> str:
    """The dtype of `--dtype`, else the run's own if it ran on the same kind of device, else `auto`."""
    if values["dtype"]:
        return str(values["dtype"])
    if run is None:
        return "auto"
    from smollm3_finetune.runs.reopen import own_dtype

    return own_dtype(_config(run), values["device"] or "auto")


def _config(run: RunDir) -> RunConfig:
    from smollm3_finetune.config.load import assemble, file_settings

    return assemble([file_settings(run.config)]).config


def render_options_of(run: RunDir | None, date: str | None) -> RenderOptions:
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


def mode_of(run: RunDir | None, think: bool | None) -> dict[str, bool]:
    """The reasoning mode for the template: `--think`, else the mode in which the run's sample prompt was answered."""
    from smollm3_finetune.runs.reopen import trained_mode

    if think is None and run is not None:
        think = trained_mode(run, _config(run).data.enable_thinking, "pass --think or --no-think")
    return {} if think is None else {"enable_thinking": think}
