"""What pip and uv print when they fail, as one sentence with a hint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from smollm3_finetune.components.discovery import CORE_DISTRIBUTION
from smollm3_finetune.errors import (
    ConfigError,
    IncompatibleError,
    MissingRequirementError,
    SmolLM3Error,
    WriteError,
)

LONGEST = 300
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
WANTS = re.compile(
    rf"(?:all versions of )?(?P<who>{_NAME})(?: |==)?(?P<version>[0-9][\w.+!]*)? depends? on "
    rf"(?P<what>{_NAME}(?:\[[\w,.-]+\])?[^\n]*?)(?=\n| and |, |$)"
)
"""`acme 1.0 depends on torch<2`, in pip's words and in uv's."""
NOT_FOUND = (
    re.compile(r"No matching distribution found for (?P<what>[^\n(]+)"),
    re.compile(rf"Because (?:there are no versions of )?(?P<what>{_NAME}\S*) was not found in the"),
    re.compile(rf"there (?:is|are) no versions? of (?P<what>{_NAME}\S*)"),
)
OFFLINE = re.compile(
    r"NewConnectionError|NameResolutionError|Failed to establish a new connection|Temporary failure in name resolution"
    r"|ConnectTimeoutError|ReadTimeoutError|Max retries exceeded|Failed to fetch|client error \(Connect\)"
    r"|Failed to download|Read timed out|Could not fetch URL"
)
HTTP = re.compile(
    r"HTTP error (?P<code>\d{3})|(?P<status>\d{3}) (?:Client|Server) Error|status client error \((?P<uv>\d{3})"
)
ADDRESS = re.compile(r"(?:https?|file|git\+\w+)://[^\s'\"`)>]+")
HOST = re.compile(r"host='(?P<host>[^']+)'[^)]*\)(?:: Max retries exceeded with url: )?(?P<path>/\S*)?")
PYTHON = (
    re.compile(rf"Package '?(?P<who>{_NAME})'? requires a different Python: \S+ not in '(?P<range>[^']+)'"),
    re.compile(rf"(?P<who>{_NAME})(?:==\S+)? requires Python (?P<range>[<>=!~]\S*?)(?:,? and |,? we|$)"),
)
UNSUPPORTED = re.compile(r"ERROR: (?P<file>\S+) is not a supported wheel on this platform")
BUILD = re.compile(
    r"Failed to build|subprocess-exited-with-error|build backend returned an error|BackendUnavailable"
    r"|metadata-generation-failed|Failed building wheel"
)
PERMISSION = re.compile(r"Permission denied|Read-only file system", re.IGNORECASE)
FULL = re.compile(r"No space left on device|Disk quota exceeded")


def without_secrets(text: str) -> str:
    """A text, such as a URL, without the password or the token of an address."""
    return re.sub(r"://[^/@\s]+@", "://…@", text)


def failure(text: str, installer: str, pins: Sequence[str] = ()) -> SmolLM3Error:
    """The error for the output of a failed pip or uv. `pins` are the constraints that it got."""
    text = without_secrets(text)
    for found in (_conflict, _disk, _python, _platform, _building, _network, _missing):
        if (error := found(text, pins)) is not None:
            return error
    return SmolLM3Error(f"{installer} failed: {_last(text)}", hint=f"run {installer} itself to see all of its output")


def _conflict(text: str, pins: Sequence[str]) -> SmolLM3Error | None:
    held = [pin for pin in pins if re.search(rf"(?<![\w.-]){re.escape(pin)}(?![\w.+-])", text)]
    if not held or not re.search(r"conflicting dependencies|No solution found", text):
        return None
    by_name: dict[str, str] = {canonicalize_name(pin.partition("==")[0]): pin for pin in held}
    wanted = [w for w in _wants(text) if w[1] in by_name and not _accepts(w[2], by_name[w[1]])]
    if not wanted:
        return None
    said = [f"{who} needs {what}, but {by_name[name].replace('==', ' ')} is installed" for who, name, what in wanted]
    message = "; ".join(dict.fromkeys(said))
    names = list(dict.fromkeys(name for _, name, _ in wanted))
    if CORE_DISTRIBUTION in names:
        return IncompatibleError(message, hint="look for a version for this smollm3-finetune, or upgrade it: "
                                               "pip install --upgrade smollm3-finetune")  # fmt: skip
    flags = " ".join(f"--allow-change {name}" for name in names)
    return IncompatibleError(f"{message}; nothing that is installed is replaced", hint=f"to replace it anyway: {flags}")


def _wants(text: str) -> Iterator[tuple[str, str, str]]:
    """Who wants what: (`acme 1.0`, `torch`, `torch<2`)."""
    for found in WANTS.finditer(" ".join(text.split("\n")) if "we can conclude" in text else text):
        try:
            what = Requirement(found["what"].strip())
        except InvalidRequirement:
            continue
        who = f"{found['who']} {found['version']}" if found["version"] else found["who"]
        if found["who"] != "requested":
            yield who, canonicalize_name(what.name), found["what"].strip()


def _accepts(requirement: str, pin: str) -> bool:
    """Whether a requirement accepts the version of a pin."""
    return Requirement(requirement).specifier.contains(pin.partition("==")[2], prereleases=True)


def _disk(text: str, pins: Sequence[str]) -> SmolLM3Error | None:
    if FULL.search(text):
        return WriteError("disk full: the packages cannot be installed", hint="free space, and run the command again")
    if (found := PERMISSION.search(text)) is not None:
        return WriteError(f"the environment cannot be written: {found[0]}",
                          hint="use an environment that you may change: python3 -m venv .venv")  # fmt: skip
    return None


def _python(text: str, pins: Sequence[str]) -> SmolLM3Error | None:
    import platform

    for pattern in PYTHON:
        if (found := pattern.search(text)) is not None:
            return IncompatibleError(
                f"{found['who']} needs Python {found['range']}, but this is Python {platform.python_version()}",
                hint="use an environment with that Python, or another version of the plugin",
            )
    return None


def _platform(text: str, pins: Sequence[str]) -> SmolLM3Error | None:
    if (found := UNSUPPORTED.search(text)) is None:
        return None
    return IncompatibleError(f"{found['file']} is a wheel for another platform or another Python",
                             hint="look for the wheel of this platform, or for a source distribution")  # fmt: skip


def _building(text: str, pins: Sequence[str]) -> SmolLM3Error | None:
    if BUILD.search(text) is None:
        return None
    for pattern in NOT_FOUND:
        if (found := pattern.search(text)) is not None:
            return MissingRequirementError(
                f"the build needs {found['what'].strip()}, which was not found", hint="name a source: --find-links DIR"
            )
    if (found := re.search(r"No module named '([\w.]+)'", text)) is not None:
        return SmolLM3Error(f"the plugin cannot be built: there is no module {found[1]!r}",
                            hint="name it in [build-system] requires of its pyproject.toml")  # fmt: skip
    return SmolLM3Error(
        f"the plugin cannot be built: {_last(text)}", hint="to see the output: pip wheel --no-deps PATH"
    )


def _network(text: str, pins: Sequence[str]) -> SmolLM3Error | None:
    return unreachable(text)


def unreachable(text: str) -> SmolLM3Error | None:
    """The error of an address that cannot be reached or downloaded, if the text names one."""
    text = without_secrets(text)
    code = HTTP.search(text)
    if code is None and OFFLINE.search(text) is None:
        return None
    address, host = ADDRESS.search(text), HOST.search(text)
    what = address[0].rstrip(".,") if address else f"{host['host']}{host['path']}" if host else "the package index"
    if code is not None:
        number = code["code"] or code["status"] or code["uv"]
        return SmolLM3Error(f"{what} cannot be downloaded: the server answers {number}", hint="check the address")
    return SmolLM3Error(
        f"{what} cannot be reached",
        hint="check the address and the network; for a folder of wheels: --offline --find-links DIR",
    )


def _missing(text: str, pins: Sequence[str]) -> SmolLM3Error | None:
    for pattern in NOT_FOUND:
        if (found := pattern.search(text)) is not None:
            return NotFound(found["what"].strip())
    return None


class NotFound(ConfigError):
    """No source has a distribution, or none in this version."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no package index and no --find-links has {what}", hint="smollm3 plugins search")
        self.what = what


def _last(text: str) -> str:
    """The last line that says what is wrong."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
        lines = [f"error: {line}" for line in raised] or lines
    marked = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("error:", "fatal:"))]
    line = next((line for line in reversed(marked or [x for x in lines if x]) if line), "it says nothing")
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
