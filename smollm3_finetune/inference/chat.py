"""A chat with a loaded model, without a terminal: histories, modes, the adapter on and off, and answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from smollm3_finetune import stopping
from smollm3_finetune.components.negotiation import refined
from smollm3_finetune.data.chat_template.answers import OPENED
from smollm3_finetune.data.chat_template.renderer import Renderer
from smollm3_finetune.errors import ConfigError, IncompatibleError, ModelError
from smollm3_finetune.inference.cached_prefix import CachedPrefix
from smollm3_finetune.inference.conversation import History, Turn
from smollm3_finetune.inference.decoding import Answer, Decoder
from smollm3_finetune.inference.sampling import GREEDY, Sampling
from smollm3_finetune.model_files.context_length import context_of, rope_type

if TYPE_CHECKING:
    from smollm3_finetune.model.load import LoadedModel
    from smollm3_finetune.model.plan import ModelPlan

Side = Literal["model", "base"]
"""Which model answers: the loaded one, with its adapter if it has one, or its base alone."""
THINKING_OPENED = "<think>\n"
CHANGING_ROPE = ("dynamic", "longrope")
"""Kinds of rope whose frequencies depend on the length, so that a cache of a shorter text differs."""
NEAR = 0.8
"""The part of the context above which a chat is near its limit."""


@dataclass(frozen=True)
class Reply:
    """An answer of one side."""

    side: Side
    answer: Answer
    """Its text begins with `<think>` if the prompt opened the reasoning."""
    prompt_tokens: int
    room: int
    """The limit of new tokens: smaller than the chat's if the context has no more."""

    @property
    def tokens(self) -> int:
        """The tokens of the context that are used after the answer."""
        return self.prompt_tokens + len(self.answer.ids)


