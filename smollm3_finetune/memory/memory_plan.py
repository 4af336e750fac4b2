"""The predicted memory of a run. Light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PARTS = (
    "process", "weights", "adapter", "gradients", "optimizer", "activations", "logits", "transient", "slack",
)  # fmt: skip
"""The parts of a peak, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The peak memory of a run on each of its devices, in bytes."""

    device: str
    """The device type. On `cpu`: anonymous memory of a process above what it has after its imports; elsewhere what the
    allocator of torch holds on the device."""
    length: int
    """Tokens of the longest row, or with packing of each sequence."""
    batch: int
    """Rows of a forward pass, or with packing sequences."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """The bytes of each part at the peak; they sum to `peak`. Empty if the peak is unknown."""
    phase: str = "training"
    """When the peak is reached: `loading`, `training` or `optimizer step`."""
    low: int = 0
    high: int = 0
    """The interval in which the peak is expected."""
    mapped: int = 0
    """Bytes of weight files that stay mapped into memory and are not part of the peak: the system may drop them."""
    replicated: int = 0
    """Bytes of weights that every process keeps whole although the run divides its weights."""
    processes: int = 1
    notes: tuple[str, ...] = ()
    """What the prediction assumes, as sentences."""
    unknown: tuple[str, ...] = ()
    """Reasons why there is no prediction, as clauses."""

    @property
    def known(self) -> bool:
        return not self.unknown

    @property
    def compared(self) -> bool:
        """Whether predictions of this kind were compared with measurements."""
        return self.device == "cpu" and self.processes == 1

    @property
    def peak(self) -> int:
        """The sum of the parts; 0 if the peak is unknown."""
        return sum(self.parts.values())

    def as_json(self) -> dict[str, Any]:
        """Every field; null for the peak, its interval and its phase if they are unknown."""
        return {
            "device": self.device,
            "processes": self.processes,
            "length": self.length,
            "batch": self.batch,
            "peak": self.peak if self.known else None,
            "low": self.low if self.known else None,
            "high": self.high if self.known else None,
            "phase": self.phase if self.known else None,
            "parts": dict(self.parts) if self.known else None,
            "mapped": self.mapped,
            "replicated": self.replicated,
            "notes": list(self.notes),
            "unknown": list(self.unknown),
        }
