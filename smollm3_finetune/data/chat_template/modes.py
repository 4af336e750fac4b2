"""The reasoning mode that a flag in the system text selects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smollm3_finetune.data.chat_template.endings import PROBE
from smollm3_finetune.data.chat_template.escaping import SYSTEM_ROLES, flags

RenderPrompt = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any], bool], str]
"""The prompt after messages; the last argument hides all mode flags from the template."""


def mode_from_flags(
    messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any], render: RenderPrompt
) -> bool | None:
    """The mode that a flag in the system text selects; None if `enable_thinking` decides.

    Determined by rendering: whether `enable_thinking` still has an effect together with the flag, and if not, which
    of its values gives the same end of the prompt as the flag.
    """
    system = [m for m in messages if m["role"] in SYSTEM_ROLES]
    texts = [str(m["content"]) for m in system] + [str(kwargs.get("custom_instructions", ""))]
    stated = set().union(*(flags(t) for t in texts)) - {"/system_override"}
    if not stated:
        return None
    probe = [*system, {"role": "user", "content": PROBE}]

    def prompts(*, all_flags: bool) -> list[str]:
        modes = ({**kwargs, "enable_thinking": mode} for mode in (True, False))
        return [render(probe, k, all_flags) for k in modes]

    think, no_think = prompts(all_flags=False)
    if think != no_think:
        return None
    hidden = prompts(all_flags=True)
    if think in hidden:  # the flag has no effect, even if the template removes it
        return None
    ends = [p.rpartition(PROBE)[2] for p in hidden]
    return think.endswith(PROBE + ends[0]) if ends[0] != ends[1] else "/no_think" not in stated
