"""Conversations as text and as token ids, with a mask over what the assistant itself must produce.

The mask of a turn begins after the tokens that the generation prompt supplies (the header and, in some modes, a
forced empty think block) and ends with the end-of-turn token. It is found from the template's own prefixes: the
rendering up to a turn with the generation prompt must be a prefix of the rendering with that turn. A turn for which
this does not hold (templates that cut earlier reasoning) is not learned from. Generation markers are not looked at.

The reasoning mode of a conversation is, in this order: what a flag in its system text does to the template; its own
`enable_thinking`; the run's; think where an answer has a trace, else not. Answers in no_think mode lose their traces.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.api import Conversation
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.data.chat_template.completeness import check_complete
from smollm3_finetune.data.chat_template.escaping import INSTRUCTING, MARK, flags, guarded, guarded_text
from smollm3_finetune.data.chat_template.fixed_date import with_fixed_date
from smollm3_finetune.data.chat_template.reasoning import answer, has_trace, traces, with_one_trace, without_trace
from smollm3_finetune.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_DATE = "2026-01-01"
PROBE = "zq?qz"
"""A user's message that stands for any."""


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How conversations become text."""

    template: str | None = None
    """A chat template instead of the tokenizer's own."""
    enable_thinking: bool | None = None
    """The reasoning mode of rows that do not state one; None: think for a row with a trace, else not."""
    history: Literal["keep", "strip"] = "keep"
    """What happens to the reasoning of answers before the last user message."""
    date: str | None = FIXED_DATE
    """What templates are told is today, YYYY-MM-DD, so that a run does not depend on its day; None: today."""


