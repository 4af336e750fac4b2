"""The part of `train --help` about components: the installed ones, and the options of the named ones.

Does not import torch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import click

from smollm3_finetune.cli.session import find_plugins
from smollm3_finetune.components.kinds import (
    ADAPTER,
    COMMAND,
    EVALUATOR,
    EXPORTER,
    FORMATTER,
    KINDS,
    LAUNCHER,
    LOADER,
    OBJECTIVE,
    OPTIMIZER,
    QUANTIZER,
    TRACKER,
    Kind,
)
from smollm3_finetune.config.options import describe
from smollm3_finetune.errors import SmolLM3Error

if TYPE_CHECKING:
    from smollm3_finetune.components.registry import RegisteredComponent

NAMED = {
    "loader": LOADER, "quant": QUANTIZER, "adapter": ADAPTER, "objective": OBJECTIVE, "formatter": FORMATTER,
    "launcher": LAUNCHER, "optimizer": OPTIMIZER, "tracker": TRACKER, "evaluator": EVALUATOR, "to": EXPORTER,
}  # fmt: skip


OF_A_RUN = tuple(kind for kind in KINDS if kind not in (EVALUATOR, EXPORTER, COMMAND))
"""The kinds that a training run has."""


def component_help(params: Mapping[str, Any], kinds: Collection[Kind] = OF_A_RUN) -> str:
    """The names of the installed components by kind, then the options of those that the command line names."""
    registry = find_plugins(params.get("plugin") or (), bool(params.get("no_plugins")))
    lines = ["Installed components:"]
    for kind in kinds:
        names = ", ".join(o.spec.name for o in registry.of(kind)) or "none"
        first = f"  {kind.flag:<13} "
        lines += textwrap.wrap(
            names, 108, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False
        )
    for parameter, kind in NAMED.items():
        name = params.get(parameter)
        if name and kind in kinds:
            try:
                lines += ["", *option_lines(registry.find(kind, name))]
            except SmolLM3Error as e:
                lines += ["", click.style(str(e), fg="red")]
    return "\n".join(lines)


def option_lines(component: RegisteredComponent) -> list[str]:
    """The options of a component as lines of text: name, type, default, help and range."""
    spec = component.spec
    flag = f"{component.kind.flag}-opt" if component.kind is not FORMATTER else f"--set {component.kind.section}."
    lines = [
        f"{component.kind.name.capitalize()} {spec.name} ({component.distribution} {component.version}): {spec.summary}"
    ]
    if component.kind is COMMAND:
        return [*lines, f"  {component.kind.flag} {spec.name} --help"]
    infos = describe(component.options_class())
    if not infos:
        return [*lines, "  No options."]
    for info in infos:
        default = "none" if info.default is None else _value(info.default)
        lines.append(f"  {flag}{'' if flag.endswith('.') else ' '}{info.name}={info.type}  [default: {default}]")
        text = info.help + (f" ({info.range})" if info.range else "")
        lines += textwrap.wrap(text, 108, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _value(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return "[" + ", ".join(map(str, default)) + "]"
    return str(default)
