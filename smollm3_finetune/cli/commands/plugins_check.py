"""`smollm3 plugins check`: check plugins against the plugin contract, one line per check."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import TYPE_CHECKING

import click

from smollm3_finetune.cli.options import plugin_options

if TYPE_CHECKING:
    from smollm3_finetune.checks.findings import Finding
    from smollm3_finetune.checks.plugin import Target

EXAMPLES = """
\b
Examples:
  smollm3 plugins check
  smollm3 plugins check my-plugin --deep
  smollm3 plugins check my_plugin.py
"""


@click.command("check", short_help="Check plugins against the plugin contract.", epilog=EXAMPLES)
@plugin_options
@click.argument("name", required=False, metavar="[NAME|FILE]")
@click.option("--deep", is_flag=True, help="Also run the conformance kit, with weights, in pytest; takes minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(name: str | None, plugin: tuple[str, ...], no_plugins: bool, deep: bool, as_json: bool) -> None:
    """Check plugins against the plugin contract: one line per check, with a fix if it fails.

    NAME is a plugin, its distribution or one of its components; FILE is a plugin file, as for -p. Without either, all
    installed plugins are checked. The exit code is 7 if a check fails.
    """
    from smollm3_finetune.checks.findings import wrong
    from smollm3_finetune.checks.plugin import check as check_one
    from smollm3_finetune.checks.plugin import fatal, targets
    from smollm3_finetune.errors import ConfigError, PluginError

    if no_plugins and name is None and not plugin:
        raise ConfigError("--no-plugins leaves no plugin to check", hint="smollm3 plugins check FILE")
    if deep:
        from smollm3_finetune.checks.deep import require_kit

        require_kit()
    report: list[tuple[str, str, list[Finding]]] = []

    def report_findings(plugin: str, distribution: str, title: str, found: list[Finding]) -> None:
        report.append((plugin, distribution, found))
        if not as_json:
            click.echo(("" if len(report) == 1 else "\n") + click.style(f"{plugin} ({title})", bold=True))
            for finding in found:
                click.echo("\n".join(f"  {line}" for line in shown(finding, plugin)))

    fatal_plugins = fatal(name, plugin, no_plugins)
    requested = [d for d in fatal_plugins if name is None or d.is_called(name) or d.asked in plugin]
    for one in requested:
        report_findings(one.finding.subject, one.distribution, "broken", [one.finding])
    for one in fatal_plugins:
        if one not in requested:
            click.echo(f"skipped: {one.finding.subject} ({one.finding.found})", err=True)
    plugin = (*(p for p in plugin if not any(d.asked == p for d in fatal_plugins)),
              *(d.asked for d in fatal_plugins if d.asked.startswith("no:")))  # fmt: skip
    every_target: list[Target] = []
    if name is None or name not in {n for d in requested for n in (d.asked, d.finding.subject)}:
        with contextlib.redirect_stdout(sys.stderr):  # plugins may print while they are imported
            every_target = targets(name, plugin, no_plugins, reported=bool(requested))
    for target in every_target:
        with contextlib.redirect_stdout(sys.stderr):
            found = check_one(target)
        if deep:
            from smollm3_finetune.checks.deep import deep_findings

            found += deep_findings(target)
        report_findings(target.name, target.distribution, target.title, found)
    every = [f for *_, found in report for f in found]
    bad = wrong(every)
    if as_json:
        plugins = [{"plugin": plugin_, "distribution": distribution, "ok": not wrong(found),
                    "checks": [f.as_dict() for f in found]} for plugin_, distribution, found in report]  # fmt: skip
        click.echo(json.dumps(plugins, indent=2, ensure_ascii=False))
    elif not report:
        click.echo(
            "no plugins are installed; to check a file: smollm3 plugins check FILE; to create one: smollm3 plugins new"
        )
    else:
        click.echo(f"\n{len(every)} checks, {len(bad)} failed")
    if bad:
        click.get_current_context().exit(PluginError.exit_code)


def shown(finding: Finding, plugin: str) -> list[str]:
    """A finding as one line; if it failed, a second line with the fix."""
    good, bad = marks()
    mark = click.style(good, fg="green") if finding.ok else click.style(bad, fg="red" if finding.serious else "yellow")
    subject = "" if finding.subject == plugin else f"{finding.subject}: "
    found = f": {finding.found}" if finding.found and not finding.ok else f" ({finding.found})" if finding.found else ""
    lines = [f"{mark} {subject}{finding.check}{found}"]
    return [*lines, f"    {finding.fix}"] if finding.fix and not finding.ok else lines


def marks() -> tuple[str, str]:
    """✓ and ✗, or words if the encoding of standard output lacks them."""
    try:
        "✓✗".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return "ok", "FAIL"
    return "✓", "✗"
