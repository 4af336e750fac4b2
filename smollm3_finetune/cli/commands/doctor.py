"""`smollm3 doctor`: check that this machine can run smollm3. Libraries are imported in separate processes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.options import Dtype, Number, plugin_options
from smollm3_finetune.cli.session import discovered

if TYPE_CHECKING:
    from smollm3_finetune.checks.doctor import Report


TRIAL = ("report", "dtype", "quant", "adapter", "jobs")
"""The options that need --try."""


@click.command(short_help="Check that this machine can run smollm3.")
@plugin_options
@click.option("--device", metavar="NAME", help="Check the components for this device; default: the best available.")
@click.option("--timeout", type=Number(min=1), default=180.0, show_default=True, metavar="SECONDS",
              help="Time limit for each import, or with --try for each pair.")  # fmt: skip
@click.option("--try", "trying", is_flag=True,
              help="Train, resume and merge the built-in model with every quantizer; takes minutes.")  # fmt: skip
@click.option("--report", metavar="FILE", help="With --try: write the results to FILE, for compat --evidence.")
@click.option("--dtype", type=Dtype(["float32", "bfloat16", "float16", "float64"]),
              help="With --try: dtype of the computation; default: float32, which shows more.")  # fmt: skip
@click.option("--quant", multiple=True, metavar="NAME", help="With --try: only this quantizer; repeatable.")
@click.option("--adapter", multiple=True, metavar="NAME",
              help="With --try: this adapter; repeatable; default: two, one of which reads the weights.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="With --try: processes at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(plugin: tuple[str, ...], no_plugins: bool, device: str | None, timeout: float, trying: bool, as_json: bool,
           **trial: Any) -> None:  # fmt: skip
    """Check that this machine can run smollm3.

    Checks versions, devices, packages that cannot be imported or conflict with each other, plugins and their
    requirements, the cache, and environment variables. Every library is imported in a separate process, which takes a
    while. The exit code is 0 if a run is possible.

    With --try, trains the built-in model for a few steps with every installed quantizer and two adapters instead. Each
    pair is compared with float64 on the CPU, resumed, and merged. The exit code is 0 if no pair fails.

    \b
    Examples:
      smollm3 doctor
      smollm3 doctor --try
      smollm3 doctor --try --device cuda --report my-gpu.json
      smollm3 doctor --try -p my_quantizer.py --quant mine
    """
    from smollm3_finetune.errors import ConfigError
    from smollm3_finetune.model.device import check_device

    if device is not None:
        check_device(device)
    if trying:
        _try(plugin, no_plugins, device or "auto", timeout, as_json, **trial)
        return
    if given := next((name for name in TRIAL if trial[name]), None):
        raise ConfigError(f"--{given} requires --try", hint="smollm3 doctor --try")
    _examine(plugin, no_plugins, device, timeout, as_json)


def _try(plugin: tuple[str, ...], no_plugins: bool, device: str, timeout: float, as_json: bool, *, report: str | None,
         dtype: str | None, quant: tuple[str, ...], adapter: tuple[str, ...], jobs: int | None) -> None:  # fmt: skip
    """Try the pairs, and print or write what was found."""
    import shlex

    from smollm3_finetune.cli.output.trial_table import shown_trial
    from smollm3_finetune.cli.session import find_plugins
    from smollm3_finetune.errors import ConfigError, SmolLM3Error
    from smollm3_finetune.paths import user_path
    from smollm3_finetune.trial.results import write_report
    from smollm3_finetune.trial.run import Trial, chosen

    file = user_path(report, "--report") if report else None
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        why = "is a directory" if file.is_dir() else f"cannot be written: the directory {file.parent} does not exist"
        raise ConfigError(f"--report: {file} {why}", hint="--report FILE.json")
    quantizers, adapters = chosen(find_plugins(plugin, no_plugins), quant, adapter)
    named = [f"--quant {shlex.quote(q)}" for q in quant] + [f"--adapter {shlex.quote(a)}" for a in adapter]
    words = ["smollm3 doctor --try", *([] if device == "auto" else [f"--device {device}"]),
             *([f"--dtype {dtype}"] if dtype else []), *named]  # fmt: skip
    found = Trial(
        quantizers=quantizers, adapters=adapters, command=" ".join(words), device=device, dtype=dtype or "float32",
        plugins=plugin, no_plugins=no_plugins, jobs=jobs, limit=timeout,
    ).run(lambda line: click.echo(line, err=True))  # fmt: skip
    click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False) if as_json else shown_trial(found))
    if file is not None:
        write_report(found, file)
        click.echo(f"results written to {file}; to show them: smollm3 compat --evidence {shlex.quote(str(file))}",
                   err=True)  # fmt: skip
    if found.failed:
        click.get_current_context().exit(SmolLM3Error.exit_code)


def _examine(
    plugin: tuple[str, ...], no_plugins: bool, device: str | None, timeout: float, as_json: bool
) -> None:  # fmt: skip
    """Run the checks without training."""
    from smollm3_finetune.checks.doctor import examine
    from smollm3_finetune.errors import PluginError, SmolLM3Error

    broken: list[PluginError] = []
    files = [p for p in plugin if not p.startswith("no:")]
    for file in files:  # one at a time, so that every broken file is reported
        try:
            discovered((file,), no_plugins=True)
        except PluginError as e:
            broken.append(e)
            plugin = tuple(p for p in plugin if p != file)
    report = examine(discovered(plugin, no_plugins), device, timeout, broken)
    if as_json:
        about = {"possible": report.possible, "versions": dict(report.versions), "devices": list(report.devices),
                 "cache": dict(report.cache), "environment": dict(report.environment),
                 "findings": [f.as_dict() for f in report.findings]}  # fmt: skip
        click.echo(json.dumps(about, indent=2, ensure_ascii=False))
    else:
        click.echo(shown(report))
    if not report.possible:
        click.get_current_context().exit(SmolLM3Error.exit_code)


def shown(report: Report) -> str:
    """The report as human-readable text: the environment, then the checks, failed ones last."""
    import platform

    from smollm3_finetune.cli.commands.plugins_check import marks
    from smollm3_finetune.cli.commands.plugins_check import shown as shown_finding
    from smollm3_finetune.files.room import shown_size

    lines = [click.style("versions", bold=True), f"  python {platform.python_version()}, {platform.platform()}"]
    lines += [f"  {name} {version or 'is not installed'}" for name, version in report.versions.items()]
    lines += ["", click.style("devices", bold=True)]
    for d in report.devices:
        memory = f", {shown_size(d['free'])} of {shown_size(d['total'])} free" if "total" in d else ""
        lines.append(f"  {d['name']}: {d['title']}{memory}")
    c = report.cache
    count = f"{c['entries']} {'entry' if c['entries'] == 1 else 'entries'}"
    lines += ["", click.style("cache", bold=True)]
    held = f"  {c['root']}: {count}, {shown_size(c['bytes'])}; {shown_size(c['free'])} free on its disk"
    lines.append(held if c["root"] is not None else "  cannot be accessed")
    lines += ["", click.style("environment", bold=True)]
    lines += [f"  {name}={value}" for name, value in report.environment.items()] or ["  no relevant variables are set"]
    lines += ["", click.style("checks", bold=True)]
    ordered = sorted(report.findings, key=lambda f: (not f.ok, f.serious))
    lines += [f"  {line}" for finding in ordered for line in shown_finding(finding, finding.subject)]
    bad = [f for f in report.findings if not f.ok]
    if not report.possible:
        end = f"Fix the items marked {marks()[1]} first."
    elif bad:
        end = f"Ready to run, with {len(bad)} {'warning' if len(bad) == 1 else 'warnings'}."
    else:
        end = "Ready to run."
    return "\n".join([*lines, "", end])
