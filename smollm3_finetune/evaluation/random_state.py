"""The random generators of Python, NumPy and torch, for code that must not affect what follows it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def random_state_kept(device: str = "cpu") -> Iterator[None]:
    """Restore the state of all random generators, also that of `device`, at the end of the context."""
    import numpy as np
    import torch

    on = torch.device(device)
    others: dict[str, Any] = {"devices": []}
    if on.type != "cpu":
        others = {"devices": [on.index or 0], "device_type": on.type}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(**others):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def seeded_everywhere(seed: int, device: str = "cpu") -> Iterator[None]:
    """Random numbers come from `seed` inside the context; all states are restored."""
    import numpy as np
    import torch

    with random_state_kept(device):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
