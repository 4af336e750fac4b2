"""Reads the plugin index that `--index FILE|URL` names, or the variable SMOLLM3_PLUGIN_INDEX."""

from __future__ import annotations

from urllib.parse import urlsplit

from smollm3_finetune.errors import ConfigError
from smollm3_finetune.files.limits import JSON_SIZE, read_text, shown_bytes
from smollm3_finetune.installing.failures import without_secrets
from smollm3_finetune.paths import user_path

SECONDS = 20.0
LOCAL = ("localhost", "127.0.0.1", "::1")


def index_text(source: str, origin: str) -> str:
    """The text of a file or a URL, which `origin` names. Raises ConfigError if it cannot be read."""
    if "://" in source:
        return _fetched(source, origin)
    path = user_path(source, origin)
    try:
        return read_text(path, JSON_SIZE)
    except FileNotFoundError as e:
        raise ConfigError(
            f"{origin} {source}: the file does not exist", hint=f"{origin} is a file, or an https address"
        ) from e
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{origin} {source} cannot be read: {e}", hint=f"{origin} is a file, or an https address"
        ) from e


def _fetched(url: str, origin: str) -> str:
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    parts, shown = urlsplit(url), without_secrets(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOCAL):
        raise ConfigError(
            f"{origin} {shown} must be an https address or a file",
            hint="use an https address, or download the file and name it",
        )
    try:
        with urlopen(url, timeout=SECONDS) as answer:
            data: bytes = answer.read(JSON_SIZE.size + 1)
    except HTTPError as e:
        raise ConfigError(f"{origin} {shown} cannot be read: {e.code} {e.reason}", hint="check the address") from e
    except (URLError, OSError, ValueError) as e:
        reason = getattr(e, "reason", e)
        raise ConfigError(f"{origin} {shown} cannot be reached: {reason}",
                          hint=f"check the address and the network, or omit {origin}") from e  # fmt: skip
    if len(data) > JSON_SIZE.size:
        raise ConfigError(f"{origin} {shown} is larger than {shown_bytes(JSON_SIZE.size)}", hint="name a plugin index")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{origin} {shown} is not a text in UTF-8", hint="name a plugin index") from e
