"""The memory that a run takes, measured: the largest size above that before its model was opened."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

EVERY = 0.02
"""Seconds between two samples of the memory of a process. Reading one takes about 40 µs."""
STATUS = Path("/proc/self/status")


class MemoryWatch(Protocol):
    """A measurement that has begun."""

    def so_far(self) -> dict[str, Any]:
        """`device`, and in bytes the `peak` until now and the `floor` under it; empty: cannot be measured here."""


@contextmanager
def watching(device: str) -> Iterator[MemoryWatch]:
    """Measure the memory of this process on `device` while the context is open.

    On a CUDA GPU, the memory that torch's allocator reserved; on a CPU, the anonymous memory of the process, which is
    all of it except mapped files, on Linux.
    """
    if device.partition(":")[0] == "cuda":
        yield _Reserved(device)
        return
    floor = anonymous() if device == "cpu" else None
    if floor is None:
        yield _Nothing()
        return
    watch = _Sampled(floor)
    watch.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        watch.join()


def device_name(device: str) -> str:
    """The kind of device whose measurements compare: `cpu`, or the name of the GPU."""
    if device.partition(":")[0] != "cuda":
        return device.partition(":")[0]
    import torch

    return str(torch.cuda.get_device_name(torch.device(device)))


def anonymous() -> int | None:
    """The anonymous memory of this process, in bytes; None if the system does not state it."""
    try:
        for line in STATUS.read_bytes().splitlines():
            if line.startswith(b"RssAnon:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def give_back() -> None:
    """Return memory that was freed to the system, where the C library is glibc, which keeps it in its heap otherwise.

    What a model took while it was loaded and checked would add to what its training takes.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class _Nothing:
    def so_far(self) -> dict[str, Any]:
        return {}


class _Reserved:
    """The memory of a CUDA GPU."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        torch.cuda.reset_peak_memory_stats(device)
        self.floor = int(torch.cuda.memory_reserved(device))

    def so_far(self) -> dict[str, Any]:
        import torch

        peak = int(torch.cuda.max_memory_reserved(self.device))
        return {"device": device_name(self.device), "peak": peak - self.floor, "floor": self.floor}


class _Sampled(threading.Thread):
    """The memory of this process."""

    def __init__(self, floor: int) -> None:
        super().__init__(name="memory", daemon=True)
        self.floor = self.peak = floor
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(EVERY):
            self.peak = max(self.peak, anonymous() or 0)

    def so_far(self) -> dict[str, Any]:
        self.peak = max(self.peak, anonymous() or 0)
        return {"device": "cpu", "peak": self.peak - self.floor, "floor": self.floor}
