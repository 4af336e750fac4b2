"""`smollm3 export`"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.exporter_options import ExportCommand, sorted_words, targets_among
from smollm3_finetune.cli.options import Number, plugin_options
from smollm3_finetune.cli.output.export import shown_export
from smollm3_finetune.cli.session import find_plugins, prints_report, say_warning

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import RegisteredComponent, Registry
    from smollm3_finetune.components.selection import SelectedComponent


def _help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Show help after all other options are parsed, so that it includes the options of the named exporter."""
    if value:
        from smollm3_finetune.cli.output.component_help import component_help
        from smollm3_finetune.components.kinds import EXPORTER

        click.echo(ctx.get_help() + "\n\n" + component_help(ctx.params, [EXPORTER]))
        ctx.exit()


@click.command(cls=ExportCommand, add_help_option=False)
@click.argument("words", nargs=-1, required=True, metavar="RUN|MODEL", type=click.UNPROCESSED)
@click.option("--to", metavar="EXPORTER", help="The exporter, named after the format that it writes.")
@click.option(
    "--to-opt", multiple=True, metavar="K=V",
    help="Option of the exporter; may also be written as a flag of its own: --K V.",
)  # fmt: skip
@click.option(
    "--output",
    default=None,
    metavar="DIR",
    help="Output directory; must be empty or new; default: RUN/exported-EXPORTER.",
)
@click.option("--adapter-path", default=None, metavar="DIR", help="Saved adapter of MODEL; merged if needed.")
@click.option("--adapter", default=None, metavar="NAME", help="Adapter method, if its directory does not name it.")
@click.option("--any-base", is_flag=True, help="Allow an adapter that was trained on other weights.")
@click.option(
    "--max-drift", type=Number(0, min_open=True), default=None, metavar="X",
    help="Largest relative error of the merge in the logits; default: depends on the dtype.",
)  # fmt: skip
@click.option(
    "--untie", is_flag=True,
    help="Merge embeddings and head as two matrices, for an adapter that changes only one of a tied pair.",
)  # fmt: skip
@click.option("--loader", metavar="NAME", help="Loader of MODEL; default: the one that recognizes it.")
@click.option("--quant", metavar="NAME", help="Quantizer of MODEL; default: the one the adapter was trained on.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, …")
@click.option("--compute-dtype", metavar="NAME", help="Dtype used to compute; default: the run's, else auto.")
@click.option("--quant-opt", multiple=True, metavar="K=V", help="Option of the quantizer.")
@click.option("--loader-opt", multiple=True, metavar="K=V", help="Option of the loader.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@plugin_options
@click.option("-h", "--help", "show_help", is_flag=True, expose_value=False, callback=_help,
              help="Show this message and exit; with --to, also the exporter's options.")  # fmt: skip
@prints_report
def export(words: tuple[str, ...], as_json: bool, **values: Any) -> str:
    """Write a run or a model for other software, and verify the result before it is kept.

    A run's adapter is merged into its base in full precision, through the check of `smollm3 merge`; an exporter of
    adapters writes the adapter alone. The written files are then read back and compared. If a check fails, nothing is
    kept.

    \b
    Examples:
      smollm3 export runs/20261122-101500-tiny-lora --to safetensors --dtype bfloat16
      smollm3 export runs/20261122-101500-tiny-lora --to peft --output adapter
      smollm3 export HuggingFaceTB/SmolLM3-3B --to safetensors --max-shard-size 2GB --output model
    """
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.cli.session import given, options_of, target_request
    from smollm3_finetune.components.loadable import loadable_file
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.export.names import check_is_directory, choose_exporter
    from smollm3_finetune.export.target import check_default_output, check_is_model
    from smollm3_finetune.model_files.output import check_vacant
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.runs.plugin_files import check_missing_plugin_files, check_plugin_files
    from smollm3_finetune.runs.reopen import run_request, saved_configuration
    from smollm3_finetune.runs.rundir import RunDir

    for word in targets_among(words):  # before plugin files are executed
        if (named := RunDir(user_path(word, "the run or model"))).config.exists():
            check_plugin_files(named, values["plugin"])
    registry = find_plugins(values["plugin"], values["no_plugins"])
    target, flags = _target(click.get_current_context(), words, values, registry)
    run = RunDir(user_path(target, "the run or model"))
    is_run = run.config.exists()
    if not is_run and values["loader"] is None:
        check_is_model(target, values["to"] or "EXPORTER", registry)
    options = options_of({"to_opt": (*values["to_opt"], *flags)}, "to_opt", "exporter")
    origins = {f"exporter.{key}": f"--to-opt {key}" for key in options}
    choice = choose_exporter(registry, ComponentConfig(name=values["to"], options=options), origins)
    output = _output(run if is_run else None, values, choice)
    check_is_directory(output, choice)
    if values["output"]:
        check_vacant("--output", output)
    else:
        check_default_output(output)
    if is_run:
        takes_model = choice.spec.takes == "model"
        purpose = Purpose.MERGE if takes_model else Purpose.EXPORT
        request, own_dtype = run_request(
            run, given(values), options_of(values, "loader_opt", "loader"), "export", purpose
        )
        check_missing_plugin_files(run, values["plugin"], registry)
    else:
        request, own_dtype = target_request(target, values, Purpose.EXPORT), "auto"
    from smollm3_finetune.export.plan import ExportSettings, plan_export
    from smollm3_finetune.export.run import export as carry_out
    from smollm3_finetune.model_files.writing import saveable_dtype
    from smollm3_finetune.progress import for_stream

    saveable_dtype("--compute-dtype", values["compute_dtype"])
    planned = plan_export(
        *(registry, request),
        ExportSettings(
            output=output,
            max_drift=values["max_drift"],
            untie=values["untie"],
            check_base=not values["any_base"],
        ),
        choice,
        run=run if is_run else None,
        loaded=saved_configuration(run, options_of(values, "loader_opt", "loader")) if is_run else None,
        device=values["device"] or "auto",
        compute_dtype=values["compute_dtype"] or own_dtype,
        progress=for_stream(),
    )
    report = carry_out(planned)
    for warning in report["warnings"]:
        say_warning(warning)
    if report["remedy"]:
        click.echo(f"  hint: {report['remedy']}", err=True)
    if as_json:
        return json.dumps(report, ensure_ascii=False)
    file = loadable_file(output, registry) if planned.spec.takes == "model" else None
    return shown_export(report, values["plugin"], file)


def _target(
    ctx: click.Context, words: tuple[str, ...], values: Mapping[str, Any], registry: Registry
) -> tuple[str, list[str]]:
    """The run or model, and the exporter's options that were written as flags. Raises UsageError for other words."""
    component = _named(registry, values["to"])
    known = [flag for param in ctx.command.params for flag in param.opts if flag.startswith("--")]
    found = sorted_words(words, values["to"], None if component is None else component.options_class(), known)
    if len(found.targets) != 1:
        if not found.targets:
            raise click.UsageError("Missing argument 'RUN|MODEL'.", ctx)
        raise click.UsageError(
            f"Got unexpected argument {found.targets[1]!r}\n  hint: name one run or one model; to write elsewhere: "
            f"--output {shlex.quote(found.targets[1])}",
            ctx,
        )
    return found.targets[0], found.options


def _named(registry: Registry, name: str | None) -> RegisteredComponent | None:
    """The exporter of this name; None without a name. Raises UnknownComponentError for a name that nobody offers."""
    from smollm3_finetune.components.kinds import EXPORTER

    return None if name is None else registry.find(EXPORTER, name)


def _output(run: Any, values: Mapping[str, Any], choice: SelectedComponent) -> Path:
    """The output directory. Raises ConfigError if it is not given and there is no run to put it in."""
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.paths import user_path

    if values["output"]:
        return user_path(values["output"], "--output")
    if run is None:
        raise ConfigError("--output is required for a model", hint="--output DIR")
    path: Path = run.path / f"exported-{choice.component.spec.name}"
    return path
