"""Chooses the program that installs: pip, or uv for an environment without pip or one that uv made."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from smollm3_finetune.errors import MissingRequirementError
from smollm3_finetune.installing.environment import python
from smollm3_finetune.installing.installer import Installer
from smollm3_finetune.installing.pip import Pip
from smollm3_finetune.installing.uv import Uv


def choose_installer() -> Installer:
    """pip, or uv if the environment has no pip or was made by uv. Raises MissingRequirementError without either."""
    has_pip = PathFinder.find_spec("pip") is not None  # setuptools' own finder would look at it, and may warn
    if (not has_pip or _made_by_uv()) and (uv := _uv()) is not None:
        return Uv(uv)
    if has_pip:
        return Pip()
    raise MissingRequirementError(f"the environment {sys.prefix} has no pip, and uv was not found",
                                  hint=f"{python()} -m ensurepip, or install uv")  # fmt: skip


def _made_by_uv() -> bool:
    try:
        text = Path(sys.prefix, "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.partition("=")[0].strip() == "uv" for line in text.splitlines())


def _uv() -> str | None:
    """The program uv: that which runs this process, one on PATH, or that of the package uv."""
    beside = Path(sys.executable).with_name("uv")
    for path in (os.environ.get("UV"), shutil.which("uv"), str(beside)):
        if path and os.access(path, os.X_OK) and Path(path).is_file():
            return path
    return None
