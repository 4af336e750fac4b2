"""Short stable names of things that are decided by several parts: cache keys, quantized bases."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(*parts: Any) -> str:
    """A short stable identity of JSON-like parts: 32 hexadecimal digits of SHA-256 over canonical JSON.

    Raises TypeError for a part that JSON cannot hold, whose text might differ from run to run.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
