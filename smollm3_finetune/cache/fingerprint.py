"""Short stable hashes over several parts: cache keys, fingerprints of quantized bases."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-like parts: 32 hexadecimal digits of SHA-256 over canonical JSON.

    Raises TypeError for a part that JSON cannot represent: its text might differ between runs.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
