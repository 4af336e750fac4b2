"""Reads the plugin index that `--index FILE|URL` names."""

from __future__ import annotations

from urllib.parse import urlsplit

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.limits import JSON_SIZE, read_text, shown_bytes
from smollm3_finetune.installing.failures import without_secrets
from smollm3_finetune.paths import user_path

SECONDS = 20.0
LOCAL = ("localhost", "127.0.0.1", "::1")


def index_text(source: str) -> str:
    """The text of a file or a URL. Raises ConfigError if it cannot be read."""
    if "://" in source:
        return _fetched(source)
    path = user_path(source, "--index")
    try:
        return read_text(path, JSON_SIZE)
    except FileNotFoundError as e:
        raise ConfigError(f"--index {source}: the file does not exist", hint="--index FILE, or --index URL") from e
    except (OSError, ValueError) as e:
        raise ConfigError(f"--index {source} cannot be read: {e}", hint="--index FILE, or --index URL") from e


def _fetched(url: str) -> str:
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    parts, shown = urlsplit(url), without_secrets(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise ConfigError(f"--index {shown} must be an https address or a file", hint="--index https://…")
    try:
        with urlopen(url, timeout=SECONDS) as answer:
            data: bytes = answer.read(JSON_SIZE.size + 1)
    except HTTPError as e:
        raise ConfigError(f"--index {shown} cannot be read: {e.code} {e.reason}", hint="check the address") from e
    except (URLError, OSError, ValueError) as e:
        reason = getattr(e, "reason", e)
        raise ConfigError(f"--index {shown} cannot be reached: {reason}",
                          hint="check the address and the network, or omit --index") from e  # fmt: skip
    if len(data) > JSON_SIZE.size:
        raise ConfigError(f"--index {shown} is larger than {shown_bytes(JSON_SIZE.size)}", hint="name a plugin index")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"--index {shown} is not a text in UTF-8", hint="name a plugin index") from e
