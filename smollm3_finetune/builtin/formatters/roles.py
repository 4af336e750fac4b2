"""The roles of a conversation under the names that datasets give them."""

from __future__ import annotations

from typing import Any

CALL = "function_call"
"""A turn of the assistant that is a tool call and nothing else, its content the call as JSON."""
NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt"),
    "tool": ("tool", "function", "ipython", "observation", "tool_response", "function_response"),
    CALL: (CALL, "tool_call"),
}
_ROLE_OF = {name: role for role, names in NAMES.items() for name in names}


def role_of(name: Any, where: str, field: str = "role") -> str:
    """One of the keys of NAMES. Raises ValueError for a name that is none of theirs."""
    role = _ROLE_OF.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"{where}: {field} must be one of {', '.join(_ROLE_OF)}, found {name!r}")
    return role
