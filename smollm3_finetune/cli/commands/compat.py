"""`smollm3 compat`. Does not import torch; `--measure` runs each pair in a separate process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import plugin_options
from smollm3_finetune.cli.session import find_plugins, say_warning
from smollm3_finetune.compatibility.results import Use

if TYPE_CHECKING:
    from smollm3_finetune.compatibility.matrix import Cell, Terms


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quant", metavar="NAME", help="Show only this quantizer.")
@click.option("--adapter", metavar="NAME", help="Show only this adapter; with --quant, details of the pair.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="Device of the run: cpu, cuda, …")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--evidence", multiple=True, metavar="FILE", help="Report of doctor --try to show beside the table; repeatable."
)
@click.option("--measure", metavar="FILE", help="Run the pairs and write the results to FILE; takes minutes.")
@click.option(
    "--purpose", multiple=True, type=click.Choice([*map(str, Use)]), help="With --measure: only this purpose."
)
@click.option("--adapter-opt", multiple=True, metavar="K=V", help="With --measure: option of the adapter.")
@plugin_options
def compat(
    quant: str | None,
    adapter: str | None,
    device: str,
    as_json: bool,
    evidence: tuple[str, ...],
    measure: str | None,
    purpose: tuple[str, ...],
    adapter_opt: tuple[str, ...],
    plugin: tuple[str, ...],
    no_plugins: bool,
) -> None:
    """Show which quantizers work with which adapters, and the evidence for it.

    A pair is refused if the adapter needs an operation that the quantizer does not provide. Any other pair is declared
    to work, or was measured: it was trained and merged, and compared with the same adapter on unquantized weights. The
    purpose prefer is to train with pairs of answers, whose loss compares the model with a reference.

    \b
    Examples:
      smollm3 compat
      smollm3 compat --quant none --adapter full
      smollm3 compat --device cuda --json
      smollm3 compat --device cuda --evidence my-gpu.json
      smollm3 compat -p my_quantizer.py --quant mine --measure my_quantizer.compat.json
    """
    from smollm3_finetune.compatibility.collect import collect
    from smollm3_finetune.compatibility.matrix import table, terms
    from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.model.device import check_device
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.trial.results import read_report

    if device == "auto":
        raise ConfigError(
            "smollm3 compat does not detect hardware, so --device auto is not supported", hint="--device cuda"
        )
    check_device(device)
    if adapter_opt and not (measure and adapter):
        raise ConfigError("--adapter-opt requires --measure and --adapter", hint="--adapter NAME --measure FILE")
    if purpose and not measure:
        raise ConfigError("--purpose requires --measure", hint="--measure FILE")
    if evidence and measure:
        raise ConfigError("--evidence cannot be used with --measure", hint="omit --measure")
    reports = [read_report(user_path(file, "--evidence"), "--evidence") for file in evidence]
    registry = find_plugins(plugin, no_plugins)
    quantizers = [registry.find(QUANTIZER, quant)] if quant else registry.of(QUANTIZER)
    adapters = [registry.find(ADAPTER, adapter)] if adapter else registry.of(ADAPTER)
    if measure:
        found = table(registry, collect(registry), device, quantizers, adapters)
        found = [c for c in found if not purpose or c.purpose in purpose]
        _measure(found, Path(measure), adapter_opt, device, plugin, no_plugins)
        return
    collected = collect(registry)
    for report in reports:
        collected = collected.adding(report.results(), f"a trial on {report.machine['name']}")
    for problem in collected.problems:
        say_warning(problem)
    cells = table(registry, collected, device, quantizers, adapters)
    about = terms(registry, quantizers[0], adapters[0], device) if quant and adapter else None
    if as_json:
        shown = _json(cells, about, device)
        trials = {"trials": [r.as_json() for r in reports]} if reports else {}
        click.echo(json.dumps({**shown, **trials}, indent=2, ensure_ascii=False))
    elif quant and adapter:
        from smollm3_finetune.cli.output.compat_pair import shown_pair

        click.echo(shown_pair(cells, about, collected))
    else:
        from smollm3_finetune.cli.output.compat_table import shown_table

        click.echo(shown_table(cells))
    if not as_json:
        from smollm3_finetune.cli.output.trial_table import shown_trial

        for report in reports:
            click.echo(f"\n{shown_trial(report)}")


def _json(cells: list[Cell], about: Terms | None, device: str) -> dict[str, Any]:
    """The cells as plain values; for a single pair, also its operations and the nearest pair that works."""
    shown: dict[str, Any] = {
        "format": 1,
        "device": device,
        "cells": [
            {
                "quantizer": c.quantizer.full_name,
                "adapter": c.adapter.full_name,
                "purpose": c.purpose.value,
                "state": c.state.value,
                "reason": c.reason,
                "holds": c.holds,
                "stale": c.stale,
                "evidence": [
                    {**e.result.to_json(), "source": e.source, "changed": {k: list(v) for k, v in e.changed.items()}}
                    for e in c.evidence
                ],
            }
            for c in cells
        ],
    }
    return shown if about is None else {**shown, **vars(about)}


def _measure(
    cells: list[Cell], file: Path, options: tuple[str, ...], device: str, plugin: tuple[str, ...], no_plugins: bool
) -> None:
    """Run the pairs that are not refused, and add their results to a file."""
    import tempfile

    from smollm3_finetune.api import options_dict
    from smollm3_finetune.compatibility.matrix import State
    from smollm3_finetune.compatibility.results import read, write
    from smollm3_finetune.compatibility.sweep import Pair, Sweep
    from smollm3_finetune.config.load import assignment, plain
    from smollm3_finetune.config.options import build
    from smollm3_finetune.errors import ConfigError, IncompatibleError
    from smollm3_finetune.paths import user_path

    file = user_path(str(file), "--measure")
    try:
        results = {r.key: r for r in (read(file) if file.exists() else [])}
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"--measure: {file} is not a file of results: {e}", hint="name a new file") from e
    if not file.parent.is_dir():
        raise ConfigError(f"--measure: the directory {file.parent} does not exist")
    chosen = [c for c in cells if c.state in (State.DECLARED, State.MEASURED)]

    def skipped(pair: Pair, reason: str | None) -> None:
        click.echo(f"{pair.title}: not measured: {reason}")

    for cell in (c for c in cells if c.state is State.UNKNOWN):
        skipped(Pair(quantizer=cell.quantizer, adapter=cell.adapter, purpose=cell.purpose), cell.reason)
    if not chosen:
        one = "".join(f" --quant {c.quantizer.full_name} --adapter {c.adapter.full_name}" for c in cells[:1])
        raise IncompatibleError("none of these pairs can be run", hint=f"to see why: smollm3 compat{one}")
    given: dict[str, Any] = {}
    if options:
        component = chosen[0].adapter
        settings = [assignment(text, "--adapter-opt", component.kind.section) for text in options]
        values = {".".join(s.key[1:]): s.value for s in settings}
        built = options_dict(
            build(
                component.options_class(),
                values,
                component.kind.section,
                owner=component.title,
            )
        )
        given = {k: v for k, v in plain(built).items() if k in values}
    flags = "".join(f" --adapter-opt {text}" for text in options)
    command = "smollm3 compat --quant {quantizer} --adapter {adapter}" + flags + f" --measure {file.name}"
    pairs = [Pair(quantizer=c.quantizer, adapter=c.adapter, purpose=c.purpose, options=given) for c in chosen]
    with tempfile.TemporaryDirectory() as directory:
        sweep = Sweep(work=Path(directory), command=command, device=device, plugins=plugin, no_plugins=no_plugins)
        for number, (pair, result, seconds) in enumerate(sweep.run(pairs, skipped), 1):
            results[result.key] = result
            write(file, list(results.values()))
            outcome = "works" if result.holds else f"fails: {result.note}"
            click.echo(f"{number}/{len(pairs)} {pair.title}: {outcome} ({seconds:.1f} s)")
    click.echo(f"results written to {file}" if file.exists() else "no pair was measured, so no file was written")
