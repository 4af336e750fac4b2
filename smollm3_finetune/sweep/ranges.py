"""Random values of a configuration key. Each trial draws for itself, so that more trials keep those drawn before."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3_finetune.errors import ConfigError, did_you_mean

KINDS = ("choice", "uniform", "log_uniform", "integer")
DIGITS = 4
"""Significant digits of a drawn number: `0.0003162` can be read and typed."""
EXAMPLE = "train.learning_rate: {log_uniform: [1e-5, 1e-3]}"


@dataclass(frozen=True)
class Range:
    """The values that a key can have."""

    kind: str
    values: tuple[Any, ...]
    """The choices, or the smallest and the largest number."""

    def draw(self, key: str, seed: int, trial: int) -> Any:
        """The value of a trial, which depends on nothing but the seed, the key and the number of the trial."""
        source = random.Random(f"{seed}/{trial}/{key}")
        if self.kind == "choice":
            return self.values[source.randrange(len(self.values))]
        low, high = self.values
        if self.kind == "integer":
            return source.randint(low, high)
        if self.kind == "uniform":
            return _rounded(source.uniform(low, high), high - low, low, high)
        ends = math.log(low), math.log(high)
        drawn = math.exp(source.uniform(*ends))
        return _rounded(drawn, drawn * min(ends[1] - ends[0], 1.0), low, high)


def _rounded(value: float, scale: float, low: float, high: float) -> float:
    """The value with four digits of its `scale`, within the range."""
    places = DIGITS - 1 - math.floor(math.log10(scale)) if scale > 0 else 0
    return min(max(round(value, places), low), high)


def read_range(key: str, value: Any, where: str) -> Range:
    """The range that a file states for a key. Raises ConfigError, which begins with `where`."""
    if isinstance(value, list):
        value = {"choice": value}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ConfigError(f"{where}: {key} must be a range of values, got {value!r:.80}", hint=EXAMPLE)
    kind, found = next(iter(value.items()))
    if kind not in KINDS:
        similar = did_you_mean(kind.replace("-", "_"), KINDS)
        hint = f"did you mean {similar!r}?" if similar else f"kinds of ranges: {', '.join(KINDS)}; {EXAMPLE}"
        raise ConfigError(f"{where}: {key} has an unknown kind of range {kind!r}", hint=hint)
    if kind == "choice":
        if not isinstance(found, list) or not found:
            raise ConfigError(f"{where}: the choices of {key} must be a list of values, got {found!r:.80}",
                              hint=f"{key}: {{choice: [1, 2]}}")  # fmt: skip
        return Range(kind, tuple(found))
    return Range(kind, _ends(key, kind, found, where))


def _ends(key: str, kind: str, found: Any, where: str) -> tuple[Any, ...]:
    """The smallest and the largest number."""
    whole, hint = kind == "integer", f"{key}: {{{kind}: [{'1, 8' if kind == 'integer' else '0.001, 0.1'}]}}"
    number = "whole numbers" if whole else "numbers"
    if not isinstance(found, Sequence) or len(found) != 2 or not all(_is_number(end, whole) for end in found):
        raise ConfigError(f"{where}: {kind} of {key} must be two {number}, got {found!r:.80}", hint=hint)
    low, high = found if whole else (float(found[0]), float(found[1]))
    if low > high:
        raise ConfigError(f"{where}: {kind} of {key} begins at {low} and ends at {high}", hint=f"[{high}, {low}]")
    if kind == "log_uniform" and low <= 0:
        raise ConfigError(f"{where}: log_uniform of {key} must begin above 0, got {low}", hint=hint)
    return low, high


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return math.isfinite(value)
