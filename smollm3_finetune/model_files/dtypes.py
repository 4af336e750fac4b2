"""Names of dtypes. Light."""

from __future__ import annotations

ALIASES = {
    "half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32",
    "double": "float64", "fp64": "float64",
}  # fmt: skip
"""Other names that users type; torch itself has `half`, `float` and `double`."""


def full_name(dtype: str) -> str:
    """The name that torch prints, such as `bfloat16` for `bf16`; other text is returned as it is."""
    return ALIASES.get(dtype, dtype)
