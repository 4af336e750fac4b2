"""Conversations as text and as token ids, with a mask of the tokens that the assistant must produce.

The mask of a turn starts after the tokens that the generation prompt supplies (the header and, in some modes, a
forced empty think block) and ends with the end-of-turn token. It is computed from prefixes of the rendered text: the
rendering before a turn, with the generation prompt, must be a prefix of the rendering with that turn. If it is not
(for example if a template removes earlier reasoning), the turn is rewritten: `ending_at` gives the conversation that
ends there, which is an example of its own. Generation markers are ignored.

The reasoning mode of a conversation is the first of these that applies: the effect of a flag in its system text on the
template; its own `enable_thinking`; the run's `enable_thinking`; think if an answer has a trace, else no_think. In
no_think mode, traces are removed from answers. Both conversations of a pair are in one mode, so that their answers
continue the same prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune.api import REASONING_FIELDS, Conversation
from smollm3_finetune.api.data import IGNORE_INDEX
from smollm3_finetune.data.chat_template.answers import OPENED, LastAnswer, continued
from smollm3_finetune.data.chat_template.completeness import check_complete
from smollm3_finetune.data.chat_template.endings import PROBE, Endings
from smollm3_finetune.data.chat_template.escaping import MARK, escaped, escaped_text
from smollm3_finetune.data.chat_template.fixed_date import with_fixed_date
from smollm3_finetune.data.chat_template.loss_mask import tokens_and_labels
from smollm3_finetune.data.chat_template.modes import mode_from_flags
from smollm3_finetune.data.chat_template.notes import ENDED, NO_END, NO_PREFIX, NO_TRACE, REWRITTEN
from smollm3_finetune.data.chat_template.raw_text import RawText
from smollm3_finetune.data.chat_template.reasoning import (
    TracePlace,
    answer,
    has_trace,
    trace_place,
    traces,
    with_one_trace,
    without_trace,
)
from smollm3_finetune.data.chat_template.sandbox import MARK as LIMITED
from smollm3_finetune.data.chat_template.sandbox import NULL, limited
from smollm3_finetune.data.chat_template.tool_forms import check_json, forms
from smollm3_finetune.data.chat_template.turns import Prepared, Rendered, Turns
from smollm3_finetune.data.chat_template.undeclared import Undeclared
from smollm3_finetune.data.vocabulary import check_ids
from smollm3_finetune.errors import DataError, ModelError
from smollm3_finetune.files.limits import BeyondLimit
from smollm3_finetune.model_files.stops import as_ids, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIXED_DATE = "2026-01-01"


@dataclass(frozen=True, kw_only=True)
class RenderOptions:
    """How conversations are rendered."""

    template: str | None = None
    """A chat template instead of the tokenizer's own."""
    enable_thinking: bool | None = None
    """The reasoning mode of rows that do not set one; None: think for rows with a trace, no_think for others."""
    history: Literal["keep", "strip"] = "keep"
    """Whether answers before the last user message keep their reasoning."""
    date: str | None = FIXED_DATE
    """The date that templates see as today (YYYY-MM-DD), fixed for reproducibility; None: the current date."""


@dataclass
class Encoded:
    """A conversation as tokens."""

    input_ids: list[int]
    labels: list[int]
    """The token id for supervised tokens, IGNORE_INDEX for others."""
    length: int = 0
    """Tokens before truncation."""
    notes: list[str] = field(default_factory=list)
    """Changes made to it: `trace stripped`, `earlier reasoning stripped`, `empty turn`, those of `notes.py`,
    `tool answer rendered as a user message`, `cut`."""


