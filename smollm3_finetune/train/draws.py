"""Whether the steps of a run draw random numbers: each process draws its own, so their number must not change then."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class Draws:
    """Watches the random generators whose state a checkpoint saves."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        """Of the run; the generator of a CUDA GPU is watched too."""
        self.found = False
        """Whether random numbers were drawn while something was watched."""
        self._before: tuple[Any, ...] | None = None

    def begin(self) -> None:
        """Watch until `end`. Costs nothing once something was found."""
        self._before = None if self.found else self._states()

    def end(self) -> None:
        if self._before is not None and not self.found:
            self.found = any(not _equal(a, b) for a, b in zip(self._before, self._states(), strict=True))
        self._before = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.begin()
        yield
        self.end()

    def watched(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same collate function, watched: batches are made before the step begins."""

        def watch(items: Any) -> Any:
            with self.watching():
                return collate(items)

        return watch

    def _states(self) -> tuple[Any, ...]:
        legacy: Any = np.random.get_state()
        on_device = (torch.cuda.get_rng_state(self.device),) if self.device.type == "cuda" else ()
        return (random.getstate(), legacy[1], legacy[2], legacy[3], torch.get_rng_state(), *on_device)


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor):
        return bool(torch.equal(before, after))
    return np.array_equal(before, after) if isinstance(before, np.ndarray) else bool(before == after)
