"""Checks whether a quantizer and an adapter work together: descriptors are compared, nothing is imported.

A quantizer provides operations and an adapter needs some. Neither knows the other's name.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from typing import Any

from smollm3_finetune.api import AdapterSpec, Env, ExporterSpec, ObjectiveSpec, Op, Purpose, QuantizerSpec
from smollm3_finetune.components.contract import described
from smollm3_finetune.components.kinds import ADAPTER, OBJECTIVE, QUANTIZER, Kind
from smollm3_finetune.components.registry import Registry, attributed_to, known_components
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.options import build
from smollm3_finetune.config.schema import DEFAULT_ADAPTER
from smollm3_finetune.errors import IncompatibleError, SmolLM3Error

NO_CHANGE = "it does not change the model's weights"
INSTEAD_OF_MERGING = "use the adapter without merging: smollm3 generate RUN"


def environment(device: str, purpose: Purpose) -> Env:
    """The facts about this machine that descriptors may depend on."""
    tools = frozenset({"c++"} if any(shutil.which(c) for c in ("c++", "g++", "clang++", "cl")) else ())
    return Env(device=device.partition(":")[0], purpose=purpose, tools=tools)


def refined(component: SelectedComponent, env: Env) -> Any:
    """The descriptor of a quantizer, an adapter, an objective or an exporter for its options on this machine.

    Raises PluginError if `refine` raises or returns something other than a descriptor of the same kind.
    """
    spec: QuantizerSpec | AdapterSpec | ObjectiveSpec | ExporterSpec = component.spec
    if spec.refine is None:
        return spec
    if env in component.refined:
        return component.refined[env]
    refine: Any = spec.refine
    kind = next(k for k in (QuantizerSpec, AdapterSpec, ObjectiveSpec, ExporterSpec) if isinstance(spec, k))
    with attributed_to(component.component, "refine()"):
        answer = component.component.waited(lambda: refine(spec, component.options, env), "refine")
        if not isinstance(answer, kind):
            raise TypeError(
                f"it returned {described(answer)}, not {'a' if kind is QuantizerSpec else 'an'} {kind.__name__}"
            )
    return answer


def provided(quantizer: SelectedComponent, env: Env) -> tuple[frozenset[Op], Mapping[Op, str]]:
    """The operations of a quantizer on this machine with these options, and the reason for each absent operation."""
    spec: QuantizerSpec = refined(quantizer, env)
    return frozenset(spec.provides) - spec.absent.keys(), spec.absent


def needed(adapter: SelectedComponent, env: Env) -> frozenset[Op]:
    """The operations that the base must provide: the adapter's needs, and READ_WEIGHT for a merge's dense copy."""
    needs = frozenset(refined(adapter, env).needs)
    return needs | {Op.READ_WEIGHT} if env.purpose is Purpose.MERGE else needs


def missing_ops(quantizer: SelectedComponent, adapter: SelectedComponent, env: Env) -> dict[Op, str]:
    """The operations that the adapter needs and the quantizer does not provide, each with the reason."""
    ops, absent = provided(quantizer, env)
    missing = sorted(needed(adapter, env) - ops)
    return {op: absent.get(op, "the quantizer does not declare it") for op in missing}


def refusal(quantizer: SelectedComponent, adapter: SelectedComponent, env: Env) -> str | None:
    """Why a pair does not work, in a few words and without the names; None if it works."""
    if env.purpose is Purpose.MERGE and not refined(adapter, env).merges:
        return NO_CHANGE
    by_reason: dict[str, list[str]] = {}
    for op, reason in missing_ops(quantizer, adapter, env).items():
        by_reason.setdefault(reason, []).append(op)
    return "; ".join(f"no {', '.join(ops)}: {reason}" for reason, ops in by_reason.items()) or None


def pair_problem(
    registry: Registry, quantizer: SelectedComponent, adapter: SelectedComponent, env: Env
) -> IncompatibleError | None:
    """Why a pair does not work, with the nearest pair that does as the hint; None if it works."""
    adapter_flag = f"{ADAPTER.flag} {adapter.spec.name}"
    quant_flag = f"{QUANTIZER.flag} {quantizer.spec.name}"
    merging = env.purpose is Purpose.MERGE
    if merging and not refined(adapter, env).merges:
        return IncompatibleError(f"{adapter_flag} cannot be merged: {NO_CHANGE}", hint=INSTEAD_OF_MERGING)
    missing = missing_ops(quantizer, adapter, env)
    if not missing:
        return None
    reasons = "; ".join(f"{op} ({reason})" for op, reason in missing.items())
    if merging:  # the adapter was trained on this base: no other pair can replace it
        return IncompatibleError(
            f"merging {adapter_flag} needs operations that {quant_flag} does not provide on {env.device}: {reasons}",
            hint=INSTEAD_OF_MERGING,
        )
    return IncompatibleError(
        f"{adapter_flag} needs operations that {quant_flag} does not provide on {env.device}: {reasons}",
        hint=_nearest(registry, quantizer, adapter, env),
    )


def check_reference(
    registry: Registry,
    objective: SelectedComponent,
    quantizer: SelectedComponent,
    adapter: SelectedComponent,
    env: Env,
) -> None:
    """Raises IncompatibleError if the objective needs the base and the adapter cannot be disabled.

    The other references, the model at the start of the run and another model, work with every adapter.
    """
    if refined(objective, env).reference != "base" or refined(adapter, env).disables:
        return
    others = (c for c in _usable(registry, ADAPTER, env) if not missing_ops(quantizer, c, env))
    names = [c.spec.name for c in others if refined(c, env).disables]
    names.sort(key=lambda name: (name not in (adapter.spec.name, DEFAULT_ADAPTER), name))
    same = " with its default options" if names and names[0] == adapter.spec.name else ""
    install = known_components().get(ADAPTER.name, {}).get(DEFAULT_ADAPTER)
    absent = f"pip install {install}, then {ADAPTER.flag} {DEFAULT_ADAPTER}" if install else None
    raise IncompatibleError(
        f"{OBJECTIVE.flag} {objective.spec.name} compares the model with its base, but {ADAPTER.flag} "
        f"{adapter.spec.name} changes the base and cannot be disabled",
        hint=f"{ADAPTER.flag} {names[0]}{same}" if names else absent,
    )


def _usable(registry: Registry, kind: Kind, env: Env) -> list[SelectedComponent]:
    """The components of a kind that can run on this machine, with their default options."""
    found = []
    for component in registry.of(kind):
        with contextlib.suppress(SmolLM3Error):  # do not suggest components that are broken or cannot run here
            if not requirement_problems(component.title, component.spec.requires, env.device):
                options = build(component.options_class(), {}, component.kind.section)
                chosen = SelectedComponent(component=component, options=options)
                refined(chosen, env)
                found.append(chosen)
    return found


def _nearest(registry: Registry, quantizer: SelectedComponent, adapter: SelectedComponent, env: Env) -> str | None:
    """A working pair that keeps one of the two; first the quantizer, because it decides the memory use."""

    def defaults(kind: Kind) -> list[SelectedComponent]:
        found = []
        for chosen in _usable(registry, kind, env):
            with contextlib.suppress(SmolLM3Error):
                missing_ops(*((chosen, adapter) if kind is QUANTIZER else (quantizer, chosen)), env)
                found.append(chosen)
        return found

    needs = frozenset(refined(adapter, env).needs)
    others = sorted(  # prefer the adapter whose needs overlap most with those of the requested one
        (c for c in defaults(ADAPTER) if not missing_ops(quantizer, c, env)),
        key=lambda c: (-len(needs & frozenset(refined(c, env).needs)), c.spec.name != DEFAULT_ADAPTER, c.spec.name),
    )
    bases = [c for c in defaults(QUANTIZER) if not missing_ops(c, adapter, env)]
    hints = []
    if any(c.spec is adapter.spec for c in others):  # the method works, but not with these options
        hints.append(f"{ADAPTER.flag} {adapter.spec.name} with its default options")
    elif others:
        hints.append(f"{QUANTIZER.flag} {quantizer.spec.name} {ADAPTER.flag} {others[0].spec.name}")
    if bases and bases[0].spec is not quantizer.spec:
        hints.append(f"{QUANTIZER.flag} {bases[0].spec.name} {ADAPTER.flag} {adapter.spec.name}")
    return " or ".join(hints) or None
