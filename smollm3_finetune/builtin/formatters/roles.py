"""The roles of a conversation, and the names of each role in datasets."""

from __future__ import annotations

from typing import Any

from smollm3_finetune.errors import did_you_mean

CALL = "function_call"
"""An assistant turn that is only a tool call, with the call as JSON in its content."""
NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt"),
    "tool": ("tool", "function", "ipython", "observation", "tool_response", "function_response"),
    CALL: (CALL, "tool_call"),
}
_ROLE_OF = {name: role for role, names in NAMES.items() for name in names}


def role_of(name: Any, where: str, field: str = "role") -> str:
    """One of the keys of NAMES. Raises ValueError for an unknown name."""
    role = _ROLE_OF.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        if name is None:
            raise ValueError(f"{where}: {field!r} is missing (roles: {', '.join(_ROLE_OF)})")
        near = did_you_mean(name.strip().lower(), _ROLE_OF) if isinstance(name, str) else None
        meant = f"; did you mean {near!r}?" if near else ""
        place = "" if field == "role" else f" in {field!r}"
        raise ValueError(f"{where}: found the role {name!r}{place}{meant} (roles: {', '.join(_ROLE_OF)})")
    return role
