"""An Ollama Modelfile: the file, its template in Go's language, stop tokens, sampling defaults.

Only chat templates that put fixed texts around each message can be expressed, such as ChatML. These texts are found by
rendering, and the result is compared with what the chat template renders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3_finetune.api import BuildContext, Exported
from smollm3_gguf.check_template import CONVERSATIONS
from smollm3_gguf.checks import generation_of, stops_of
from smollm3_gguf.sampling import sampling_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
"""Values of a generation config, and Ollama's names for them."""
RESERVED = ("{{", "}}", '"""')
"""Texts that a template in a Modelfile cannot contain."""
BEFORE_ACTION, BEFORE_QUOTES = "{", '"'
"""What a text cannot end in: before an action of Go's language, and before the quotes that end a value."""
S, U, A, V = "(first-mark)", "(second-mark)", "(third-mark)", "(fourth-mark)"


@dataclass(frozen=True, kw_only=True)
class Turns:
    """A chat template as the texts before and after the content of each role."""

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    prompt: str
    """What follows the last message, for the answer to begin."""
    default_system: str | None
    """The system message that is rendered if a conversation has none."""

    def render(self, conversation: Sequence[Mapping[str, str]], prompt: bool) -> str:
        """What the template of the Modelfile renders; Ollama adds the default system message itself."""
        turns = list(conversation)
        if self.default_system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.default_system})
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        text = "".join(around[t["role"]][0] + t["content"] + around[t["role"]][1] for t in turns)
        return text + (self.prompt if prompt else "")

    def template(self) -> str:
        """In Go's template language, over Ollama's `.Messages`."""
        parts = [
            f'{{{{ {"if" if i == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for i, (role, (before, after)) in enumerate(
                (("system", self.system), ("user", self.user), ("assistant", self.assistant))
            )
        ]
        return "{{ range .Messages }}" + "".join(parts) + "{{ end }}{{ end }}" + self.prompt


def turns_of(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """The texts around each message; None if the chat template is more than that."""
    try:
        turns = _found(tokenizer)
        if turns is None:
            return None
        for conversation in CONVERSATIONS:
            prompt = conversation[-1]["role"] == "user"
            if turns.render(conversation, prompt) != _render(tokenizer, conversation, prompt):
                return None
    except Exception:  # a template may refuse a role, an order of roles, or anything else
        return None
    return turns


def _render(tokenizer: Any, conversation: Sequence[Mapping[str, str]], prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(list(conversation), tokenize=False, add_generation_prompt=prompt))


def _found(tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """The texts around each message, from one conversation; not compared with others yet."""
    if not isinstance(tokenizer.chat_template, str):
        return None
    roles = (("system", S), ("user", U), ("assistant", A), ("user", V))
    messages = [{"role": role, "content": mark} for role, mark in roles]
    whole = _render(tokenizer, messages, prompt=True)
    if any(whole.count(mark) != 1 for _, mark in roles):
        return None
    before_system, rest = whole.split(S)
    after_system, rest = rest.split(U)
    after_user, rest = rest.split(A)
    after_assistant, last = rest.split(V)
    user_end = _render(tokenizer, messages, prompt=False).partition(V)[2]
    assistant_end = _render(tokenizer, messages[:3], prompt=False).partition(A)[2]
    alone = _render(tokenizer, messages[1:2], prompt=False).partition(U)[0]
    if not (
        last.startswith(user_end) and after_user.startswith(user_end) and after_assistant.startswith(assistant_end)
    ):
        return None
    user_start = after_assistant[len(assistant_end) :]
    if not (after_system.endswith(user_start) and alone.endswith(user_start)):
        return None
    system_end = after_system[: len(after_system) - len(user_start)]
    default = alone[: len(alone) - len(user_start)]
    if default and not (default.startswith(before_system) and default.endswith(system_end)):
        return None
    turns = Turns(
        system=(before_system, system_end),
        user=(user_start, user_end),
        assistant=(after_user[len(user_end) :], assistant_end),
        prompt=last[len(user_end) :],
        default_system=default[len(before_system) : len(default) - len(system_end)] if default else None,
    )
    return turns if _can_be_written(turns) else None


def _can_be_written(turns: Turns) -> bool:
    """Whether Go and Ollama read these texts as they are."""
    inside = (*turns.system, *turns.user, *turns.assistant)
    last = (turns.prompt, turns.default_system or "")
    return not (
        any(mark in text for mark in RESERVED for text in (*inside, *last))
        or any(text.endswith(BEFORE_ACTION) for text in inside)
        or any(text.endswith(BEFORE_QUOTES) for text in last)
    )


def can_be_stated(stop: str) -> bool:
    """Whether a line of a Modelfile can contain a stop; it has no way to escape a character."""
    return bool(stop) and stop.isprintable() and '"' not in stop


def modelfile(name: str, turns: Turns | None, stops: Sequence[str], generation: Mapping[str, Any]) -> str:
    """The text of a Modelfile for the file `name` beside it."""
    lines = [f"FROM ./{name}"]
    if turns is not None:
        lines.append(f'TEMPLATE """{turns.template()}"""')
        if turns.default_system is not None:
            lines.append(f'SYSTEM """{turns.default_system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if can_be_stated(stop)]
    stated, _ = sampling_of(generation)
    lines += [f"PARAMETER {theirs} {stated[ours]}" for ours, theirs in SAMPLING.items() if ours in stated]
    return "\n".join(lines) + "\n"


def write_modelfile(file: Path, name: str, subject: Exported, ctx: BuildContext) -> None:
    """Write a Modelfile for the GGUF file `name`."""
    tokenizer = subject.model.tokenizer()
    turns = turns_of(tokenizer)
    if turns is None and tokenizer.chat_template:
        ctx.progress.say(
            "the Modelfile has no TEMPLATE: the chat template is more than fixed texts around each message; "
            "Ollama then chooses one by the template in the GGUF file"
        )
    stops = [str(token) for token in tokenizer.convert_ids_to_tokens(stops_of(subject))]
    if omitted := [repr(stop) for stop in stops if not can_be_stated(stop)]:
        ctx.progress.say(f"the Modelfile does not state the stop tokens {', '.join(omitted)}: it cannot contain them")
    file.write_text(modelfile(name, turns, stops, generation_of(subject)), encoding="utf-8")
