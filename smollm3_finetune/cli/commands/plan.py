"""`smollm3 plan`"""

from __future__ import annotations

import json
from typing import Any

import click

from smollm3_finetune.cli.options import run_options
from smollm3_finetune.cli.parsing import RowsCommand, component_help_option
from smollm3_finetune.cli.session import find_plugins, flag_settings, prints_result, say_warning

EXAMPLES = """\b
Examples:
  smollm3 plan --model HuggingFaceTB/SmolLM3-3B --data rows.jsonl
  smollm3 plan --config run.yaml --fit 24GB
  smollm3 plan --config run.yaml --fit 24GB --compare
  smollm3 plan --config run.yaml --probe 3
"""


@click.command(cls=RowsCommand, epilog=EXAMPLES, add_help_option=False)
@run_options
@click.option(
    "--fit", metavar="SIZE",
    help="Also find the longest rows and the largest batch that fit into a size of memory, such as 24GB.",
)  # fmt: skip
@click.option(
    "--compare", "compares", is_flag=True,
    help="Also rank quantizers, adapters, gradient checkpointing and batch sizes by their memory: every installed "
    "quantizer, with the adapter of the run, the default adapter and the built-in ones.",
)  # fmt: skip
@click.option(
    "--with-adapter", "others", metavar="NAME|all", multiple=True,
    help="With --compare: one more adapter, or all installed ones. Repeat the option for several.",
)  # fmt: skip
@click.option(
    "--probe", "probe_steps", metavar="N", type=int,
    help="Also take one step and N more of the run, and report their time and memory; nothing of the run is kept.",
)  # fmt: skip
@click.option("--uncorrected", is_flag=True, help="Do not correct the prediction by finished runs on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@component_help_option
@prints_result
def plan(
    fit: str | None,
    compares: bool,
    others: tuple[str, ...],
    probe_steps: int | None,
    uncorrected: bool,
    as_json: bool,
    **values: Any,
) -> str:
    """Predict the memory of a run on its device, without reading weights.

    Takes the options of smollm3 train. Finished runs on this machine correct the prediction.
    """
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.memory.sizes import parsed_size
    from smollm3_finetune.progress import for_stream
    from smollm3_finetune.train.start import plan_training

    if others and not compares:
        raise ConfigError("--with-adapter adds to a comparison", hint="add --compare")
    budget = parsed_size(fit, "--fit") if fit is not None else None
    planned = plan_training(
        flag_settings(values),
        config_file=values["config_file"],
        plugins=values["plugin"],
        find_plugins=lambda names: find_plugins(names, values["no_plugins"]),
        progress=for_stream(),
        warn=say_warning,
    )
    from smollm3_finetune.cli.output.plan import as_object, shown_answer
    from smollm3_finetune.memory.answer import answer

    found = answer(
        planned, budget=budget, compares=compares, others=others, probe_steps=probe_steps, corrects=not uncorrected
    )
    return json.dumps(as_object(found), ensure_ascii=False) if as_json else shown_answer(found)
