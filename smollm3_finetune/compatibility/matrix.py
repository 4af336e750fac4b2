"""The table: every quantizer with every adapter, for each use, with its state and evidence.

The descriptors decide whether a pair is allowed; published results show whether it was run. Only the light modules of
plugins are imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from smollm3_finetune.api import Env, Purpose
from smollm3_finetune.compatibility.collect import Collected, Evidence
from smollm3_finetune.compatibility.results import Use
from smollm3_finetune.components.kinds import ADAPTER, QUANTIZER
from smollm3_finetune.components.negotiation import environment, needed, pair_problem, provided, refined, refusal
from smollm3_finetune.components.registry import RegisteredComponent, Registry
from smollm3_finetune.components.requirements import requirement_problems
from smollm3_finetune.components.selection import SelectedComponent
from smollm3_finetune.config.options import build
from smollm3_finetune.errors import SmolLM3Error

ONLY_START = "only with the model at its start as the reference, because the adapter cannot be disabled"


class State(StrEnum):
    MEASURED = "measured"
    """The pair was run on this kind of device."""
    DECLARED = "declared"
    """The descriptors allow the pair, but it was not run on this kind of device."""
    REFUSED = "refused"
    """An operation or a requirement is missing: an error before weights are read."""
    UNKNOWN = "unknown"
    """A descriptor cannot be evaluated."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A pair for one use on one kind of device."""

    quantizer: RegisteredComponent
    adapter: RegisteredComponent
    purpose: Use
    device: str
    state: State
    reason: str | None
    """Why the pair is refused or unknown, or what limits an allowed one."""
    evidence: tuple[Evidence, ...]
    """Results on this kind of device, the best first; also those of a refused pair that was run anyway."""

    @property
    def holds(self) -> bool | None:
        """Whether the pair worked when it was run; None if it was not run."""
        return self.evidence[0].result.holds if self.evidence else None

    @property
    def stale(self) -> bool:
        """Whether the pair was measured with versions other than those installed."""
        return bool(self.evidence) and self.evidence[0].stale


def table(
    registry: Registry,
    evidence: Collected,
    device: str,
    quantizers: Sequence[RegisteredComponent] | None = None,
    adapters: Sequence[RegisteredComponent] | None = None,
) -> list[Cell]:
    """All cells, ordered by adapter, then quantizer, then use."""
    env = {use: environment(device, use.purpose) for use in Use}
    sides = {
        kind: [_Side.of(component, device) for component in (registry.of(kind) if chosen is None else chosen)]
        for kind, chosen in ((QUANTIZER, quantizers), (ADAPTER, adapters))
    }
    return [_cell(q, a, use, env[use], evidence) for a in sides[ADAPTER] for q in sides[QUANTIZER] for use in Use]


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A component with its default options, or the reason why it cannot be used."""

    component: RegisteredComponent
    chosen: SelectedComponent | None
    unknown: str | None
    unmet: str | None

    @classmethod
    def of(cls, component: RegisteredComponent, device: str) -> _Side:
        chosen = unknown = unmet = None
        try:
            chosen = SelectedComponent(
                component=component, options=build(component.options_class(), {}, component.kind.section)
            )
            unmet = (
                "; ".join(p.message for p in requirement_problems(component.title, component.spec.requires, device))
                or None
            )
        except SmolLM3Error as e:
            unknown = e.message
        return cls(component=component, chosen=chosen, unknown=unknown, unmet=unmet)


def _cell(quantizer: _Side, adapter: _Side, use: Use, env: Env, evidence: Collected) -> Cell:
    names = (quantizer.component.full_name, adapter.component.full_name)
    found = evidence.of(*names, use.value, env.device)
    state, reason = State.MEASURED if found else State.DECLARED, None
    unknown, unmet = quantizer.unknown or adapter.unknown, quantizer.unmet or adapter.unmet
    if unknown is not None or quantizer.chosen is None or adapter.chosen is None:
        state, reason = State.UNKNOWN, unknown
    elif unmet is not None:
        state, reason = State.REFUSED, unmet
    else:
        try:
            reason = refusal(quantizer.chosen, adapter.chosen, env)
            if reason is not None:
                state = State.REFUSED
            elif use is Use.PREFER and not refined(adapter.chosen, env).disables:
                reason = ONLY_START
        except SmolLM3Error as e:
            state, reason = State.UNKNOWN, e.message
    return Cell(
        quantizer=quantizer.component,
        adapter=adapter.component,
        purpose=use,
        device=env.device,
        state=state,
        reason=reason,
        evidence=found,
    )


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The operations on both sides of a pair."""

    provides: tuple[str, ...]
    absent: dict[str, str]
    needs: dict[str, tuple[str, ...]]
    """By use."""
    nearest: str | None
    """The nearest pair that works, if this one is refused for training."""


def terms(
    registry: Registry, quantizer: RegisteredComponent, adapter: RegisteredComponent, device: str
) -> Terms | None:
    """The operations of a pair; None if a descriptor cannot be evaluated."""
    train = environment(device, Purpose.TRAIN)
    q, a = _Side.of(quantizer, device).chosen, _Side.of(adapter, device).chosen
    if q is None or a is None:
        return None
    try:
        ops, absent = provided(q, train)
        needs = {use.value: tuple(sorted(map(str, needed(a, environment(device, use.purpose))))) for use in Use}
        problem = pair_problem(registry, q, a, train)
    except SmolLM3Error:
        return None
    return Terms(
        provides=tuple(sorted(map(str, ops))),
        absent={str(op): reason for op, reason in absent.items()},
        needs=needs,
        nearest=problem.hint if problem is not None else None,
    )
