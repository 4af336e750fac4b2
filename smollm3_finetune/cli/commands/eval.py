"""`smollm3 eval`"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.answering import adapter_options
from smollm3_finetune.cli.options import config_flag, plugin_options
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import find_plugins, prints_result, result_stream, say_warning

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import Registry
    from smollm3_finetune.config.load import LoadedConfig
    from smollm3_finetune.evaluation.subject import Subject


def _help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show help after all other options are parsed, so that it includes the options of the named evaluator."""
    if value:
        text = ctx.get_help()
        if ctx.params.get("evaluator"):
            from smollm3_finetune.cli.output.component_help import component_help
            from smollm3_finetune.components.kinds import EVALUATOR

            text += "\n\n" + component_help(ctx.params, [EVALUATOR])
        click.echo(text)
        ctx.exit()


@click.command(cls=HintingCommand, add_help_option=False)
@click.argument("target", metavar="RUN|MODEL")
@click.option(
    "--data", multiple=True, metavar="PATH",
    help="Measure on these rows: a file, glob, directory or Hub ID; default: the held-out rows of the run.",
)  # fmt: skip
@click.option("--against", metavar="RUN|MODEL", help="Compare with this run or model; default: the base.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help="Measure at most this many rows, chosen at random, and this many documents of each task.",
)
@click.option("--tasks", multiple=True, metavar="A,B", help="Also measure on these tasks: names or files.")
@click.option("--evaluator", metavar="NAME", help="Evaluator of the tasks; default: the one that recognizes them.")
@click.option("--evaluator-opt", multiple=True, metavar="K=V", help="An option of the evaluator.")
@click.option("--fail-if", type=click.Choice(("worse", "not-better")), help="Exit with code 9 if the verdict is this.")
@click.option(
    "--answers", type=click.IntRange(min=0), default=16, show_default=True, metavar="N",
    help="Number of held-out prompts that both models answer; 0: none.",
)  # fmt: skip
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest answer, in tokens."
)
@click.option(
    "--null-adapter/--no-null-adapter", default=True, show_default=True,
    help="Also measure a random adapter of the same size, as a control.",
)  # fmt: skip
@click.option(
    "--overlap", type=click.Choice(("near", "exact", "keep")), default="near", show_default=True,
    help="Leave out held-out rows that are also training rows: near duplicates and copies, only copies, or none.",
)  # fmt: skip
@adapter_options
@config_flag("formatter", "NAME")
@config_flag("max_length", "TOKENS")
@click.option(
    "--set", "assign", multiple=True, metavar="A.B=C",
    help="Set how the rows of --data are read, e.g. formatter.prompt=question or data.history=strip.",
)  # fmt: skip
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="ROWS",
    help="Rows per forward pass; default: the run's, else 8.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
    help="Random seed of the sample, the prompts, the null adapter and the interval.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with the loss of each row.")
@plugin_options
@click.option("-h", "--help", "show_help", is_flag=True, expose_value=False, callback=_help,
              help="Show this message and exit; with --evaluator, also its options.")  # fmt: skip
@prints_result
def evaluate(target: str, against: str | None, as_json: bool, fail_if: str | None, **values: Any) -> None:
    """Measure whether a fine-tuned model is better than its base, or than another model.

    The verdict is better, worse or cannot tell: a paired comparison of the losses of held-out rows, with a 95 %
    interval.

    \b
    Examples:
      smollm3 eval runs/20261122-101500-tiny-lora
      smollm3 eval runs/20261122-101500-tiny-lora --against runs/20261123-090000-tiny-dora
      smollm3 eval HuggingFaceTB/SmolLM3-3B --adapter-path adapter --data test.jsonl --fail-if worse
    """
    from smollm3_finetune.cli.output.eval import shown_evaluation
    from smollm3_finetune.errors import ConfigError

    _check_plugin_files([target, *([] if against is None else [against])], values["plugin"])
    registry = find_plugins(values["plugin"], values["no_plugins"])
    subject = _subject(target, values, registry)
    other = None if against is None else _subject(against, _composition_of_other(values), registry)
    rows = _rows(values, subject)
    from smollm3_finetune.evaluation.plan import EvalSettings, plan_evaluation
    from smollm3_finetune.evaluation.run import check_verdict
    from smollm3_finetune.evaluation.run import evaluate as carry_out
    from smollm3_finetune.progress import for_stream

    settings = EvalSettings(
        rows=rows,
        **_tasks(registry, values),
        **{
            n: values[n]
            for n in ("limit", "seed", "batch_size", "answers", "max_new_tokens", "null_adapter", "overlap")
        },
    )
    progress = for_stream()
    planned = plan_evaluation(registry, subject, settings, progress, other)
    if fail_if is not None and not planned.compares():
        raise ConfigError(
            f"--fail-if {fail_if} needs a verdict, but {target!r} has no adapter, so there is no base to compare with",
            hint="--against MODEL, or --adapter-path DIR",
        )
    if fail_if is not None and not planned.rows.rows:
        raise ConfigError(
            f"--fail-if {fail_if} needs a verdict on held-out rows, but without --data only tasks are measured",
            hint="--data FILE.jsonl",
        )
    for warning in planned.warnings:
        say_warning(warning)
    report = carry_out(planned, progress)
    click.echo(json.dumps(report, ensure_ascii=False) if as_json else shown_evaluation(report), file=result_stream())
    check_verdict(report, fail_if)