class Renderer:
    """Renders conversations with one tokenizer, template and set of options.

    Without a template, only raw text is supported: rows of text, and prompts that are continued as they are. Anything
    else raises ModelError.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        options: RenderOptions = RenderOptions(),
        *,
        embeddings: int | None = None,
    ) -> None:
        """`embeddings`: how many the model has; None if unknown. `check_ids` refuses tokens beyond them."""
        self.tokenizer = tokenizer
        self.options = options
        self.embeddings = embeddings
        own = options.template or tokenizer.chat_template or ""
        self.template: str = own if isinstance(own, str) else "\n".join(own.values())  # a dict has one template per use
        self.knows_modes = "enable_thinking" in self.template
        self.counts: Counter[str] = Counter()
        """The number of conversations with each note, over all that were encoded so far."""
        self.turns: list[Turns] = []
        """The turns of each conversation that was encoded, until the list is cleared."""
        self.endings = Endings(tokenizer, self._render)
        self._undeclared = Undeclared(tokenizer)

    def prompt(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> str:
        """The prompt that a model gets to answer the last message.

        It equals the text before the answer in training with the same messages and mode. If neither the arguments, the
        options nor a trace set the mode, the template's default applies. Raises DataError as `spans` does.
        """
        if not self.template:
            return self._prompt_without_template(messages, template_kwargs)
        prepared = self._prepared(
            Conversation(messages=tuple(messages), template_kwargs=template_kwargs), for_prompt=True
        )
        return self._complete(prepared, prompt=True)[0]

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> list[int]:
        """The token ids of `prompt`; without a template, those of raw text, with the tokenizer's begin tokens."""
        text = self.prompt(messages, **template_kwargs)
        return tokens_and_labels(self.tokenizer, text, [])[0] if self.template else self._raw_text.opened(text)

    @cached_property
    def _raw_text(self) -> RawText:
        return RawText(self.tokenizer)

    def mode(self, conversation: Conversation) -> bool | None:
        """The reasoning mode in which a conversation is trained on; None if the template has no modes."""
        mode: bool | None = self._prepared(conversation).kwargs.get("enable_thinking")
        return mode

    def spans(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]], list[str]]:
        """The rendered text, the (start, end) characters of its supervised parts, and notes on changes.

        Raises DataError if the template refuses the conversation or would drop a part of it.
        """
        rendered = self.rendered(conversation)
        return rendered.text, rendered.spans, rendered.notes

    def rendered(self, conversation: Conversation) -> Rendered:
        """The conversation as text, with its supervised parts. Raises DataError as `spans` does."""
        if conversation.text is not None:
            whole = [(0, len(conversation.text))]
            notes = self._undeclared.notes(conversation.text)
            return Rendered(text=conversation.text, spans=whole, turns=[], rewritten=[], notes=notes)
        text, prepared, notes = self._complete(self._prepared(conversation))
        notes = prepared.notes + notes
        spans, turns, rewritten = [], [], []
        last = len(prepared.messages) - 1
        for i in prepared.supervised:
            if i == last and i and prepared.messages[i]["role"] == "assistant":
                text, span, more = self._last_span(prepared, text)
                notes += more
            elif (span := self._supervised_span(prepared, i, text)) is None:
                rewritten += [i] if i < last else []
                notes.append(REWRITTEN)
            if span is None:
                continue
            if not all(piece in text[slice(*span)] for piece in traces(prepared.messages[i])):
                raise DataError(
                    f"the chat template drops the reasoning of message {i}, which is supervised",
                    hint="strip it: --set data.enable_thinking=false, or use a template that renders it",
                )
            spans.append(span)
            turns.append(i)
        notes += self._undeclared.notes(text)
        return Rendered(text=text, spans=spans, turns=turns, rewritten=rewritten, notes=notes)

    def ending_at(self, conversation: Conversation, turn: int, turns: Sequence[int]) -> Conversation:
        """The conversation up to the message `turn`, in the same mode, with those of `turns` in it to train on."""
        mode = self.mode(conversation)
        kwargs = {**conversation.template_kwargs, **({} if mode is None else {"enable_thinking": mode})}
        return replace(
            conversation,
            messages=conversation.messages[: turn + 1],
            supervised=tuple(i for i in turns if i <= turn),
            template_kwargs=kwargs,
        )

    def encode(self, conversation: Conversation, max_length: int) -> Encoded:
        """Token ids and labels of a conversation, cut to `max_length` tokens."""
        rendered = self.rendered(conversation)
        ids, labels = self._tokens(conversation, rendered)
        notes, trained = rendered.notes, rendered.turns
        if len(ids) > max_length:
            notes.append("cut")
            trained = trained[: _runs(labels[:max_length])]
        self.counts.update(set(notes))
        self.turns.append(Turns(conversation=conversation, trained=trained, rewritten=rendered.rewritten))
        cut = Encoded(input_ids=ids[:max_length], labels=labels[:max_length], length=len(ids), notes=notes)
        return self.recorded(cut)

    def recorded(self, encoded: Encoded) -> Encoded:
        """The tokens that an objective gets; a subclass can record them."""
        return encoded

    def chunks(self, conversation: Conversation, max_length: int) -> list[Encoded]:
        """Raw text in pieces of at most `max_length` tokens, each supervised token in exactly one of them.

        Empty for a conversation, and for text that is not longer than `max_length`. The first token of a chunk is the
        last one of the chunk before it and is not supervised there: it is the context of the second. The end-of-text
        token is in the last chunk only, and no chunk begins with a token that the text does not have.
        """
        if conversation.text is None:
            return []
        rendered = self.rendered(conversation)
        ids, labels = self._tokens(conversation, rendered)
        if len(ids) <= max_length:
            return []
        for note in rendered.notes:
            self.note(note)
        made = []
        for start in range(0, len(ids) - 1, max_length - 1):
            own = labels[start : start + max_length]
            own[0] = IGNORE_INDEX
            made.append(Encoded(input_ids=ids[start : start + max_length], labels=own, length=len(ids)))
        return made

    def _tokens(self, conversation: Conversation, rendered: Rendered) -> tuple[list[int], list[int]]:
        """All token ids of a conversation, and their labels."""
        if conversation.text is not None:
            return self._raw_text.tokens_and_labels(conversation.text)
        return tokens_and_labels(self.tokenizer, rendered.text, rendered.spans)

    def check_ids(self, ids: Sequence[int], where: str) -> None:
        """Raises ModelError if one of the token `ids` of `where` is beyond the embeddings of the model."""
        check_ids(self.tokenizer, ids, self.embeddings, where)

    def note(self, what: str) -> None:
        """Count a conversation with the note `what`."""
        self.counts[what] += 1

    def end_of_turn_ids(self) -> list[int]:
        """The tokens that stop generation: those of the base model, the tokenizer's end, and the template's, once each.

        The last one ends a turn.
        """
        base = self.endings.stop_ids
        found = joined(base, as_ids(self.tokenizer.eos_token_id))
        if not self.template:
            return found
        probe = Conversation(messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
        supervised = [i for i in tokens_and_labels(self.tokenizer, *self.spans(probe)[:2])[1] if i != IGNORE_INDEX]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.get_added_vocab().values(), *base}
        return joined(found, [i for i in supervised[-1:] if i in special])

    def _prompt_without_template(
        self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]
    ) -> str:
        """The text of a single message, to be continued. Raises ModelError for anything else."""
        if len(messages) != 1 or any(v is not None for v in template_kwargs.values()):
            raise self._no_template("a system message and reasoning modes need")
        return str(messages[0]["content"])

    def _no_template(self, who: str) -> ModelError:
        return ModelError(
            f"the tokenizer of {self.tokenizer.name_or_path!r} has no chat template, which {who}",
            hint="use the model's -Instruct variant; for training: smollm3 train --set data.template=FILE.jinja",
        )

    def _complete(self, prepared: Prepared, *, prompt: bool = False) -> tuple[str, Prepared, list[str]]:
        """The whole text, the messages in the form that the template reads, and notes.

        Raises the DataError of the first form of tool calls if the template refuses all or drops a part of each.
        """
        problem: DataError | None = None

        def render(messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]) -> str:
            return self._render(messages, kwargs, prompt=prompt)

        for messages in forms(prepared.messages):
            try:
                text = render(messages, prepared.kwargs)
                notes = check_complete(text, messages, prepared.kwargs, render)
                check_json(messages, text)
            except DataError as e:
                if isinstance(e.__cause__, BeyondLimit):
                    raise
                problem = problem or e
                continue
            return text, replace(prepared, messages=messages), notes
        assert problem is not None
        raise problem

    def _last_span(self, prepared: Prepared, text: str) -> tuple[str, tuple[int, int] | None, list[str]]:
        """The text with the supervised last answer, the answer's characters, and notes.

        The text differs from the template's if its prompt opens the trace of the answer, and if the template does not
        end the answer: an end is added, the token at which the base model stops.
        """
        messages = prepared.messages
        before = self._render(messages[:-1], prepared.kwargs, prompt=True)
        found = continued(before, text, messages[-1])
        if found is None:
            return text, None, [NO_TRACE if OPENED.search(before) and not has_trace(messages[-1]) else NO_PREFIX]
        if not self.endings.none:
            return found.text, (found.start, len(found.text.rstrip("\n"))), []
        return self._ended(found, after_call=bool(messages[-1].get("tool_calls")))

    def _ended(self, found: LastAnswer, *, after_call: bool) -> tuple[str, tuple[int, int], list[str]]:
        """The text whose last answer gets an end, the answer's characters, and a note."""
        words = len(found.text) - len(self.endings.last or "")
        end = self.endings.added(after_call=after_call)
        text = found.text[:words] + end + found.text[words:]
        return text, (found.start, words + len(end)), [ENDED.format(end) if end else NO_END]

    def _supervised_span(self, prepared: Prepared, i: int, text: str) -> tuple[int, int] | None:
        """The supervised characters of message `i` in `text`; None if a model with this prompt would not write them."""
        messages, kwargs = prepared.messages, prepared.kwargs
        after = text if i + 1 == len(messages) else self._render(messages[: i + 1], kwargs)
        end = self._end(messages, i, text, after)
        if end is None:
            return None
        if messages[i]["role"] != "assistant":  # a turn without a generation prompt: supervise its content and its end
            probed = self._render([*messages[:i], {**messages[i], "content": PROBE}], kwargs)
            start = probed.rfind(PROBE)
            return (start, end) if start >= 0 and after.startswith(probed[:start]) else None
        if i == 0:  # there is no earlier message to render as a prompt, so the header is searched for
            header = self._render(messages[:1], kwargs, prompt=True)[len(after) :]
            found = after.find(header) if header else -1
            return None if found < 0 else (found + len(header), end)
        before = self._render(messages[:i], kwargs, prompt=True)
        answered = continued(before, after, messages[i])
        return (len(before), end) if answered is not None and answered.text == after else None

    def _end(self, messages: Sequence[Mapping[str, Any]], i: int, text: str, after: str) -> int | None:
        """Where message `i` ends in `text`; `after` is the rendering up to it. None if later messages change it."""
        if not text.startswith(after):
            return self.endings.of_earlier_turn(text, after) if messages[i]["role"] == "assistant" else None
        end = len(after.rstrip("\n"))
        if i + 1 < len(messages) and messages[i]["role"] == "assistant" and self.endings.none:
            stop = self.endings.next_stop(after_call=messages[i + 1]["role"] == "tool")
            if stop and text.startswith(stop, len(after)):
                return len(after) + len(stop)
        return end

    def _prepared(self, conversation: Conversation, *, for_prompt: bool = False) -> Prepared:
        """The conversation in its reasoning mode. With `for_prompt`, the template decides a mode that is not set."""
        messages = [self._normalized(m, i) for i, m in enumerate(conversation.messages)]
        kwargs = {k: v for k, v in conversation.template_kwargs.items() if v is not None and v != [] and v != {}}
        if (tools := [dict(t) for t in conversation.tools]) and kwargs.setdefault("tools", tools) != tools:
            raise DataError("the tools of a conversation differ from those in its template_kwargs")
        if "tools" in kwargs and not {"xml_tools", "python_tools"} & kwargs.keys():
            kwargs["xml_tools"] = kwargs["tools"]  # templates read one name or the other
        traced = [i for i, m in enumerate(messages) if m["role"] == "assistant" and has_trace(m)]
        mode = kwargs.get("enable_thinking", self.options.enable_thinking)
        if mode is not None and not isinstance(mode, bool):
            raise DataError(f"enable_thinking must be true or false, found {mode!r}")
        flagged = mode_from_flags(messages, kwargs, lambda m, k, hide: self._render(m, k, prompt=True, all_flags=hide))
        mode = mode if flagged is None else flagged
        if mode is None and self.knows_modes and (traced or not for_prompt):
            mode = bool(traced) or any(has_trace(self._normalized(m, i)) for i, m in _answers(conversation.rejected))
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
        empty = {i for i in supervised if not answer(messages[i]).strip() and not messages[i].get("tool_calls")}
        notes += ["empty turn"] * len(empty)
        return Prepared(
            messages=messages, kwargs=kwargs, supervised=[i for i in supervised if i not in empty], notes=notes
        )

    def _normalized(self, message: Mapping[str, Any], i: int) -> dict[str, Any]:
        """A copy whose content is text (missing: empty; text parts: joined) and whose reasoning is in one place."""
        content = _content(message)
        plain = {**message, "content": "" if content is None else content}
        if plain["role"] != "assistant" or not isinstance(plain["content"], str):
            return plain
        traced = "think>" in plain["content"] or any(plain.get(f) for f in REASONING_FIELDS)
        return with_one_trace(plain, self._trace_place if traced else TracePlace(), f"message {i}")

    @cached_property
    def _trace_place(self) -> TracePlace:
        """Where the template reads a trace."""
        kwargs = {"enable_thinking": True} if self.knows_modes else {}
        return trace_place(self.template, lambda messages: self._render(messages, kwargs))

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        kwargs: Mapping[str, Any],
        *,
        prompt: bool = False,
        all_flags: bool = False,
    ) -> str:
        """The rendered text of `messages`; with `all_flags`, all mode flags are hidden from the template.

        Raises DataError with the template's message if the template refuses them.
        """
        if not self.template:
            raise self._no_template("conversations need")
        kwargs = dict(kwargs)
        if isinstance(kwargs.get("custom_instructions"), str):
            kwargs["custom_instructions"] = escaped_text(kwargs["custom_instructions"], all_flags=all_flags)
        try:
            template = self.tokenizer.get_chat_template(self.options.template, kwargs.get("tools"))
            with limited():
                text = self.tokenizer.apply_chat_template(
                    [
                        escaped(m if m["content"] is not None else {**m, "content": NULL}, all_flags=all_flags)
                        for m in messages
                    ],
                    tokenize=False,
                    add_generation_prompt=prompt,
                    chat_template=LIMITED + with_fixed_date(template, self.options.date),
                    **kwargs,
                )
        except BeyondLimit as e:
            raise DataError(f"the chat template cannot be used: {e}", hint=e.limit.hint) from e
        except Exception as e:  # jinja2.TemplateError, or any exception that the template raises
            raise DataError(f"the chat template refuses a conversation: {e}") from e
        return str(text).replace(MARK, "")


def _answers(messages: Sequence[Mapping[str, Any]] | None) -> list[tuple[int, Mapping[str, Any]]]:
    return [(i, m) for i, m in enumerate(messages or ()) if m["role"] == "assistant"]


def _content(message: Mapping[str, Any]) -> Any:
    """The content of a message; text parts are joined."""
    content = message.get("content")
    if isinstance(content, list | tuple) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
        return "".join(str(next((p[k] for k in ("text", "value") if p.get(k) is not None), "")) for p in content)
    return content


def _runs(labels: Sequence[int]) -> int:
    """The number of unbroken runs of supervised tokens."""
    marks = [label != IGNORE_INDEX for label in labels]
    return sum(one and not before for before, one in zip([False, *marks], marks, strict=False))
