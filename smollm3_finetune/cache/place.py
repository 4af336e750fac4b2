"""Where the cache is. Imports only `os`: completion and root help read a file of the cache."""

from __future__ import annotations

import os


def cache_folder() -> str | None:
    """`$SMOLLM3_CACHE`, else `$XDG_CACHE_HOME/smollm3`, else `~/.cache/smollm3`; None if there is no home directory."""
    if own := os.environ.get("SMOLLM3_CACHE"):
        return own
    if base := os.environ.get("XDG_CACHE_HOME"):
        return os.path.join(base, "smollm3")
    home = os.path.expanduser("~")
    return None if home == "~" else os.path.join(home, ".cache", "smollm3")
