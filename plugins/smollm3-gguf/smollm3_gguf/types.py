"""Types of exported files, and the type that each tensor gets. Light."""

from __future__ import annotations

FLOATS = ("f32", "f16", "bf16")
BLOCKS = ("q8_0", "q5_0", "q5_1", "q4_0", "q4_1")
"""Types with blocks of `BLOCK` values, which the gguf package quantizes."""
K_QUANTS = (
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k",
)  # fmt: skip
"""Types that llama.cpp quantizes, from a file of type f32. It chooses the type of each tensor itself."""
BLOCK = 32
"""Values in a block of `BLOCKS`. A row is divided into blocks."""
SHARED = ("token_embd.weight", "output.weight")
"""Embeddings and head: one error there reaches every prediction, so they keep 8 bits."""


def disk_of(option: str) -> float:
    """About how many bytes of disk an export needs for each parameter: llama.cpp quantizes a temporary f32 file."""
    if option in FLOATS:
        return 4.0 if option == "f32" else 2.0
    written = (int(option[1]) + 1) / 8  # scales, and embeddings of 8 bits
    return written + (4.0 if option in K_QUANTS else 0.0)


def type_of(tensor_name: str, option: str, width: int | None = None) -> str:
    """The type of a tensor, by its name in the file, for a value of the option `type`.

    Norms and biases are f32. Linear layers have the type that is asked for; embeddings and head have q8_0 if that type
    has fewer than 8 bits. `width` is the length of a row, if known: rows that are not divisible into blocks are f16.
    """
    if tensor_name.endswith((".bias", "norm.weight")) or tensor_name == "rope_freqs.weight":
        return "f32"
    if option in K_QUANTS:
        return "f32"  # before llama.cpp quantizes it
    if option in FLOATS:
        return option
    if width is not None and width % BLOCK:
        return "f16"
    return "q8_0" if tensor_name in SHARED else option
