"""`smollm3 doctor`: check that this machine can run smollm3. Libraries are imported in a separate process."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from smollm3_finetune.cli.options import Number, plugin_options
from smollm3_finetune.cli.session import discovered

if TYPE_CHECKING:
    from smollm3_finetune.checks.doctor import Report


@click.command(short_help="Check that this machine can run smollm3.")
@plugin_options
@click.option("--device", metavar="NAME", help="Check the components for this device; default: the best available.")
@click.option("--timeout", type=Number(min=1), default=180.0, show_default=True, metavar="SECONDS",
              help="Time limit for each import.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(
    plugin: tuple[str, ...], no_plugins: bool, device: str | None, timeout: float, as_json: bool
) -> None:  # fmt: skip
    """Check that this machine can run smollm3.

    Checks versions, devices, packages that cannot be imported or conflict with each other, plugins and their
    requirements, the cache, and environment variables. Every library is imported in a separate process, which takes a
    while. The exit code is 0 if a run is possible.
    """
    from smollm3_finetune.checks.doctor import examine
    from smollm3_finetune.errors import PluginError, SmolLM3Error
    from smollm3_finetune.model.device import check_device

    if device is not None:
        check_device(device)
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
