"""The command that installs a plugin of this project, for hints.

A release publishes core and its plugins together, and core has an extra for each plugin. A core that came from an index
therefore names the extra. A core that runs from a clone names the plugin's folder in that clone, because the version in
the clone need not be published.
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

CORE = "smollm3-finetune"
ABOVE = Path(__file__).resolve().parents[2]
"""The folder that has this package: site-packages, or the root of a clone."""
PREFIX = "smollm3-"
"""The name of a plugin of this project begins with it; the rest is the name of the extra."""


def install_command(distribution: str) -> str:
    """A command, to be typed as it is, that installs a plugin of this project."""
    return f"pip install {shlex.quote(install_argument(distribution))}"


def install_argument(distribution: str) -> str:
    """The argument of `pip install` for a plugin of this project: a folder of the clone, or an extra of core."""
    clone = _clone()
    folder = clone / "plugins" / distribution if clone is not None else None
    if clone is None or folder is None or not (folder / "pyproject.toml").is_file():
        return f"{CORE}[{distribution.removeprefix(PREFIX)}]"
    try:
        here = Path.cwd() == clone
    except OSError:  # the working directory was deleted
        here = False
    return f"./{folder.relative_to(clone).as_posix()}" if here else str(folder)


def _clone() -> Path | None:
    """The clone from which core runs, or from which it was installed; None if it came from an index."""
    if (ABOVE / "plugins").is_dir() and (ABOVE / "pyproject.toml").is_file():
        return ABOVE
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        text = distribution(CORE).read_text("direct_url.json")
        about = json.loads(text) if text else {}
        url = urlsplit(about["url"]) if "dir_info" in about else None
    except (PackageNotFoundError, OSError, ValueError, KeyError, TypeError):
        return None
    if url is None or url.scheme != "file":
        return None
    return Path(unquote(url.path).lstrip("/") if os.name == "nt" else unquote(url.path))
