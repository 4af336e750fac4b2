"""What is nobody's fault but the machine's: a full disk, memory that does not suffice. Light."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What torch says in a RuntimeError, where it has no exception of its own for that."""


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an exception tells of a full disk or of too little memory: no fault of a plugin, a file or the network.

    Let such an exception pass unchanged: `smollm3` tells it in a sentence.
    """
    return is_full(error) or is_out_of_memory(error)


def is_full(error: BaseException) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return _has_number(error, FULL)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the computer or of its accelerator does not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # Python's, torch's
        return True
    said = isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
    return said or _has_number(error, (errno.ENOMEM,))


def _has_number(error: BaseException, numbers: tuple[int, ...]) -> bool:
    """Whether it is an OSError of one of these numbers, or what a library in Rust makes of one: that has it as text."""
    if isinstance(error, OSError) and error.errno in numbers:
        return True
    return any(f"(os error {number})" in str(error) for number in numbers)