def _check_plugin_files(targets: Sequence[str], named: Sequence[str]) -> None:
    """Check the plugin files of runs before they are executed."""
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.runs.plugin_files import check_plugin_files
    from smollm3_finetune.runs.rundir import RunDir

    for run in (RunDir(user_path(target, "the run or model")) for target in targets):
        if run.config.exists():
            check_plugin_files(run, named)


def _composition_of_other(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options for the model of `--against`: device, dtype and plugins; its components are its own."""
    from smollm3_finetune.runs.reopen import CODE_EXECUTION_OPTIONS

    trusted = [o for o in values["loader_opt"] if o.partition("=")[0].strip() in CODE_EXECUTION_OPTIONS]
    own = {"loader": None, "quant": None, "adapter": None, "adapter_path": None, "quant_opt": (), "loader_opt": trusted}
    return {**values, **own}


def _subject(target: str, values: Mapping[str, Any], registry: Registry) -> Subject:
    """A run, a saved adapter, or a model with the components that the options name."""
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.cli.answering import dtype_of
    from smollm3_finetune.cli.session import given, options_of, target_request
    from smollm3_finetune.components.kinds import FORMATTER, OBJECTIVE
    from smollm3_finetune.evaluation.subject import Subject
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.runs.plugin_files import check_missing_plugin_files
    from smollm3_finetune.runs.reopen import run_request, saved_configuration
    from smollm3_finetune.runs.rundir import RunDir
    from smollm3_finetune.runs.versions import compare_versions

    run, loaded = RunDir(user_path(target, "the run or model")), None
    if run.config.exists():
        check_missing_plugin_files(run, values["plugin"], registry)
        options = options_of(values, "loader_opt", "loader")
        request, _ = run_request(run, given(values), options, "eval", Purpose.INFER)
        loaded = saved_configuration(run, options)
        for line in compare_versions(run, registry, (FORMATTER, OBJECTIVE)):  # they read the rows again
            say_warning(line)
    else:
        request = target_request(target, values, Purpose.INFER, as_adapter=True)
    own = None if loaded is None else run
    return Subject(
        title=target, request=request, device=values["device"] or "auto", dtype=dtype_of(own, values), run=own,
        loaded=loaded, check_base=not values["any_base"],
    )  # fmt: skip


def _tasks(registry: Registry, values: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks and their evaluator, as settings; none without `--tasks`."""
    from smollm3_finetune.cli.session import options_of
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.evaluation.tasks import select_evaluator, task_references

    if not values["tasks"]:
        if values["evaluator"] or values["evaluator_opt"]:
            raise ConfigError(
                "an evaluator needs tasks, and --tasks is not given", hint="--tasks arc_easy,./my_task.yaml"
            )
        return {}
    tasks = task_references(values["tasks"])
    config = ComponentConfig(name=values["evaluator"], options=options_of(values, "evaluator_opt", "evaluator"))
    return {"tasks": tasks, "evaluator": select_evaluator(registry, tasks, config)}


ROWS = ("data", "formatter", "max_length", "assign")
"""The options that are about the rows of `--data`."""


def _rows(values: Mapping[str, Any], subject: Subject) -> LoadedConfig | None:
    """The configuration of the rows of `--data`: that of the run, with other rows; None without `--data`."""
    from smollm3_finetune.cli.session import flag_settings
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.evaluation.subject import rows_configuration

    settings = flag_settings({name: values[name] for name in ROWS})
    for setting in settings:
        if not values["data"]:
            raise ConfigError(
                f"{setting.origin} sets how the rows of --data are read, and --data is not given",
                hint="--data FILE.jsonl",
            )
        if setting.key[0] not in ("data", "formatter"):
            raise ConfigError(
                f"{setting.origin}: only keys of data and formatter can be set for an evaluation",
                hint="--set data.history=strip",
            )
    return rows_configuration(settings, subject.loaded) if settings else None
