"""Paths that users type."""

from __future__ import annotations

import os
import re
from pathlib import Path

from smollm3_finetune.errors import ConfigError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def user_path(text: str | Path, what: str = "the path") -> Path:
    """The path that a user typed, `~` resolved; there may be nothing there.

    Raises ConfigError where the system refuses to look: an unknown `~user`, a name that is too long or holds a NUL, a
    directory that may not be read. `what` names the path's place in the sentence.
    """
    shown = repr(str(text)) if len(str(text)) <= 80 else repr(f"{str(text)[:60]}…")
    if "\0" in str(text):
        raise ConfigError(f"{what} {shown} is no path: it holds a NUL character", hint="a path without one")
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            os.scandir(path).close()
        else:
            path.exists()
    except RuntimeError as e:
        user = str(text).partition("/")[0]
        raise ConfigError(f"{what} {shown}: there is no home directory of {user!r}", hint=f"./{text}") from e
    except OSError as e:
        raise ConfigError(f"{what} {shown} cannot be looked at: {e.strerror or e}", hint="another path") from e
    return path


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a Hub id, `owner/name`; a file or directory of that name is not looked for."""
    return HUB_ID.fullmatch(text) is not None
