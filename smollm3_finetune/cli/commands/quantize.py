"""`smollm3 quantize`"""

from __future__ import annotations

import json
from typing import Any

import click

from smollm3_finetune.cli.options import F, composition_options, config_flag, plugin_options
from smollm3_finetune.cli.output.quantize import shown_quantized
from smollm3_finetune.cli.parsing import HintingCommand
from smollm3_finetune.cli.session import find_plugins, load_configuration, prints_report
from smollm3_finetune.model_files.loading import quiet_transformers


def quantizing_options(f: F) -> F:
    return composition_options(f, quant="Quantizer that writes checkpoints (required).")


@click.command(cls=HintingCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="MODEL")
@click.option("--output", required=True, metavar="DIR", help="Output directory; must be empty or new.")
@quantizing_options
@click.option(
    "--data",
    multiple=True,
    metavar="PATH",
    help="Calibration rows, as for train; default: the built-in chat dataset.",
)
@config_flag("formatter", "NAME")
@config_flag("max_length", "TOKENS")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    help="Random seed that selects the calibration rows; sets data.seed too.",
)
@click.option("--config", "config_file", metavar="FILE", help="YAML file with any of these settings.")
@click.option("--set", "assign", multiple=True, metavar="A.B=C", help="Any configuration key.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output.")
@plugin_options
@prints_report
def quantize(model: str, output: str, as_json: bool, **values: Any) -> str:
    """Write a quantized checkpoint of a full-precision model, with its tokenizer and a model card.

    Only for quantizers that write checkpoints; others quantize when a model is loaded and need no checkpoint.
    Calibration rows are selected as in `train`, so a run with the same rows and options quantizes again to the same
    weights. `train --model DIR` uses the checkpoint without quantizing again.

    \b
    Examples:
      smollm3 quantize HuggingFaceTB/SmolLM3-3B --quant gptq --data rows.jsonl --output smollm3-gptq
      smollm3 quantize ./model --quant gptq --quant-opt bits=8 --data rows.jsonl --output model-8bit
    """
    from smollm3_finetune.paths import user_path

    directory = user_path(output, "--output")
    if values["seed"] is not None:
        values["assign"] = (f"data.seed={values['seed']}", *values["assign"])
    loaded = load_configuration({**values, "model": model})
    registry = find_plugins([*loaded.config.plugins, *values["plugin"]], values["no_plugins"])
    from smollm3_finetune.api import BuildContext, Purpose
    from smollm3_finetune.model.load import build_context
    from smollm3_finetune.progress import for_stream
    from smollm3_finetune.quantize.run import plan_quantize
    from smollm3_finetune.quantize.run import quantize as carry_out

    config = loaded.config

    def make_context() -> BuildContext:
        quiet_transformers()
        return build_context(Purpose.QUANTIZE, config.device, config.dtype, config.seed, progress=for_stream())

    report = carry_out(plan_quantize(registry, loaded, make_context, directory))
    return json.dumps(report, ensure_ascii=False) if as_json else shown_quantized(report, values["plugin"])