@dataclass
class Chat:
    """The state of a chat. With `compare`, the model and its base answer each turn, each with a history of its own."""

    loaded: LoadedModel
    renderer: Renderer
    sampling: Sampling = GREEDY
    max_new_tokens: int = 1024
    mode: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the chat template: `enable_thinking`, if it is set."""
    compare: bool = False
    system: str | None = None
    reuse: bool = True
    """Continue from the key-value cache of the turn before, if that is exact."""
    base_answers: bool = field(default=False, init=False)
    """The adapter is off."""

    def __post_init__(self) -> None:
        plan = self.loaded.plan
        if self.compare and (problem := base_problem(plan)) is not None:
            raise problem
        self.decoder = Decoder.of(self.loaded.model, self.renderer)
        self.limit = context_of(plan.source.config)
        """Tokens of the context, the answer included; None if unknown."""
        if rope_type(plan.source.config) in CHANGING_ROPE:
            self.reuse = False
        sides: tuple[Side, ...] = ("model", "base") if self.compare else ("model",)
        self.histories: dict[Side, History] = {side: History(self.system) for side in sides}
        self._prefixes: dict[Side, CachedPrefix] = {"model": CachedPrefix(), "base": CachedPrefix()}
        self.last: list[Reply] = []
        """The replies of the last turn."""

    @property
    def history(self) -> History:
        """The history of the model; with `compare`, the base has another one."""
        return self.histories["model"]

    @property
    def sides(self) -> list[Side]:
        """The sides that answer the next turn."""
        return ["model", "base"] if self.compare else ["base" if self.base_answers else "model"]

    def ask(
        self,
        prompt: str,
        stream: Callable[[Side, str], None] = lambda side, text: None,
        stopped: Callable[[], bool] = lambda: False,
        done: Callable[[Reply], None] = lambda reply: None,
    ) -> list[Reply]:
        """Answer `prompt` on each side, and add the turn to the history.

        `stream` gets each new piece of an answer, and `done` each whole answer. An answer ends early when `stopped`
        returns True, or by a KeyboardInterrupt: what was generated stays. If nothing was generated, the turn is not
        added. Raises ConfigError if the prompt does not fit into the context; the history is then unchanged.
        """
        prompts = {side: self._prompt(side, prompt) for side in self.sides}
        replies: list[Reply] = []
        for side in self.sides:
            last = side == self.sides[-1]
            with self._same_random_numbers(again=not last):
                replies.append(self._reply(side, *prompts[side], stream, stopped))
            done(replies[-1])
        if any(r.answer.ids or r.answer.finish != "cut" for r in replies):
            for reply in replies:
                turn = Turn(prompt, reply.answer.text, whole=reply.answer.finish == "stop")
                self.histories[reply.side if self.compare else "model"].turns.append(turn)
        self.last = replies
        return replies

    def _prompt(self, side: Side, prompt: str) -> tuple[list[int], int]:
        """The token ids of the next prompt, and the room for its answer."""
        messages = self.histories[side if self.compare else "model"].messages(prompt)
        ids = self.renderer.prompt_ids(messages, **self.mode)
        self.renderer.check_ids(ids, "the prompt")
        room = self.max_new_tokens if self.limit is None else min(self.max_new_tokens, self.limit - len(ids))
        if room <= 0:
            raise ConfigError(
                f"the chat does not fit: it is {len(ids)} tokens long with this message, but the model supports "
                f"{self.limit}, including the answer",
                hint=f"a shorter message{', /undo or /reset' if self.history.turns else ''}",
            )
        return ids, room

    def _reply(
        self,
        side: Side,
        ids: list[int],
        room: int,
        stream: Callable[[Side, str], None],
        stopped: Callable[[], bool],
    ) -> Reply:
        opened = THINKING_OPENED if OPENED.search(self.decoder.tokenizer.decode(ids[-8:])) else ""
        pieces: list[str] = []

        def write(text: str) -> None:
            pieces.append(text)
            stream(side, text)

        if opened:
            stream(side, opened)
        off = side == "base" and self.loaded.adapted is not None
        try:
            with self.loaded.disabled() if off else contextlib.nullcontext():
                ((answer,),) = self.decoder.answers(
                    [ids],
                    max_new_tokens=room,
                    sampling=self.sampling,
                    stream=write,
                    stopped=stopped,
                    prefix=self._prefixes[side] if self.reuse else None,
                )
        except stopping.Stop:
            raise
        except KeyboardInterrupt:
            text = "".join(pieces)
            answer = Answer(self.decoder.tokenizer(text, add_special_tokens=False).input_ids, text, "cut")
        return Reply(side, Answer(answer.ids, opened + answer.text, answer.finish), len(ids), room)

    @contextlib.contextmanager
    def _same_random_numbers(self, *, again: bool) -> Iterator[None]:
        """With `again`, what follows the context draws the same random numbers as inside: sides differ by model."""
        if not again:
            yield
            return
        import torch

        device = next(self.loaded.model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield

    def near_limit(self) -> int | None:
        """The tokens in use after the last turn, if they are near the limit of the context."""
        used = max((reply.tokens for reply in self.last), default=0)
        return used if self.limit is not None and used > NEAR * self.limit else None

    def undo(self) -> Turn | None:
        """Remove the last turn; returns it, or None if there is none."""
        self.last = []
        removed = [h.turns.pop() for h in self.histories.values() if h.turns]
        return removed[0] if removed else None

    def reset(self) -> int:
        """Remove all turns, but not the system message; returns their number."""
        self.last = []
        count = len(self.history.turns)
        for history in self.histories.values():
            history.turns.clear()
        return count

    def set_system(self, text: str | None) -> None:
        """Set or remove the system message; the history stays."""
        self.system = text or None
        for history in self.histories.values():
            history.system = self.system

    def set_thinking(self, on: bool) -> None:
        """Set the reasoning mode of the next answers. Raises ConfigError if the template has no modes."""
        if not self.renderer.knows_modes:
            raise ConfigError("the chat template of this model has no reasoning modes")
        self.mode = {**self.mode, "enable_thinking": on}

    def switch_adapter(self) -> bool:
        """Switch the adapter off, or on again; returns whether it is on. Raises IncompatibleError if it cannot be."""
        if self.compare:
            raise ConfigError("--compare already shows the answers with and without the adapter")
        if (problem := base_problem(self.loaded.plan)) is not None:
            raise problem
        self.base_answers = not self.base_answers
        return not self.base_answers


def base_problem(plan: ModelPlan) -> IncompatibleError | None:
    """Why the base alone cannot answer, or None."""
    if plan.adapter is None:
        return IncompatibleError(
            f"{plan.ref!r} is used without an adapter, so there is nothing to switch off",
            hint="smollm3 chat RUN, or --adapter-path DIR",
        )
    if not refined(plan.adapter, plan.env).disables:
        return IncompatibleError(
            f"the adapter {plan.adapter.component.spec.name!r} changes the base's own weights, so it cannot be "
            "switched off",
            hint=f"to chat with the base: smollm3 chat {plan.ref}",
        )
    return None


def check_chat_template(renderer: Renderer, ref: str) -> None:
    """Raises ModelError if a model has no chat template."""
    if not renderer.template:
        raise ModelError(
            f"{ref!r} has no chat template, which a chat needs",
            hint="use the model's -Instruct variant, or continue text: smollm3 generate MODEL --prompt 'TEXT'",
        )
