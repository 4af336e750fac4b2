"""Paths that users type."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from smollm3_finetune.errors import ConfigError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def user_path(text: str | Path, what: str = "the path") -> Path:
    """The path that a user typed, with `~` expanded; it need not exist.

    `what` names the path in the error message. Raises ConfigError if the path cannot be accessed: an unknown `~user`,
    a name that is too long or contains a NUL character, or a directory without read permission.
    """
    if not isinstance(text, str | os.PathLike) or isinstance(os.fspath(text), bytes):
        raise ConfigError(f"{what} must be text or a path, not {text!r}")
    shown = repr(str(text)) if len(str(text)) <= 80 else repr(f"{str(text)[:60]}…")
    if "\0" in str(text):
        raise ConfigError(
            f"{what} {shown} is not a valid path: it contains a NUL character", hint="remove it from the path"
        )
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            os.scandir(path).close()
        else:
            path.exists()
    except RuntimeError as e:
        user = str(text).partition("/")[0]
        raise ConfigError(f"{what} {shown}: the user {user!r} has no home directory", hint=f"./{text}") from e
    except OSError as e:
        raise ConfigError(f"{what} {shown} cannot be accessed: {e.strerror or e}", hint="use another path") from e
    return path


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a Hub id, `owner/name`; a file or directory of that name is not looked for."""
    return HUB_ID.fullmatch(text) is not None


def check_below_directories(flag: str, path: Path) -> None:
    """Raises ConfigError if a part of the path above its last one is a file."""
    parent = next((p for p in path.absolute().parents if p.exists()), path)
    if not parent.is_dir():
        raise ConfigError(f"{flag} {path}: {parent} is not a directory", hint=f"choose another {flag}")


def plugin_flags(plugins: Iterable[str]) -> str:
    """The `-p` options for these files and modules, to put into a command that is shown to the user."""
    import shlex

    return "".join(f" -p {shlex.quote(p)}" for p in plugins if not p.startswith("no:"))
