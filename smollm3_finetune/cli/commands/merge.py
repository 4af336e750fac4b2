"""`smollm3 merge`"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from smollm3_finetune.cli.options import Number, plugin_options
from smollm3_finetune.cli.output.merge import shown_merge
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import find_plugins, prints_report, say_warning


@click.command(cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", metavar="RUN|MODEL")
@click.option("--adapter-path", default=None, metavar="DIR", help="Saved adapter to merge into MODEL.")
@click.option("--adapter", default=None, metavar="NAME", help="Adapter method, if its directory does not name it.")
@click.option("--any-base", is_flag=True, help="Allow an adapter that was trained on other weights.")
@click.option(
    "--output", default=None, metavar="DIR", help="Output directory; must be empty or new; default: RUN/merged."
)
@click.option("--dtype", default=None, metavar="NAME", help="Dtype of the saved weights; default: the base's.")
@click.option(
    "--max-drift", type=Number(0, min_open=True), default=None, metavar="X",
    help="Largest relative error of the merge in the logits; default: depends on the dtype.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Keep the merged model even if its error is larger.")
@click.option(
    "--untie", is_flag=True,
    help="Write embeddings and head as two matrices, for an adapter that changes only one of a tied pair.",
)  # fmt: skip
@click.option("--requantize", default=None, metavar="NAME", help="Write a checkpoint quantized by this quantizer.")
@click.option("--requantize-opt", multiple=True, metavar="K=V", help="Option of that quantizer.")
@click.option(
    "--keep-dense", default=None, metavar="DIR", help="With --requantize: also keep the dense merged model here."
)
@click.option("--loader", metavar="NAME", help="Loader of MODEL; default: the one that recognizes it.")
@click.option("--quant", metavar="NAME", help="Quantizer of MODEL; default: the one the adapter was trained on.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, …")
@click.option("--compute-dtype", metavar="NAME", help="Dtype used to compute; default: the run's, else auto.")
@click.option("--quant-opt", multiple=True, metavar="K=V", help="Option of the quantizer.")
@click.option("--loader-opt", multiple=True, metavar="K=V", help="Option of the loader.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@plugin_options
@prints_report
def merge(target: str, as_json: bool, **values: Any) -> str:
    """Merge a run's adapter into its base model, and check the result before it is kept.

    The result is an ordinary dense model. It is reloaded from disk, and its logits are compared with those of the
    adapter on its base. If they differ by more than rounding explains, nothing is kept.

    \b
    Examples:
      smollm3 merge runs/20261122-101500-tiny-lora
      smollm3 merge HuggingFaceTB/SmolLM3-3B --adapter-path adapter --output merged --dtype float32
      smollm3 merge runs/20261122-101500-tiny-lora --requantize gptq
    """
    from smollm3_finetune.api import Purpose
    from smollm3_finetune.cli.session import given, model_request, options_of
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.model_files.output import check_vacant
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.runs.plugin_files import check_missing_plugin_files, check_plugin_files
    from smollm3_finetune.runs.reopen import run_request, saved_configuration
    from smollm3_finetune.runs.rundir import RunDir

    run = RunDir(user_path(target, "the run or model"))
    is_run = run.config.exists()
    for needs, needed in (("requantize_opt", "requantize"), ("keep_dense", "requantize")):
        if values[needs] and not values[needed]:
            raise ConfigError(f"--{needs.replace('_', '-')} requires --{needed}", hint=f"--{needed} NAME")
    if not is_run and not values["adapter_path"]:
        inside = run.containing()
        raise ConfigError(
            run.why_none()
            if run.path.exists() or inside
            else f"there is no run {target!r}, and merging into a model requires --adapter-path",
            hint=f"it is inside a run: smollm3 merge {shlex.quote(str(inside))}"
            if inside
            else "smollm3 merge runs/NAME, or to merge a saved adapter into a model: "
            "smollm3 merge MODEL --adapter-path RUN/adapter --output DIR",
        )
    output = _output(run if is_run else None, values)
    check_vacant("--output", output)
    if is_run:
        check_plugin_files(run, values["plugin"])
        request, own_dtype = run_request(
            run, given(values), options_of(values, "loader_opt", "loader"), "merge", Purpose.MERGE
        )
    else:
        request, own_dtype = model_request(target, values, Purpose.MERGE), "auto"
    registry = find_plugins(values["plugin"], values["no_plugins"])
    if is_run:
        check_missing_plugin_files(run, values["plugin"], registry)
    from smollm3_finetune.config.schema import ComponentConfig
    from smollm3_finetune.merge.report import MergeSettings
    from smollm3_finetune.merge.start import plan_merge
    from smollm3_finetune.model_files.writing import saveable_dtype
    from smollm3_finetune.progress import for_stream

    for flag in ("dtype", "compute_dtype"):
        saveable_dtype(f"--{flag.replace('_', '-')}", values[flag])
    settings = MergeSettings(
        output=output,
        dtype=values["dtype"],
        max_drift=values["max_drift"],
        force=values["force"],
        untie=values["untie"],
        check_base=not values["any_base"],
        keep_dense=user_path(values["keep_dense"], "--keep-dense") if values["keep_dense"] else None,
    )
    requantize = None
    if values["requantize"]:
        requantize = ComponentConfig(name=values["requantize"], options=options_of(values, "requantize_opt", "quant"))
    planned = plan_merge(
        *(registry, request, settings),
        run=run if is_run else None,
        loaded=saved_configuration(run, options_of(values, "loader_opt", "loader")) if is_run else None,
        requantize=requantize,
        device=values["device"] or "auto",
        compute_dtype=values["compute_dtype"] or own_dtype,
        progress=for_stream(),
    )
    report = planned.merge()
    for warning in report["warnings"]:
        say_warning(warning)
    if report["remedy"]:
        click.echo(f"  hint: {report['remedy']}", err=True)
    if report["forced"]:
        say_warning(f"kept because of --force: {report['fault']}")
    return json.dumps(report, ensure_ascii=False) if as_json else shown_merge(report, values["plugin"])


def _output(run: Any, values: Mapping[str, Any]) -> Path:
    """The output directory. Raises ConfigError if it is not given and there is no run to put it in."""
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.paths import user_path

    if values["output"]:
        return user_path(values["output"], "--output")
    if run is None:
        raise ConfigError("--output is required with --adapter-path", hint="--output DIR")
    quantizer = values["requantize"]
    path: Path = run.path / (f"merged-{quantizer.rpartition(':')[2]}" if quantizer else "merged")
    return path
