"""`smollm3 doctor`: what would keep a run from working on this machine. Libraries are imported in another process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from smollm3_finetune.cli.options import Number, plugin_options
from smollm3_finetune.cli.session import discovered

if TYPE_CHECKING:
    from smollm3_finetune.checks.doctor import Report


@click.command(short_help="Look for what would keep a run from working here.")
@plugin_options
@click.option("--device", metavar="NAME", help="Ask what can be used on this device; default: the best there is.")
@click.option("--timeout", type=Number(min=1), default=180.0, show_default=True, metavar="SECONDS",
              help="For each import.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    plugin: tuple[str, ...], no_plugins: bool, device: str | None, timeout: float, as_json: bool
) -> None:  # fmt: skip
    """Look for what would keep a run from working on this machine.

    Versions, devices, packages that cannot be imported or contradict each other, plugins and what they require, the
    cache and environment variables. Every library is imported, in a process of its own, which takes a while. Ends
    with 0 where a run is possible.
    """
    from smollm3_finetune.checks.doctor import examine
    from smollm3_finetune.errors import PluginError, SmolLM3Error
    from smollm3_finetune.model.device import check_device

    if device is not None:
        check_device(device)
    broken: list[PluginError] = []
    files = [p for p in plugin if not p.startswith("no:")]
    for file in files:  # one at a time, so that each that is broken is told
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
    """The report for a person: what there is, then what was found, what is wrong last."""
    import platform

    from smollm3_finetune.cache.entries import shown_size
    from smollm3_finetune.cli.commands.plugins_check import shown as shown_finding

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
    lines.append(held if c["root"] is not None else "  cannot be looked at")
    lines += ["", click.style("environment", bold=True)]
    lines += [f"  {name}={value}" for name, value in report.environment.items()] or ["  nothing is set"]
    lines += ["", click.style("checks", bold=True)]
    ordered = sorted(report.findings, key=lambda f: (not f.ok, f.serious))
    lines += [f"  {line}" for finding in ordered for line in shown_finding(finding, finding.subject)]
    bad = [f for f in report.findings if not f.ok]
    if not report.possible:
        end = "no run is possible before what is marked is mended"
    elif bad:
        end = f"a run is possible; {len(bad)} of the checks found something that may get in its way"
    else:
        end = "a run is possible, and nothing is wrong"
    return "\n".join([*lines, "", end])
