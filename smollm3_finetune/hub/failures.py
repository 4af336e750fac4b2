"""Failures of an upload, each in one sentence with what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from smollm3_finetune import stopping
from smollm3_finetune.errors import ConfigError, ModelError, SmolLM3Error, is_resource_error

AGAIN = "run the same command again: files that were uploaded are not uploaded again"
LOG_IN = "hf auth login, with a token that has write access; or set HF_TOKEN"
CARD_REFUSED = "Invalid metadata in README.md"
"""How the client's message about a card begins."""
FULL = ("storage", "quota", "payment", "upgrade your plan")
"""Words in the Hub's message about a full account."""


@contextlib.contextmanager
def explained(repo: str, endpoint: str) -> Iterator[None]:
    """Convert the failures of the Hub's client inside the context into a SmolLM3Error; a Stop says how to continue."""
    try:
        yield
    except stopping.Stop as stop:
        stop.message += f" while uploading to {repo}"
        stop.hint = AGAIN
        raise
    except SmolLM3Error:
        raise
    except Exception as e:
        if is_resource_error(e):
            raise
        raise failure(e, repo, endpoint) from e


def failure(error: BaseException, repo: str, endpoint: str) -> SmolLM3Error:
    """The error for an exception of the Hub's client."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    chain, text = list(_chain(error)), " ".join(str(error).split())
    if isinstance(error, ValueError) and CARD_REFUSED in text:
        details = text.partition(CARD_REFUSED)[2].strip(" .-")
        return ModelError(f"{endpoint} refuses the model card: {details}", hint="edit the metadata of README.md")
    if isinstance(error, ValueError) and any(word in text.lower() for word in FULL):
        return _full(endpoint, text.rpartition("`")[2])
    for one in chain:
        if isinstance(one, OfflineModeIsEnabled):
            return offline()
        if isinstance(one, LocalTokenNotFoundError):
            return no_token(endpoint)
        if (status := _status(one)) is not None:
            return _of_status(status, one, repo, endpoint)
    if any(_is_of_network(one) for one in chain):
        return SmolLM3Error(
            f"{endpoint} cannot be reached: {_first_line(chain[-1]) or type(chain[-1]).__name__}",
            hint=f"check the network and HF_ENDPOINT, then {AGAIN}",
        )
    return SmolLM3Error(f"the upload to {repo} failed: {type(error).__name__}: {_first_line(error)}", hint=AGAIN)


def no_token(endpoint: str) -> SmolLM3Error:
    return SmolLM3Error(f"publishing on {endpoint} needs a token, and none is saved", hint=LOG_IN)


def offline() -> SmolLM3Error:
    return ConfigError(
        "HF_HUB_OFFLINE is set, so nothing can be published",
        hint="unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE; to see what would be published: --dry-run",
    )


def _of_status(status: int, error: Any, repo: str, endpoint: str) -> SmolLM3Error:
    """The error for a status of HTTP."""
    said = _said(error)
    if status == 402 or (status == 403 and any(word in said.lower() for word in FULL)):
        return _full(endpoint, said)
    if status == 401:
        return SmolLM3Error(f"{endpoint} does not accept the token{_because(said)}", hint=LOG_IN)
    if status == 403:
        return SmolLM3Error(f"the token may not write to {repo}{_because(said)}", hint=f"check the owner, or: {LOG_IN}")
    if status == 404:
        return SmolLM3Error(
            f"{repo} was not found on {endpoint}{_because(said)}", hint="check OWNER/NAME and --revision"
        )
    if status in (409, 412):
        return SmolLM3Error(f"{repo} was changed at the same time{_because(said)}", hint=AGAIN)
    if status == 413:
        return SmolLM3Error(
            f"a file is larger than {endpoint} accepts{_because(said)}",
            hint="to see the sizes: --dry-run; smaller weights: smollm3 merge RUN --dtype bfloat16",
        )
    if status == 429:
        return SmolLM3Error(f"{endpoint} limits the number of requests{_because(said)}", hint=f"wait, then {AGAIN}")
    if status >= 500:
        return SmolLM3Error(f"{endpoint} has failed with status {status}{_because(said)}", hint=f"later, {AGAIN}")
    return SmolLM3Error(
        f"{endpoint} refuses the upload with status {status}{_because(said)}", hint="smollm3 push --help"
    )


def _full(endpoint: str, said: str) -> SmolLM3Error:
    return SmolLM3Error(
        f"the account on {endpoint} is out of storage{_because(said)}",
        hint="delete other repositories or files there, or choose another owner",
    )


def _because(said: str) -> str:
    return f": {said}" if said else ""


def _said(error: Any) -> str:
    """The first line of the server's own message; empty if it sent none."""
    lines = str(getattr(error, "server_message", None) or "").strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else ""


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_of_network(error: BaseException) -> bool:
    """Whether an exception comes from the connection: of Python, or of the library that the Hub's client uses."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(("httpx", "httpcore"))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it: uploads of large files wrap the exception of the request."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
