"""The script for a shell, and where the shell looks for it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from smollm3_finetune.cli import COMMANDS
from smollm3_finetune.cli.completion import SHELLS
from smollm3_finetune.cli.completion.stored import store_command
from smollm3_finetune.errors import WriteError
from smollm3_finetune.files.failures import writing
from smollm3_finetune.files.writing import write_text
from smollm3_finetune.paths import user_path

ENDINGS = {"bash": "sh", "zsh": "sh", "fish": "fish"}
BASH_COMPLETION = ("/usr/share/bash-completion/bash_completion", "/etc/bash_completion",
                   "/usr/local/share/bash-completion/bash_completion",
                   "/usr/local/etc/profile.d/bash_completion.sh",
                   "/opt/homebrew/etc/profile.d/bash_completion.sh")  # fmt: skip
"""Files of the package bash-completion, which reads scripts from the user's directory."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the script of a shell goes."""

    file: Path
    to_do: str | None = None
    """What a user must add to the shell's configuration; None: the shell finds the file."""


def script(shell: str) -> str:
    """What `smollm3 completion SHELL` prints."""
    folder = resources.files("smollm3_finetune.cli.completion") / "scripts"
    return (folder / f"{shell}.{ENDINGS[shell]}").read_text(encoding="utf-8")


def place_for(shell: str) -> Place:
    """The user's own place for completions of a shell. Raises ConfigError if there is no home directory."""
    assert shell in SHELLS
    if shell == "fish":
        return Place(file=_base("XDG_CONFIG_HOME", "~/.config") / "fish/completions/smollm3.fish")
    if shell == "zsh":
        return _place_for_zsh()
    own = os.environ.get("BASH_COMPLETION_USER_DIR")
    folder = user_path(own) if own else _base("XDG_DATA_HOME", "~/.local/share") / "bash-completion"
    file = folder / "completions/smollm3"
    reads = any(map(os.path.exists, BASH_COMPLETION))
    return Place(file=file, to_do=None if reads else f"add to ~/.bashrc: source {shlex.quote(str(file))}")


def _place_for_zsh() -> Place:
    """A directory of `$fpath` in the user's home; otherwise one that must be added to it."""
    home = str(user_path("~"))
    for folder in _fpath():
        if folder.startswith(f"{home}{os.sep}") and os.access(folder, os.W_OK):
            return Place(file=Path(folder) / "_smollm3")
    folder = str(_base("XDG_DATA_HOME", "~/.local/share") / "zsh/site-functions")
    line = f"fpath=({shlex.quote(folder)} $fpath); autoload -U compinit; compinit"
    return Place(file=Path(folder) / "_smollm3", to_do=f"add to ~/.zshrc: {line}")


def _fpath() -> list[str]:
    """`$fpath` of the user's zsh; empty if there is no zsh, or if it does not answer."""
    zsh = shutil.which("zsh")
    if zsh is None:
        return []
    try:
        done = subprocess.run([zsh, "-ic", "print -rl -- $fpath"], capture_output=True, text=True, timeout=10,
                              stdin=subprocess.DEVNULL, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return []
    return done.stdout.splitlines()


def _base(variable: str, default: str) -> Path:
    return user_path(os.environ.get(variable) or default, variable)


def install(shell: str, place: Place) -> None:
    """Write the script, and store what the commands offer, so that the first Tab is as fast as later ones.

    Raises WriteError.
    """
    try:
        with writing(place.file.parent, left="nothing was installed", elsewhere=f"smollm3 completion {shell} > FILE"):
            place.file.parent.mkdir(parents=True, exist_ok=True)
            write_text(place.file, script(shell))
    except WriteError as e:
        raise WriteError(f"{place.file}: {e.message}", hint=f"smollm3 completion {shell} > FILE") from e
    for name in COMMANDS:
        store_command(name)
