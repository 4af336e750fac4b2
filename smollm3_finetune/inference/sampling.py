"""How the next token is selected: greedily, or sampled with the usual limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

TOP_K = 50
"""What transformers uses if neither the caller nor the model's generation config sets `top_k`."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Parameters of `generate` of transformers; None: the value of the model's generation config, else no effect."""

    temperature: float = 0.0
    """0 is greedy: the limits below are ignored, except the repetition penalty."""
    top_k: int | None = None
    """Sample from the k most probable tokens; 0: from all; None: the generation config's, else `TOP_K`."""
    top_p: float | None = None
    """Sample from the smallest set of most probable tokens with this total probability."""
    min_p: float | None = None
    """Sample from tokens that are at least this fraction as probable as the most probable token."""
    repetition_penalty: float | None = None
    """Divides the logits of tokens that occurred already; 1 has no effect."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `generate`."""
        penalty = {} if self.repetition_penalty is None else {"repetition_penalty": float(self.repetition_penalty)}
        if self.greedy:
            unset = dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
            return {"do_sample": False, **unset, **penalty}
        limits = {"top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
        given = {name: value for name, value in limits.items() if value is not None}
        return {"do_sample": True, "temperature": float(self.temperature), **given, **penalty}  # it refuses integers

    @classmethod
    def stated(
        cls, generation_config: Any, given: Mapping[str, float | None], defaults: Mapping[str, float]
    ) -> Sampling:
        """The `given` parameters; for those that are None, what a generation config states, else `defaults`.

        A generation config that says `do_sample: false` is greedy.
        """
        found: dict[str, Any] = generation_config.to_diff_dict() if generation_config is not None else {}
        if found.get("do_sample") is False:
            found["temperature"] = 0.0
        names = [f.name for f in fields(cls)]
        values = {n: next((d[n] for d in (given, found, defaults) if d.get(n) is not None), None) for n in names}
        chosen: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        return cls(**chosen)

    def shown(self) -> str:
        """`temperature 0.6, top-p 0.95, top-k 50`, or `greedy`."""
        penalty = (
            [f"repetition penalty {self.repetition_penalty:g}"] if self.repetition_penalty not in (None, 1) else []
        )
        if self.greedy:
            return ", ".join(["greedy", *penalty])
        limits = [f"temperature {self.temperature:g}"]
        limits += [f"top-p {self.top_p:g}"] if self.top_p not in (None, 1) else []
        limits += [f"top-k {TOP_K if self.top_k is None else self.top_k}"] if self.top_k != 0 else []
        limits += [f"min-p {self.min_p:g}"] if self.min_p else []
        return ", ".join(limits + penalty)


GREEDY = Sampling()
"""The most probable token each time."""
