"""Finds what must not be published in the text of a file: tokens, private keys and paths of this machine.

A finding names the file, the line and the kind of secret, never the secret itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from smollm3_finetune.errors import ModelError

TOKENS: Mapping[str, re.Pattern[str]] = {
    "a Hugging Face token": re.compile(r"(?<![A-Za-z0-9_])(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    "a GitHub token": re.compile(r"(?<![A-Za-z0-9_])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{40})"),
    "an API key": re.compile(r"(?<![A-Za-z0-9_-])sk-(?:proj-|ant-[a-z0-9]+-)?[A-Za-z0-9_]{32,}"),
    "an AWS access key": re.compile(r"(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD)$")
SHORTEST_SECRET = 16
"""Characters that the value of an environment variable must have to be searched for."""
PATH = re.compile(r"(?<![\w:/.~@$-])/[\w.@+~-]+(?:/[\w.@+~-]+)+")
OF_A_USER = re.compile(r"/(?:home|Users)/[^/]+/|/root/|/home/[^/]+$|/Users/[^/]+$")
WINDOWS_USER = re.compile(r"(?<![A-Za-z])[A-Za-z]:[\\/]+Users[\\/]+[^\\/\s\"']+")
ON_EVERY_MACHINE = {"bin", "boot", "dev", "etc", "lib", "lib64", "opt", "proc", "run", "sbin", "sys", "usr", "var"}
"""Top-level directories whose paths say nothing about a user, such as `/usr/bin/env`."""
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
SHOWN = 200
"""Characters of a path that a message shows."""


@dataclass(frozen=True)
class Finding:
    """A secret or a path of this machine in a file that would be published."""

    line: int
    what: str
    is_path: bool


def check_text(file: Path, text: str, *, vocabulary: bool = False, is_json: bool = False) -> None:
    """Raises ModelError, with file and line, for the first token or path of this machine in the text of a file.

    In a `vocabulary`, whose entries may look like any path, only paths that begin with the user's directories count.
    """
    found = next(findings(text, vocabulary=vocabulary, is_json=is_json), None)
    if found is None:
        return
    place = f"{file}, line {found.line}," if found.line else f"the header of {file}"
    if found.is_path:
        raise ModelError(
            f"{place} contains a path of this machine, which would be published: {found.what}",
            hint=f"replace the path with a name in {file}, or remove the line",
        )
    raise ModelError(
        f"{place} contains {found.what}, which would be published",
        hint=f"remove it from {file}, and revoke it if the file was shared",
    )


def findings(text: str, *, vocabulary: bool = False, is_json: bool = False) -> Iterator[Finding]:
    """The findings of a text, line by line."""
    secrets, own = own_secrets(), own_directories()
    path_of: Callable[[str], str | None] = (lambda line: _below(line, own)) if vocabulary else _machine_path
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _unescaped(raw) if is_json else raw
        for what, pattern in TOKENS.items():
            if pattern.search(line):
                yield Finding(number, what, False)
        for name, value in secrets.items():
            if value in line:
                yield Finding(number, f"the value of {name}", False)
        if (path := path_of(line)) is not None:
            yield Finding(number, path[:SHOWN], True)


def own_secrets() -> dict[str, str]:
    """The secrets of this user: the saved Hub token, and environment variables by the end of their name."""
    from huggingface_hub import constants

    found = {n: v.strip() for n, v in os.environ.items() if SECRET_NAME.search(n) and len(v.strip()) >= SHORTEST_SECRET}
    try:
        saved = Path(constants.HF_TOKEN_PATH).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        saved = ""
    if len(saved) >= SHORTEST_SECRET:
        found["the saved Hub token"] = saved
    return {name: value for name, value in found.items() if not os.path.exists(value)}  # SSH_KEY may be a path


def own_directories() -> list[str]:
    """The home directory and the working directory, unless a path that short could be anything."""
    places = {str(Path.home()), str(Path.cwd())}
    return [place for place in places if len(Path(place).parts) > 1]


def _below(line: str, directories: list[str]) -> str | None:
    return next((f"{place}/…" for place in directories if f"{place.rstrip('/')}/" in line), None)


def _machine_path(line: str) -> str | None:
    """The first path of this machine in a line: of a user, or one that exists here and not on every machine."""
    line = line.replace("file://", " ")
    if (windows := WINDOWS_USER.search(line)) is not None:
        return windows[0]
    for match in PATH.finditer(line):
        if OF_A_USER.match(match[0]) or _exists_here(match[0]):
            return match[0]
    return _below(line, own_directories())  # directories with spaces in their names


def _exists_here(path: str) -> bool:
    parts = Path(path).parts
    try:
        return parts[1] not in ON_EVERY_MACHINE and Path(*parts[:3]).exists()
    except (OSError, ValueError):
        return False


def _unescaped(line: str) -> str:
    """A line of JSON with the escapes of slashes and of other characters replaced."""
    plain = ESCAPE.sub(lambda match: chr(int(match[1], 16)), line)
    return plain.replace("\\/", "/").replace("\\\\", "\\")
