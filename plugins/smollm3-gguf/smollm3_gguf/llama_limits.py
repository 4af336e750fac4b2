"""What is allowed between llama.cpp and transformers, by the types of a file's weights.

The limits are measured: docs/exporting-gguf.md has the figures. Each refuses a file that computes something else, and
none refuses a type for being coarse.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.api import ConfigError, ModelError
from smollm3_gguf.header import BadHeader, read_header

EXACT = 1e-3
"""Relative difference of logits for float32 weights: both sides round to float32 only."""


@dataclass(frozen=True)
class Precision:
    """The weights of a file, and the limits that follow from them."""

    tensors: str
    """Types of the matrices and how many have each: `169 Q4_0, 1 Q8_0`."""
    quantized: bool
    """Whether the values of the file differ from the source's."""
    logits: float
    """Largest relative difference between llama.cpp's logits and transformers' with the same weights."""
    divergence: float
    """Largest mean KL divergence from the source, as a share of that between unrelated predictions of the source."""


LOGITS = {"F32": EXACT, "F16": 1e-2, "BF16": 5e-2}
"""Limit of `Precision.logits`: llama.cpp rounds activations to the type of the weights that they meet."""
LOGITS_QUANTIZED = 0.2
"""The same for quantized weights: activations are rounded to 8 bits, in blocks."""
DIVERGENCE = ((32.0, 1e-6), (16.0, 0.005), (8.0, 0.03), (6.5, 0.1), (5.5, 0.2), (4.0, 0.45), (3.0, 0.75), (0.0, 0.95))
"""Limit of `Precision.divergence` for weights of at least so many bits: about twice what a random model needs, whose
predictions change most. Unrelated predictions have 1, whatever the model; smaller faults are found in the weights."""


def precision(file: Path) -> Precision:
    """Read the types of the matrices in the header of a GGUF file; the coarsest decides the limits."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        with file.open("rb") as stream:
            header = read_header(stream)
        kinds = [GGMLQuantizationType(t.ggml_type) for t in header.tensors.values() if len(t.shape) > 1]
    except (BadHeader, ValueError) as e:
        raise ModelError(f"{file.name} {e}", hint="export again") from e
    bits = {kind: 8 * GGML_QUANT_SIZES[kind][1] / GGML_QUANT_SIZES[kind][0] for kind in kinds}
    coarsest = min(bits.values())
    counts = Counter(kind.name for kind in kinds)
    return Precision(
        tensors=", ".join(f"{n} {name}" for name, n in counts.most_common()),
        quantized=any(kind.name != "F32" for kind in kinds),
        logits=max(LOGITS.get(kind.name, LOGITS_QUANTIZED) for kind in kinds),
        divergence=next(limit for least, limit in DIVERGENCE if coarsest >= least),
    )


K_TYPES = {
    "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12, "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16,
    "q5_k_m": 17, "q6_k": 18,
}  # fmt: skip
"""Types that only llama.cpp writes, and their values of its `llama_ftype`."""


def file_type(name: str) -> int:
    """llama.cpp's number of a type. Raises ConfigError for a name that is not in `K_TYPES`."""
    if name not in K_TYPES:
        raise ConfigError(
            f"{name} is not a type that llama.cpp quantizes to here", hint=f"one of: {', '.join(K_TYPES)}"
        )
    return K_TYPES[name]