@dataclass
class Encoded:
    """A conversation as tokens."""

    input_ids: list[int]
    labels: list[int]
    """IGNORED outside what is learned."""
    length: int = 0
    """Tokens before anything was cut."""
    notes: list[str] = field(default_factory=list)
    """What was changed on the way: `trace stripped`, `earlier reasoning stripped`, `empty turn`,
    `turn rewritten by the template`, `cut`."""


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A conversation in its reasoning mode."""

    messages: list[dict[str, Any]]
    kwargs: dict[str, Any]
    """For the template, tools and mode included."""
    supervised: list[int]
    notes: list[str]


class Renderer:
    """Renders conversations with one tokenizer, template and set of options.

    Without a template there is text only: rows of raw text, and prompts that are continued as they stand. Whatever
    else is asked of it raises ModelError.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: RenderOptions = RenderOptions()) -> None:
        self.tokenizer = tokenizer
        self.options = options
        own = options.template or tokenizer.chat_template or ""
        self.template: str = own if isinstance(own, str) else "\n".join(own.values())  # one for each use
        self.knows_modes = "enable_thinking" in self.template
        self.counts: Counter[str] = Counter()
        """How often each note was made, over all conversations encoded so far."""

    def prompt(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> str:
        """What a model is given to answer the last message.

        It is what training text of the same messages and mode has before the answer. Where neither the arguments, the
        options nor a trace say the mode it is the template's own. Raises DataError as `spans` does.
        """
        if not self.template:
            return self._continued(messages, template_kwargs)
        ready = self._prepared(Conversation(messages=tuple(messages), template_kwargs=template_kwargs), answering=True)
        text = self._render(ready.messages, ready.kwargs, prompt=True)
        check_complete(text, ready.messages, ready.kwargs, lambda m, k: self._render(m, k, prompt=True))
        return text

    def mode(self, conversation: Conversation) -> bool | None:
        """The reasoning mode in which a conversation is learned; None where the template has none."""
        mode: bool | None = self._prepared(conversation).kwargs.get("enable_thinking")
        return mode

    def spans(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]], list[str]]:
        """The rendered text, the (start, end) characters to learn, and notes on what was changed.

        Raises DataError where the template refuses the conversation or would drop a part of it.
        """
        if conversation.text is not None:
            return conversation.text, [(0, len(conversation.text))], []
        ready = self._prepared(conversation)
        text = self._render(ready.messages, ready.kwargs)
        check_complete(text, ready.messages, ready.kwargs, self._render)
        spans = []
        for i in ready.supervised:
            span = self._span(ready, i, text)
            if span is None:
                ready.notes.append("turn rewritten by the template")
                continue
            if not all(piece in text[slice(*span)] for piece in traces(ready.messages[i])):
                raise DataError(
                    f"the chat template drops the reasoning of message {i}, which is to be learned",
                    hint="--set data.enable_thinking=false strips it, or give a template that renders it",
                )
            spans.append(span)
        return text, spans, ready.notes

    def encode(self, conversation: Conversation, max_length: int) -> Encoded:
        """Token ids and labels of a conversation, cut to `max_length` tokens."""
        text, spans, notes = self.spans(conversation)
        ids, labels = self._tokens(text, spans)
        if conversation.text is not None and self.tokenizer.eos_token_id is not None:
            ids.append(int(self.tokenizer.eos_token_id))
            labels.append(ids[-1])
        if len(ids) > max_length:
            notes.append("cut")
        self.counts.update(set(notes))
        return Encoded(input_ids=ids[:max_length], labels=labels[:max_length], length=len(ids), notes=notes)

    def note(self, what: str) -> None:
        """Count a conversation under `what`."""
        self.counts[what] += 1

    def end_of_turn_ids(self) -> list[int]:
        """The tokens at which generation stops: the tokenizer's own end, and what the template ends an answer with."""
        end = self.tokenizer.eos_token_id
        found = [] if end is None else [int(end)]
        if not self.template:
            return found
        probe = Conversation(messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
        supervised = [i for i in self._tokens(*self.spans(probe)[:2])[1] if i != IGNORE_INDEX]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values()}
        return found + [i for i in supervised[-1:] if i in special and i not in found]

    def _continued(self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]) -> str:
        """The text of a single message, to go on from. Raises ModelError for more than that."""
        if len(messages) != 1 or any(v is not None for v in template_kwargs.values()):
            raise self._no_template("a system message and reasoning modes need")
        return str(messages[0]["content"])

    def _no_template(self, who: str) -> ModelError:
        return ModelError(
            f"the tokenizer of {self.tokenizer.name_or_path!r} has no chat template, which {who}",
            hint="use the model's -Instruct variant, or --set data.template=FILE.jinja",
        )

    def _tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
        """Token ids and labels. What a prompt ends in is never one token with what the answer begins with."""
        ids, offsets = self._pieces(text, [])
        begins = [start for start, _ in offsets]
        holding = [(bound, bisect_right(begins, bound) - 1) for bound, _ in spans]
        inside = [bound for bound, t in holding if t >= 0 and offsets[t][0] < bound < offsets[t][1]]
        if inside:  # an answer that begins with a line break, which the header's own would swallow
            ids, offsets = self._pieces(text, inside)
        labels = [IGNORE_INDEX] * len(ids)
        turn = 0
        for t, (start, end) in enumerate(offsets):
            while turn < len(spans) and spans[turn][1] <= start:
                turn += 1
            if turn < len(spans) and spans[turn][0] <= start and end <= spans[turn][1]:
                labels[t] = ids[t]
        return ids, labels

    def _pieces(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of the text cut there, and the (start, end) characters of each."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            encoded = self.tokenizer(text[start:end], add_special_tokens=False, return_offsets_mapping=True)
            ids += encoded["input_ids"]
            offsets += [(start + a, start + b) for a, b in encoded["offset_mapping"]]
        return ids, offsets

    def _span(self, ready: _Prepared, i: int, text: str) -> tuple[int, int] | None:
        """The characters of `text` that message `i` is learned from; None where they are not as a model writes them."""
        messages, kwargs = ready.messages, ready.kwargs
        after = text if i + 1 == len(messages) else self._render(messages[: i + 1], kwargs)
        if not text.startswith(after):
            return None
        end = len(after.rstrip("\n"))
        if messages[i]["role"] != "assistant":  # a turn that no prompt asks for: its content and its end
            probed = self._render([*messages[:i], {**messages[i], "content": PROBE}], kwargs)
            start = probed.rfind(PROBE)
            return (start, end) if start >= 0 and after.startswith(probed[:start]) else None
        if i == 0:  # nothing to prompt with, so the header is looked up
            header = self._render(messages[:1], kwargs, prompt=True)[len(after) :]
            found = after.find(header) if header else -1
            return None if found < 0 else (found + len(header), end)
        before = self._render(messages[:i], kwargs, prompt=True)
        return (len(before), end) if after.startswith(before) else None

    def _prepared(self, conversation: Conversation, *, answering: bool = False) -> _Prepared:
        """The conversation in its reasoning mode; `answering` leaves a mode that nothing states to the template."""
        messages = [_plain(m, i, self.template) for i, m in enumerate(conversation.messages)]
        kwargs = {k: v for k, v in conversation.template_kwargs.items() if v is not None and v != [] and v != {}}
        if (tools := [dict(t) for t in conversation.tools]) and kwargs.setdefault("tools", tools) != tools:
            raise DataError("the tools of a conversation and those of its template_kwargs are not the same")
        if "tools" in kwargs and not {"xml_tools", "python_tools"} & kwargs.keys():
            kwargs["xml_tools"] = kwargs["tools"]  # templates read the one name or the other
        traced = [i for i, m in enumerate(messages) if m["role"] == "assistant" and has_trace(m)]
        mode = kwargs.get("enable_thinking", self.options.enable_thinking)
        if mode is not None and not isinstance(mode, bool):
            raise DataError(f"enable_thinking must be true or false, found {mode!r}")
        flagged = self._flagged_mode(messages, kwargs)
        mode = mode if flagged is None else flagged
        if mode is None and self.knows_modes and (traced or not answering):
            mode = bool(traced)
        if mode is not None:
            kwargs["enable_thinking"] = mode
        supervised, notes = sorted(set(conversation.supervised_messages())), []
        if mode is False:
            messages = [without_trace(m) if m["role"] == "assistant" else m for m in messages]
            notes += ["trace stripped"] * len(traced)
        elif self.options.history == "strip":
            last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
            earlier = [i for i in traced if i < last_user]
            for i in earlier:
                messages[i] = without_trace(messages[i])
            notes += ["earlier reasoning stripped"] * len(earlier)
            supervised = [i for i in supervised if i not in earlier]
        silent = {i for i in supervised if not answer(messages[i]).strip() and not messages[i].get("tool_calls")}
        notes += ["empty turn"] * len(silent)
        return _Prepared(
            messages=messages, kwargs=kwargs, supervised=[i for i in supervised if i not in silent], notes=notes
        )

    def _flagged_mode(self, messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]) -> bool | None:
        """The mode that a flag in the system text puts the template into; None where `enable_thinking` decides.

        Told from what the template does: whether `enable_thinking` still matters beside the flag, and if not, which of
        its values ends the prompt as the flag does.
        """
        system = [m for m in messages if m["role"] in INSTRUCTING]
        texts = [str(m["content"]) for m in system] + [str(kwargs.get("custom_instructions", ""))]
        stated = set().union(*(flags(t) for t in texts)) - {"/system_override"}
        if not stated:
            return None
        probe = [*system, {"role": "user", "content": PROBE}]

        def prompts(*, whole: bool) -> list[str]:
            modes = ({**kwargs, "enable_thinking": mode} for mode in (True, False))
            return [self._render(probe, k, prompt=True, whole=whole) for k in modes]

        think, no_think = prompts(whole=False)
        if think != no_think:
            return None
        hidden = prompts(whole=True)
        if think in hidden:  # deleted or not, the flag changes nothing
            return None
        ends = [p.rpartition(PROBE)[2] for p in hidden]
        return think.endswith(PROBE + ends[0]) if ends[0] != ends[1] else "/no_think" not in stated

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        kwargs: Mapping[str, Any],
        *,
        prompt: bool = False,
        whole: bool = False,
    ) -> str:
        """The text of `messages`; with `whole`, as if their mode flags were ordinary words.

        Raises DataError with the template's own words where it refuses them.
        """
        if not self.template:
            raise self._no_template("conversations need")
        kwargs = dict(kwargs)
        if isinstance(kwargs.get("custom_instructions"), str):
            kwargs["custom_instructions"] = guarded_text(kwargs["custom_instructions"], whole=whole)
        try:
            template = self.tokenizer.get_chat_template(self.options.template, kwargs.get("tools"))
            text = self.tokenizer.apply_chat_template(
                [guarded(m, whole=whole) for m in messages],
                tokenize=False,
                add_generation_prompt=prompt,
                chat_template=with_fixed_date(template, self.options.date),
                **kwargs,
            )
        except Exception as e:  # jinja2.TemplateError and whatever the template's author raises
            raise DataError(f"the chat template refuses a conversation: {e}") from e
        return str(text).replace(MARK, "")


def _plain(message: Mapping[str, Any], i: int, template: str) -> dict[str, Any]:
    """A copy whose content is text (missing: empty; text parts: joined) and whose reasoning stands in one place."""
    content = message.get("content")
    if isinstance(content, list | tuple) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        content = "".join(str(p.get("text", "")) for p in content)
    plain = {**message, "content": "" if content is None else content}
    if plain["role"] != "assistant" or not isinstance(plain["content"], str):
        return plain
    return with_one_trace(plain, template, f"message {i}")
